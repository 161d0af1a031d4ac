"""Sums over boxes, the work horse of all local similarities."""

from __future__ import annotations

from torch import Tensor


def box_sum(image: Tensor, radius: int) -> Tensor:
    """Sums over a cube of half width `radius` around every voxel; zero outside the image.

    Shifted copies are added axis by axis. For the radii in use that is about five times faster on
    a CPU than differences of cumulative sums, and free of their rounding on long axes.

    Args:
        image: (B, C, D, H, W); differentiable.
        radius: Half width in voxels; the cube has 2 radius + 1 voxels along each axis.

    Returns:
        Tensor of the same shape.
    """
    for dim in (2, 3, 4):
        size = image.shape[dim]
        result = image.clone()
        for k in range(1, min(radius, size - 1) + 1):
            rest = size - k
            result.narrow(dim, k, rest).add_(image.narrow(dim, 0, rest))
            result.narrow(dim, 0, rest).add_(image.narrow(dim, k, rest))
        image = result
    return image
