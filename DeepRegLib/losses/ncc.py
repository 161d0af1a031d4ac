"""Correlation over the whole image, for linearly related contrasts."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Similarity, check_images, full_pair, spatial_sum

#: Contrast below which an image counts as constant, relative to its mean and machine precision.
_FLAT = 100.0


class NCC(Similarity):
    """One minus the weighted Pearson correlation, per sample and channel, then averaged.

    Invariant to a change of scale (positive) and offset of either image. A constant image counts
    as uncorrelated: value one, gradient zero.

    Convention:
        As `Similarity`; takes sampled points (B, C, N, 1, 1) as well.
    """

    symmetric = True

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        check_images(fixed, moved, mask)
        fixed, moved = full_pair(fixed, moved)
        w = _voxel_weights(moved, mask)
        (f, deviation_f), (m, deviation_m) = _centered(fixed, w), _centered(moved, w)
        return 1.0 - (spatial_sum(w * f * m) / deviation_f / deviation_m).mean()

    def value_and_gradient(
        self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns value and analytic gradient; see `Similarity`."""
        check_images(fixed, moved, mask)
        with torch.no_grad():
            fixed, moved = full_pair(fixed, moved)
            w = _voxel_weights(moved, mask)
            (f, deviation_f), (m, deviation_m) = _centered(fixed, w), _centered(moved, w)
            product = f * m
            correlation = spatial_sum(product.mul_(w)) / deviation_f / deviation_m
            count = float(correlation.numel())
            f.mul_(-1.0 / (count * deviation_f * deviation_m))
            m.mul_(correlation / (count * deviation_m * deviation_m))
            return 1.0 - correlation.mean(), f.add_(m).mul_(w)


def _voxel_weights(image: Tensor, mask: Tensor | None) -> Tensor:
    """Weights that sum to one over the voxels of each sample."""
    if mask is None:
        count = image.shape[2] * image.shape[3] * image.shape[4]
        return torch.tensor(1.0 / count, dtype=image.dtype, device=image.device)
    mask = mask.to(image.dtype)
    return mask / spatial_sum(mask).clamp(min=1e-12)


def _centered(image: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The image minus its weighted mean, and its standard deviation (never zero)."""
    mean = spatial_sum(w * image)
    centered = image - mean
    precision = torch.finfo(image.dtype)
    flat = (_FLAT * precision.eps * mean.detach()) ** 2 + precision.tiny
    return centered, (spatial_sum(w * centered * centered) + flat).sqrt()
