"""Regularisers of the Jacobian determinant: against folds, and against any change of volume."""

from __future__ import annotations

from torch import Tensor

from ..geometry.jacobian import jacobian_determinant
from .diffusion import masked_mean


def folding(displacement: Tensor, mask: Tensor | None = None, least: float = 0.0) -> Tensor:
    """Mean of max(0, least - det J): zero without folds; differentiable.

    Args:
        displacement: (B, 3, D, H, W) in voxels.
        mask: (B, 1, D, H, W) weights.
        least: Determinants below this count.
    """
    return masked_mean((least - jacobian_determinant(displacement)).clamp(min=0.0), mask)


def volume_change(displacement: Tensor, mask: Tensor | None = None, least: float = 1e-3) -> Tensor:
    """Mean of (log det J)²: growing and shrinking by the same factor cost the same.

    Rohlfing et al. 2003, doi:10.1109/TMI.2003.814791 (there without the square).

    Args:
        displacement: (B, 3, D, H, W) in voxels.
        mask: (B, 1, D, H, W) weights.
        least: Determinants are cut off here, where the logarithm ends.
    """
    return masked_mean(jacobian_determinant(displacement).clamp(min=least).log().square(), mask)
