"""Patches of two images, at the same place and apart, drawn at random where there is something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .patch_metric import PATCH, framed

#: Brightness from which a voxel shows something; images run from 0 to 1.
_SHOWN = 0.1
#: Voxels around it that belong to the object, so that dark parts and its rim do.
_NEAR = 4


@dataclass(frozen=True, eq=False)
class PatchPairs:
    """Patches of the fixed image, with those of the moving one at the same place and apart.

    Convention:
        Patches are (N, 1, 17, 17, 17), number k of all three at one place of the fixed image.
    """

    fixed: Tensor
    aligned: Tensor
    apart: Tensor


def near_object(image: Tensor) -> Tensor:
    """Tells where an image (B, 1, *shape), 0 to 1, shows something, or nearly so; bool."""
    near = (image.detach() > _SHOWN).to(torch.float32)
    for axis in range(3):  # one axis after the other, which is far less work than a cube
        width, padding = [1, 1, 1], [0, 0, 0]
        width[axis], padding[axis] = 2 * _NEAR + 1, _NEAR
        near = F.max_pool3d(near, width, stride=1, padding=padding)
    return near > 0.5


def draw_patches(fixed: Tensor, moving: Tensor, count: int, least: int, most: int) -> PatchPairs:
    """Draws patches around voxels of the object, from torch's global generator.

    Args:
        fixed: (B, 1, *shape), 0 to 1.
        moving: The same of the other image, aligned with it.
        count: How many places.
        least: Least shift of the patches that are apart, along the axis with the largest.
        most: Most of it; never more than half the image.

    Returns:
        The patches; those apart are shifted to any side.
    """
    shape = fixed.shape[2:]
    where = (near_object(fixed) | near_object(moving))[:, 0].nonzero()
    if len(where) == 0:
        where = torch.ones_like(fixed[:, 0]).nonzero()
    chosen = where[torch.randint(len(where), (count,), device=where.device)]
    item, center = chosen[:, 0], chosen[:, 1:]
    shifted = center + draw_shifts(center, shape, least, most)
    one, other = _patches(fixed), _patches(moving)
    return PatchPairs(
        _gathered(one, item, center),
        _gathered(other, item, center),
        _gathered(other, item, shifted),
    )


def draw_shifts(center: Tensor, shape: Sequence[int], least: int, most: int) -> Tensor:
    """Draws whole shifts of places (N, 3) that stay in a grid, from torch's global generator.

    The largest component is drawn evenly from `least` to `most` voxels (at most half the grid),
    the others up to it. Axes of one voxel have no shift.
    """
    count, device = len(center), center.device
    free = [axis for axis, n in enumerate(shape) if n > 1] or [0]
    size = torch.randint(least, most + 1, (count, 1), device=device)
    shift = ((2.0 * torch.rand(count, 3, device=device) - 1.0) * size).round().to(torch.int64)
    axis = torch.tensor(free, device=device)[torch.randint(len(free), (count,), device=device)]
    side = 2 * torch.randint(2, (count, 1), device=device) - 1
    shift.scatter_(1, axis[:, None], side * size)
    limit = torch.tensor([n // 2 for n in shape], device=device)
    shift = torch.minimum(torch.maximum(shift, -limit), limit)
    last = torch.tensor([n - 1 for n in shape], device=device)
    there = center + shift
    # Half a grid fits on one side or on the other.
    return torch.where((there < 0) | (there > last), -shift, shift)


def _patches(image: Tensor) -> Tensor:
    """Returns a view of all patches, (B, *shape, 17, 17, 17)."""
    view = framed(image)[:, 0]
    for axis in range(1, 4):
        view = view.unfold(axis, PATCH, 1)
    return view


def _gathered(patches: Tensor, item: Tensor, center: Tensor) -> Tensor:
    return patches[item, center[:, 0], center[:, 1], center[:, 2]][:, None]
