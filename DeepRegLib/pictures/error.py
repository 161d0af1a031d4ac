"""The picture of a checked registration: images, errors, and how often errors of a size occur."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import GeometryError
from ..geometry.grid import Grid
from . import compose
from .color_maps import ColorMap, color_map, error_scale_mm
from .histogram import SIZE, TITLE, color_scale, histogram
from .panels import window_of
from .png import png_bytes
from .slices import Plane, content_box, cut, planes_through, with_letters
from .text import text_mask, write_text

#: Pixels of the longest edge of a slice, between panels, and of the width of the plots.
_PIXELS, _GAP, _PLOTS = 320, 10, 300
#: Pixels of the histogram at least, and of the scale of colors at most.
_LEAST_PLOT, _MOST_SCALE = 220, 260
#: Share of the color over the gray value.
_OPACITY = 0.75
_INK = (225, 225, 225)


def error_picture(
    fixed: NDArray,
    moved: NDArray,
    grid: Grid,
    error_mm: NDArray,
    shares: Sequence[float],
    edges_mm: Sequence[float],
    threshold_mm: float,
    share_above_percent: float | None = None,
) -> bytes:
    """Makes the picture: three planes of both images, the same with errors, and a histogram.

    The planes meet where the error is largest in the mean around. Above, the fixed image is red and
    the moved one cyan; below, errors are colored from dark to bright over the fixed image, with the
    scale at the right. The bars of the histogram have the colors of their errors; the white line is
    the threshold.

    Args:
        fixed: Voxels of the fixed image, (*grid.shape).
        moved: Moved image on the same grid.
        grid: The grid.
        error_mm: Error on the same grid, 0 where it is not known.
        shares: Share of the voxels in each bin of the histogram.
        edges_mm: Ends of the bins, one more.
        threshold_mm: Errors above are too large.
        share_above_percent: How many are; counted in `error_mm` if omitted.

    Returns:
        A PNG file.

    Raises:
        GeometryError: If an array does not lie on the grid.
    """
    for array in (fixed, moved, error_mm):
        if array.shape != grid.shape:
            raise GeometryError(f"The picture needs arrays on {grid}, but got {array.shape}.")
    known = error_mm[error_mm > 0]
    if share_above_percent is None:
        share_above_percent = 100.0 * float((known > threshold_mm).mean()) if known.size else 0.0
    windows = window_of(fixed), window_of(moved)
    box = content_box(fixed, grid, windows[0][1] - 0.4 * abs(windows[0][0]))
    pixel = float(np.max(box[1] - box[0])) / _PIXELS
    planes = planes_through(grid, worst_place(error_mm, grid), pixel, box)
    highest = error_scale_mm(threshold_mm, float(edges_mm[-1]))
    colors = replace(color_map("error_mm"), high=highest)
    columns = [
        _column(plane, (fixed, moved), grid, windows, error_mm, colors) for plane in planes.values()
    ]
    height = max(max(column[0].shape[0] for column in columns), _LEAST_PLOT)
    upper = histogram(shares, edges_mm, threshold_mm, share_above_percent, colors, (height, _PLOTS))
    lower = color_scale(colors, threshold_mm, (min(height, _MOST_SCALE), _PLOTS))
    rows = [
        _titled("Fixed image red, moved image cyan: gray where they agree",
                _side_by_side([column[0] for column in columns], height), upper),
        _titled("Estimated error over the fixed image; the planes meet where it is largest",
                _side_by_side([column[1] for column in columns], height), lower),
    ]  # fmt: skip
    return png_bytes(np.pad(np.concatenate(rows), ((_GAP, 0), (_GAP, _GAP), (0, 0))))


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
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns one plane: both images, and errors over the fixed one."""
    fixed, moved = (
        compose.to_gray(cut(image, grid, plane, fill=np.nan), *window)
        for image, window in zip(images, windows)
    )
    error = cut(error_mm, grid, plane)
    over = colors.colors(np.where(error > 0, error, np.nan)).astype(np.float32)
    weight = _OPACITY * over[..., 3:] / 255.0
    below = np.round(fixed[..., None] * (1 - weight) + over[..., :3] * weight).astype(np.uint8)
    shown = (compose.red_cyan(fixed, moved), below)
    pair = tuple(with_letters(picture, plane.letters) for picture in shown)
    for picture in pair:
        write_text(picture, plane.name.capitalize(), picture.shape[0] - 3, picture.shape[1] - 4,
                   across="end", down="end", size=SIZE, color=_INK)  # fmt: skip
    return pair[0], pair[1]


def _titled(title: str, pictures: NDArray[np.uint8], plot: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns pictures under their title, and a plot beside both."""
    head = text_mask(title, TITLE).shape[0] + _GAP
    left = np.pad(pictures, ((head, _GAP), (0, 2 * _GAP), (0, 0)))
    write_text(left, title, 0, 0, size=TITLE, color=_INK)
    right = np.pad(plot, ((0, left.shape[0] - plot.shape[0]), (0, 0), (0, 0)))
    return np.concatenate([left, right], axis=1)


def _side_by_side(parts: Sequence[NDArray[np.uint8]], height: int) -> NDArray[np.uint8]:
    padded = []
    for part in parts:
        rest = height - part.shape[0]
        padded.append(np.pad(part, ((rest // 2, rest - rest // 2), (0, _GAP), (0, 0))))
    return np.concatenate(padded, axis=1)[:, :-_GAP]
