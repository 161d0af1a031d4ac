"""What the dense engines minimise at one resolution: similarities, and where they pull."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.jacobian import axis_gradient
from ..geometry.sampling import voxel_coordinates
from ..losses.base import BoundSimilarity, Similarity
from .levels import Lattice, PairLevel


class LevelObjective:
    """A weighted sum of similarities of one level, as a function of the deformation.

    Convention:
        Displacements and forces live on the lattice and count its voxels, (1, 3, *lattice.shape).
        A force is the steepest descent, in mm, for an update that is composed on the right:
        phi <- phi o (id + update). Its derivative is that of the pulled image itself, so no
        gradient of the unpulled image has to be sampled.

    Args:
        level: The images.
        terms: Weight and similarity of each term.
        lattice: Where the deformation lives.
    """

    def __init__(
        self, level: PairLevel, terms: Sequence[tuple[float, Similarity]], lattice: Lattice
    ) -> None:
        self.lattice = lattice
        self._identity = voxel_coordinates(level.grid.shape, level.fixed.device)
        self._terms: list[tuple[float, PairLevel, Similarity, BoundSimilarity]] = []
        for weight, similarity in terms:
            prepared = level.with_features(similarity)
            bound = similarity.bind(prepared.fixed, prepared.fixed_mask)
            self._terms.append((weight, prepared, similarity, bound))

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self._identity.device

    def force(self, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the value, and the force on a deformation that pulls the moving image."""
        where = self._where(displacement)
        total, force = torch.zeros((), device=self.device), None
        for weight, level, _, bound in self._terms:
            moved, mask = level.pull_moving(where)
            if mask is not None and level.fixed_mask is not None:
                mask = mask * level.fixed_mask
            value, slope = bound.value_and_gradient(moved, mask)
            total = total + weight * value
            force = self._descent(moved, slope, weight, force)
        assert force is not None
        return total, self.lattice.gathered(force)

    def forces(self, to_fixed: Tensor, to_moving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the value and the forces on two deformations that pull both images half way.

        Args:
            to_fixed: Displacement that pulls the fixed image.
            to_moving: Displacement that pulls the moving image.
        """
        where_fixed, where_moving = self._where(to_fixed), self._where(to_moving)
        total = torch.zeros((), device=self.device)
        force_fixed = force_moving = None
        for weight, level, similarity, _ in self._terms:
            fixed, fixed_mask = level.pull_fixed(where_fixed)
            moved, mask = level.pull_moving(where_moving)
            if fixed_mask is not None:
                mask = fixed_mask if mask is None else mask * fixed_mask
            value, slope_fixed, slope = similarity.value_and_both_gradients(fixed, moved, mask)
            total = total + weight * value
            force_fixed = self._descent(fixed, slope_fixed, weight, force_fixed)
            force_moving = self._descent(moved, slope, weight, force_moving)
        assert force_fixed is not None and force_moving is not None
        return total, self.lattice.gathered(force_fixed), self.lattice.gathered(force_moving)

    def _where(self, displacement: Tensor) -> Tensor:
        return self._identity + self.lattice.refined(displacement)

    def _descent(self, image: Tensor, slope: Tensor, weight: float, force: Tensor | None) -> Tensor:
        """Adds the steepest descent direction of a term, (1, 3, *image shape), lattice voxels.

        A derivative by a voxel of the images becomes one by a mm, and the step in mm becomes one
        in voxels of the lattice, so a component is divided by both spacings (up to a constant).
        """
        fine, coarse = self.lattice.image_grid.spacing_mm, self.lattice.grid.spacing_mm
        unit = min(fine) * min(coarse)
        if force is None:
            force = image.new_zeros((1, 3, *image.shape[2:]))
        for axis in range(3):
            part = axis_gradient(image, axis).mul_(slope)
            part = part if part.shape[1] == 1 else part.sum(1, keepdim=True)
            scale = -weight * unit / (fine[axis] * coarse[axis])
            force[:, axis : axis + 1].add_(part, alpha=scale)
        return force
