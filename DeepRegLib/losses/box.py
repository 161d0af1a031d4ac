"""Sums over boxes, the work horse of all local similarities."""

from __future__ import annotations

import torch
from torch import Tensor


def box_sum(image: Tensor, radius: int) -> Tensor:
    """Sums over a cube of half width `radius` around every voxel; zero outside the image.

    Shifted copies are added axis by axis. At radius 2 that is about twice as fast on a CPU as
    differences of cumulative sums and six times as fast as pooling; at radius 4 it is still
    slightly ahead. Unlike cumulative sums it never subtracts, so long axes and large offsets cost
    no digits and sums of weights cannot become negative.

    Convention:
        Axes shorter than the cube, also of one voxel, are summed as far as they go.

    Args:
        image: (B, C, D, H, W), floating; differentiable.
        radius: Half width in voxels; the cube has 2 radius + 1 voxels along each axis.

    Returns:
        Tensor of the same shape.
    """
    if image.requires_grad and torch.is_grad_enabled():
        return _BoxSum.apply(image, radius)  # type: ignore[no-any-return]
    return _box_sum(image, radius)


def _box_sum(image: Tensor, radius: int) -> Tensor:
    source = image
    spare: Tensor | None = None
    for dim in (2, 3, 4):
        size = image.shape[dim]
        if size == 1 or radius < 1:
            continue
        # Fresh memory costs as much as the sums: two buffers take turns.
        target = image.new_empty(image.shape) if spare is None else spare
        _add_neighbors(source, target, dim)
        for k in range(2, min(radius, size - 1) + 1):
            rest = size - k
            target.narrow(dim, k, rest).add_(source.narrow(dim, 0, rest))
            target.narrow(dim, 0, rest).add_(source.narrow(dim, k, rest))
        spare = None if source is image else source
        source = target
    return image.clone() if source is image else source


def _add_neighbors(source: Tensor, target: Tensor, dim: int) -> None:
    """Writes the sums over a voxel and its two neighbors along an axis of at least two."""
    rest = source.shape[dim] - 1
    low, high = source.narrow(dim, 0, rest), source.narrow(dim, 1, rest)
    torch.add(low, high, out=target.narrow(dim, 0, rest))
    target.narrow(dim, rest, 1).copy_(source.narrow(dim, rest, 1))
    target.narrow(dim, 1, rest).add_(low)


class _BoxSum(torch.autograd.Function):
    """A box with zeros around the image is symmetric, so its adjoint is the box itself."""

    @staticmethod
    def forward(ctx, image, radius):  # type: ignore[no-untyped-def]
        ctx.radius = radius
        return _box_sum(image, radius)

    @staticmethod
    def backward(ctx, slope):  # type: ignore[no-untyped-def]
        return box_sum(slope, ctx.radius), None
