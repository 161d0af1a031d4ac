"""How far the features of two images are from each other, as a share of how much they vary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Similarity, check_images, full

#: Least variance of features, relative to their mean square, and least mean square at all.
_FLOOR, _TINY = 1e-3, 1e-8


def feature_distance(
    fixed: Sequence[Tensor],
    moved: Sequence[Tensor],
    weights: Sequence[float],
    mask: Tensor | None = None,
) -> Tensor:
    """Returns the weighted mean over layers of |f(moved) - f(fixed)|² / var f(fixed).

    The variance is that of the fixed features over the mask, summed over the channels, so that
    each layer counts by its weight, whatever the size of its features: 0 for equal images, about
    2 for unrelated ones.

    Convention:
        Features are (B, C, *shape of the layer). The mask is (B, 1, *shape of the image), and the
        shape of each layer divides that of the image.

    Args:
        fixed: Features of the fixed image, layer by layer.
        moved: Those of the moved image.
        weights: Weight of each layer; those with weight 0 are left out.
        mask: Where the images count.

    Returns:
        A scalar, differentiable by the moved features and by the fixed ones (but for the variance).
    """
    whole = sum(weights)
    total = moved[0].new_zeros(())
    for one, other, weight in zip(fixed, moved, weights):
        if weight <= 0.0:
            continue
        shares = cell_weights(one, mask)
        difference = (other - one).square().sum(dim=1, keepdim=True)
        total = total + weight / whole * (shares * difference).sum() / _variance(one, shares)
    return total


def feature_difference_map(
    fixed: Sequence[Tensor], moved: Sequence[Tensor], weights: Sequence[float], shape: Sequence[int]
) -> Tensor:
    """Returns the same for each voxel, (B, 1, *shape), with layers stretched to the image."""
    whole = sum(weights)
    total = moved[0].new_zeros((len(moved[0]), 1, *shape))
    for one, other, weight in zip(fixed, moved, weights):
        if weight <= 0.0:
            continue
        difference = (other - one).square().sum(dim=1, keepdim=True)
        difference = difference / _variance(one, cell_weights(one, None))
        if tuple(difference.shape[2:]) != tuple(shape):
            difference = F.interpolate(
                difference, size=tuple(shape), mode="trilinear", align_corners=False
            )
        total = total + weight / whole * difference
    return total


def cell_weights(features: Tensor, mask: Tensor | None) -> Tensor:
    """Returns weights (B, 1, *shape of the layer) that sum to one: the shares of a mask."""
    shape = features.shape[2:]
    if mask is None:
        ones = torch.ones_like(features[:, :1]).detach()
        return ones / ones.numel()
    cell = [n // m for n, m in zip(mask.shape[2:], shape)]
    shares = F.avg_pool3d(mask.to(features.dtype), cell)
    shares = shares.expand(len(features), 1, *shape)
    return shares / shares.sum().clamp(min=1e-12)


def _variance(features: Tensor, shares: Tensor) -> Tensor:
    """Variance of features over a mask, summed over the channels; never zero, without a tape."""
    with torch.no_grad():
        values = features.detach()
        mean = (shares * values).sum(dim=(0, 2, 3, 4), keepdim=True)
        spread = (shares * (values - mean).square()).sum()
        size = (shares * values.square()).sum()
        return torch.maximum(spread, _FLOOR * size).clamp(min=_TINY)


class ScaledMSE(Similarity):
    """Mean squared difference as a share of the variance of the fixed image.

    The intensities themselves as features: on the scale of `feature_distance`, so that the weights
    of penalties mean the same.
    """

    def __call__(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the value; see `Similarity`."""
        check_images(fixed, moved, mask)
        return feature_distance([full(fixed)], [full(moved)], (1.0,), mask)
