"""Masks and landmark lists before a run: whether they are there, and where their image is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from .frames import transform_between
from .segments import markup_points, segment_names
from .volumes import grid_of, image_of
from .vtk_arrays import map_points

#: A template with its values, a level and a code: what `preflight` makes a finding of.
Remark = tuple[str, str, str, dict[str, object]]
#: Points of a mask that are looked at.
_MOST = 20_000
#: Share of the image's size by which a landmark may lie outside of it.
_FAR = 0.1


def mask_remarks(
    side: str, mask: slicer.vtkMRMLNode | None, segment: str, volume: slicer.vtkMRMLVolumeNode
) -> Iterator[Remark]:
    """Says what is wrong with a mask: no mask at all, empty, or elsewhere than its image."""
    if mask is None:
        return
    values: dict[str, object] = {"mask": mask.GetName(), "image": volume.GetName()}
    if mask.IsA("vtkMRMLSegmentationNode"):
        names = segment_names(mask)
        ids = [i for i, name in names.items() if not segment or segment in (i, name)]
        if segment and not ids:
            text = "The segmentation '{mask}' has no segment '{segment}'; choose one of its own."
            yield text, "error", f"{side}-mask-segment", {**values, "segment": segment}
            return
        parts = [_segment_points(mask, i) for i in ids]
        points = np.concatenate([np.empty((0, 3)), *parts])
    elif mask.IsA("vtkMRMLScalarVolumeNode"):
        if mask.GetImageData() is None or mask.GetImageData().GetNumberOfPoints() == 0:
            points = np.empty((0, 3))
        else:
            points = grid_of(mask).to_ras(_positive(image_of(mask)))
    else:
        text = "'{mask}' is no label map and no segmentation; choose one of these as the mask."
        yield text, "error", f"{side}-mask-kind", values
        return
    if len(points) == 0:
        text = "The mask '{mask}' is empty; draw it, or leave it out."
        yield text, "error", f"{side}-mask-empty", values
        return
    share = _inside(map_points(transform_between(mask, volume), points), volume).mean()
    if share == 0:
        text = "The mask '{mask}' lies outside of its image '{image}'; choose the one drawn on it."
        yield text, "error", f"{side}-mask-outside", values
    elif share < 0.5:
        text = "Most of the mask '{mask}' lies outside of its image '{image}'; check that they fit."
        yield text, "warning", f"{side}-mask-partly-outside", values


def landmark_remarks(
    lists: tuple[slicer.vtkMRMLMarkupsNode | None, slicer.vtkMRMLMarkupsNode | None],
    volumes: tuple[slicer.vtkMRMLVolumeNode, slicer.vtkMRMLVolumeNode],
) -> Iterator[Remark]:
    """Says what is wrong with the landmark lists: not paired, too few, or far away."""
    given = [node for node in lists if node is not None]
    if len(given) == 1:
        text = "Only one landmark list is chosen, '{list}', so landmarks are not used."
        yield text, "warning", "landmarks-one-list", {"list": given[0].GetName()}
    if len(given) < 2:
        return
    points = [markup_points(n, v)[0] for n, v in zip(given, volumes)]
    for node, found in zip(given, points):
        missing = node.GetNumberOfControlPoints() - len(found)
        if missing:
            text = "{count} points of '{list}' are not placed; place or delete them."
            values = {"count": missing, "list": node.GetName()}
            yield text, "warning", "landmarks-unplaced", values
    names = {"a": given[0].GetName(), "b": given[1].GetName()}
    counts = {"n": len(points[0]), "m": len(points[1])}
    if len(points[0]) != len(points[1]):
        text = (
            "'{a}' has {n} points, but '{b}' has {m}; points are paired by their order, so place "
            "the missing ones or delete the odd ones."
        )
        yield text, "error", "landmarks-count", {**names, **counts}
    elif len(points[0]) < 3:
        text = "There are {n} landmark pairs; at least 3 are needed to start from them."
        yield text, "note", "landmarks-few", dict(counts)
    for node, found, volume in zip(given, points, volumes):
        far = len(found) - int(_inside(found, volume, _FAR).sum())
        if far:
            text = "{count} points of '{list}' lie far outside of the image '{image}'."
            rest = {"count": far, "list": node.GetName(), "image": volume.GetName()}
            yield text, "warning", "landmarks-outside", rest


def _inside(
    points: NDArray, volume: slicer.vtkMRMLVolumeNode, margin: float = 0.0
) -> NDArray[np.bool_]:
    grid = grid_of(volume)
    where = grid.to_voxel(points)
    shape = np.array(grid.shape)
    room = 0.5 + margin * shape
    return np.asarray(((where >= -room) & (where <= shape - 1 + room)).all(axis=1))


def _positive(image: vtk.vtkImageData) -> NDArray[np.int64]:
    """Returns indices (k, j, i) of voxels above zero, thinned out."""
    i, j, k = image.GetDimensions()
    values = vtk_to_numpy(image.GetPointData().GetScalars())
    values = values if values.ndim == 1 else values[:, 0]
    step = max(1, len(values) // 1_000_000)
    # A step that shares no factor with the sides, or whole columns would be left out.
    while step > 1 and any(np.gcd(step, n) > 1 for n in (i, j, k)):
        step += 1
    found = np.flatnonzero(values[::step] > 0) * step
    if len(found) == 0 and step > 1:
        found = np.flatnonzero(values > 0)
    found = found[:: max(1, len(found) // _MOST)]
    return np.stack(np.unravel_index(found, (k, j, i)), -1)


def _segment_points(segmentation: slicer.vtkMRMLSegmentationNode, id_: str) -> NDArray:
    segment = segmentation.GetSegmentation().GetSegment(id_)
    surface = segment.GetRepresentation("Closed surface")
    if segment.GetRepresentation("Binary labelmap") is None:
        if surface is None or surface.GetNumberOfPoints() == 0:
            return np.empty((0, 3))
        points = vtk_to_numpy(surface.GetPoints().GetData())
        return points[:: max(1, len(points) // _MOST)].astype(np.float64)
    image = slicer.vtkOrientedImageData()
    if not segmentation.GetBinaryLabelmapRepresentation(id_, image) or image.IsEmpty():
        return np.empty((0, 3))
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    start = np.array(image.GetExtent()[::2])
    index = _positive(image)[:, ::-1] + start
    rows = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(3)])
    return index @ rows[:, :3].T + rows[:, 3]
