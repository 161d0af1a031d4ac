"""The pictures of a registration, before and after, in three planes, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import GeometryError, InputError
from ..geometry.grid import Grid
from . import compose
from .png import png_bytes
from .slices import Plane, content_box, cut, planes_through, with_letters

#: Ways to compare two images.
KINDS = ("blend", "checkerboard", "difference", "red_cyan", "edges")
#: Pixels of the longest edge of a picture.
_PIXELS = 400
#: Planes that would be thinner than this share of the longest edge are left out.
_LEAST_SHARE = 0.06


@dataclass(frozen=True)
class Picture:
    """One picture of a report.

    Args:
        kind: One of `KINDS`.
        plane: ``axial``, ``coronal`` or ``sagittal``.
        when: ``before`` or ``after``.
        png: The file.
        width: Pixels.
        height: Pixels.
        pixel_mm: Edge of a pixel.
    """

    kind: str
    plane: str
    when: str
    png: bytes
    width: int
    height: int
    pixel_mm: float


def comparison_pictures(
    fixed: NDArray,
    fixed_grid: Grid,
    moving: NDArray,
    moving_grid: Grid,
    moved: NDArray,
    *,
    start: ArrayLike | None = None,
    point_ras: ArrayLike | None = None,
    fixed_window: tuple[float, float] | None = None,
    moving_window: tuple[float, float] | None = None,
    kinds: Sequence[str] = KINDS[:4],
    pixels: int = _PIXELS,
) -> list[Picture]:
    """Makes the pictures before and after a registration, all at one scale.

    Args:
        fixed: Voxels of the fixed image, (*fixed_grid.shape).
        fixed_grid: Its grid.
        moving: Voxels of the moving image, as stored.
        moving_grid: Its grid.
        moved: Moved image on the fixed grid.
        start: 4 x 4 matrix, fixed to moving, that was there before the registration.
        point_ras: Where the planes meet; the middle of what the fixed image shows if omitted.
        fixed_window: Window and level; from the values if omitted.
        moving_window: Window and level of the moving and the moved image.
        kinds: Which of `KINDS`, in this order.
        pixels: Of the longest edge of a picture.

    Raises:
        GeometryError: If the moved image is not on the fixed grid.
        InputError: If there is no such kind.
    """
    if moved.shape != fixed_grid.shape:
        raise GeometryError(f"The moved image is {moved.shape}, but the fixed grid {fixed_grid}.")
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"A picture is one of {', '.join(KINDS)}, but got '{kind}'.")
    fixed_window = fixed_window or window_of(fixed)
    moving_window = moving_window or window_of(moving)
    threshold = fixed_window[1] - 0.4 * abs(fixed_window[0])
    box = content_box(fixed, fixed_grid, threshold)
    point = (box[0] + box[1]) / 2 if point_ras is None else point_ras
    edge = float(np.max(box[1] - box[0])) / pixels
    planes = planes_through(fixed_grid, point, edge, box)
    # An image of one slice is a line in two of the planes.
    planes = {n: p for n, p in planes.items() if min(p.size) > _LEAST_SHARE * pixels} or planes
    grays = {
        plane.name: (
            _gray(fixed, fixed_grid, plane, fixed_window),
            {
                "before": _gray(moving, moving_grid, plane, moving_window, start),
                "after": _gray(moved, fixed_grid, plane, moving_window),
            },
        )
        for plane in planes.values()
    }
    limit = max(compose.difference_limit(g, other["before"]) for g, other in grays.values())
    return [
        _picture(kind, planes[name], when, grays[name][0], grays[name][1][when], limit)
        for kind in kinds
        for when in ("before", "after")
        for name in planes
    ]


def window_of(array: NDArray) -> tuple[float, float]:
    """Returns a window and level that suit an image: from the 1st to the 99.5th percentile.

    What has the lowest value of all, such as the empty background, does not count.
    """
    sample = np.asarray(array.reshape(-1)[:: max(1, array.size >> 18)], np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 1.0, 0.5
    lowest = float(sample.min())
    inside = sample[sample > lowest]
    if not inside.size:
        return 1.0, lowest + 0.5
    low, high = (float(v) for v in np.percentile(inside, (1, 99.5)))
    # A background of one value is black, and what is next to it dark rather than black.
    low = min(low, lowest + 0.1 * (high - lowest)) if sample.size > 1.2 * inside.size else low
    high = high if high > low else low + 1.0
    return high - low, (high + low) / 2


def _gray(
    array: NDArray,
    grid: Grid,
    plane: Plane,
    window: tuple[float, float],
    linear: ArrayLike | None = None,
) -> NDArray[np.uint8]:
    return compose.to_gray(cut(array, grid, plane, linear, fill=np.nan), *window)


def _picture(
    kind: str,
    plane: Plane,
    when: str,
    fixed: NDArray[np.uint8],
    other: NDArray[np.uint8],
    limit: int,
) -> Picture:
    if kind == "checkerboard":
        spacing = plane.grid.spacing_mm[1:]
        tile = max(plane.size) * plane.pixel_mm / 8
        rgb = compose.checkerboard(fixed, other, spacing, tile, tinted=True)
    elif kind == "difference":
        rgb = compose.difference(fixed, other, limit)
    else:
        rgb = getattr(compose, kind)(fixed, other)
    height, width = plane.size
    data = png_bytes(with_letters(rgb, plane.letters))
    return Picture(kind, plane.name, when, data, width, height, plane.pixel_mm)
