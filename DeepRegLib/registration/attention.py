"""What an agent looks at: cubes of a fixed size, and where in the images its attention lies.

Liao et al. 2017, doi:10.1609/aaai.v31i1.11230, attention-driven hierarchical strategy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from ..networks.affine_net import apply_affine

#: Standard deviation that the attention is smoothed by, as a share of the width of the view.
_SMOOTH = 1.0 / 16.0


def view_points(size: int, step: float, center: Tensor) -> Tensor:
    """Returns the positions of the voxels of cubes around centers.

    Args:
        size: Voxels of a cube along each axis.
        step: Distance of its voxels, in voxels of the grid.
        center: (3,) or (K, 3), in voxels of the grid.

    Returns:
        (K, 3, size, size, size) in voxels of the grid, float32; K is 1 for one center.
    """
    offsets = step * (voxel_coordinates((size,) * 3, center.device) - (size - 1) / 2)
    return offsets + center.float().reshape(-1, 3, 1, 1, 1)


def look(images: Tensor, points: Tensor, matrices: Tensor | None = None) -> Tensor:
    """Returns what images show in cubes, resampled once; zero beyond the images.

    Args:
        images: (K or 1, 1, *shape).
        points: Positions from `view_points`, (K or 1, ...).
        matrices: Where the positions are taken first, (K or 1, 4, 4) in voxels.

    Returns:
        (K, 1, size, size, size).
    """
    if matrices is not None:
        points = apply_affine(matrices.to(points), points)
    return sample(images, points, padding="fill")


def blurred(images: Tensor, step: float) -> Tensor:
    """Returns images without details that voxels `step` times as large cannot show."""
    return gaussian_smooth(images, 0.5 * max(step**2 - 1.0, 0.0) ** 0.5)


def attention(values: Callable[[Tensor, Tensor], Tensor], fixed: Tensor, moved: Tensor) -> Tensor:
    """Returns how much each voxel has to do with the agent's decision.

    The slope of the best action's value by the intensities, times these, smoothed (a saliency map:
    Simonyan et al. 2014, arXiv:1312.6034).

    Args:
        values: Network that gives (1, A) for two views.
        fixed: (1, 1, size, size, size).
        moved: The same.

    Returns:
        (1, 1, size, size, size), not negative.
    """
    with torch.enable_grad():
        views = [view.detach().clone().requires_grad_(True) for view in (fixed, moved)]
        best = values(*views).max()
        slopes = torch.autograd.grad(best, views)
    found = sum((slope * view.detach()).abs() for slope, view in zip(slopes, views))
    assert isinstance(found, Tensor)
    return gaussian_smooth(found, _SMOOTH * fixed.shape[-1])


def regions(salience: Tensor, points: Tensor, count: int, apart: float) -> Tensor:
    """Returns the centers of the regions with the highest attention, which are apart.

    Args:
        salience: From `attention`.
        points: Positions of its voxels, from `view_points`.
        count: Most regions.
        apart: Least distance between two centers, in voxels of the grid.

    Returns:
        (K, 3) in voxels of the grid, K at least 1: the middle of the view if it pays no attention.
    """
    left, where = salience.flatten().clone(), points[0].flatten(1).T
    centers: list[Tensor] = []
    while len(centers) < count and float(left.max()) > 0.0:
        center = where[int(left.argmax())]
        centers.append(center)
        left[(where - center).norm(dim=1) < apart] = 0.0
    return torch.stack(centers) if centers else where.mean(dim=0, keepdim=True)


def rich_centers(images: Tensor, width: float, count: int = 1) -> Tensor:
    """Draws voxels of each image, more often where the image changes most around them.

    From torch's global generator.

    Args:
        images: (B, 1, *shape).
        width: Standard deviation of the surroundings, in voxels.
        count: Voxels of each image.

    Returns:
        (B * count, 3) in voxels, float64; those of one image follow each other.
    """
    slope = torch.zeros_like(images)
    for axis in (2, 3, 4):
        n = images.shape[axis]
        if n > 1:
            step = images.narrow(axis, 1, n - 1) - images.narrow(axis, 0, n - 1)
            slope.narrow(axis, 0, n - 1).add_(step.abs())
    weights = gaussian_smooth(slope, width).flatten(1).clamp(min=0.0) + 1e-9
    index = torch.multinomial(weights, count, replacement=True).flatten()
    _, _, _, b, c = images.shape
    return torch.stack([index // (b * c), index // c % b, index % c], dim=1).double()
