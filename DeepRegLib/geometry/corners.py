"""What linear sampling reads: eight voxels around each position, and their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import GeometryError


def linear_corners(coordinates_voxel: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Returns the voxels and weights whose weighted sum is a linear sample with a repeated edge.

    For what is cheaper to look up than to sample: maps of very many classes, and sums over all
    positions, which need each voxel once only.

    Convention:
        `coordinates_voxel[:, c]` runs along tensor axis c, as for `sampling.sample`. Voxels are
        numbered as in a flattened image of that shape.

    Args:
        coordinates_voxel: (B, 3, *out), floating; the weights are differentiable by it.
        shape: Voxels of the image.

    Returns:
        Numbers of the voxels, (B, 8, n), int64, and their weights, (B, 8, n), that sum to one; n
        counts the positions.

    Raises:
        GeometryError: If the shapes do not fit.
    """
    if coordinates_voxel.ndim != 5 or coordinates_voxel.shape[1] != 3 or len(shape) != 3:
        raise GeometryError(
            "Corners are those of positions (B, 3, D, H, W) in an image of three axes, but got "
            f"{tuple(coordinates_voxel.shape)} and {tuple(shape)}."
        )
    numbers, weights = [], []
    flat = coordinates_voxel.flatten(2)
    for axis, size in enumerate(shape):
        inside = flat[:, axis].clamp(0.0, size - 1.0)
        # The last voxel is the upper neighbor of the last but one; an axis of one has none. What
        # is no number has such weights, but a voxel that exists.
        low = inside.detach().floor().nan_to_num().clamp(0.0, max(size - 2.0, 0.0))
        share = inside - low
        first = low.to(torch.int64)
        numbers.append((first, (first + 1).clamp(max=size - 1)))
        weights.append((1.0 - share, share))
    index, weight = [], []
    for a in (0, 1):
        for b in (0, 1):
            row = numbers[0][a] * shape[1] + numbers[1][b]
            both = weights[0][a] * weights[1][b]
            for c in (0, 1):
                index.append(row * shape[2] + numbers[2][c])
                weight.append(both * weights[2][c])
    return torch.stack(index, dim=1), torch.stack(weight, dim=1)
