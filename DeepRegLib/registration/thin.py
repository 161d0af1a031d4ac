"""Slices and slabs: what a linear map may do where an image hardly extends along one axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..geometry.affine import PARAMETER_COUNT, LinearKind, about_point, rotation_from_vector
from ..geometry.grid import Grid, Matrix
from .base import ImagePair
from .initialize import moments

#: Thickness, as a share of the next longer side, below which an image is a slab.
_THIN = 0.25
#: Turns within the plane that two slices are tried at, in degrees.
_TURNS = tuple(range(0, 360, 30))


@dataclass(frozen=True)
class Frame:
    """Axes that linear parameters count along, and which of them are free.

    Args:
        basis: 4 x 4: the columns are the axes, the third one across the slice or slab, and the
            pivot; RAS mm of the moving space.
        free: Indices of the free parameters of `geometry.affine.linear_matrix`.
    """

    basis: Matrix
    free: tuple[int, ...]


def frame_of(pair: ImagePair, kind: LinearKind, start: Matrix, pivot_ras: NDArray) -> Frame:
    """Returns the frame for a pair at a start.

    Two slices stay in their plane. Across a slab nothing tells a stretch from another cut, so it
    keeps its thickness. Everything else is free, along the axes of RAS.

    Args:
        pair: The images.
        kind: Kind of the map.
        start: 4 x 4 map that the parameters turn, fixed to moving.
        pivot_ras: Point of the moving space that they turn about.
    """
    basis = np.eye(4)
    basis[:3, 3] = pivot_ras
    everything = tuple(range(PARAMETER_COUNT[kind]))
    if are_slices(pair):
        basis[:3, :3] = _axes_across(_normal(pair.moving.grid, _flat_axis(pair.moving.grid)))
        # Two shifts, the turn about the normal, one or two stretches, the shear in the plane.
        within = {"rigid": (0, 1, 5), "similarity": (0, 1, 5, 6), "affine": (0, 1, 5, 6, 7, 9)}
        return Frame(basis, within.get(kind, (0, 1)))
    if kind != "affine":
        return Frame(basis, everything)
    for grid, linear in ((pair.fixed.grid, start[:3, :3]), (pair.moving.grid, np.eye(3))):
        axis = _thin_axis(grid)
        if axis is not None:
            basis[:3, :3] = _axes_across(linear @ _normal(grid, axis))
            return Frame(basis, tuple(i for i in everything if i not in (8, 10, 11)))
    return Frame(basis, everything)


def are_slices(pair: ImagePair) -> bool:
    """Whether both images are single slices."""
    return all(_flat_axis(image.grid) is not None for image in (pair.fixed, pair.moving))


def slice_candidates(pair: ImagePair, method: str) -> list[Matrix]:
    """Returns starts that bring one slice into the plane of the other, likely ones first.

    Args:
        pair: Two single slices.
        method: One of `initialize.METHODS`: ``stored`` keeps the place within the plane.
    """
    fixed, moving = pair.fixed.grid, pair.moving.grid
    normal_fixed = _normal(fixed, _flat_axis(fixed))
    normal_moving = _normal(moving, _flat_axis(moving))
    if normal_fixed @ normal_moving < 0:
        normal_fixed = -normal_fixed
    upright = _turn_between(normal_fixed, normal_moving)

    def joined(matrix: Matrix) -> Matrix:
        """Shifts along the normal until the planes coincide."""
        apart = moving.center_ras - (matrix[:3, :3] @ fixed.center_ras + matrix[:3, 3])
        matrix = matrix.copy()
        matrix[:3, 3] += normal_moving * (normal_moving @ apart)
        return matrix

    stored = joined(about_point(upright, fixed.center_ras, upright @ fixed.center_ras))
    geometry = joined(about_point(upright, fixed.center_ras, moving.center_ras))
    if method in ("stored", "geometry"):
        return [stored if method == "stored" else geometry]
    centers = moments(pair.fixed, pair.fixed_mask)[0], moments(pair.moving, pair.moving_mask)[0]
    if method == "mass":
        return [joined(about_point(upright, *centers))]
    turned = [
        joined(about_point(_turn(normal_moving, np.radians(turn)) @ upright, *centers))
        for turn in _TURNS
    ]
    return turned if method in ("search", "axes") else [stored, geometry, *turned]


def _flat_axis(grid: Grid) -> int | None:
    flat = [axis for axis, size in enumerate(grid.shape) if size == 1]
    return flat[0] if len(flat) == 1 else None


def _thin_axis(grid: Grid) -> int | None:
    extents = np.array(grid.shape) * grid.spacing_mm
    axis = int(np.argmin(extents))
    return axis if extents[axis] < _THIN * np.sort(extents)[1] else None


def _normal(grid: Grid, axis: int | None) -> NDArray[np.float64]:
    assert axis is not None
    direction = grid.voxel_to_ras[:3, axis]
    return direction / np.linalg.norm(direction)


def _axes_across(direction: NDArray) -> NDArray[np.float64]:
    """Returns a rotation whose third column is a direction."""
    third = direction / np.linalg.norm(direction)
    first = np.eye(3)[int(np.argmin(np.abs(third)))]
    first = first - third * (third @ first)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(third, first), third], axis=1)


def _turn_between(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Returns the shortest rotation from one unit vector to another less than 180 deg away."""
    axis = np.cross(a, b)
    sine = np.linalg.norm(axis)
    if sine < 1e-9:
        return np.eye(3)
    return _turn(axis / sine, float(np.arctan2(sine, a @ b)))


def _turn(axis: NDArray, angle: float) -> NDArray[np.float64]:
    return rotation_from_vector(torch.from_numpy(axis * angle)).numpy()
