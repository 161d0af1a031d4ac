"""Leaves out the empty space around an object, where there is nothing to register."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .base import Image, ImagePair
from .preprocess import foreground, mask_on_grid

#: Space that is kept around the object: in mm, and as a share of its size.
_MARGIN_MM, _MARGIN_SHARE = 12.0, 0.08
#: A crop to more than this share of the voxels is not worth its while.
_WORTH = 0.75
#: Slices with less than this share of the fullest slice's voxels hold specks, not the object.
_SPECKS = 1e-3


def cropped_to_object(pair: ImagePair) -> ImagePair:
    """Returns the pair with its fixed image cropped to the object (or its mask) and a margin.

    A start that is deformed, and landmarks, may matter anywhere; such pairs stay as they are, and
    so do thin images and those with little to leave out.

    Args:
        pair: The images.

    Returns:
        The pair with another fixed image and grid, or the pair itself.
    """
    fixed = pair.fixed
    bent = pair.initial is not None and pair.initial.field is not None
    if bent or pair.fixed_landmarks_ras is not None or min(fixed.grid.shape) < 16:
        return pair
    mask = mask_on_grid(pair.fixed_mask, fixed.grid, pair.device)
    inside = foreground(fixed) if mask is None else mask > 0.5
    box = [
        _span(inside[0, 0], axis, size, spacing)
        for axis, (size, spacing) in enumerate(zip(fixed.grid.shape, fixed.grid.spacing_mm))
    ]
    shape = tuple(high - low for low, high in box)
    if min(shape) < 16 or math.prod(shape) > _WORTH * fixed.grid.size:
        return pair
    data = fixed.data
    for axis, (low, high) in enumerate(box):
        data = data.narrow(2 + axis, low, high - low)
    grid = fixed.grid.cropped([low for low, _ in box], shape)
    return replace(pair, fixed=Image(data.contiguous(), grid, fixed.pixel_type))


def _span(inside: Tensor, axis: int, size: int, spacing_mm: float) -> tuple[int, int]:
    """First voxel and end of the object along an axis, with its margin."""
    others = [a for a in range(3) if a != axis]
    profile = inside.sum(dim=others)
    hits = torch.nonzero(profile > _SPECKS * profile.max())[:, 0]
    if len(hits) == 0:
        return 0, size
    low, high = int(hits[0]), int(hits[-1]) + 1
    margin = math.ceil(_MARGIN_MM / spacing_mm + _MARGIN_SHARE * (high - low))
    return max(0, low - margin), min(size, high + margin)
