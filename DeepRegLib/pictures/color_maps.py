"""Colors of scalar maps: local volume change, uncertainty, error.

A map's table has 256 entries that are evenly spaced in its values; the logarithmic scale of the
Jacobian is in the table itself. So window and level of a display node are all that it takes to show
the values of the volume themselves, and the data probe reads a determinant and millimetres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError

KINDS = ("jacobian", "uncertainty_mm", "error_mm")
#: The determinant with the strongest red; its inverse has the strongest blue.
JACOBIAN_LIMIT = 3.0
#: The first steps of 255 are kept for what is not positive, 0 included, so that a legend shows what
#: folds have for a color. Few digits, as a scene file keeps six.
_JACOBIAN_LOW, _FOLDED = -0.9843, 63
#: Volume changes below this factor are transparent. (Slice views of Slicer know no half-transparent
#: colors: what is not quite transparent is opaque.)
_CLEAR = 1.1
_FOLD = (255, 0, 255)
#: Shrinking to growing, evenly spaced in the logarithm.
_DIVERGING = ("08306B", "2171B5", "6BAED6", "C6DBEF", "F7F7F7", "FDD0A2", "F4764F", "CB181D",
              "67000D")  # fmt: skip
#: Ten evenly spaced colors of matplotlib's maps by S. van der Walt and N. Smith (CC0).
_VIRIDIS = ("440154", "482878", "3E4A89", "31688E", "26828E", "1F9E89", "35B779", "6DCD59",
            "B4DE2C", "FDE725")  # fmt: skip
_INFERNO = ("000004", "1B0C42", "4B0C6B", "781C6D", "A52C60", "CF4446", "ED6925", "FB9A06",
            "F7D03C", "FCFFA4")  # fmt: skip
#: Entries at the low end of maps in mm that are transparent: 2 % of the scale of an uncertainty;
#: of an error only 0, which stands where nothing was judged.
_HIDDEN = {"uncertainty_mm": 5, "error_mm": 1}
#: Scales in mm end at one of these times a power of ten, and not below the first of all.
_STEPS = (1.0, 2.0, 3.0, 5.0, 10.0)
_LEAST_MM = 0.5


@dataclass(frozen=True, eq=False)
class ColorMap:
    """Colors for values from `low` to `high`.

    Args:
        kind: One of `KINDS`.
        title: Name for people.
        table: (256, 4), uint8: red, green, blue, opacity.
        low: Value at the lower edge of the first entry.
        high: Value of the last entry.
    """

    kind: str
    title: str
    table: NDArray[np.uint8]
    low: float
    high: float

    @property
    def window(self) -> float:
        """Width of the range."""
        return self.high - self.low

    @property
    def level(self) -> float:
        """Middle of the range."""
        return (self.high + self.low) / 2

    def colors(self, values: ArrayLike) -> NDArray[np.uint8]:
        """Returns (..., 4) colors, as a slice view of Slicer shows them; NaN is transparent."""
        numbers = np.asarray(values, np.float64)
        position = (numbers - self.low) * (255 / self.window)
        index = np.nan_to_num(np.clip(position, 0, 255), nan=0).astype(np.uint8)
        result = self.table[index]
        result[np.isnan(numbers), 3] = 0
        return result


def color_map(kind: str, values: ArrayLike | None = None) -> ColorMap:
    """Returns the colors of a kind of map.

    The Jacobian's scale is always the same: 1/3 blue, 1 transparent, 3 red, all in the logarithm,
    and magenta at and below 0, where the deformation folds. Maps in mm begin at 0 and end at a
    round number near the 99th percentile of their values.

    Args:
        kind: ``jacobian``, ``uncertainty_mm`` or ``error_mm``.
        values: The map, for its scale; 1 mm if omitted.

    Raises:
        InputError: If there is no such kind.
    """
    if kind not in KINDS:
        raise InputError(f"A map is one of {', '.join(KINDS)}, but got '{kind}'.")
    table = _table(kind)
    if kind == "jacobian":
        return ColorMap(kind, "Jacobian determinant", table, _JACOBIAN_LOW, JACOBIAN_LIMIT)
    high = 1.0 if values is None else _round_scale(np.asarray(values))
    title = "Uncertainty (mm)" if kind == "uncertainty_mm" else "Estimated error (mm)"
    return ColorMap(kind, title, table, 0.0, high)


def error_scale_mm(threshold_mm: float, largest_mm: float) -> float:
    """Returns the error with the brightest color: three thresholds, as far as a model knows them.

    It does not depend on the errors, so that what is bright is bad, whatever is looked at.

    Args:
        threshold_mm: Errors above are too large.
        largest_mm: Largest error that the model tells apart.
    """
    return min(3.0 * threshold_mm, largest_mm)


@cache
def _table(kind: str) -> NDArray[np.uint8]:
    table = np.full((256, 4), 255, np.uint8)
    if kind == "jacobian":
        # Entry n shows the values from n to n + 1 steps above the lowest; its middle counts.
        step = (JACOBIAN_LIMIT - _JACOBIAN_LOW) / 255
        middle = _JACOBIAN_LOW + (np.arange(256) + 0.5) * step
        log = np.log(np.maximum(middle, 1e-6))
        table[:, :3] = _interpolated(_DIVERGING, 0.5 + log / math.log(JACOBIAN_LIMIT) / 2)
        table[:, 3] = np.where(np.abs(log) < math.log(_CLEAR), 0, 255)
        table[:_FOLDED] = (*_FOLD, 255)
    else:
        stops = _VIRIDIS if kind == "uncertainty_mm" else _INFERNO
        table[:, :3] = _interpolated(stops, np.linspace(0, 1, 256))
        table[: _HIDDEN[kind], 3] = 0
    table.setflags(write=False)
    return table


def _interpolated(stops: tuple[str, ...], where: NDArray) -> NDArray[np.uint8]:
    colors = np.array([list(bytes.fromhex(stop)) for stop in stops], float)
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(where, places, channel) for channel in colors.T]
    return np.round(np.stack(channels, -1)).astype(np.uint8)


def _round_scale(values: NDArray) -> float:
    """Returns a round number at or above the 99th percentile."""
    sample = values.reshape(-1)[:: max(1, values.size >> 18)]
    sample = sample[np.isfinite(sample)]
    top = max(_LEAST_MM, float(np.percentile(sample, 99)) if sample.size else 0.0)
    power = 10.0 ** math.floor(math.log10(top))
    return next(step * power for step in _STEPS if step * power >= top * (1 - 1e-6))
