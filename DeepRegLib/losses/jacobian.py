"""Regularizers of the Jacobian determinant: against folds, and against any change of volume."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ParameterError
from ..geometry.jacobian import jacobian_determinant
from .base import full
from .diffusion import check_displacement, masked_mean


def folding(
    displacement: Tensor,
    mask: Tensor | None = None,
    least: float = 0.0,
    most: float | None = None,
) -> Tensor:
    """Mean of how far the Jacobian determinant lies below a least (and above a largest) value.

    Convention:
        The determinant does not depend on the spacing: 1 keeps the volume, 0 or less folds.

    Args:
        displacement: (B, 3, D, H, W) in voxels, component c along tensor axis c; differentiable.
        mask: (B, 1, D, H, W) weights of the voxels; all alike by default.
        least: Determinants below this count; a small positive value keeps a distance from folds.
        most: Determinants above this count as well.

    Returns:
        A scalar, zero if all determinants lie in the range.

    Raises:
        GeometryError: If the shapes do not fit.
        ParameterError: If the range is empty.

    References:
        Kuang & Schmah 2019, doi:10.1007/978-3-030-32692-0_73 (with least = 0).
    """
    if most is not None and not least < most:
        raise ParameterError(f"The range of determinants {least} ... {most} is empty.")
    determinant = _determinant(displacement)
    excess = (least - determinant).clamp(min=0.0)
    if most is not None:
        excess = excess + (determinant - most).clamp(min=0.0)
    return masked_mean(excess, mask)


def volume_change(displacement: Tensor, mask: Tensor | None = None, least: float = 0.05) -> Tensor:
    """Mean of (log det J)²: growing and shrinking by the same factor cost the same.

    Below `least` the logarithm goes on as a straight line, so that folds are finite and are pushed
    out rather than left where they are.

    Convention:
        The determinant does not depend on the spacing: 1 keeps the volume, 0 or less folds.

    Args:
        displacement: (B, 3, D, H, W) in voxels, component c along tensor axis c; differentiable.
        mask: (B, 1, D, H, W) weights of the voxels; all alike by default.
        least: Where the logarithm ends, 0 ... 1 without the ends.

    Returns:
        A scalar, zero where volumes are kept.

    Raises:
        GeometryError: If the shapes do not fit.
        ParameterError: If `least` lies outside its range.

    References:
        Rohlfing et al. 2003, doi:10.1109/TMI.2003.814791 (there the absolute value).
    """
    if not 0.0 < least < 1.0:
        raise ParameterError(f"`least` lies between 0 and 1, but got {least}.")
    determinant = _determinant(displacement)
    logarithm = determinant.clamp(min=least).log()
    line = math.log(least) + (determinant - least) / least
    return masked_mean(torch.where(determinant < least, line, logarithm).square(), mask)


def _determinant(displacement: Tensor) -> Tensor:
    check_displacement(displacement)
    return jacobian_determinant(full(displacement))
