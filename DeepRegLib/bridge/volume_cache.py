"""What is known of the voxels of a volume, kept until they change."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import slicer
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from .volumes import image_of

#: Voxels that the first, quick look takes.
_QUICK = 200_000
#: Voxels between two looks at the clock.
_STEP = 1_000_000


@dataclass(frozen=True)
class Statistics:
    """Values of a volume.

    Args:
        low: Smallest finite value.
        high: Largest finite value.
        bad: Voxels that are NaN or infinite, among those seen.
        complete: Whether all voxels were seen.
    """

    low: float
    high: float
    bad: int
    complete: bool


@dataclass(eq=False)
class _Entry:
    time: tuple[int, int]
    quick: Statistics
    low: float = np.inf
    high: float = -np.inf
    bad: int = 0
    done: int = 0
    full: Statistics | None = None


class VolumeCache:
    """Remembers statistics by node ID and modification time of the image.

    The first look takes every n-th voxel only. `scan` makes the full pass, in short portions if
    wished, so that a panel can make it in a timer; each image is passed once until it changes.

    Example:
        ``timer.timeout.connect(lambda: cache.scan(volume, 0.01) and timer.stop())``
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._same: dict[tuple[str, str], tuple[tuple, bool]] = {}

    def statistics(self, volume: slicer.vtkMRMLVolumeNode) -> Statistics:
        """Returns what is known now, at once: of all voxels after `scan`, else of a sample.

        Raises:
            InputError: If the volume is empty.
        """
        entry = self._entry(volume)
        return entry.full or entry.quick

    def scan(self, volume: slicer.vtkMRMLVolumeNode, seconds: float | None = None) -> bool:
        """Goes on with the full pass for so many seconds (None: to its end).

        Returns:
            Whether it is finished.
        """
        entry = self._entry(volume)
        values = values_of(volume)
        end = None if seconds is None else time.perf_counter() + seconds
        while entry.full is None:
            low, high, bad = _look(values[entry.done : entry.done + _STEP])
            entry.low, entry.high = min(entry.low, low), max(entry.high, high)
            entry.bad += bad
            entry.done += _STEP
            if entry.done >= len(values):
                entry.full = Statistics(entry.low, entry.high, entry.bad, True)
            elif end is not None and time.perf_counter() > end:
                break
        return entry.full is not None

    def scanned(self, volume: slicer.vtkMRMLVolumeNode) -> bool:
        """Tells whether the full pass is finished for the voxels as they are now."""
        return self._entry(volume).full is not None

    def same_voxels(self, a: slicer.vtkMRMLVolumeNode, b: slicer.vtkMRMLVolumeNode) -> bool:
        """Tells whether two volumes of equal shape hold equal values; compared once."""
        one, two = values_of(a), values_of(b)
        step = max(1, len(one) // _QUICK)
        if len(one) != len(two) or not np.array_equal(one[::step], two[::step]):
            return False
        key, times = (a.GetID(), b.GetID()), (_time(a), _time(b))
        known = self._same.get(key)
        if known is None or known[0] != times:
            known = self._same[key] = times, bool(np.array_equal(one, two))
        return known[1]

    def _entry(self, volume: slicer.vtkMRMLVolumeNode) -> _Entry:
        now = _time(volume)
        entry = self._entries.get(volume.GetID())
        if entry is None or entry.time != now:
            values = values_of(volume)
            low, high, bad = _look(values[:: max(1, len(values) // _QUICK)])
            entry = _Entry(now, Statistics(low, high, bad, False))
            self._entries[volume.GetID()] = entry
        return entry


def values_of(volume: slicer.vtkMRMLVolumeNode) -> NDArray:
    """Returns all values of a volume as one flat array, not copied."""
    return vtk_to_numpy(image_of(volume).GetPointData().GetScalars()).reshape(-1)


def _time(volume: slicer.vtkMRMLVolumeNode) -> tuple[int, int]:
    image = image_of(volume)
    return image.GetMTime(), image.GetPointData().GetScalars().GetMTime()


def _look(values: NDArray) -> tuple[float, float, int]:
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high):
        return low, high, 0
    good = values[np.isfinite(values)]
    bad = len(values) - len(good)
    return (float(good.min()), float(good.max()), bad) if len(good) else (np.inf, -np.inf, bad)
