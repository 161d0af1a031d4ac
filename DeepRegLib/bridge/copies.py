"""Hardened copies: a node's content as it lies under a transform, written out for good.

The copy belongs to the fixed volume: it is under that volume's parent transform and in the folder
of the original, and looks like it. The original stays exactly as it was.

- Volumes are resampled on the fixed grid; label maps by the nearest voxel.
- Segments that are voxels are resampled on the fixed grid, with smooth boundaries, carried on
  beyond the image where they reach out of it (at most by its own size on each side); so the
  Segment Editor can go on with the fixed volume as its source. Segments that are surfaces keep
  their points. What was derived from the one or the other is derived anew.
- Markups and models: every point is moved. A box (ROI) or a plane stays one, fitted to where its
  middle and axes go, as Slicer does it.
- Transforms: the copy leads from the original's coordinates to the fixed volume's.
"""

from __future__ import annotations

import math

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry.grid import Grid
from .resample import resampled_array
from .scene import add_node, place_beside
from .volumes import grid_of
from .vtk_arrays import (
    from_vtk_image,
    from_vtk_matrix,
    ijk_to_ras_of,
    map_points,
    reversed_axes,
    to_vtk_image,
)

_BINARY, _SURFACE = "Binary labelmap", "Closed surface"


def is_empty(node: slicer.vtkMRMLTransformableNode) -> bool:
    """Tells whether a node holds nothing that could be moved."""
    if node.IsA("vtkMRMLVolumeNode"):
        image = node.GetImageData()
        return image is None or image.GetNumberOfPoints() == 0
    if node.IsA("vtkMRMLSegmentationNode"):
        return node.GetSegmentation() is None or node.GetSegmentation().GetNumberOfSegments() == 0
    if node.IsA("vtkMRMLMarkupsNode"):
        return node.GetNumberOfControlPoints() == 0
    if node.IsA("vtkMRMLModelNode"):
        return node.GetMesh() is None or node.GetMesh().GetNumberOfPoints() == 0
    return False


def copy_refusal(node: slicer.vtkMRMLTransformableNode) -> str:
    """Returns why no hardened copy can be made of a node; an empty text if one can."""
    name = node.GetName()
    if node.IsA("vtkMRMLDiffusionImageVolumeNode") or node.IsA(
        "vtkMRMLDiffusionWeightedVolumeNode"
    ):
        return (
            f"'{name}' holds directions in its voxels, which resampling would not turn; put it "
            "under the transform instead."
        )
    kinds = ("Volume", "Segmentation", "Markups", "Model", "Transform")
    if not any(node.IsA(f"vtkMRML{kind}Node") for kind in kinds):
        return (
            f"'{name}' ({node.GetNodeTagName()}) cannot be copied; hardened copies are made of "
            "volumes, segmentations, markups, models and transforms."
        )
    return ""


def hardened_copy(
    scene: slicer.vtkMRMLScene,
    node: slicer.vtkMRMLTransformableNode,
    carrier: slicer.vtkMRMLTransformNode,
    fixed: slicer.vtkMRMLVolumeNode,
    name: str,
) -> slicer.vtkMRMLTransformableNode:
    """Adds a copy of a node as it would lie under a transform, hardened.

    Args:
        scene: Scene to add to.
        node: Original; not changed.
        carrier: Transform that the copy is thought under.
        fixed: Volume whose frame the copy belongs to.
        name: Wished name; a number is added if it is taken.

    Raises:
        InputError: If a part of the node cannot be moved.
    """
    parent = fixed.GetParentTransformNode()
    carry = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(carrier, parent, carry)
    if node.IsA("vtkMRMLVolumeNode"):
        copy = _volume(scene, node, carrier, fixed, name)
    elif node.IsA("vtkMRMLSegmentationNode"):
        copy = _segmentation(scene, node, carry, fixed, name)
    elif node.IsA("vtkMRMLTransformNode"):
        copy = _transform(scene, node, carry, name)
    else:
        copy = node.CreateNodeInstance()
        copy.CopyContent(node)
        _bend(copy, carry)
        copy = add_node(scene, copy, name)
    if copy.IsA("vtkMRMLDisplayableNode"):
        _copy_display(scene, node, copy)
    copy.SetAndObserveTransformNodeID(None if parent is None else parent.GetID())
    place_beside(scene, copy, node)
    return copy


def _bend(node: slicer.vtkMRMLTransformableNode, carry: vtk.vtkGeneralTransform) -> None:
    """Applies a transform; a linear one as a matrix, which boxes and planes take exactly."""
    linear = vtk.vtkTransform()
    if slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(carry, linear):
        node.ApplyTransform(linear)
    else:
        node.ApplyTransform(carry)


def _volume(
    scene: slicer.vtkMRMLScene,
    node: slicer.vtkMRMLVolumeNode,
    carrier: slicer.vtkMRMLTransformNode,
    fixed: slicer.vtkMRMLVolumeNode,
    name: str,
) -> slicer.vtkMRMLVolumeNode:
    copy = node.CreateNodeInstance()
    copy.SetAndObserveImageData(node.GetImageData())
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    copy.SetIJKToRASMatrix(matrix)
    copy = add_node(scene, copy, name)
    copy.SetAndObserveTransformNodeID(carrier.GetID())
    grid = grid_of(fixed)
    scalars = node.GetImageData().GetPointData().GetScalars()
    several = scalars.GetNumberOfComponents() > 1
    fill = 0.0 if several else min(0.0, scalars.GetFiniteRange(0)[0])
    copy.SetAndObserveImageData(to_vtk_image(resampled_array(copy, grid, fixed, fill)))
    copy.SetIJKToRASMatrix(ijk_to_ras_of(grid))
    return copy


def _transform(
    scene: slicer.vtkMRMLScene,
    node: slicer.vtkMRMLTransformNode,
    carry: vtk.vtkGeneralTransform,
    name: str,
) -> slicer.vtkMRMLTransformNode:
    own = vtk.vtkGeneralTransform()
    node.GetTransformToNode(node.GetParentTransformNode(), own)
    total, kept, linear = vtk.vtkGeneralTransform(), vtk.vtkGeneralTransform(), vtk.vtkTransform()
    total.PostMultiply()
    total.Concatenate(own)
    total.Concatenate(carry)
    # Not ApplyTransform of the node: it puts the parts of a chain in the opposite order.
    if slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(total, linear):
        copy = slicer.vtkMRMLLinearTransformNode()
        copy.SetMatrixTransformToParent(linear.GetMatrix())
    else:
        copy = slicer.vtkMRMLTransformNode()
        slicer.vtkMRMLTransformNode.DeepCopyTransform(kept, total)
        copy.SetAndObserveTransformToParent(kept)
    return add_node(scene, copy, name)


def _segmentation(
    scene: slicer.vtkMRMLScene,
    node: slicer.vtkMRMLSegmentationNode,
    carry: vtk.vtkGeneralTransform,
    fixed: slicer.vtkMRMLVolumeNode,
    name: str,
) -> slicer.vtkMRMLSegmentationNode:
    copy = slicer.vtkMRMLSegmentationNode()
    source, target = node.GetSegmentation(), copy.GetSegmentation()
    voxels = source.GetSourceRepresentationName() != _SURFACE
    target.SetSourceRepresentationName(_BINARY if voxels else _SURFACE)
    copy.SetReferenceImageGeometryParameterFromVolumeNode(fixed)
    for number in range(source.GetNumberOfSegments()):
        id_ = source.GetNthSegmentID(number)
        segment = slicer.vtkSegment()
        segment.DeepCopyMetadata(source.GetSegment(id_))
        if voxels:
            segment.SetLabelValue(1)
            segment.AddRepresentation(_BINARY, _moved_voxels(node, id_, carry, grid_of(fixed)))
        else:
            surface = source.GetSegment(id_).GetRepresentation(_SURFACE)
            segment.AddRepresentation(_SURFACE, _moved_surface(surface, carry))
        target.AddSegment(segment, id_)
    if voxels:
        target.CollapseBinaryLabelmaps(False)
    for other in (_SURFACE, _BINARY):
        if source.ContainsRepresentation(other) and not target.ContainsRepresentation(other):
            target.CreateRepresentation(other)
    return add_node(scene, copy, name)


def _moved_surface(surface: vtk.vtkPolyData, carry: vtk.vtkGeneralTransform) -> vtk.vtkPolyData:
    filter_ = vtk.vtkTransformPolyDataFilter()
    filter_.SetInputData(surface)
    filter_.SetTransform(carry)
    filter_.Update()
    return filter_.GetOutput()


def _moved_voxels(
    node: slicer.vtkMRMLSegmentationNode,
    id_: str,
    carry: vtk.vtkGeneralTransform,
    fixed_grid: Grid,
) -> slicer.vtkOrientedImageData:
    """Resamples one segment on the voxels of the fixed grid around where it goes."""
    image = slicer.vtkOrientedImageData()
    if not node.GetBinaryLabelmapRepresentation(id_, image):
        raise InputError(
            f"A segment of '{node.GetName()}' cannot be read as voxels; create its binary label "
            "map in the module Segmentations."
        )
    result = slicer.vtkOrientedImageData()
    extent = [0, -1, 0, -1, 0, -1]
    slicer.vtkOrientedImageDataResample.CalculateEffectiveExtent(image, extent)
    if any(low > high for low, high in zip(extent[::2], extent[1::2])):
        return result
    grid = _covering(fixed_grid, image, extent, carry)
    reference = slicer.vtkOrientedImageData()
    k, j, i = grid.shape
    reference.SetDimensions(i, j, k)
    reference.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    reference.SetGeometryFromImageToWorldMatrix(ijk_to_ras_of(grid))
    # The boundary goes where half of the voxels around a point are inside: no stairs of two grids.
    inside = from_vtk_image(image) > 0
    image.GetPointData().SetScalars(_scalars(np.where(inside, np.uint8(254), np.uint8(0))))
    done = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, reference, result, True, False, carry, 0
    )
    if not done:
        raise InputError(
            f"A segment of '{node.GetName()}' could not be resampled; check the transforms."
        )
    result.GetPointData().SetScalars(_scalars((from_vtk_image(result) >= 127).astype(np.uint8)))
    return result


def _scalars(array: NDArray) -> vtk.vtkDataArray:
    return to_vtk_image(array).GetPointData().GetScalars()


def _covering(
    grid: Grid,
    image: slicer.vtkOrientedImageData,
    extent: list[int],
    carry: vtk.vtkGeneralTransform,
) -> Grid:
    """Returns the part of the endless lattice of a grid that a box of an image is carried to."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    axes = [np.linspace(a - 0.5, b + 0.5, 9) for a, b in zip(extent[::2], extent[1::2])]
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    source = Grid((1, 1, 1), reversed_axes(from_vtk_matrix(matrix)))
    where = grid.to_voxel(map_points(carry, source.to_ras(lattice[:, ::-1])))
    start, stop = _bounds(where, grid.shape)
    return grid.cropped(start, [b - a for a, b in zip(start, stop)])


def _bounds(where: NDArray, shape: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    """First and past-the-last voxel of points, with a margin, near the image."""
    start, stop = [], []
    for axis, size in enumerate(shape):
        margin = 2 + math.ceil(0.05 * float(np.ptp(where[:, axis])))
        low = max(-size, math.floor(where[:, axis].min()) - margin)
        high = min(2 * size, math.ceil(where[:, axis].max()) + margin + 1)
        low = min(low, 2 * size - 1)
        start.append(low)
        stop.append(max(high, low + 1))
    return start, stop


def _copy_display(
    scene: slicer.vtkMRMLScene,
    node: slicer.vtkMRMLDisplayableNode,
    copy: slicer.vtkMRMLDisplayableNode,
) -> None:
    for number in range(node.GetNumberOfDisplayNodes()):
        display = node.GetNthDisplayNode(number)
        if display is None:
            continue
        made = display.CreateNodeInstance()
        made.Copy(display)
        made = scene.AddNode(made)
        copy.AddAndObserveDisplayNodeID(made.GetID())
    if copy.GetNumberOfDisplayNodes() == 0:
        copy.CreateDefaultDisplayNodes()
