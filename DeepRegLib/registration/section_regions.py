"""Which voxels count: those in the masks, and not those where an image is empty."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.grid import Grid
from ..geometry.transform import Transform
from .base import Image, ImagePair
from .preprocess import mask_on_grid, object_region

#: Intensity up to which a voxel may be empty, for images from 0 to 1.
_EMPTY = 0.02
#: Width of the smallest empty region that is left out, in voxels.
_LEAST = 3


def masks_on(pair: ImagePair, grid: Grid) -> tuple[Tensor | None, Tensor | None]:
    """Returns both masks of a pair on a grid in the fixed space, (1, 1, *grid.shape), 0 or 1.

    The mask of the moving image is seen through the start of the pair.
    """
    fixed = mask_on_grid(pair.fixed_mask, grid, pair.device)
    if pair.moving_mask is None:
        return fixed, None
    start, mask = pair.initial or Transform(), pair.moving_mask
    there = start.warp((mask.data[:, :1] > 0).float(), mask.grid, grid)
    return fixed, (there >= 0.5).float()


def empty_region(image: Tensor) -> Tensor:
    """Tells where an image (B, 1, *shape), 0 to 1, shows nothing over several voxels, bool.

    Single dark voxels do not count: an empty region holds a cube (or square) of voxels.
    """
    empty = (image <= _EMPTY).float()
    width = [min(_LEAST, n) for n in image.shape[2:]]
    whole = 1.0 - F.max_pool3d(1.0 - empty, width, stride=1)
    sides = [side for w in reversed(width) for side in (w - 1, w - 1)]
    return F.max_pool3d(F.pad(whole, sides), width, stride=1) > 0.5


def counted(
    image: Tensor, grid: Grid, mask: Tensor | None, ignore_empty: bool, enclosed: bool = True
) -> Tensor | None:
    """Returns where an image counts, (1, 1, *shape), 0 or 1; None if everywhere.

    Args:
        image: (1, 1, *shape), 0 to 1.
        grid: Its grid.
        mask: Where it counts in any case.
        ignore_empty: Whether empty regions are left out.
        enclosed: Only those that the object encloses; the space around it counts.
    """
    if not ignore_empty:
        return mask
    empty = empty_region(image)
    if enclosed:
        empty = empty & object_region(Image(image, grid))
    if not bool(empty.any()):
        return mask
    seen = (~empty).to(torch.float32)
    return seen if mask is None else mask * seen
