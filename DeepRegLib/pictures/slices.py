"""Axial, coronal and sagittal slices of a volume on any grid, as a radiologist expects them.

Convention:
    Axial and coronal slices have the patient's right at the left of the picture; sagittal ones
    have anterior at the left. Anterior, or superior, is at the top. Pixels are square, and the
    picture shows what lies there in the patient, however the grid of the volume is turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import GeometryError, InputError
from ..geometry.grid import Grid, transform_points

PLANES = ("axial", "coronal", "sagittal")
#: Directions of a picture in RAS (right, down), and the letters at left, right, top and bottom.
_DIRECTIONS = {
    "axial": (((-1, 0, 0), (0, -1, 0)), "RLAP"),
    "coronal": (((-1, 0, 0), (0, 0, -1)), "RLSI"),
    "sagittal": (((0, -1, 0), (0, 0, -1)), "APSI"),
}
#: Letters in 5 x 7 dots, a number a row, the leftmost dot the highest bit.
_FONT = {
    "R": (30, 17, 17, 30, 20, 18, 17),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "A": (14, 17, 17, 31, 17, 17, 17),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "S": (15, 16, 16, 14, 1, 1, 30),
    "I": (14, 4, 4, 4, 4, 4, 14),
}
#: Most pixels along an edge of a picture whose resolution is not given.
_MOST_PIXELS = 512


@dataclass(frozen=True, eq=False)
class Plane:
    """A slice to cut.

    Args:
        name: ``axial``, ``coronal`` or ``sagittal``.
        grid: Its pixels: one layer, axis 1 down and axis 2 to the right on the picture, RAS mm.
    """

    name: str
    grid: Grid

    @property
    def letters(self) -> str:
        """Directions at the left, right, top and bottom of the picture."""
        return _DIRECTIONS[self.name][1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.grid.shape[1], self.grid.shape[2]

    @property
    def pixel_mm(self) -> float:
        """Edge of a pixel."""
        return self.grid.spacing_mm[1]


def plane_of(
    name: str, point_ras: ArrayLike, low_ras: ArrayLike, high_ras: ArrayLike, pixel_mm: float
) -> Plane:
    """Returns a slice through a point that covers a box.

    Args:
        name: ``axial``, ``coronal`` or ``sagittal``.
        point_ras: A point of the slice.
        low_ras: Lowest R, A and S that the picture shows.
        high_ras: Highest R, A and S.
        pixel_mm: Edge of a pixel.

    Raises:
        InputError: If there is no such plane, or the box or the pixel is empty.
    """
    if name not in _DIRECTIONS:
        raise InputError(f"A plane is one of {', '.join(PLANES)}, but got '{name}'.")
    low, high = np.asarray(low_ras, float), np.asarray(high_ras, float)
    if not pixel_mm > 0 or not (high > low).all():
        raise InputError("A picture needs a box with low below high, and pixels above 0 mm.")
    right, down = (np.array(v, float) for v in _DIRECTIONS[name][0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.cross(right, down), down * pixel_mm, right * pixel_mm], axis=1)
    size = [max(1, int(np.ceil(abs((high - low) @ v) / pixel_mm - 1e-6))) for v in (down, right)]
    middle, point = (low + high) / 2, np.asarray(point_ras, float)
    through = np.abs(np.cross(right, down))
    corner = middle * (1 - through) + point * through
    corner -= down * pixel_mm * (size[0] - 1) / 2 + right * pixel_mm * (size[1] - 1) / 2
    matrix[:3, 3] = corner
    return Plane(name, Grid((1, size[0], size[1]), matrix))


def planes_through(
    grid: Grid,
    point_ras: ArrayLike | None = None,
    pixel_mm: float | None = None,
    box_ras: tuple[ArrayLike, ArrayLike] | None = None,
) -> dict[str, Plane]:
    """Returns the axial, coronal and sagittal slice of a volume through a point.

    Args:
        grid: Grid of the volume, turned in any way.
        point_ras: The point; the middle of the grid if omitted.
        pixel_mm: Edge of a pixel; the smallest spacing if omitted, larger for large volumes.
        box_ras: Lowest and highest RAS to show; all of the grid if omitted.
    """
    corners = grid.corners_ras()
    low, high = (corners.min(0), corners.max(0)) if box_ras is None else map(np.asarray, box_ras)
    point = grid.center_ras if point_ras is None else point_ras
    edge = max(min(grid.spacing_mm), float(np.max(high - low)) / _MOST_PIXELS)
    edge = edge if pixel_mm is None else pixel_mm
    return {name: plane_of(name, point, low, high, edge) for name in PLANES}


def cut(
    array: NDArray,
    grid: Grid,
    plane: Plane,
    linear: ArrayLike | None = None,
    fill: float = 0.0,
    nearest: bool = False,
) -> NDArray:
    """Samples a volume on a slice.

    Args:
        array: Voxels, (*grid.shape) or (*grid.shape, channels).
        grid: Their grid.
        plane: The slice.
        linear: 4 x 4 matrix from the RAS of the slice to that of the grid; identity if omitted.
        fill: Value where the volume has no voxel.
        nearest: Takes the nearest voxel (labels, colors) rather than linear interpolation.

    Returns:
        (height, width) or (height, width, channels); float32, or the array's type if `nearest`.

    Raises:
        GeometryError: If the array does not fit the grid.
    """
    if array.shape[:3] != grid.shape:
        raise GeometryError(f"The voxels have the shape {array.shape}, but the grid is {grid}.")
    matrix = plane.grid.voxel_to_voxel(grid, linear)
    height, width = plane.size
    pixels = np.stack(np.broadcast_arrays(0.0, *np.ogrid[:height, :width]), axis=-1)
    where = transform_points(matrix, pixels)
    top = np.array(grid.shape) - 1
    outside = ((where < -0.5 - 1e-6) | (where > top + 0.5 + 1e-6)).any(-1)
    where = np.clip(where, 0, top)
    if nearest:
        result = array[tuple(np.moveaxis(np.rint(where).astype(int), -1, 0))]
    else:
        result = _linear(array, where, top)
    result[outside] = fill
    return result


def with_letters(picture: NDArray[np.uint8], letters: str) -> NDArray[np.uint8]:
    """Returns a picture with the letters of its directions burned in at its edges.

    Args:
        picture: (height, width, 3), uint8.
        letters: At the left, right, top and bottom, of R L A P S I; a space leaves one out.
    """
    result = picture.copy()
    height, width = picture.shape[:2]
    scale = max(1, round(min(height, width) / 140))
    margin = 2 * scale
    for letter, (row, column) in zip(letters, ((0.5, 0), (0.5, 1), (0, 0.5), (1, 0.5))):
        if letter == " ":
            continue
        ink = _ink(letter, scale)
        free = height - ink.shape[0] - 2 * margin, width - ink.shape[1] - 2 * margin
        if min(free) < 0:
            continue
        top, left = margin + round(free[0] * row), margin + round(free[1] * column)
        part = result[top : top + ink.shape[0], left : left + ink.shape[1]]
        part[ink == 1] = 0
        part[ink == 2] = (255, 214, 90)
    return result


def content_box(
    array: NDArray, grid: Grid, threshold: float, margin_mm: float = 8.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns lowest and highest RAS of the voxels above a threshold, with a margin.

    The box of the whole grid if no voxel is.
    """
    step = [max(1, n // 128) for n in grid.shape]
    found = np.argwhere(array[:: step[0], :: step[1], :: step[2]] > threshold) * step
    corners = grid.corners_ras()
    low, high = corners.min(0), corners.max(0)
    if not len(found):
        return low, high
    points = grid.to_ras(found)
    return (np.maximum(low, points.min(0) - margin_mm), np.minimum(high, points.max(0) + margin_mm))


def _linear(array: NDArray, where: NDArray[np.float64], top: Sequence[int] | NDArray) -> NDArray:
    """Trilinear interpolation at voxel coordinates (height, width, 3) inside the array."""
    below = np.floor(where).astype(int)
    share = (where - below).astype(np.float32)
    above = np.minimum(below + 1, top)
    result: NDArray | float = 0.0
    for corner in np.ndindex(2, 2, 2):
        index = tuple((above if up else below)[..., axis] for axis, up in enumerate(corner))
        weight = np.ones(where.shape[:-1], np.float32)
        for axis, up in enumerate(corner):
            weight *= share[..., axis] if up else 1 - share[..., axis]
        values = array[index].astype(np.float32)
        result = result + values * (weight if array.ndim == 3 else weight[..., None])
    return np.asarray(result)


def _ink(letter: str, scale: int) -> NDArray[np.uint8]:
    """Returns a letter with a rim: 2 ink, 1 rim, 0 nothing."""
    if letter not in _FONT:
        raise InputError(f"Letters of directions are R L A P S I, but got '{letter}'.")
    dots = np.array([[row >> bit & 1 for bit in range(4, -1, -1)] for row in _FONT[letter]], bool)
    big = np.pad(np.kron(dots, np.ones((scale, scale), bool)), scale)
    rim = np.zeros_like(big)
    for down in (-scale, 0, scale):
        for right in (-scale, 0, scale):
            rim |= np.roll(big, (down, right), (0, 1))
    return np.where(big, 2, rim).astype(np.uint8)
