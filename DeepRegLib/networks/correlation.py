"""How well two feature maps agree when one is shifted by a voxel in any direction."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def local_correlation(fixed: Tensor, moved: Tensor, stride: int = 1) -> Tensor:
    """Returns the correlation of features at each voxel and its 26 neighbors.

    Kang et al. 2022, doi:10.1016/j.media.2022.102379: the mean over the channels of
    fixed(x) moved(x + d), for the 27 offsets d of -stride, 0 and stride along each axis.

    Convention:
        Offsets are in the order of itertools.product, the last tensor axis fastest; channel 13 is
        the middle. Beyond the image features are zero.

    Args:
        fixed: (B, C, D, H, W).
        moved: The other features, of the same shape.
        stride: Distance of the neighbors in voxels.

    Returns:
        (B, 27, D, H, W); differentiable.
    """
    d, h, w = fixed.shape[2:]
    padded = F.pad(moved, [stride] * 6)
    scaled = fixed / fixed.shape[1]
    starts = itertools.product((0, stride, 2 * stride), repeat=3)
    products = [
        (scaled * padded[:, :, i : i + d, j : j + h, k : k + w]).sum(dim=1) for i, j, k in starts
    ]
    return torch.stack(products, dim=1)
