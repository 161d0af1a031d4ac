"""What a network of an affine and a deformable part finds, and where that takes a voxel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.sampling import sample, voxel_coordinates
from .affine_net import apply_affine


def composed(shape: Sequence[int], matrix: Tensor | None, displacement: Tensor | None) -> Tensor:
    """Returns where x -> A(x + u(x)) takes every voxel; without a part, that part does nothing.

    The parts are composed, not added: A turns and stretches what u moves.

    Args:
        shape: Shape of the grid.
        matrix: A, (B, 4, 4) in voxels.
        displacement: u, (B, 3, *shape) in voxels.

    Returns:
        (B or 1, 3, *shape) in voxels, float32; differentiable by both.
    """
    part = displacement if displacement is not None else matrix
    where = voxel_coordinates(shape, None if part is None else part.device)
    if displacement is not None:
        where = where + displacement
    return where if matrix is None else apply_affine(matrix, where)


def moved_by(
    image: Tensor, matrix: Tensor | None, displacement: Tensor | None, fill: bool = True
) -> Tensor:
    """Returns image(A(x + u(x))), (B, C, *shape), resampled once; zero outside the image.

    Args:
        image: (B, C, *shape).
        matrix: See `composed`.
        displacement: See `composed`.
        fill: Whether zero is what lies outside; else the edge is repeated.
    """
    # Half precision has steps of a quarter of a voxel at 40 voxels: too coarse for positions.
    with torch.autocast(image.device.type, enabled=False):
        where = composed(image.shape[2:], matrix, displacement)
        return sample(image.float(), where, padding="fill" if fill else "border")
