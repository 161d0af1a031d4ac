"""The course of the objective as a drawing in a page (SVG)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

_WIDTH, _HEIGHT = 900, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 26, 40
_LEAST_WIDTH = 200
#: Most points of a line.
_POINTS = 300
_TEXT = 'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#424a53"'

#: Entry of the history: index within the stage, value.
_Point = tuple[int, float]


def objective_curve(
    history: Sequence[Mapping[str, Any]], translate: Callable[[str], str] = str
) -> str:
    """Draws the objective of every stage over its iterations; levels are parted by dashed lines.

    Args:
        history: Entries with ``value`` and, where known, ``stage`` and ``level``, in order.
        translate: Gives the words in the language of the page.

    Returns:
        An ``<svg>`` element; an empty text if there is nothing to draw.
    """
    known = [entry for entry in history if _is_number(entry.get("value"))]
    stages = [
        (str(name), [(str(e.get("level", "")), float(e["value"])) for e in entries])
        for name, entries in groupby(known, lambda entry: entry.get("stage", ""))
    ]
    if not stages:
        return ""
    width = max(_WIDTH / len(stages), _LEAST_WIDTH)
    parts = [
        _panel(name, values, number * width, width, translate)
        for number, (name, values) in enumerate(stages)
    ]
    total = width * len(stages)
    label = escape(translate("Objective over the iterations"), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total:.0f} {_HEIGHT}" '
        f'width="{total:.0f}" height="{_HEIGHT}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def _panel(
    name: str,
    values: Sequence[tuple[str, float]],
    left: float,
    width: float,
    translate: Callable[[str], str],
) -> str:
    """Draws one stage: frame, ticks, level marks, and a line for each level."""
    x0, x1, y0, y1 = left + _LEFT, left + width - _RIGHT, _TOP, _HEIGHT - _BOTTOM
    low, high = min(v for _, v in values), max(v for _, v in values)
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - 0.5, high + 0.5
    last = max(len(values) - 1, 1)

    def place(point: _Point) -> str:
        x = x0 + (x1 - x0) * point[0] / last
        y = y1 - (y1 - y0) * (point[1] - low) / (high - low)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<text x="{x0}" y="{y0 - 9}" {_TEXT} font-weight="bold">{escape(name)}</text>',
        f'<rect x="{x0}" y="{y0}" width="{x1 - x0:.1f}" height="{y1 - y0}" fill="none" '
        'stroke="#aeb6bf"/>',
    ]
    for share in (0.0, 0.5, 1.0):
        y = y1 - (y1 - y0) * share
        text = f"{low + (high - low) * share:.4g}"
        parts.append(f'<line x1="{x0 - 4}" x2="{x0}" y1="{y}" y2="{y}" stroke="#6e7781"/>')
        parts.append(f'<text x="{x0 - 7}" y="{y + 4}" text-anchor="end" {_TEXT}>{text}</text>')
    for share, anchor in ((0.0, "start"), (1.0, "end")):
        x, text = x0 + (x1 - x0) * share, str(round(1 + share * (len(values) - 1)))
        parts.append(f'<text x="{x}" y="{y1 + 16}" text-anchor="{anchor}" {_TEXT}>{text}</text>')
    middle = (x0 + x1) / 2
    iteration = escape(translate("iteration"))
    parts.append(
        f'<text x="{middle}" y="{y1 + 31}" text-anchor="middle" {_TEXT}>{iteration}</text>'
    )
    for start, line in _levels(values):
        if start:
            x = x0 + (x1 - x0) * (start - 0.5) / last
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y0}" y2="{y1}" stroke="#8c959f" '
                         'stroke-dasharray="3 3"/>')  # fmt: skip
        points = " ".join(place(point) for point in _thinned(line))
        if len(line) == 1:
            column, row = points.split(",")
            parts.append(f'<circle cx="{column}" cy="{row}" r="2" fill="#0b62c4"/>')
        else:
            parts.append(f'<polyline points="{points}" fill="none" stroke="#0b62c4" '
                         'stroke-width="1.6" stroke-linejoin="round"/>')  # fmt: skip
    return "".join(parts)


def _levels(values: Sequence[tuple[str, float]]) -> list[tuple[int, list[_Point]]]:
    """Returns the first index and the points of each resolution level."""
    result = []
    numbered = [(index, level, value) for index, (level, value) in enumerate(values)]
    for _, entries in groupby(numbered, lambda entry: entry[1]):
        line = [(index, value) for index, _, value in entries]
        result.append((line[0][0], line))
    return result


def _thinned(line: list[_Point]) -> list[_Point]:
    step = max(1, math.ceil(len(line) / _POINTS))
    return line[::step] if (len(line) - 1) % step == 0 else [*line[::step], line[-1]]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
