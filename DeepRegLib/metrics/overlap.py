"""Agreement of label maps: Dice and the 95 % Hausdorff distance, label by label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import InputError

#: Labels up to this value are counted directly; larger or negative ones are numbered first.
_LARGEST_DIRECT_LABEL = 1 << 20


def dice_per_label(
    fixed_labels: Tensor | ArrayLike, moved_labels: Tensor | ArrayLike
) -> dict[int, float]:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of each label (Dice 1945, doi:10.2307/1932409).

    Args:
        fixed_labels: Integer label map.
        moved_labels: Integer label map on the same voxels, of the same shape.

    Returns:
        Dice of every label that is present in either map, in ascending order; the background 0 is
        left out. A label that is present in one map only has a Dice of 0.

    Raises:
        InputError: If the shapes differ or the maps do not hold integers.

    Example:
        >>> dice_per_label([0, 1, 1, 2], [0, 1, 2, 2])
        {1: 0.6666666666666666, 2: 0.6666666666666666}
    """
    fixed, moved = _flat(fixed_labels, moved_labels)
    values, fixed, moved = _numbered(fixed, moved)
    count = len(values)
    sizes = np.bincount(fixed, minlength=count) + np.bincount(moved, minlength=count)
    shared = np.bincount(fixed[fixed == moved], minlength=count)
    return {
        int(values[i]): float(2 * shared[i] / sizes[i])
        for i in np.flatnonzero(sizes)
        if values[i] != 0
    }


def labels_present(labels: Tensor | ArrayLike) -> list[int]:
    """Returns the labels of a map in ascending order, without the background 0."""
    flat, _ = _flat(labels, labels)
    values, numbers, _ = _numbered(flat, flat)
    present = np.flatnonzero(np.bincount(numbers, minlength=len(values)))
    return [int(values[i]) for i in present if values[i] != 0]


def mean_dice(dice: Mapping[int, float], labels: Iterable[int] | None = None) -> float:
    """Mean Dice over labels, as Learn2Reg and LUMIR define it.

    Args:
        dice: Result of `dice_per_label`.
        labels: Labels that both source maps hold (before warping); those that have vanished from
            the moved map count as 0. All labels of `dice` if omitted.

    Returns:
        The mean; NaN if there is no label.
    """
    chosen = list(dice) if labels is None else list(labels)
    return float(np.mean([dice.get(label, 0.0) for label in chosen])) if chosen else float("nan")


def hd95_per_label(
    fixed_labels: Tensor | ArrayLike,
    moved_labels: Tensor | ArrayLike,
    spacing_mm: Sequence[float],
) -> dict[int, float]:
    """95th percentile of the symmetric Hausdorff distance of each label, in mm.

    The surface of a label are its voxels with a face neighbour of another label (or the edge of
    the image). The result is the larger of the two 95th percentiles of the distances from one
    surface to the other, the definition of Learn2Reg and MONAI.

    Args:
        fixed_labels: Integer label map, three axes (leading axes of size 1 are dropped).
        moved_labels: Integer label map of the same shape.
        spacing_mm: Distance of voxels along each axis.

    Returns:
        Distance of every label present in either map; infinite where one map lacks it.
    """
    fixed, moved = _volume(fixed_labels), _volume(moved_labels)
    _flat(fixed, moved)
    spacing = [float(s) for s in spacing_mm]
    boxes_fixed, boxes_moved = _boxes(fixed), _boxes(moved)
    result = {}
    for label in sorted({*boxes_fixed, *boxes_moved}):
        if label not in boxes_fixed or label not in boxes_moved:
            result[label] = float("inf")
            continue
        low = np.minimum(boxes_fixed[label][0], boxes_moved[label][0])
        high = np.maximum(boxes_fixed[label][1], boxes_moved[label][1])
        crop = tuple(slice(a, b + 1) for a, b in zip(low, high))
        one, other = _surface(fixed[crop] == label), _surface(moved[crop] == label)
        there = np.percentile(_distances(other, one, spacing), 95)
        back = np.percentile(_distances(one, other, spacing), 95)
        result[label] = float(max(there, back))
    return result


def _array(labels: Tensor | ArrayLike) -> NDArray:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    # numpy counts and indexes neither booleans nor uint64 as numbers.
    kinds = {"bool": np.uint8, "uint64": np.int64}
    return array.astype(kinds.get(array.dtype.name, array.dtype), copy=False)


def _volume(labels: Tensor | ArrayLike) -> NDArray:
    array = _array(labels)
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3:
        raise InputError(f"A label map has three axes, but this has the shape {array.shape}.")
    return array


def _flat(fixed: Tensor | ArrayLike, moved: Tensor | ArrayLike) -> tuple[NDArray, NDArray]:
    one, other = _array(fixed), _array(moved)
    if one.size != other.size or one.shape[-3:] != other.shape[-3:]:
        raise InputError(
            f"Both label maps need the same shape, but have {one.shape} and {other.shape}; "
            "resample one on the grid of the other."
        )
    if one.dtype.kind not in "iu" or other.dtype.kind not in "iu":
        raise InputError("Label maps hold integers; round or threshold them first.")
    return one.ravel(), other.ravel()


def _numbered(one: NDArray, other: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Returns label values by number, and both maps as non-negative numbers of them."""
    low = min(int(one.min(initial=0)), int(other.min(initial=0)))
    high = max(int(one.max(initial=0)), int(other.max(initial=0)))
    if low >= 0 and high <= _LARGEST_DIRECT_LABEL:
        return np.arange(high + 1), one, other
    values, numbers = np.unique(np.concatenate([one, other]), return_inverse=True)
    return values, numbers[: one.size], numbers[one.size :]


def _boxes(labels: NDArray) -> dict[int, tuple[NDArray, NDArray]]:
    """Returns the first and last voxel of the box around each label, by one pass over the map."""
    flat, _ = _flat(labels, labels)
    values, numbers, _ = _numbered(flat, flat)
    where = np.flatnonzero(flat)
    found = numbers[where]
    low = np.full((len(values), 3), np.iinfo(np.int64).max)
    high = np.full((len(values), 3), -1)
    for axis, position in enumerate(np.unravel_index(where, labels.shape)):
        np.minimum.at(low[:, axis], found, position)
        np.maximum.at(high[:, axis], found, position)
    return {int(values[i]): (low[i], high[i]) for i in np.flatnonzero(high[:, 0] >= 0)}


def _surface(mask: NDArray) -> NDArray:
    """Voxels of a mask that touch the outside with a face; outside the array is outside."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for shift in (-1, 1):
            inner &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
    return mask & ~inner


def _distances(targets: NDArray, sources: NDArray, spacing: Sequence[float]) -> NDArray:
    """Exact distance of every source voxel from the nearest target voxel, in mm.

    Separable squared distance transform: a scan along the first axis, the lower envelope of
    parabolas by comparison along the second, and along the third only at the sources.
    """
    line = np.where(targets, 0.0, np.inf).astype(np.float32)
    for i in range(1, len(line)):
        np.minimum(line[i], line[i - 1] + spacing[0], out=line[i])
    for i in range(len(line) - 2, -1, -1):
        np.minimum(line[i], line[i + 1] + spacing[0], out=line[i])
    # Slabs without any target stay infinite; the rest becomes finite and lets the loop end early.
    used = np.flatnonzero(targets.any(axis=(0, 1)))
    line = line[:, :, used] ** 2
    plane = line.copy()
    for step in range(1, line.shape[1]):
        cost = np.float32((step * spacing[1]) ** 2)
        if step % 4 == 0 and cost >= plane.max():
            break
        np.minimum(plane[:, step:], line[:, :-step] + cost, out=plane[:, step:])
        np.minimum(plane[:, :-step], line[:, step:] + cost, out=plane[:, :-step])
    points = np.argwhere(sources)
    best = np.empty(len(points), np.float32)
    for start in range(0, len(points), 20_000):
        part = points[start : start + 20_000]
        along = ((used - part[:, 2:]) * np.float32(spacing[2])) ** 2
        best[start : start + 20_000] = (plane[part[:, 0], part[:, 1]] + along).min(axis=1)
    return np.sqrt(best)
