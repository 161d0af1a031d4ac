"""The picture of a checked registration: images, errors, and how often errors of a size occur."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError
from ..geometry.grid import Grid
from . import compose
from .color_maps import ColorMap, color_map
from .panels import window_of
from .png import png_bytes
from .slices import Plane, content_box, cut, planes_through, with_letters

#: Pixels of the longest edge of a slice, between panels, and of the histogram's width.
_PIXELS, _GAP, _BARS = 320, 6, 260
#: Share of the color over the gray value.
_OPACITY = 0.6
_BACKGROUND, _LINE = (0, 0, 0), (255, 255, 255)


def error_picture(
    fixed: NDArray,
    moved: NDArray,
    grid: Grid,
    error_mm: NDArray,
    shares: Sequence[float],
    edges_mm: Sequence[float],
    threshold_mm: float,
) -> bytes:
    """Makes the picture: three planes of both images, the same with errors, and a histogram.

    The planes meet where the error is largest in the mean around. Above, the fixed image is red and
    the moved one cyan; below, errors are colored from dark to bright over the fixed image. The bars
    have the colors of their errors; the white line is the threshold.

    Args:
        fixed: Voxels of the fixed image, (*grid.shape).
        moved: Moved image on the same grid.
        grid: The grid.
        error_mm: Error on the same grid, 0 where it is not known.
        shares: Share of the voxels in each bin of the histogram.
        edges_mm: Ends of the bins, one more.
        threshold_mm: Errors above are too large.

    Returns:
        A PNG file.

    Raises:
        GeometryError: If an array does not lie on the grid.
    """
    for array in (fixed, moved, error_mm):
        if array.shape != grid.shape:
            raise GeometryError(f"The picture needs arrays on {grid}, but got {array.shape}.")
    windows = window_of(fixed), window_of(moved)
    box = content_box(fixed, grid, windows[0][1] - 0.4 * abs(windows[0][0]))
    pixel = float(np.max(box[1] - box[0])) / _PIXELS
    planes = planes_through(grid, worst_place(error_mm, grid), pixel, box)
    colors = color_map("error_mm", error_mm[error_mm > 0])
    columns = [
        _column(plane, (fixed, moved), grid, windows, error_mm, colors) for plane in planes.values()
    ]
    height = max(column.shape[0] for column in columns)
    bars = _histogram(shares, edges_mm, threshold_mm, colors, height)
    return png_bytes(_side_by_side([*columns, bars], height))


def worst_place(error_mm: NDArray, grid: Grid) -> NDArray[np.float64]:
    """Returns where the error is largest in blocks of 12 mm, RAS mm; the middle if nowhere."""
    sizes = [max(1, min(n, round(12.0 / s))) for n, s in zip(error_mm.shape, grid.spacing_mm)]
    counts = [n // size for n, size in zip(error_mm.shape, sizes)]
    a, b, c = (count * size for count, size in zip(counts, sizes))
    blocks = error_mm[:a, :b, :c].reshape(
        counts[0], sizes[0], counts[1], sizes[1], counts[2], sizes[2]
    )
    means = blocks.mean(axis=(1, 3, 5))
    if not means.max() > 0:
        return grid.center_ras
    place = np.array(np.unravel_index(int(means.argmax()), means.shape))
    return grid.to_ras((place + 0.5) * sizes - 0.5)


def _column(
    plane: Plane,
    images: tuple[NDArray, NDArray],
    grid: Grid,
    windows: tuple[tuple[float, float], tuple[float, float]],
    error_mm: NDArray,
    colors: ColorMap,
) -> NDArray[np.uint8]:
    """Returns one plane: both images above, errors below."""
    fixed, moved = (
        compose.to_gray(cut(image, grid, plane, fill=np.nan), *window)
        for image, window in zip(images, windows)
    )
    error = cut(error_mm, grid, plane)
    over = colors.colors(np.where(error > 0, error, np.nan)).astype(np.float32)
    weight = _OPACITY * over[..., 3:] / 255.0
    below = np.round(fixed[..., None] * (1 - weight) + over[..., :3] * weight).astype(np.uint8)
    upper = with_letters(compose.red_cyan(fixed, moved), plane.letters)
    gap = np.zeros((_GAP, upper.shape[1], 3), np.uint8)
    return np.concatenate([upper, gap, below])


def _histogram(
    shares: Sequence[float],
    edges_mm: Sequence[float],
    threshold_mm: float,
    colors: ColorMap,
    height: int,
) -> NDArray[np.uint8]:
    """Returns bars that stand side by side, as high as their shares, and the threshold."""
    picture = np.full((height, _BARS, 3), _BACKGROUND, np.uint8)
    top, low, high = max([*shares, 1e-9]), float(edges_mm[0]), float(edges_mm[-1])
    scale = (_BARS - 1) / max(high - low, 1e-9)
    for share, start, end in zip(shares, edges_mm, edges_mm[1:]):
        left, right = round((start - low) * scale), max(round((end - low) * scale) - 1, 1)
        color = colors.colors(np.array([(start + end) / 2]))[0, :3]
        # A dark color is seen, too.
        picture[height - round((height - 1) * share / top) :, left:right] = np.maximum(color, 60)
    if low <= threshold_mm <= high:
        picture[:, round((threshold_mm - low) * scale)] = _LINE
    return picture


def _side_by_side(parts: Sequence[NDArray[np.uint8]], height: int) -> NDArray[np.uint8]:
    padded = []
    for part in parts:
        rest = height - part.shape[0]
        padded.append(np.pad(part, ((0, rest), (0, _GAP), (0, 0))))
    return np.concatenate(padded, axis=1)[:, :-_GAP]
