"""A statistical model of deformations, and an agent that values steps along its modes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Convolution
from .bspline_net import fitted_coefficients, unit_lattice
from .dual_stream import first_layout

#: Places along each axis at which the features of a stream are kept apart.
_PLACES = 4
#: Modes whose deviation is a smaller share of the largest are rounding errors.
_LEAST_SHARE = 1e-4
#: What all actions are worth before anything is learned: no action is worth taking.
_UNTAUGHT = -1.0


class DeformationModes(nn.Module):
    """Deformations mu + P b: the modes of the control points of cubic B-splines.

    Convention:
        Control points are (3, *(mesh + 3)), in voxels of the grid, over which the lattice is spread
        whatever its shape. b counts standard deviations. Modes of zeros are not there.

    Args:
        count: Number of modes.
        mesh: Elements of the lattice along each axis.
    """

    mean: Tensor
    modes: Tensor

    def __init__(self, count: int, mesh: Sequence[int]) -> None:
        super().__init__()
        self.mesh = tuple(int(n) for n in mesh)
        lattice = [n + 3 for n in self.mesh]
        self.register_buffer("mean", torch.zeros(1, 3, *lattice))
        self.register_buffer("modes", torch.zeros(count, 3, *lattice))

    @property
    def known(self) -> Tensor:
        """Which modes there are, (count,), bool."""
        return self.modes.flatten(1).abs().amax(dim=1) > 0

    def learn(self, control_points: Tensor) -> None:
        """Takes mean and modes from examples, by a principal component analysis.

        Args:
            control_points: (n, 3, *(mesh + 3)); n examples give n - 1 modes at most.
        """
        flat = control_points.double().flatten(1)
        mean = flat.mean(dim=0)
        _, sizes, axes = torch.linalg.svd(flat - mean, full_matrices=False)
        count = min(len(self.modes), len(flat) - 1)
        deviations = sizes[:count] / max(len(flat) - 1, 1) ** 0.5
        count = int((deviations > _LEAST_SHARE * deviations[:1]).sum())
        modes = deviations[:count, None] * axes[:count]
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.modes.zero_()
        self.modes[:count] = modes.reshape(-1, *self.mean.shape[1:]).to(self.modes)

    def control_points(self, coefficients: Tensor) -> Tensor:
        """Returns the control points (B, 3, *(mesh + 3)) of coefficients (B, count).

        Without a single mode, everything stays where it is.
        """
        bent = torch.einsum("bm,mcxyz->bcxyz", coefficients.to(self.modes), self.modes)
        return self.mean + bent

    def displacement(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        """Returns the displacement (B, 3, *shape) of coefficients (B, count)."""
        return unit_lattice(shape, self.mesh).evaluate(self.control_points(coefficients))

    def coefficients(self, displacement: Tensor) -> Tensor:
        """Returns the coefficients (B, count) of what is nearest to displacements (B, 3, *shape).

        Nearest are the control points that fit the displacement by least squares.
        """
        lattice = unit_lattice(displacement.shape[2:], self.mesh)
        away = (fitted_coefficients(lattice, displacement) - self.mean).flatten(1)
        modes = self.modes.flatten(1)
        return away @ modes.T / modes.square().sum(dim=1).clamp(min=1e-12)


class DeformationAgent(nn.Module):
    """Values of steps along all modes, there and back (Q), for a fixed and a moved image.

    Krebs et al. 2017, doi:10.1007/978-3-319-66182-7_40: each image has a stream of its own, whose
    features meet late, in dense layers. Features keep their places, on a coarse grid of fixed size,
    so that images may have any shape.

    Args:
        count: Number of modes.
        mesh: Elements of the lattice of control points along each axis.
        channels: Features of the convolutions of a stream, each followed by pooling.
        hidden: Features of the dense layers.
    """

    def __init__(
        self,
        count: int,
        mesh: Sequence[int],
        channels: Sequence[int] = (8, 16, 32, 32),
        hidden: Sequence[int] = (256, 128),
    ) -> None:
        super().__init__()
        self.model = DeformationModes(count, mesh)
        inputs = [1, *channels[:-1]]
        self.streams = nn.ModuleList(
            nn.ModuleList(Convolution(i, o, activation="relu") for i, o in zip(inputs, channels))
            for _ in range(2)
        )
        widths = [2 * channels[-1] * _PLACES**3, *hidden]
        self.dense = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, hidden))
        for layer in self.dense:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.last = nn.Linear(widths[-1], 2 * count)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, _UNTAUGHT)

    def forward(self, fixed: Tensor, moved: Tensor) -> Tensor:
        """Returns the values, (B, 2 count): first of the steps there, then of those back."""
        found = []
        for stream, image in zip(self.streams, (fixed, moved)):
            features = first_layout(image)
            for layer in stream:  # type: ignore[attr-defined]
                features = layer(features)
                width = [min(2, n) for n in features.shape[2:]]
                features = F.max_pool3d(features, width)
            found.append(F.adaptive_avg_pool3d(features, _PLACES).flatten(1))
        flat = torch.cat(found, dim=1)
        for layer in self.dense:
            flat = torch.relu(layer(flat))
        with torch.autocast(fixed.device.type, enabled=False):
            values: Tensor = self.last(flat.float())
        return values
