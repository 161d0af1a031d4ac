"""Dice of smoothed labels at several scales: structures that do not overlap yet attract."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GeometryError
from ..geometry.sampling import gaussian_smooth

#: Standard deviation in voxels from which on half the resolution will do.
_SMOOTH = 1.25


def multiscale_dice(fixed: Tensor, moved: Tensor, sigmas_voxel: Sequence[float]) -> Tensor:
    """One minus the soft Dice of smoothed labels, averaged over the scales.

    Hu et al. 2018, doi:10.1016/j.media.2018.07.002: both labels are smoothed by a Gaussian of each
    width. Where they do not overlap, the Dice of the labels themselves has no slope; that of the
    smoothed ones tells the way. Every channel that a fixed image has counts alike, whatever its
    size.

    A Gaussian after a Gaussian is one whose variance is the sum, so each scale is made from the
    one before it; and what is smooth enough is averaged to half the resolution first. All scales
    together so cost little more than the finest ones.

    Convention:
        One channel for each label, values 0 ... 1. The Dice has squared denominators (Milletari et
        al. 2016, doi:10.1109/3DV.2016.79), so that it is largest where both labels agree, also
        when they are smoothed.

    Args:
        fixed: (B, C, D, H, W); data, without a gradient.
        moved: (B, C, D, H, W).
        sigmas_voxel: Standard deviations in voxels, in any order; 0 leaves the labels as they are.

    Returns:
        A scalar, 0 to 1; differentiable by `moved`. It is 1 where the fixed images have no label.

    Raises:
        GeometryError: If the shapes differ, or there is no scale.
    """
    if fixed.ndim != 5 or fixed.shape != moved.shape or len(sigmas_voxel) == 0:
        raise GeometryError(
            "The Dice at several scales compares two images of the same shape (B, C, D, H, W) at "
            f"one scale or more, but got {tuple(fixed.shape)}, {tuple(moved.shape)} and "
            f"{len(sigmas_voxel)} scales."
        )
    fixed, reached, unit = fixed.detach().to(moved.dtype), 0.0, 1.0
    present = (fixed.flatten(2).amax(dim=2) > 0).to(moved.dtype)
    share = present / present.sum().clamp(min=1.0)
    found = []
    for sigma in sorted(float(s) for s in sigmas_voxel):
        while sigma > reached >= _SMOOTH * unit:
            fixed, moved = _halved(fixed), _halved(moved)
            # An average of two voxels is a smoothing as well.
            reached, unit = math.hypot(reached, 0.5 * unit), 2.0 * unit
        if sigma > reached:
            step = math.sqrt(sigma**2 - reached**2) / unit
            fixed, moved = gaussian_smooth(fixed, step), gaussian_smooth(moved, step)
            reached = sigma
        found.append((share * _dice(fixed, moved)).sum())
    return 1.0 - torch.stack(found).mean()


def _halved(labels: Tensor) -> Tensor:
    """Averages neighbors; what an odd number of voxels leaves over stays."""
    width = [min(2, size) for size in labels.shape[2:]]
    return F.avg_pool3d(labels, width, ceil_mode=True, count_include_pad=False)


def _dice(fixed: Tensor, moved: Tensor) -> Tensor:
    """Soft Dice of each channel of each image, (B, C)."""
    dims = (2, 3, 4)
    both = (fixed * moved).sum(dims)
    either = fixed.square().sum(dims) + moved.square().sum(dims)
    return 2.0 * both / either.clamp(min=1e-8)
