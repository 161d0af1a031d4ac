"""The inverse of a displacement field and of a whole transform, with its measured error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .field import Field, vector_lengths
from .grid import Grid, Matrix, invert_matrix
from .sampling import apply_matrix, resize_image, sample, voxel_coordinates
from .transform import Transform


@dataclass(frozen=True)
class InverseError:
    """How far the inverse misses, in voxels of the field that was inverted."""

    mean_voxel: float
    maximum_voxel: float


def solve_inverse(
    displacement: Tensor,
    targets: Tensor,
    iterations: int = 60,
    tolerance_voxel: float = 1e-3,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Finds for each target y the point x with x + u(x) = y.

    Fixed-point iteration x <- x - w (x + u(x) - y) (Chen et al. 2008, doi:10.1118/1.2816107) with
    a step w of its own for every point: it halves where the error grows, which keeps the iteration
    stable where u stretches by more than two. The best point seen is kept.

    Args:
        displacement: u, shape (1, 3, *shape), in voxels.
        targets: y, shape (1, 3, *out), in voxels of the same grid.
        iterations: Most iterations.
        tolerance_voxel: Stops once 99.9 % of the points are better than this.
        start: First guess of the points; y - u(y) if omitted.

    Returns:
        The points x (1, 3, *out) and their remaining errors (1, 1, *out), in voxels.
    """
    shape = targets.shape
    targets = targets.reshape(1, 3, -1, 1, 1)
    points = targets - sample(displacement, targets) if start is None else start
    found = _Found.none_yet(points.reshape(targets.shape))
    points, active = found.points, None
    best, least, step, previous = points, None, None, None
    for _ in range(iterations):
        residual = points + sample(displacement, points) - targets
        error = residual.square().sum(1, keepdim=True)
        if least is None or previous is None or step is None:
            best, least, step = points, error, torch.ones_like(error)
        else:
            best = torch.where(error < least, points, best)
            least = torch.minimum(error, least)
            step = torch.where(error > previous, step * 0.5, step).clamp_(min=0.05)
        going = least > tolerance_voxel**2
        left = int(going.sum())
        if left <= 1e-3 * found.count:
            break
        points, previous = torch.addcmul(points, step, residual, value=-1.0), error
        # Most points settle within a few iterations; then only the others go on.
        if left < 0.5 * going.numel():
            found.put(best, least, active)
            rest = going[0, 0, :, 0, 0].nonzero()[:, 0]
            active = rest if active is None else active[rest]
            targets, points, best = (t[:, :, rest] for t in (targets, points, best))
            least, step, previous = (t[:, :, rest] for t in (least, step, previous))
    if least is not None:
        found.put(best, least, active)
    return found.points.reshape(shape), found.errors.sqrt().reshape(1, 1, *shape[2:])


@dataclass(eq=False)
class _Found:
    """The best points so far, (1, 3, N, 1, 1), with their squared errors."""

    points: Tensor
    errors: Tensor

    @classmethod
    def none_yet(cls, points: Tensor) -> _Found:
        return cls(points, torch.full_like(points[:, :1], torch.inf))

    @property
    def count(self) -> int:
        return self.points.shape[2]

    def put(self, points: Tensor, errors: Tensor, where: Tensor | None) -> None:
        """Takes over points; `where` tells their places, None that they are all of them."""
        if where is None:
            # Later ones are put in here, and the arrays of the iteration are not ours to change.
            self.points, self.errors = points.clone(), errors.clone()
        else:
            self.points[:, :, where], self.errors[:, :, where] = points, errors


def invert_displacement(displacement: Tensor, iterations: int = 60) -> tuple[Tensor, InverseError]:
    """Inverts a displacement (1, 3, *shape) on its own grid.

    Returns:
        The inverse displacement, same shape and units, and its error.
    """
    identity = voxel_coordinates(displacement.shape[2:], displacement.device)
    points, error = solve_inverse(displacement, identity, iterations)
    return points - identity, InverseError(float(error.mean()), float(error.max()))


def invert(transform: Transform, moving: Grid) -> tuple[Transform, InverseError]:
    """Inverts a transform; the field of the inverse lives on the moving grid.

    With T = A(p + u(p)) the inverse is A^-1(q + w(q)), where w is the linear part of A applied to
    the displacement that undoes u at A^-1 q.

    Args:
        transform: Fixed to moving.
        moving: Grid for the field of the inverse.

    Returns:
        The transform from moving to fixed, and its error in voxels of the field of `transform`.
    """
    back = invert_matrix(transform.linear)
    if transform.field is None:
        return Transform(back), InverseError(0.0, 0.0)
    field = transform.field
    device = field.displacement.device
    to_fixed = moving.voxel_to_voxel(field.grid, back)
    targets = apply_matrix(to_fixed, voxel_coordinates(moving.shape, device))
    guess = targets + _coarse_inverse(field, moving, to_fixed, targets)
    points, error = solve_inverse(field.displacement, targets, start=guess)
    points = targets + _balanced(points - targets)
    rotation = np.eye(4)
    rotation[:3, :3] = invert_matrix(to_fixed)[:3, :3]
    vectors = apply_matrix(rotation, points - targets)
    figures = InverseError(float(error.mean()), float(error.max()))
    return Transform(back, Field(vectors, moving)), figures


def _balanced(vectors: Tensor) -> Tensor:
    """Changes values at voxels so that linear interpolation between them errs least on average.

    Interpolation between exact values always errs to the same side where a function bends, by
    1/12 of its second difference in the mean. Taking that off the values (the quasi-projection of
    linear splines; Condat, Blu, Unser, IEEE ICIP 2005) shares the error
    between voxels and the space between them.
    """
    result = vectors.clone()
    for dim in (2, 3, 4):
        inner = vectors.shape[dim] - 2
        if inner > 0:
            middle = vectors.narrow(dim, 1, inner)
            bend = vectors.narrow(dim, 0, inner) + vectors.narrow(dim, 2, inner)
            bend.sub_(middle, alpha=2.0)
            result.narrow(dim, 1, inner).sub_(bend, alpha=1.0 / 12.0)
    return result


def _coarse_inverse(field: Field, moving: Grid, to_fixed: Matrix, targets: Tensor) -> Tensor:
    """Inverse displacement solved on every second voxel and interpolated: a good first guess."""
    coarse = moving.resized([max(1, n // 2) for n in moving.shape])
    where = voxel_coordinates(coarse.shape, targets.device)
    where = apply_matrix(to_fixed @ coarse.voxel_to_voxel(moving), where)
    points, _ = solve_inverse(field.displacement, where, iterations=30)
    return resize_image(points - where, moving.shape, antialias=False)


def round_trip_error_mm(transform: Transform, inverse: Transform, grid: Grid) -> Tensor:
    """Distance of inverse(transform(p)) from p for every voxel p of a grid, (1, 1, *shape), mm."""
    part = transform.field or inverse.field
    device = None if part is None else part.displacement.device
    start = voxel_coordinates(grid.shape, device)
    if inverse.field is None:
        there = transform.moving_coordinates(grid, grid, device)
        back = apply_matrix(grid.voxel_to_voxel(grid, inverse.linear), there)
    else:
        middle = inverse.field.grid
        there = transform.moving_coordinates(grid, middle, device)
        there = there + sample(inverse.field.displacement, there)
        back = apply_matrix(middle.voxel_to_voxel(grid, inverse.linear), there)
    offset = np.eye(4)
    offset[:3, :3] = grid.voxel_to_ras[:3, :3]
    return vector_lengths(apply_matrix(offset, back - start))
