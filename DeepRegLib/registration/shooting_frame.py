"""Geodesics on the grid of a model: from images to the lattice of the momentum, and back."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.field import Field
from ..geometry.grid import Grid
from ..geometry.jacobian import jacobian_determinant
from ..geometry.momentum import Geodesic, MomentumSpace, geodesic, shoot
from ..geometry.sampling import apply_matrix, sample, voxel_coordinates
from ..networks.momentum_net import folded
from .levels import Lattice
from .shooting import ShootingSettings

#: How often a momentum that is too strong is halved before it is given up.
_HALVINGS = 12


class ShootingFrame:
    """What `ShootingEngine` works with at its finest level, for images on the grid of a model.

    A momentum that the engine found with the same settings, voxel size and margin ends here in
    the very deformation that it gave.

    Convention:
        Images are (1, 1, *shape) on the grid of the model, displacements (1, 3, *shape) in its
        voxels; momenta are (1, 3, *lattice.shape), in the units of `geometry.momentum`.

    Args:
        shape: Voxels of the model's grid.
        spacing_mm: Voxel size.
        settings: Kernel, lattice, time steps.
        margin: Voxels of background around the images.
        device: Where to compute.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing_mm: float,
        settings: ShootingSettings,
        margin: int,
        device: torch.device | str | None = None,
    ) -> None:
        self.settings, self.spacing_mm, self._margin = settings, spacing_mm, margin
        self._own = Grid(shape, np.diag([spacing_mm] * 3 + [1.0]))
        #: Grid of the images with their margin.
        self.grid = self._own.padded(margin)
        self.lattice = Lattice.over(self.grid, settings.lattice)
        kernel = settings.kernel_on(self.lattice.grid, self.grid)
        self._space = MomentumSpace(kernel, self.lattice.grid, settings.rim, device)

    def features(self, image: Tensor) -> Tensor:
        """Returns the voxels of an image in each voxel of the lattice, (1, C, *lattice.shape)."""
        image = F.pad(image, [self._margin] * 6)
        cover = [n * f for n, f in zip(self.lattice.shape, self.lattice.factors)]
        rest = [c - n for c, n in zip(reversed(cover), reversed(self.grid.shape))]
        image = F.pad(image, [side for r in rest for side in (0, r)])
        return folded(image, self.lattice.factors)

    def energy(self, momentum: Tensor) -> Tensor:
        """Returns the energy of a geodesic per mm³ of the images, differentiable."""
        volume = self.grid.size * self.grid.voxel_volume_mm3
        return self._space.energy(momentum) / volume

    def shoot(self, momentum: Tensor) -> Tensor:
        """Returns what pulls the moving image, in voxels of the lattice; differentiable."""
        return shoot(momentum, self._space, self.settings.time_steps)

    def geodesic(self, momentum: Tensor) -> Geodesic:
        """Returns the end of a geodesic with its inverse, in voxels of the lattice."""
        return geodesic(momentum, self._space, self.settings.time_steps)

    def sound(self, momentum: Tensor) -> tuple[Tensor, Geodesic]:
        """Returns a momentum whose geodesic the lattice can hold, and the end of that.

        The equation knows no folds, but a network that has learned little may say a momentum whose
        flow is too fast or too uneven for the lattice and the time steps. It is halved until there
        are neither folds nor values that are no numbers.
        """
        for _ in range(_HALVINGS):
            end = self.geodesic(momentum)
            finite = bool(torch.isfinite(end.inverse).all() and torch.isfinite(end.forward).all())
            if finite and float(jacobian_determinant(end.inverse).min()) > 0.0:
                return momentum, end
            momentum = 0.5 * momentum
        momentum = torch.zeros_like(momentum)
        return momentum, self.geodesic(momentum)

    def displacement(self, vectors: Tensor) -> Tensor:
        """Returns a displacement of the lattice on the grid of the model, differentiable."""
        return Field(vectors, self.lattice.grid).on_grid(self._own).displacement

    def on_images(self, values: Tensor) -> Tensor:
        """Returns a map of the lattice, (1, C, *lattice.shape), on the grid of the model."""
        where = voxel_coordinates(self._own.shape, values.device, values.dtype)
        where = apply_matrix(self._own.voxel_to_voxel(self.lattice.grid), where)
        return sample(values, where)
