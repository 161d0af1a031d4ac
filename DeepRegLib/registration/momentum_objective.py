"""What registration by shooting lowers: the objective of one level and its exact gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.field import compose_displacements
from ..geometry.jacobian import jacobian_determinant
from ..geometry.momentum import MomentumSpace, shoot
from ..geometry.sampling import voxel_coordinates
from ..losses.base import Similarity
from .levels import Lattice, PairLevel

#: Least change of volume; a geodesic beyond is refused, as numerical errors would make it fold.
_LEAST_CHANGE = 0.1


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The objective at one momentum.

    Args:
        momentum: Where it was evaluated.
        value: The objective; infinite where the lattice is too coarse for the geodesic.
        energy: Its first term, per mm³.
        dissimilarity: The similarity alone.
        gradient: Derivative of the value by each number of the momentum.
        displacement: phi^-1 in voxels of the lattice, without the start.
    """

    momentum: Tensor
    value: float
    energy: float
    dissimilarity: float
    gradient: Tensor
    displacement: Tensor


class MomentumObjective:
    """The objective of one level as a function of the initial momentum.

    Geodesics begin at the identity, so a deformation to start from cannot be a point on them: it is
    kept as it is and the geodesic acts on the moving image as seen through it.

    Args:
        level: The images.
        similarity: How they are compared.
        lattice: The grid of the momentum.
        space: The kernel on that grid.
        sigma: Noise of the similarity; smaller follows the images more closely.
        time_steps: Least number of time steps of the geodesic.
        start: Displacement on the lattice that the moving image is seen through.
    """

    def __init__(
        self,
        level: PairLevel,
        similarity: Similarity,
        lattice: Lattice,
        space: MomentumSpace,
        sigma: float,
        time_steps: int = 10,
        start: Tensor | None = None,
    ) -> None:
        self.lattice, self.space = lattice, space
        self._level = level.with_features(similarity)
        self._bound = similarity.bind(self._level.fixed, self._level.fixed_mask)
        self._start, self._steps = start, time_steps
        self._weight = 0.5 / sigma**2
        grid = level.grid
        self._identity = voxel_coordinates(grid.shape, level.fixed.device, level.fixed.dtype)
        covered = 1.0 if level.fixed_mask is None else max(float(level.fixed_mask.mean()), 1e-3)
        self._volume = covered * grid.size * grid.voxel_volume_mm3

    def __call__(self, momentum: Tensor) -> Evaluation:
        """Evaluates the objective and its gradient."""
        variable = momentum.detach().requires_grad_(True)
        with torch.enable_grad():
            energy = self.space.energy(variable) / self._volume
            displacement = shoot(variable, self.space, self._steps)
            moved, mask = self._pull(displacement)
            with torch.no_grad():
                value, slope = self._bound.value_and_gradient(moved.detach(), mask)
            (gradient,) = torch.autograd.grad(
                (energy, moved), variable, (torch.ones_like(energy), self._weight * slope)
            )
        first, second = float(energy.detach()), float(value)
        total = first + self._weight * second
        if not self._resolved(displacement.detach()):
            total = float("inf")
        return Evaluation(variable.detach(), total, first, second, gradient, displacement.detach())

    def _resolved(self, displacement: Tensor) -> bool:
        """Whether the lattice holds the geodesic: no volume changes beyond what it can show."""
        change = jacobian_determinant(displacement)
        low, high = torch.aminmax(change)
        return bool((low > _LEAST_CHANGE) & (high < 1.0 / _LEAST_CHANGE))

    def _pull(self, displacement: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the moved image, differentiable, and its weight, which is not."""
        if self._start is not None:
            displacement = compose_displacements(self._start, displacement)
        where = self._identity + _refined(displacement, self.lattice)
        moved, mask = self._level.pull_moving(where)
        if mask is None:
            return moved, None
        mask = mask.detach()
        fixed_mask = self._level.fixed_mask
        return moved, mask if fixed_mask is None else mask * fixed_mask


def _refined(displacement: Tensor, lattice: Lattice) -> Tensor:
    """Does what `Lattice.refined` does, differentiably."""
    if lattice.factors == (1, 1, 1):
        return displacement
    cover = [n * f for n, f in zip(lattice.shape, lattice.factors)]
    scale = displacement.new_tensor(lattice.factors).view(1, 3, 1, 1, 1)
    fine = F.interpolate(displacement * scale, size=cover, mode="trilinear", align_corners=False)
    a, b, c = lattice.image_grid.shape
    return fine[:, :, :a, :b, :c]
