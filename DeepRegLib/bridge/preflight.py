"""What can be said of a registration before it runs, in plain sentences and at once.

The library refuses or remarks on most of this too (`io/checks.py`), but only after the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import slicer
from numpy.typing import NDArray

from ..geometry.grid import Grid
from .frames import parent_of
from .predict import Kind, Prediction, TransformSize, predict, transform_size_mb
from .preflight_regions import Remark, landmark_remarks, mask_remarks
from .preflight_start import Start, invertible, overlap, resting
from .volume_cache import VolumeCache
from .volumes import grid_of, is_label_map

__all__ = [
    "Finding",
    "Prediction",
    "TransformSize",
    "VolumeCache",
    "check",
    "predict",
    "transform_size_mb",
]

#: As in `io/checks.py` and `io/images.py`, which need torch.
_IMPOSSIBLE_RATIO, _UNUSUAL_RATIO, _ANISOTROPY = 100.0, 2.5, 4.0
_SMALLEST_MM, _LARGEST_MM = 0.5, 5000.0
_FEW_SLICES = 8
#: Voxels along an axis above which 1 mm voxels at origin 0 look like a lost header.
_HEADERLESS = 300
_LITTLE_OVERLAP = 0.25


@dataclass(frozen=True)
class Finding:
    """Something to tell before a run.

    Args:
        level: An ``error`` blocks the run.
        code: Name that stays the same in all languages.
        text: A sentence for the user.
    """

    level: Literal["error", "warning", "note"]
    code: str
    text: str


def check(
    fixed: slicer.vtkMRMLVolumeNode | None,
    moving: slicer.vtkMRMLVolumeNode | None,
    *,
    fixed_mask: slicer.vtkMRMLNode | None = None,
    fixed_segment: str = "",
    moving_mask: slicer.vtkMRMLNode | None = None,
    moving_segment: str = "",
    fixed_points: slicer.vtkMRMLMarkupsNode | None = None,
    moving_points: slicer.vtkMRMLMarkupsNode | None = None,
    initial: slicer.vtkMRMLTransformNode | None = None,
    start_from_scene: bool = True,
    algorithm_kind: Kind = "dense",
    cache: VolumeCache | None = None,
    translate: Callable[[str], str] = str,
) -> list[Finding]:
    """Checks a registration before it runs; changes nothing.

    Args:
        fixed: Volume that stays.
        moving: Volume that is moved.
        fixed_mask: Label map or segmentation.
        fixed_segment: Id or name of one segment; all if empty.
        moving_mask: The same for the moving image.
        moving_segment: The same for the moving image.
        fixed_points: Landmark list.
        moving_points: Landmark list.
        initial: Transform to start from, in the place of the moving volume's parent.
        start_from_scene: Start where both volumes lie on screen.
        algorithm_kind: What kind of transform is estimated.
        cache: Keeps what was seen of the voxels; with it, NaN is searched in a sample until
            `VolumeCache.scan` has seen them all. Without, all voxels are seen in this call.
        translate: Translates the templates of the sentences.

    Returns:
        Findings, errors first.
    """
    if cache is None:
        cache = VolumeCache()
        for volume in (fixed, moving):
            if volume is not None and _content_fault(volume) is None:
                cache.scan(volume)
    remarks = list(volume_faults(fixed, moving))
    if not remarks:
        pair = (fixed, moving)
        for volume in pair:
            remarks += [*_value_remarks(volume, cache), *_grid_remarks(volume)]
        remarks += _pair_remarks(*pair, cache)
        start = Start(*pair, initial, start_from_scene)
        remarks += _start_remarks(start, algorithm_kind)
        remarks += mask_remarks("fixed", fixed_mask, fixed_segment, fixed)
        remarks += mask_remarks("moving", moving_mask, moving_segment, moving)
        remarks += landmark_remarks((fixed_points, moving_points), pair)
    order = ("error", "warning", "note")
    remarks.sort(key=lambda remark: order.index(remark[1]))
    return [
        Finding(
            cast(Literal["error", "warning", "note"], level), code, translate(text).format(**values)
        )
        for text, level, code, values in remarks
    ]


def volume_faults(
    fixed: slicer.vtkMRMLVolumeNode | None, moving: slicer.vtkMRMLVolumeNode | None
) -> Iterator[Remark]:
    """Says why the volumes cannot be looked at any further."""
    if fixed is None or moving is None:
        yield "Select a fixed and a moving volume.", "error", "volume-missing", {}
        return
    if fixed is moving:
        text = "The fixed and the moving volume are both '{image}'; choose two different ones."
        yield text, "error", "volume-same", {"image": fixed.GetName()}
        return
    for volume in (fixed, moving):
        fault = _content_fault(volume)
        if fault is not None:
            yield fault


def _content_fault(volume: slicer.vtkMRMLVolumeNode) -> Remark | None:
    values: dict[str, object] = {"image": volume.GetName()}
    image = volume.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or not image.GetPointData().GetScalars():
        text = "The volume '{image}' is empty; load or choose one that holds an image."
        return text, "error", "volume-empty", values
    values["count"] = image.GetNumberOfScalarComponents()
    if values["count"] != 1:
        text = (
            "'{image}' has {count} values in each voxel, but one is needed; make a scalar volume "
            "of it with the module Vector to Scalar Volume."
        )
        return text, "error", "volume-vector", values
    return None


def _value_remarks(volume: slicer.vtkMRMLVolumeNode, cache: VolumeCache) -> Iterator[Remark]:
    seen = cache.statistics(volume)
    if seen.low >= seen.high and not seen.complete:
        cache.scan(volume)  # the sample looks constant; only all voxels can tell
        seen = cache.statistics(volume)
    values: dict[str, object] = {"image": volume.GetName(), "value": f"{seen.low:g}"}
    if seen.bad:
        text = (
            "'{image}' has voxels that are not a number or infinite; replace them, for example by "
            "the background value."
        )
        yield text, "error", "values-nan", values
    elif seen.low >= seen.high:
        text = "'{image}' has the value {value} everywhere; check that the right image was chosen."
        yield text, "error", "values-constant", values
    if is_label_map(volume):
        text = "'{image}' is a label map, not an image; choose the image that it was drawn on."
        yield text, "warning", "volume-labels", values


def _grid_remarks(volume: slicer.vtkMRMLVolumeNode) -> Iterator[Remark]:
    grid = grid_of(volume)
    extent, spacing = _extent(grid), np.array(grid.spacing_mm)
    sizes = " x ".join(f"{s:.3g}" for s in spacing[::-1])
    values: dict[str, object] = {
        "image": volume.GetName(), "count": min(grid.shape), "size": f"{extent:.3g}",
        "spacing": sizes,
    }  # fmt: skip
    if extent < _SMALLEST_MM:
        text = "'{image}' is only {size} mm large; multiply its spacing and origin by 1000."
        yield text, "error", "unit-small", values
    elif extent > _LARGEST_MM:
        text = "'{image}' is {size} mm large; divide its spacing and origin by 1000."
        yield text, "error", "unit-large", values
    elif max(grid.shape) > _HEADERLESS and _headerless(grid):
        text = (
            "'{image}' has voxels of exactly 1 mm and its origin at 0, so its true spacing was "
            "probably lost; check it in the module Volumes."
        )
        yield text, "warning", "unit-default", values
    if min(grid.shape) == 1:
        text = "'{image}' is a single slice; motion across the slice cannot be found."
        yield text, "warning", "slices-single", values
    elif min(grid.shape) < _FEW_SLICES:
        text = "'{image}' has only {count} slices; motion across them is found less exactly."
        yield text, "warning", "slices-few", values
    if spacing.max() > _ANISOTROPY * spacing.min() and min(grid.shape) > 1:
        text = "'{image}' has voxels of {spacing} mm; along its thick slices the result is coarser."
        yield text, "note", "spacing-anisotropic", values


def _pair_remarks(
    fixed: slicer.vtkMRMLVolumeNode, moving: slicer.vtkMRMLVolumeNode, cache: VolumeCache
) -> Iterator[Remark]:
    grids = grid_of(fixed), grid_of(moving)
    if grids[0].matches(grids[1]) and cache.same_voxels(fixed, moving):
        text = "'{fixed}' and '{moving}' hold the same image; choose two different ones."
        names = {"fixed": fixed.GetName(), "moving": moving.GetName()}
        yield text, "error", "image-same", dict(names)
    ratio = _extent(grids[1]) / _extent(grids[0])
    large, small = (moving, fixed) if ratio > 1 else (fixed, moving)
    ratio = max(ratio, 1 / ratio)
    values: dict[str, object] = {"large": large.GetName(), "small": small.GetName()}
    if ratio > _IMPOSSIBLE_RATIO:
        # Units differ by powers of ten: meters and millimeters, centimeters, micrometers.
        values |= {"ratio": f"{ratio:.0f}", "factor": 1000 if ratio < 31_000 else 1_000_000}
        text = (
            "'{large}' is {ratio} times as large as '{small}', so the unit of one is wrong: divide "
            "the spacing and origin of '{large}' by {factor}, or multiply those of '{small}'."
        )
        yield text, "error", "unit-ratio", values
    elif ratio > _UNUSUAL_RATIO:
        values["ratio"] = f"{ratio:.1f}"
        text = (
            "'{large}' shows a region {ratio} times as long as '{small}'; crop it or give a mask "
            "if the result is poor."
        )
        yield text, "note", "extent-ratio", values


def _start_remarks(start: Start, algorithm_kind: Kind) -> Iterator[Remark]:
    above, over = parent_of(start.fixed), parent_of(start.moving)
    values: dict[str, object] = {
        "fixed": start.fixed.GetName(), "moving": start.moving.GetName(),
        "above": above.GetName() if above else "", "over": over.GetName() if over else "",
        "initial": start.initial.GetName() if start.initial else "",
    }  # fmt: skip
    if above is not None and not above.IsTransformToWorldLinear():
        text = (
            "The fixed volume '{fixed}' is under the non-linear transform '{above}'; the result is "
            "made in the volume's own coordinates and put under the same transform."
        )
        yield text, "warning", "fixed-parent-nonlinear", values
    if start.initial is not None and resting(start.initial):
        text = "The initial transform '{initial}' is empty and moves nothing; choose another one."
        yield text, "warning", "initial-empty", values
    if over is not None:
        if start.initial is not None:
            text = "The start is '{initial}', which takes the place of '{over}' above '{moving}'."
            yield text, "note", "moving-parent-replaced", values
        elif start.from_scene:
            text = "The start is where '{moving}' lies under '{over}'; the result replaces that."
            yield text, "note", "moving-parent-start", values
        else:
            text = (
                "'{moving}' is under '{over}', which the registration will not take into account."
            )
            yield text, "warning", "moving-parent-ignored", values
    if not invertible(start):
        text = "A transform of the start cannot be inverted; choose another initial transform."
        yield text, "error", "start-not-invertible", values
        return
    yield from _overlap_remarks(start, algorithm_kind, values)


def _overlap_remarks(
    start: Start, algorithm_kind: Kind, values: dict[str, object]
) -> Iterator[Remark]:
    share = overlap(start)
    values = {**values, "percent": f"{100 * share:.0f}"}
    if share == 0 and start.given:
        text = (
            "The images '{fixed}' and '{moving}' do not overlap where the registration would "
            "start; choose another start, or do not start from the scene."
        )
        yield text, "warning", "overlap-none", values
    elif share == 0:
        text = (
            "The images '{fixed}' and '{moving}' do not overlap; the registration will start from "
            "their centers."
        )
        yield text, "warning", "overlap-none", values
    elif share < _LITTLE_OVERLAP:
        text = (
            "Only {percent} % of the smaller image overlaps the other at the start; move them "
            "closer together, or choose another start."
        )
        yield text, "warning", "overlap-small", values


def _extent(grid: Grid) -> float:
    return float((np.array(grid.shape) * grid.spacing_mm).max())


def _headerless(grid: Grid) -> bool:
    matrix: NDArray = np.abs(grid.voxel_to_ras)
    plain = set(np.unique(matrix[:3, :3])) <= {0.0, 1.0}
    return bool(plain and not matrix[:3, 3].any())
