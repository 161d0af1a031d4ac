"""A histogram of lengths in mm, and the scale of a color map, as parts of a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .color_maps import ColorMap
from .text import text_mask, write_text

Rgb = NDArray[np.uint8]

#: Size of letters and of those of titles, in pixels, and the room between text and what it names.
SIZE, TITLE, GAP = 13, 15, 5
_TICK = 4
_INK, _GRID, _LINE = (225, 225, 225), (70, 70, 70), (255, 255, 255)
#: The least of a color on black that is seen.
_DARKEST = 60
#: Fewest parts of an axis.
_PARTS = 4


@dataclass(frozen=True)
class Box:
    """Where a plot is drawn: rows and columns of its corners."""

    top: int
    bottom: int
    left: int
    right: int


def histogram(
    shares: Sequence[float],
    edges_mm: Sequence[float],
    threshold_mm: float,
    share_above_percent: float,
    colors: ColorMap,
    size: tuple[int, int],
) -> Rgb:
    """Draws how often errors of a size occur, with axes, units, and the threshold.

    Args:
        shares: Share of the voxels in each bin, which add up to 1.
        edges_mm: Ends of the bins, one more.
        threshold_mm: Where the line stands.
        share_above_percent: What is written beside it.
        colors: Colors of the bars.
        size: Height and width of the picture.
    """
    picture = np.zeros((*size, 3), np.uint8)
    top = 100.0 * max([*shares, 1e-9])
    ticks = round_ticks(top)
    widest = max(text_mask(f"{tick:g} %", SIZE).shape[1] for tick in ticks)
    line_height = text_mask("0", SIZE).shape[0]
    box = Box(
        2 * line_height + 3 * GAP, size[0] - 2 * line_height - 3 * GAP, widest + 2 * GAP,
        size[1] - 3 * GAP,
    )  # fmt: skip
    write_text(picture, "Share of the voxels", 0, 0, size=TITLE, color=_INK)
    low, high = float(edges_mm[0]), float(edges_mm[-1])
    across = _scale(low, high, box.left, box.right)
    up = _scale(0.0, max(ticks[-1], top), box.bottom, box.top)
    for tick in ticks:
        row = up(tick)
        picture[row, box.left : box.right] = _GRID
        write_text(picture, f"{tick:g} %", row, box.left - GAP, across="end", down="middle",
                   size=SIZE, color=_INK)  # fmt: skip
    for share, start, end in zip(shares, edges_mm, edges_mm[1:]):
        color = colors.colors(np.array([(start + end) / 2]))[0, :3]
        bar = picture[up(100.0 * share) : box.bottom, across(start) + 1 : max(across(end), 2)]
        bar[:] = np.maximum(color, _DARKEST)
    _bottom_axis(picture, box, across, low, high)
    if low <= threshold_mm <= high:
        _threshold(picture, box, across(threshold_mm), threshold_mm, share_above_percent)
    return picture


def color_scale(colors: ColorMap, threshold_mm: float, size: tuple[int, int]) -> Rgb:
    """Draws the colors of a map from top to bottom, with their values in mm.

    Args:
        colors: The map; what it leaves clear is drawn black.
        threshold_mm: Where a line stands.
        size: Height and width of the picture.
    """
    picture = np.zeros((*size, 3), np.uint8)
    line_height = text_mask("0", SIZE).shape[0]
    box = Box(line_height + 3 * GAP, size[0] - line_height, GAP, GAP + 24)
    write_text(picture, "Estimated error", 0, 0, size=TITLE, color=_INK)
    down = _scale(colors.low, colors.high, box.bottom, box.top)
    values = np.linspace(colors.high, colors.low, box.bottom - box.top)
    shown = colors.colors(values)
    picture[box.top : box.bottom, box.left : box.right] = np.where(
        shown[:, 3:] > 0, shown[:, :3], 0
    )[:, None]
    for edge in (box.top, box.bottom):
        picture[edge, box.left : box.right] = _INK
    for edge in (box.left, box.right):
        picture[box.top : box.bottom + 1, edge] = _INK
    for tick in round_ticks(colors.high - colors.low):
        value = colors.low + tick
        if value > colors.high + 1e-9:
            continue
        picture[down(value), box.right : box.right + _TICK] = _INK
        end = " or more" if value >= colors.high - 1e-9 else ""
        write_text(picture, f"{value:g} mm{end}", down(value), box.right + _TICK + GAP,
                   down="middle", size=SIZE, color=_INK)  # fmt: skip
    if colors.low < threshold_mm < colors.high:
        row = down(threshold_mm)
        picture[row - 1 : row + 1, box.left : box.right + 2 * _TICK] = _LINE
    return picture


def round_ticks(top: float) -> list[float]:
    """Returns round numbers from 0 that reach a number or go beyond it, five to eleven of them."""
    power = 10.0 ** math.floor(math.log10(max(top, 1e-9) / _PARTS))
    step = next(s * power for s in (5.0, 2.0, 1.0) if top / (s * power) >= _PARTS - 1e-9)
    count = math.ceil(top / step - 1e-9)
    return [round(number * step, 10) for number in range(count + 1)]


def _scale(low: float, high: float, first: int, last: int) -> Callable[[float], int]:
    """Returns a function from values to pixels."""
    factor = (last - first) / max(high - low, 1e-12)
    return lambda value: round(first + (min(max(value, low), high) - low) * factor)


def _bottom_axis(
    picture: Rgb, box: Box, across: Callable[[float], int], low: float, high: float
) -> None:
    picture[box.bottom, box.left : box.right] = _INK
    line_height = text_mask("0", SIZE).shape[0]
    for tick in round_ticks(high - low):
        if low + tick > high + 1e-9:
            continue
        column = min(across(low + tick), picture.shape[1] - 1)
        picture[box.bottom : box.bottom + _TICK, column] = _INK
        write_text(picture, f"{low + tick:g}", box.bottom + _TICK + 2, column, across="middle",
                   size=SIZE, color=_INK)  # fmt: skip
    row = box.bottom + _TICK + line_height + GAP
    write_text(picture, "Estimated error in mm", row, (box.left + box.right) // 2,
               across="middle", size=SIZE, color=_INK)  # fmt: skip


def _threshold(picture: Rgb, box: Box, column: int, threshold_mm: float, above: float) -> None:
    top = box.top - text_mask("0", SIZE).shape[0] - GAP
    picture[top : box.bottom, column : column + 2] = _LINE
    told = f"{above:.0f} % above {threshold_mm:g} mm"
    # Beside the line, on the side where there is room.
    right = column + GAP + text_mask(told, SIZE).shape[1] < picture.shape[1]
    place = column + GAP if right else column - GAP
    write_text(picture, told, top, place, across="start" if right else "end", size=SIZE,
               color=_LINE)  # fmt: skip
