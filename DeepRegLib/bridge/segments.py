"""Segmentations as masks and label maps, and markups as points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import slicer
import vtk
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..geometry.grid import Grid
from .frames import points_between, transform_between
from .scene import add_node
from .vtk_arrays import from_vtk_image, ijk_to_ras_of

_BINARY = "Binary labelmap"


def segment_names(segmentation: slicer.vtkMRMLSegmentationNode) -> dict[str, str]:
    """Returns the segments of a segmentation: id to name, in order."""
    content = segmentation.GetSegmentation()
    ids = [content.GetNthSegmentID(n) for n in range(content.GetNumberOfSegments())]
    return {id_: content.GetSegment(id_).GetName() for id_ in ids}


def segmentation_mask(
    segmentation: slicer.vtkMRMLSegmentationNode,
    grid: Grid,
    frame: slicer.vtkMRMLTransformableNode | None = None,
    segment: str | None = None,
) -> NDArray[np.uint8]:
    """Samples one segment, or all of them together, on a grid as they lie on screen.

    Args:
        segmentation: Node; its parent transforms count, linear or not. It is not changed.
        grid: Where to sample.
        frame: Node in whose local coordinates `grid` lies, usually the volume that the mask is
            for; None for world coordinates.
        segment: Id or name of a segment; all if omitted.

    Returns:
        1 inside and 0 outside, shape grid.shape.

    Raises:
        InputError: If there is no such segment, or it has no voxels.
    """
    names = _checked_names(segmentation)
    ids = list(names) if segment is None else [_find(segmentation, names, segment)]
    mask = np.zeros(grid.shape, np.uint8)
    for id_ in ids:
        mask |= _sampled(segmentation, id_, grid, frame)
    return mask


def segmentation_labels(
    segmentation: slicer.vtkMRMLSegmentationNode,
    grid: Grid,
    frame: slicer.vtkMRMLTransformableNode | None = None,
) -> tuple[NDArray[np.int32], dict[int, str]]:
    """Samples all segments on a grid as one label map; where two overlap, the later one counts.

    Args:
        segmentation: Node; its parent transforms count.
        grid: Where to sample.
        frame: Node in whose local coordinates `grid` lies; None for world coordinates.

    Returns:
        Label map of shape grid.shape with the values 1, 2, …, and the name of each value.

    Raises:
        InputError: If there is no segment.
    """
    names = _checked_names(segmentation)
    labels = np.zeros(grid.shape, np.int32)
    for value, id_ in enumerate(names, start=1):
        labels[_sampled(segmentation, id_, grid, frame) > 0] = value
    return labels, dict(enumerate(names.values(), start=1))


def markup_points(
    markups: slicer.vtkMRMLMarkupsNode, frame: slicer.vtkMRMLTransformableNode | None = None
) -> tuple[NDArray[np.float64], list[str]]:
    """Reads the points of a markups node.

    Args:
        markups: Point list; its parent transforms count. Points without a position are skipped.
        frame: Node in whose local coordinates the points are wanted; None for world coordinates.

    Returns:
        (N, 3) points, RAS mm, and their labels.
    """
    points, labels = [], []
    for n in range(markups.GetNumberOfControlPoints()):
        if markups.GetNthControlPointPositionStatus(n) != markups.PositionDefined:
            continue
        position = [0.0, 0.0, 0.0]
        markups.GetNthControlPointPositionWorld(n, position)
        points.append(position)
        labels.append(markups.GetNthControlPointLabel(n))
    world = np.array(points, np.float64).reshape(-1, 3)
    return (world if frame is None else points_between(world, None, frame)), labels


def add_points(
    scene: slicer.vtkMRMLScene,
    name: str,
    points_ras: ArrayLike,
    labels: Sequence[str] | None = None,
    frame: slicer.vtkMRMLTransformableNode | None = None,
) -> slicer.vtkMRMLMarkupsFiducialNode:
    """Adds a point list to the scene.

    Args:
        scene: Scene to add to.
        name: Wished name; a number is added if it is taken.
        points_ras: (N, 3) points, RAS mm.
        labels: A label for each point.
        frame: Node in whose local coordinates the points are; None for world coordinates.

    Raises:
        InputError: If there are not as many labels as points.
    """
    points = np.asarray(points_ras, np.float64).reshape(-1, 3)
    if labels is not None and len(labels) != len(points):
        raise InputError(f"There are {len(points)} points but {len(labels)} labels.")
    node = slicer.vtkMRMLMarkupsFiducialNode()
    for n, point in enumerate(points):
        index = node.AddControlPoint(vtk.vtkVector3d(*point))
        node.SetNthControlPointLabel(index, str(n + 1) if labels is None else labels[n])
    add_node(scene, node, name)
    node.CreateDefaultDisplayNodes()
    parent = None if frame is None else frame.GetParentTransformNode()
    node.SetAndObserveTransformNodeID(None if parent is None else parent.GetID())
    return node


def _checked_names(segmentation: slicer.vtkMRMLSegmentationNode) -> dict[str, str]:
    names = segment_names(segmentation)
    if not names:
        raise InputError(
            f"The segmentation '{segmentation.GetName()}' has no segments; draw one first."
        )
    return names


def _find(segmentation: slicer.vtkMRMLSegmentationNode, names: dict[str, str], wanted: str) -> str:
    if wanted in names:
        return wanted
    matches = [id_ for id_, name in names.items() if name == wanted]
    if len(matches) != 1:
        what = "no segment" if not matches else "several segments"
        raise InputError(
            f"'{segmentation.GetName()}' has {what} called '{wanted}'; it has: "
            f"{', '.join(names.values())}."
        )
    return matches[0]


def _sampled(
    segmentation: slicer.vtkMRMLSegmentationNode,
    id_: str,
    grid: Grid,
    frame: slicer.vtkMRMLTransformableNode | None,
) -> NDArray[np.uint8]:
    source = _label_map(segmentation, id_)
    if source is None:
        return np.zeros(grid.shape, np.uint8)
    reference = slicer.vtkOrientedImageData()
    k, j, i = grid.shape
    reference.SetDimensions(i, j, k)
    reference.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    reference.SetGeometryFromImageToWorldMatrix(ijk_to_ras_of(grid))
    result = slicer.vtkOrientedImageData()
    # Linear and plain label by label: what counts is which side of the boundary a voxel lies on.
    done = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        source, reference, result, False, False, transform_between(segmentation, frame), 0
    )
    if not done:
        raise InputError(
            f"The segmentation '{segmentation.GetName()}' could not be sampled on the image; check "
            "its parent transform."
        )
    return (from_vtk_image(result) > 0).astype(np.uint8)


def _label_map(
    segmentation: slicer.vtkMRMLSegmentationNode, id_: str
) -> slicer.vtkOrientedImageData | None:
    """Returns one segment as voxels of its own grid; None if it is empty."""
    segment = segmentation.GetSegmentation().GetSegment(id_)
    holder = segmentation
    if not segment.GetRepresentation(_BINARY):
        # A surface only: converted in a copy, so that the node stays as it is.
        holder = slicer.vtkMRMLSegmentationNode()
        holder.GetSegmentation().DeepCopy(segmentation.GetSegmentation())
        if not holder.GetSegmentation().CreateRepresentation(_BINARY):
            raise InputError(
                f"The segment '{segment.GetName()}' of '{segmentation.GetName()}' has no voxels; "
                "create its binary label map in the module Segmentations."
            )
    image = slicer.vtkOrientedImageData()
    if not holder.GetBinaryLabelmapRepresentation(id_, image):
        raise InputError(f"The segment '{segment.GetName()}' cannot be read as voxels.")
    return None if image.IsEmpty() else image
