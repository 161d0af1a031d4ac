"""Dice of smoothed labels at several scales: structures that do not overlap yet attract."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import GeometryError
from ..geometry.sampling import gaussian_smooth


def multiscale_dice(fixed: Tensor, moved: Tensor, sigmas_voxel: Sequence[float]) -> Tensor:
    """One minus the soft Dice of smoothed labels, averaged over the scales.

    Hu et al. 2018, doi:10.1016/j.media.2018.07.002: both labels are smoothed by a Gaussian of each
    width. Where they do not overlap, the Dice of the labels themselves has no slope; that of the
    smoothed ones tells the way. Every channel of every image counts alike, whatever its size.

    A Gaussian after a Gaussian is one whose variance is the sum, so each scale is made from the
    one before it, which is cheaper than to begin anew.

    Convention:
        One channel for each label, values 0 ... 1. The Dice has squared denominators (Milletari et
        al. 2016, doi:10.1109/3DV.2016.79), so that it is largest where both labels agree, also
        when they are smoothed. A channel that is empty in both images has the Dice 0.

    Args:
        fixed: (B, C, D, H, W); data, without a gradient.
        moved: (B, C, D, H, W).
        sigmas_voxel: Standard deviations in voxels, in any order; 0 leaves the labels as they are.

    Returns:
        A scalar, 0 to 1; differentiable by `moved`.

    Raises:
        GeometryError: If the shapes differ, or there is no scale.
    """
    if fixed.ndim != 5 or fixed.shape != moved.shape or len(sigmas_voxel) == 0:
        raise GeometryError(
            "The Dice at several scales compares two images of the same shape (B, C, D, H, W) at "
            f"one scale or more, but got {tuple(fixed.shape)}, {tuple(moved.shape)} and "
            f"{len(sigmas_voxel)} scales."
        )
    fixed, reached = fixed.detach().to(moved.dtype), 0.0
    found = []
    for sigma in sorted(float(s) for s in sigmas_voxel):
        if sigma > reached:
            step = math.sqrt(sigma**2 - reached**2)
            fixed, moved = gaussian_smooth(fixed, step), gaussian_smooth(moved, step)
            reached = sigma
        found.append(_dice(fixed, moved))
    return 1.0 - torch.stack(found).mean()


def _dice(fixed: Tensor, moved: Tensor) -> Tensor:
    """Soft Dice of each channel of each image, averaged."""
    dims = (2, 3, 4)
    both = (fixed * moved).sum(dims)
    either = fixed.square().sum(dims) + moved.square().sum(dims)
    return (2.0 * both / either.clamp(min=1e-8)).mean()
