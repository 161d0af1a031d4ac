"""Points of the fixed image that a linear registration compares."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..geometry.grid import Grid
from ..geometry.sampling import apply_matrix, resize_image, voxel_coordinates, voxels_at
from ..geometry.transform import Transform
from .base import ImagePair
from .preprocess import Level, foreground


@dataclass(frozen=True, eq=False)
class Samples:
    """Points of the fixed image with their intensities, at one level.

    `fixed_ras` are in RAS mm after the initial deformation, if there is one. Points that lie on a
    lattice, for similarities of neighborhoods, are in its order.
    """

    fixed_ras: Tensor  # (N, 3)
    intensities: Tensor  # (1, 1, N, 1, 1), or (1, 1, *lattice)
    moving: Level
    moving_mask: Tensor | None  # on the moving level's grid
    moving_ground: float
    fixed_mask: Tensor | None = None  # of the shape of the intensities


def thinned(samples: Samples, most: int) -> Samples:
    """Returns every n-th of the points, at most so many; a lattice stays whole."""
    if samples.intensities.shape[3:].numel() > 1:
        return samples
    step = -(-len(samples.fixed_ras) // most)
    return replace(
        samples,
        fixed_ras=samples.fixed_ras[::step].contiguous(),
        intensities=samples.intensities[:, :, ::step].contiguous(),
    )


def sampling_weights(pair: ImagePair, fixed_mask: Tensor | None) -> Tensor:
    """Where points are drawn: in the mask, or else in the box around the foreground."""
    if fixed_mask is not None:
        return fixed_mask
    inside = foreground(pair.fixed)[0, 0]
    box = torch.zeros_like(inside)
    slices = []
    for size, (low, high) in zip(inside.shape, _ends(inside)):
        margin = max(1, (high - low) // 10)
        slices.append(slice(max(0, low - margin), min(size, high + margin)))
    box[tuple(slices)] = True
    return box[None, None].float()


def _ends(inside: Tensor) -> list[tuple[int, int]]:
    """Where a mask (D, H, W) begins and ends along each axis; the whole axis if it is empty."""
    ends = []
    for axis, size in enumerate(inside.shape):
        other = [a for a in range(3) if a != axis]
        hits = inside.amax(dim=other[0]).amax(dim=other[1] - 1).nonzero()
        ends.append((int(hits.min()), int(hits.max()) + 1) if len(hits) else (0, size))
    return ends


def draw_points(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws jittered voxel positions where the weights are positive, (1, 3, N, 1, 1).

    The jitter avoids the grid artefacts of mutual information (Tsao 2003,
    doi:10.1109/TMI.2003.812259).
    """
    inside = weights[0, 0].flatten().nonzero()[:, 0].cpu()
    # In the order of the memory, which samples faster.
    chosen = inside[torch.randint(len(inside), (count,), generator=generator).sort().values]
    points = voxels_at(chosen, weights.shape[2:]).float()
    points = points + torch.rand(count, 3, generator=generator) - 0.5
    return points.T.reshape(1, 3, -1, 1, 1)


def to_ras(points_voxel: Tensor, grid: Grid, initial: Transform) -> Tensor:
    """Converts points (1, 3, N, 1, 1) to RAS, (N, 3), moved by the initial field.

    A float32 resolves 0.02 micrometers.
    """
    if initial.field is not None:
        field = initial.field.on_grid(grid).to(points_voxel.device)
        points_voxel = points_voxel + field.at(points_voxel)
    return apply_matrix(grid.voxel_to_ras, points_voxel)[0, :, :, 0, 0].T.contiguous()


def lattice_points(
    level: Level,
    weights: Tensor,
    masked: bool,
    initial: Transform,
    moving: tuple[Level, Tensor | None, float],
) -> Samples:
    """Returns all voxels of a level of the fixed image, within the box where weights are positive.

    Args:
        level: The level.
        weights: Where points count, (1, 1, *shape of the fixed image); see `sampling_weights`.
        masked: Whether the weights are a mask, which counts within the box too.
        initial: Where the registration starts.
        moving: What `Samples` says of the moving image.
    """
    shape = level.grid.shape
    box = []
    ends = _ends(weights[0, 0] > 0)
    for size, whole, (low, high) in zip(shape, weights.shape[2:], ends):
        start = low * size // whole
        box.append((start, max(1, -(-high * size // whole) - start)))
    data, mask = level.data, resize_image(weights, shape) if masked else None
    for axis, (start, length) in enumerate(box):
        data = data.narrow(2 + axis, start, length)
        mask = None if mask is None else mask.narrow(2 + axis, start, length)
    corner = torch.tensor([low for low, _ in box], device=data.device).view(1, 3, 1, 1, 1)
    points = (voxel_coordinates(data.shape[2:], data.device) + corner).reshape(1, 3, -1, 1, 1)
    return Samples(to_ras(points, level.grid, initial), data.contiguous(), *moving, mask)
