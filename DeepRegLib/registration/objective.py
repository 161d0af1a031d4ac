"""What the dense engines minimise at one resolution: similarities, and where they pull."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..geometry.jacobian import axis_gradient
from ..losses.base import Similarity
from .levels import Lattice, PairLevel, Puller


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
        more: Terms on other images of the same grid: weight, similarity, and their level.
    """

    def __init__(
        self,
        level: PairLevel,
        terms: Sequence[tuple[float, Similarity]],
        lattice: Lattice,
        more: Sequence[tuple[float, Similarity, PairLevel]] = (),
    ) -> None:
        self.lattice = lattice
        self.device = level.fixed.device
        self._terms = [_Term(weight, similarity, level, lattice) for weight, similarity in terms]
        self._terms += [_Term(weight, one, own, lattice) for weight, one, own in more]

    def force(self, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the value, and the force on a deformation that pulls the moving image."""
        total, force = torch.zeros((), device=self.device), None
        for term in self._terms:
            moved, mask = term.moving.pull(displacement)
            if mask is not None and term.fixed_mask is not None:
                mask = mask.mul_(term.fixed_mask)
            value, slope = term.bound.value_and_gradient(moved, mask)
            total = total + term.weight * value
            force = self._descent(moved, slope, term.weight, force)
        assert force is not None
        return total, self.lattice.gathered(force)

    def forces(self, to_fixed: Tensor, to_moving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the value and the forces on two deformations that pull both images half way.

        Args:
            to_fixed: Displacement that pulls the fixed image.
            to_moving: Displacement that pulls the moving image.
        """
        total = torch.zeros((), device=self.device)
        force_fixed = force_moving = None
        for term in self._terms:
            fixed, fixed_mask = term.fixed.pull(to_fixed)
            moved, mask = term.moving.pull(to_moving)
            if fixed_mask is not None:
                mask = fixed_mask if mask is None else mask.mul_(fixed_mask)
            value, *slopes = term.similarity.value_and_both_gradients(fixed, moved, mask)
            total = total + term.weight * value
            force_fixed = self._descent(fixed, slopes[0], term.weight, force_fixed)
            force_moving = self._descent(moved, slopes[1], term.weight, force_moving)
        assert force_fixed is not None and force_moving is not None
        return total, self.lattice.gathered(force_fixed), self.lattice.gathered(force_moving)

    def _descent(self, image: Tensor, slope: Tensor, weight: float, force: Tensor | None) -> Tensor:
        """Adds the steepest descent direction of a term, (1, 3, *image shape), lattice voxels.

        A derivative by a voxel of the images becomes one by a mm, and the step in mm becomes one
        in voxels of the lattice, so a component is divided by both spacings (up to a constant).
        """
        fine, coarse = self.lattice.image_grid.spacing_mm, self.lattice.grid.spacing_mm
        unit = min(fine) * min(coarse)
        scales = [-weight * unit / (a * b) for a, b in zip(fine, coarse)]
        fused = kernels.force(image, slope, scales)
        if fused is not None:
            return fused if force is None else force.add_(fused)
        if force is None:
            force = image.new_zeros((1, 3, *image.shape[2:]))
        for axis in range(3):
            part = axis_gradient(image, axis).mul_(slope)
            part = part if part.shape[1] == 1 else part.sum(1, keepdim=True)
            force[:, axis : axis + 1].add_(part, alpha=scales[axis])
        return force


class _Term:
    """One similarity of the sum, with the images (or features) that it compares."""

    def __init__(
        self, weight: float, similarity: Similarity, level: PairLevel, lattice: Lattice
    ) -> None:
        level = level.with_features(similarity)
        self.weight, self.similarity, self.fixed_mask = weight, similarity, level.fixed_mask
        self.bound = similarity.bind(level.fixed, level.fixed_mask)
        self.fixed = Puller(level.fixed, level.fixed_mask, np.eye(4), lattice, False)
        self.moving = Puller(
            level.moving, level.moving_mask, level.to_moving, lattice, level.partial
        )
