"""Label maps of a result as segmentations: one segment for each structure.

As where Slicer imports a label map, all segments share one image in which each has its own number,
so that a hundred structures take no more memory than one.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
import slicer
from numpy.typing import NDArray

from ..errors import GeometryError, InputError
from ..geometry.grid import Grid
from .scene import add_node, place_beside
from .vtk_arrays import ijk_to_ras_of, to_vtk_image

_BINARY = "Binary labelmap"
#: Node that Slicer takes the colors of new segments from.
_ANATOMY_COLORS = "vtkMRMLColorTableNodeFileGenericAnatomyColors.txt"
#: Hues that lie apart whatever their number, where there is no such node.
_GOLDEN = 0.618034


def is_label_array(array: NDArray) -> bool:
    """Tells whether an array holds labels: whole numbers, unlike a map of quantities."""
    return array.ndim == 3 and bool(np.issubdtype(array.dtype, np.integer))


def add_segmentation(
    scene: slicer.vtkMRMLScene,
    name: str,
    labels: NDArray,
    grid: Grid,
    beside: slicer.vtkMRMLVolumeNode | None = None,
    names: Mapping[int, str] | None = None,
) -> slicer.vtkMRMLSegmentationNode:
    """Adds a label map as a segmentation with one segment for each label that occurs.

    Colors are those of Slicer's table of anatomical colors: by the name of the structure, or else
    by its number, so that a label has the same color in every segmentation.

    Args:
        scene: Scene to add to.
        name: Wished name; a number is added if it is taken.
        labels: Whole numbers, shape grid.shape; 0 is the background.
        grid: Grid of the labels.
        beside: Volume that the labels belong to: its parent transform, its folder, and its geometry
            for the Segment Editor.
        names: Names of labels; the others are called ``Label 17`` and so on.

    Raises:
        GeometryError: If the array does not fit the grid.
        InputError: If it holds no labels, or negative ones.
    """
    if labels.shape != grid.shape:
        raise GeometryError(f"The labels have the shape {labels.shape}, but the grid is {grid}.")
    if not is_label_array(labels) or (labels.size and int(labels.min()) < 0):
        raise InputError("A segmentation is made of whole numbers from 0 on.")
    node = slicer.vtkMRMLSegmentationNode()
    present = [int(n) for n in np.unique(labels) if n != 0]
    if present:
        image = _image(labels, grid, present[-1])
        for label in present:
            segment = slicer.vtkSegment()
            title = (names or {}).get(label, "")
            segment.SetName(title or f"Label {label}")
            segment.SetColor(*_color(scene, label, title))
            segment.SetLabelValue(label)
            segment.AddRepresentation(_BINARY, image)
            node.GetSegmentation().AddSegment(segment, f"Label_{label}")
    add_node(scene, node, name)
    node.CreateDefaultDisplayNodes()
    if beside is not None:
        parent = beside.GetParentTransformNode()
        node.SetAndObserveTransformNodeID(None if parent is None else parent.GetID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(beside)
        place_beside(scene, node, beside)
    return node


def replace_segmentation(
    scene: slicer.vtkMRMLScene,
    made: slicer.vtkMRMLSegmentationNode,
    chosen: slicer.vtkMRMLNode | None,
) -> slicer.vtkMRMLSegmentationNode:
    """Gives a segmentation's content and place to a node of before, and removes the segmentation.

    Args:
        scene: Scene of both nodes.
        made: Finished segmentation.
        chosen: Node to keep; if it is None or of another class, `made` stays.

    Returns:
        The node that holds the result. A kept node keeps its name and its display.
    """
    if chosen is None or chosen is made or not chosen.IsA("vtkMRMLSegmentationNode"):
        return made
    was_modified = chosen.StartModify()
    take_segmentation(chosen, made.GetSegmentation())
    chosen.SetAndObserveTransformNodeID(made.GetTransformNodeID())
    role = made.GetReferenceImageGeometryReferenceRole()
    chosen.SetNodeReferenceID(role, made.GetNodeReferenceID(role))
    if chosen.GetDisplayNode() is None:
        chosen.CreateDefaultDisplayNodes()
    chosen.EndModify(was_modified)
    display = made.GetDisplayNode()
    scene.RemoveNode(made)
    if display is not None and display.GetScene() is scene:
        scene.RemoveNode(display)
    return chosen


def take_segmentation(
    node: slicer.vtkMRMLSegmentationNode, content: slicer.vtkSegmentation
) -> None:
    """Gives a node other segments, not copied; it has to be saved again."""
    node.SetAndObserveSegmentation(content)
    node.StorableModified()


def structure_names(node: slicer.vtkMRMLNode | None, labels: Sequence[int]) -> dict[int, str]:
    """Returns the names that a node of the scene knows of labels, as far as they are safe.

    A label map tells them by its color table, unless that is one of Slicer's own, which says
    nothing of it. A segmentation tells them by the numbers of its segments, as far as these come
    from a label map: 1, 2, 3, ... are those of drawn segments, which mean nothing elsewhere.

    Args:
        node: Label map, segmentation, or None.
        labels: Labels in question.
    """
    if node is None:
        return {}
    if node.IsA("vtkMRMLSegmentationNode"):
        found = _numbered_segments(node.GetSegmentation())
        return {n: found[n] for n in labels if n in found}
    display = node.GetDisplayNode() if node.IsA("vtkMRMLLabelMapVolumeNode") else None
    table = None if display is None else display.GetColorNode()
    if table is None or table.GetSingletonTag():
        return {}
    known = {n: table.GetColorName(n) for n in labels if 0 <= n < table.GetNumberOfColors()}
    return {n: text for n, text in known.items() if text and text != "(none)"}


def _numbered_segments(segmentation: slicer.vtkSegmentation) -> dict[int, str]:
    """Returns the segments by their numbers, if these are more than their order."""
    count = segmentation.GetNumberOfSegments()
    segments = [segmentation.GetNthSegment(n) for n in range(count)]
    found = {segment.GetLabelValue(): segment.GetName() for segment in segments}
    told = len(found) == count and set(found) != set(range(1, count + 1))
    return found if told else {}


def _image(labels: NDArray, grid: Grid, largest: int) -> slicer.vtkOrientedImageData:
    """Returns the part of a label map that holds labels, in a type that segments take."""
    shown = labels != 0
    region = []
    for axis in range(3):
        where = np.flatnonzero(shown.any(axis=tuple(other for other in range(3) if other != axis)))
        region.append((int(where[0]), int(where[-1]) + 1))
    part = labels[tuple(slice(*ends) for ends in region)]
    kind = np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.int32
    image = slicer.vtkOrientedImageData()
    image.DeepCopy(to_vtk_image(part.astype(kind)))
    inside = grid.cropped([low for low, _ in region], [high - low for low, high in region])
    image.SetGeometryFromImageToWorldMatrix(ijk_to_ras_of(inside))
    return image


def _color(scene: slicer.vtkMRMLScene, label: int, name: str) -> tuple[float, float, float]:
    """Returns the color of a structure by its name in Slicer's table, or else by its number."""
    table = scene.GetNodeByID(_ANATOMY_COLORS)
    count = 0 if table is None else table.GetNumberOfColors()
    if count < 2:
        return colorsys.hsv_to_rgb(label * _GOLDEN % 1.0, 0.6, 0.9)
    index = table.GetColorIndexByName(name.lower()) if name else -1
    # The first entry is the background.
    index = index if index > 0 else 1 + (label - 1) % (count - 1)
    rgba = [0.0, 0.0, 0.0, 1.0]
    table.GetColor(index, rgba)
    return rgba[0], rgba[1], rgba[2]
