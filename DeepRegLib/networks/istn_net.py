"""Networks of image-and-spatial transformers: images to maps of structures, and to transforms.

Lee et al. 2019, doi:10.1007/978-3-030-32245-8_38.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry.affine import rotation_from_vector
from ..geometry.bspline import BSplineLattice
from .affine_net import center_of
from .blocks import Convolution, Doubling, convolved, halved, result_layer, standardized
from .bspline_net import unit_lattice
from .composite import moved_by
from .dual_stream import first_layout

#: Largest translation and displacement, in halves of the size of the grid.
_SHIFT, _BEND = 0.1, 0.2
#: Largest rotation, and largest turn of the axes along which the affine map stretches, radians.
_TURN = math.pi / 4
#: Largest logarithm of a stretch.
_STRETCH = 0.2
#: Cells along each axis whose features the dense layer reads.
_CELLS = 4
#: Factor of the numbers. Adam's steps have a fixed length, and would throw the structures out of
#: sight at first, from where no gradient brings them back.
_GENTLE = 0.2
#: Features of the dense layer, as published.
HIDDEN = 32


class ImageTransformer(nn.Module):
    """ITN: a small encoder and decoder that makes a map of structures from an image.

    Two halvings, two doublings, and skips that are added, not appended. Both images pass it with
    the same weights. Features are halved by averaging, which keeps them centered on the voxels of
    the coarser grid. Images are brought to mean 0 and standard deviation 1 first, as the spatial
    transformer's maps are.

    Args:
        outputs: Channels of the maps.
        channels: Channels of the first convolution; the published network has 2.
    """

    def __init__(self, outputs: int = 1, channels: int = 2) -> None:
        super().__init__()
        c = channels
        self.down = nn.ModuleList(
            nn.Sequential(Convolution(i, m), Convolution(m, o))
            for i, m, o in ((1, c, 2 * c), (2 * c, 4 * c, 4 * c), (4 * c, 8 * c, 8 * c))
        )
        self.up = nn.ModuleList([Doubling(8 * c, 4 * c), Doubling(4 * c, 2 * c)])
        self.last = nn.Sequential(
            Convolution(2 * c, c), Convolution(c, c), Convolution(c, outputs, activation="linear")
        )

    def forward(self, image: Tensor) -> Tensor:
        """Returns the maps, (B, outputs, *shape), float32; images are (B, 1, *shape)."""
        passed: list[Tensor] = []
        for layers in self.down:
            inputs = halved(passed[-1]) if passed else first_layout(standardized(image))
            passed.append(layers(inputs))
        features = passed.pop()
        for doubling in self.up:
            skip = passed.pop()
            features = F.leaky_relu(doubling(features, skip.shape[2:]) + skip, 0.2)
        found: Tensor = self.last(features)
        return found.float()


class SpatialTransformer(nn.Module):
    """STN: convolutions of 5 x 5 x 5 and a dense layer that read numbers off a pair of maps.

    The maps are brought to mean 0 and standard deviation 1 (those of small structures are near zero
    almost everywhere). The features are averaged in 4 x 4 x 4 cells, so that grids of any shape
    will do.

    Args:
        inputs: Channels of the maps of one image.
        numbers: Numbers that come out, zero at first.
        hidden: Features of the dense layer: the numbers have no more degrees of freedom than these.
        dropout: Share of what the dense layer reads that is left out at random, in training.
    """

    def __init__(
        self, inputs: int, numbers: int, hidden: int = HIDDEN, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self._dropout = dropout
        widths = [2 * inputs, 8, 16, 32]
        self.convolutions = nn.ModuleList(
            nn.Conv3d(i, o, 5, padding=2) for i, o in itertools.pairwise(widths)
        )
        self.dense = nn.Linear(widths[-1] * _CELLS**3, hidden)
        for layer in [*self.convolutions, self.dense]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.numbers = result_layer(nn.Linear(hidden, numbers))
        nn.init.zeros_(self.numbers.weight)
        nn.init.zeros_(self.numbers.bias)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns the numbers, (B, numbers), float32; maps are (B, inputs, *shape)."""
        pair = torch.cat([standardized(moving), standardized(fixed)], dim=1)
        features = first_layout(pair)
        for layer in self.convolutions:
            assert isinstance(layer, nn.Conv3d)
            features = halved(torch.relu(convolved(features, layer)))
        cells = F.adaptive_avg_pool3d(features, _CELLS).flatten(1)
        cells = F.dropout(cells, self._dropout, self.training)
        hidden = torch.relu(self.dense(cells))
        # Half precision is too coarse for numbers that move voxels.
        with torch.autocast(hidden.device.type, enabled=False):
            found: Tensor = _GENTLE * self.numbers(hidden.float())
            return found


class AffineTransformer(SpatialTransformer):
    """STN of an affine map."""

    def __init__(self, inputs: int, hidden: int = HIDDEN, dropout: float = 0.0) -> None:
        super().__init__(inputs, 12, hidden, dropout)

    def matrix(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns the map, (B, 4, 4) in voxels."""
        numbers = self(fixed, moving)
        with torch.autocast(numbers.device.type, enabled=False):
            return bounded_affine(numbers, fixed.shape[2:])


class SplineTransformer(SpatialTransformer):
    """STN of a cubic B-spline whose lattice has a fixed number of elements, over any grid.

    Args:
        inputs: Channels of the maps of one image.
        mesh: Elements along each axis.
        hidden: Features of the dense layer.
        dropout: Share of what it reads that is left out at random, in training.
    """

    def __init__(
        self, inputs: int, mesh: Sequence[int], hidden: int = HIDDEN, dropout: float = 0.0
    ) -> None:
        control = tuple(int(m) + 3 for m in mesh)
        super().__init__(inputs, 3 * math.prod(control), hidden, dropout)
        self.mesh, self.control = tuple(int(m) for m in mesh), control

    def coefficients(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns the vectors at the control points, (B, 3, *control) in voxels."""
        vectors = torch.tanh(self(fixed, moving)).reshape(-1, 3, *self.control)
        half = torch.tensor([n / 2 for n in fixed.shape[2:]]).to(vectors)
        return _BEND * half.view(1, 3, 1, 1, 1) * vectors

    def lattice(self, shape: Sequence[int]) -> BSplineLattice:
        """Returns the lattice over a grid in which a voxel is a unit of length."""
        return unit_lattice(shape, self.mesh)


class Aligned(NamedTuple):
    """What the networks say of pairs: maps of both images, and x -> A(x + u(x)).

    Args:
        fixed: What the spatial transformer sees of the fixed images, (B, C, *shape).
        moving: The same of the moving images.
        matrix: A, (B, 4, 4) in voxels, if there is an affine part.
        displacement: u, (B, 3, *shape) in voxels, if there is a B-spline.
        coefficients: Its vectors at the control points, (B, 3, *control).
    """

    fixed: Tensor
    moving: Tensor
    matrix: Tensor | None
    displacement: Tensor | None
    coefficients: Tensor | None


class ISTN(nn.Module):
    """An image transformer, and spatial transformers: affine, B-spline, or the second after it.

    Args:
        maps: Channels of the maps; None for no image transformer, so that the spatial ones see
            the images.
        channels: Channels of the first convolution of the image transformer.
        affine: Whether there is an affine map.
        mesh: Elements of the B-spline along each axis; None for none.
        hidden: Features of the dense layers of the spatial transformers.
        dropout: Share of what these read that is left out at random, in training.
    """

    def __init__(
        self, maps: int | None, channels: int, affine: bool, mesh: Sequence[int] | None,
        hidden: int = HIDDEN, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        inputs = 1 if maps is None else maps
        self.itn = None if maps is None else ImageTransformer(maps, channels)
        self.affine = AffineTransformer(inputs, hidden, dropout) if affine else None
        self.bspline = None
        if mesh is not None:
            self.bspline = SplineTransformer(inputs, mesh, hidden, dropout)

    def forward(self, fixed: Tensor, moving: Tensor, frozen: bool = False) -> Aligned:
        """Returns maps and transform; images are (B, 1, *shape).

        Args:
            fixed: Fixed images.
            moving: Moving images.
            frozen: Whether the image transformer gets no gradient.
        """
        if self.itn is not None:
            with torch.no_grad() if frozen else contextlib.nullcontext():
                fixed, moving = self.itn(torch.cat([fixed, moving])).chunk(2)
        matrix = displacement = coefficients = None
        seen = moving
        if self.affine is not None:
            matrix = self.affine.matrix(fixed, moving)
            seen = moved_by(moving, matrix, None)
        if self.bspline is not None:
            coefficients = self.bspline.coefficients(fixed, seen)
            with torch.autocast(fixed.device.type, enabled=False):
                displacement = self.bspline.lattice(fixed.shape[2:]).evaluate(coefficients)
        return Aligned(fixed, moving, matrix, displacement, coefficients)


def bounded_affine(numbers: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns x -> H S H^T R (x - c + t) + c about the middle c of a grid, (B, 4, 4) in voxels.

    R and H are rotations; H turns the axes along which S = diag(exp s) stretches, which makes
    shears. Every number passes tanh: t is at most a tenth of half the grid, both turns an eighth of
    a circle about each axis, s 0.2.

    Args:
        numbers: (B, 12): t, R, s and H; zeros give the identity.
        shape: Shape of the grid.
    """
    bounded = torch.tanh(numbers)
    middle = torch.tensor(center_of(shape)).to(numbers)
    half = torch.tensor([n / 2 for n in shape]).to(numbers)
    shift = _SHIFT * half * bounded[:, 0:3]
    rotation = rotation_from_vector(_TURN * bounded[:, 3:6])
    axes = rotation_from_vector(_TURN * bounded[:, 9:12])
    stretch = torch.exp(_STRETCH * bounded[:, 6:9])
    linear = (axes * stretch[:, None, :]) @ axes.transpose(1, 2) @ rotation
    offset = middle + (linear @ (shift - middle)[:, :, None])[:, :, 0]
    top = torch.cat([linear, offset[:, :, None]], dim=2)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(top).expand(len(top), 1, 4)
    return torch.cat([top, bottom], dim=1)
