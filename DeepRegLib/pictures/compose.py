"""Two gray arrays of one shape to a picture that compares them.

Everything works on volumes (k, j, i) and on slices (rows, columns) alike, block by block, so that
beside the result only a few megabytes are in use.

Convention:
    Gray arrays are uint8, 0 black and 255 white (`to_gray`). Results have three channels (red,
    green, blue) as their last axis, uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import GeometryError, InputError

Gray = NDArray[np.uint8]
Rgb = NDArray[np.uint8]

#: Elements that are worked on at a time.
_BLOCK = 1 << 19
#: Diverging colors of a difference: darker than the fixed image, the same, brighter.
_DARKER, _SAME, _BRIGHTER = (26, 82, 190), (250, 250, 250), (196, 26, 36)
#: Least difference in gray values that has the full color; below it is noise.
_LEAST_LIMIT = 24
#: A picture is sampled at about so many places to find its scale.
_SAMPLES = 1 << 18
#: Contours.
_CONTOUR = (255, 208, 0)


def to_gray(array: NDArray, window: float, level: float) -> Gray:
    """Returns an array as gray values, window and level applied as Slicer does.

    Args:
        array: Numbers of any real type and shape; what is not a number becomes black.
        window: Width of the range that is shown; negative inverts.
        level: Middle of the range.
    """
    array = np.asarray(array)
    width = float(window) if window else 1e-6
    low = float(level) - width / 2
    result = np.empty(array.shape, np.uint8)
    if array.dtype.kind in "iub" and array.dtype.itemsize <= 2 and array.dtype.isnative:
        signed = array.dtype.kind == "i"
        index_type = np.dtype(f"u{array.dtype.itemsize}")
        bits = 8 * array.dtype.itemsize
        values = np.arange(1 << bits, dtype=np.uint32).astype(index_type)
        table = _scaled((values.view(array.dtype) if signed else values).astype(float), low, width)
        for block in blocks(array.shape):
            result[block] = table.take(array[block].view(index_type))
        return result
    precise = array.dtype not in (np.float16, np.float32)
    for block in blocks(array.shape):
        result[block] = _scaled(array[block].astype(float if precise else np.float32), low, width)
    return result


def blend(fixed: Gray, moved: Gray, weight: float = 0.5) -> Rgb:
    """Mixes both.

    Args:
        fixed: Gray values.
        moved: Gray values of the same shape.
        weight: Share of the moved image, 0 to 1.
    """
    fixed, moved = _same_shape(fixed, moved)
    share = float(np.clip(weight, 0, 1))
    gray = np.arange(256) * 256.0
    first, second = (np.round(gray * s).astype(np.uint16) for s in (1 - share, share))
    result = np.empty((*fixed.shape, 3), np.uint8)
    for block in blocks(fixed.shape):
        mixed = first.take(fixed[block])
        mixed += second.take(moved[block])
        result[block] = (mixed >> 8).astype(np.uint8)[..., None]
    return result


def checkerboard(
    fixed: Gray,
    moved: Gray,
    spacing_mm: Sequence[float],
    tile_mm: float = 20.0,
    tinted: bool = False,
) -> Rgb:
    """Shows both in alternating tiles; the fixed image is at the middle's lower indices.

    Args:
        fixed: Gray values.
        moved: Gray values of the same shape.
        spacing_mm: Distance of neighbours along each axis of the arrays.
        tile_mm: Edge of a tile, the same along all axes; a corner lies in the middle.
        tinted: Makes the fixed tiles a little cool and the moved ones a little warm.
    """
    fixed, moved = _same_shape(fixed, moved)
    if len(spacing_mm) != fixed.ndim or min(spacing_mm) <= 0 or tile_mm <= 0:
        raise InputError(
            f"A checkerboard of {fixed.ndim} axes needs {fixed.ndim} positive spacings and a "
            f"positive tile, but got {tuple(spacing_mm)} and {tile_mm}."
        )
    odd = [
        (np.floor((np.arange(n) - (n - 1) / 2) * step / tile_mm).astype(int) % 2).astype(bool)
        for n, step in zip(fixed.shape, spacing_mm)
    ]
    # With an odd number of axes the voxel below the middle of all of them would show the other.
    odd[0] = odd[0] ^ bool(fixed.ndim % 2)
    cool, warm = (0.86, 0.97, 1.0), (1.0, 0.93, 0.78)
    result = np.empty((*fixed.shape, 3), np.uint8)
    for block in blocks(fixed.shape):
        mask = odd[0][block]
        for line in odd[1:]:
            mask = mask[..., None] ^ line
        if tinted:
            for channel in range(3):
                result[block][..., channel] = np.where(
                    mask, _shade(warm[channel]).take(moved[block]),
                    _shade(cool[channel]).take(fixed[block]),
                )  # fmt: skip
        else:
            result[block] = np.where(mask, moved[block], fixed[block])[..., None]
    return result


def difference(fixed: Gray, moved: Gray, limit: int | None = None) -> Rgb:
    """Shows moved minus fixed: red is brighter than the fixed image, blue darker, white the same.

    Args:
        fixed: Gray values.
        moved: Gray values of the same shape.
        limit: Difference of the full color; `difference_limit` of the two if omitted. Give the same
            for pictures that are to be compared.
    """
    fixed, moved = _same_shape(fixed, moved)
    top = difference_limit(fixed, moved) if limit is None else max(1, int(limit))
    steps = np.linspace(-255, 255, 511) / top
    colors = [np.interp(steps, (-1, 0, 1), ends) for ends in zip(_DARKER, _SAME, _BRIGHTER)]
    tables = [np.round(channel).astype(np.uint8) for channel in colors]
    result = np.empty((*fixed.shape, 3), np.uint8)
    for block in blocks(fixed.shape):
        index = moved[block].astype(np.intp)
        index -= fixed[block]
        index += 255
        for channel, table in enumerate(tables):
            result[block][..., channel] = table.take(index)
    return result


def difference_limit(fixed: Gray, moved: Gray, percentile: float = 99.0) -> int:
    """Returns the difference that has the full color: a percentile where there is anything."""
    fixed, moved = _same_shape(fixed, moved)
    step = max(1, round((fixed.size / _SAMPLES) ** (1 / max(fixed.ndim, 1))))
    thin = (slice(None, None, step),) * fixed.ndim
    first, second = fixed[thin].astype(np.int16), moved[thin].astype(np.int16)
    sizes = np.abs(second - first)[(first > 0) | (second > 0)]
    return max(_LEAST_LIMIT, round(float(np.percentile(sizes, percentile)))) if sizes.size else 255


def red_cyan(fixed: Gray, moved: Gray) -> Rgb:
    """Shows the fixed image in red and the moved one in cyan; where they agree it is gray."""
    fixed, moved = _same_shape(fixed, moved)
    result = np.empty((*fixed.shape, 3), np.uint8)
    result[..., 0] = fixed
    result[..., 1] = moved
    result[..., 2] = moved
    return result


def edges(
    fixed: Gray,
    moved: Gray,
    levels: Sequence[int] | None = None,
    color: ArrayLike = _CONTOUR,
) -> Rgb:
    """Draws contours of the moved image over the fixed one.

    Args:
        fixed: Gray values.
        moved: Gray values of the same shape; smoothed a little before the contours are drawn.
        levels: Gray values of the contours; by default two that part its histogram into three.
        color: Red, green, blue of the lines.
    """
    fixed, moved = _same_shape(fixed, moved)
    wanted = contour_levels(moved) if levels is None else levels
    result = np.empty((*fixed.shape, 3), np.uint8)
    for block in blocks(fixed.shape):
        start, stop = block.start, min(block.stop, fixed.shape[0])
        # Two layers around: one for smoothing, one for the neighbours.
        first = max(0, start - 2)
        smooth = _smoothed(moved[first : stop + 2])
        lines = np.zeros(smooth.shape, bool)
        for value in wanted:
            _add_rim(smooth >= value, lines)
        part = result[block]
        part[:] = fixed[block][..., None]
        part[lines[start - first : stop - first]] = np.asarray(color, np.uint8)
    return result


def contour_levels(gray: Gray) -> tuple[int, int]:
    """Returns the two gray values that part a histogram into three classes best (Otsu 1979)."""
    counts = np.bincount(gray.reshape(-1)[:: max(1, gray.size // _SAMPLES)], minlength=256)
    weight = np.concatenate([[0.0], np.cumsum(counts)])
    moment = np.concatenate([[0.0], np.cumsum(counts * np.arange(256))])
    low, high = np.triu_indices(255, 1)
    low, high = low + 1, high + 1
    between = np.zeros(low.shape)
    for start, stop in ((np.zeros_like(low), low), (low, high), (high, np.full_like(low, 256))):
        mass = weight[stop] - weight[start]
        between += (moment[stop] - moment[start]) ** 2 / np.maximum(mass, 1e-9)
    best = int(between.argmax())
    return int(low[best]), int(high[best])


def blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Yields slices of the first axis that hold about `_BLOCK` elements each."""
    layer = int(np.prod(shape[1:], dtype=np.int64)) or 1
    step = max(1, _BLOCK // layer)
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def _same_shape(fixed: Gray, moved: Gray) -> tuple[Gray, Gray]:
    fixed, moved = np.asarray(fixed), np.asarray(moved)
    if fixed.shape != moved.shape or fixed.dtype != np.uint8 or moved.dtype != np.uint8:
        raise GeometryError(
            f"Pictures are composed of two gray arrays (uint8) of one shape, but got {fixed.dtype} "
            f"{fixed.shape} and {moved.dtype} {moved.shape}; use to_gray and the same grid."
        )
    return fixed, moved


def _scaled(values: NDArray, low: float, width: float) -> Gray:
    """Scales low ... low + width to 0 ... 255, in place."""
    values -= low
    values *= 255.0 / width
    np.clip(values, 0, 255, out=values)
    values += 0.5
    np.nan_to_num(values, copy=False, nan=0.0)
    return values.astype(np.uint8)


def _shade(factor: float) -> Gray:
    return np.round(np.arange(256) * factor).astype(np.uint8)


def _smoothed(gray: Gray) -> NDArray[np.uint8]:
    """Smooths along every axis with 1 2 1."""
    for axis in range(gray.ndim):
        if gray.shape[axis] < 3:
            continue
        lines = np.moveaxis(gray, axis, 0)
        total = lines.astype(np.uint16)
        inner = total[1:-1]
        inner *= 2
        inner += lines[:-2]
        inner += lines[2:]
        total[[0, -1]] *= 4
        total += 2
        total >>= 2
        gray = np.moveaxis(total.astype(np.uint8), 0, axis)
    return gray


def _add_rim(mask: NDArray[np.bool_], lines: NDArray[np.bool_]) -> None:
    """Marks the elements of a mask that have a neighbour outside of it."""
    for axis in range(mask.ndim):
        inside, out = np.moveaxis(mask, axis, 0), np.moveaxis(lines, axis, 0)
        changed = inside[1:] ^ inside[:-1]
        out[1:] |= changed & inside[1:]
        out[:-1] |= changed & inside[:-1]
