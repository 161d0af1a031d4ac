"""Volume nodes: their voxels and grids as numpy, and new volumes for results.

Arrays are (k, j, i), which is the tensor axis order of the library, so nothing is transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from ..errors import GeometryError, InputError
from ..geometry.grid import Grid
from .scene import add_node, place_beside
from .vtk_arrays import (
    from_vtk_image,
    grid_from_ijk,
    ijk_to_ras_of,
    to_vtk_image,
)


def grid_of(volume: slicer.vtkMRMLVolumeNode) -> Grid:
    """Returns the grid of a volume in its own RAS, parent transforms left aside.

    Raises:
        InputError: If the node holds no voxels.
    """
    image = image_of(volume)
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    i, j, k = image.GetDimensions()
    return grid_from_ijk((k, j, i), matrix)


def is_label_map(volume: slicer.vtkMRMLVolumeNode) -> bool:
    """Tells whether a volume holds labels rather than intensities."""
    return bool(volume.IsA("vtkMRMLLabelMapVolumeNode"))


def volume_array(volume: slicer.vtkMRMLVolumeNode) -> NDArray:
    """Returns a copy of the voxels of a scalar or label volume, shape (k, j, i), type kept.

    Raises:
        InputError: If the node is empty or holds several values per voxel.
    """
    image = image_of(volume)
    count = image.GetNumberOfScalarComponents()
    if count != 1:
        raise InputError(
            f"'{volume.GetName()}' has {count} values per voxel, but one is needed here; make a "
            "scalar volume of it with the module Vector to Scalar Volume first."
        )
    return from_vtk_image(image)


def volume_channels(volume: slicer.vtkMRMLVolumeNode) -> NDArray:
    """Returns a copy of all the values of a volume, shape (channels, k, j, i).

    Raises:
        InputError: If the node is empty.
    """
    array = from_vtk_image(image_of(volume))
    return array[None] if array.ndim == 3 else np.ascontiguousarray(np.moveaxis(array, -1, 0))


def add_moved_volume(
    scene: slicer.vtkMRMLScene,
    name: str,
    array: NDArray,
    grid: Grid,
    moving: slicer.vtkMRMLVolumeNode,
    fixed: slicer.vtkMRMLVolumeNode | None = None,
) -> slicer.vtkMRMLVolumeNode:
    """Adds the moved volume to the scene, shown as the moving volume is.

    It gets the moving volume's window, level, threshold and color table, lies in the same folder,
    and is under the fixed volume's parent transform.

    Args:
        scene: Scene to add to.
        name: Wished name; a number is added if it is taken.
        array: Voxels, shape grid.shape.
        grid: Grid of the voxels, usually that of the fixed volume.
        moving: Volume that was moved; a label map makes a label map.
        fixed: Volume whose frame the result belongs to.

    Raises:
        GeometryError: If the array does not fit the grid.
    """
    if array.shape != grid.shape:
        raise GeometryError(f"The voxels have the shape {array.shape}, but the grid is {grid}.")
    label = is_label_map(moving)
    node = slicer.vtkMRMLLabelMapVolumeNode() if label else slicer.vtkMRMLScalarVolumeNode()
    node.SetAndObserveImageData(to_vtk_image(array))
    node.SetIJKToRASMatrix(ijk_to_ras_of(grid))
    add_node(scene, node, name)
    node.CreateDefaultDisplayNodes()
    copy_display(moving.GetDisplayNode(), node.GetDisplayNode(), label)
    parent = None if fixed is None else fixed.GetParentTransformNode()
    node.SetAndObserveTransformNodeID(None if parent is None else parent.GetID())
    place_beside(scene, node, moving)
    return node


def add_volume(
    scene: slicer.vtkMRMLScene, name: str, array: NDArray, grid: Grid, label: bool = False
) -> slicer.vtkMRMLVolumeNode:
    """Adds an image, map or label map with a display of its own.

    Args:
        scene: Scene to add to.
        name: Wished name; a number is added if it is taken.
        array: Voxels, shape grid.shape, or (*grid.shape, channels).
        grid: Grid of the voxels.
        label: Makes a label map node.

    Raises:
        GeometryError: If the array does not fit the grid.
    """
    if array.shape[:3] != grid.shape:
        raise GeometryError(f"The voxels have the shape {array.shape}, but the grid is {grid}.")
    if array.ndim == 4:
        node = slicer.vtkMRMLVectorVolumeNode()
    else:
        node = slicer.vtkMRMLLabelMapVolumeNode() if label else slicer.vtkMRMLScalarVolumeNode()
    node.SetAndObserveImageData(to_vtk_image(array))
    node.SetIJKToRASMatrix(ijk_to_ras_of(grid))
    add_node(scene, node, name)
    node.CreateDefaultDisplayNodes()
    return node


def replace_volume(
    scene: slicer.vtkMRMLScene,
    made: slicer.vtkMRMLVolumeNode,
    chosen: slicer.vtkMRMLVolumeNode | None,
) -> slicer.vtkMRMLVolumeNode:
    """Gives a volume's voxels and place to a node that was there before, and removes the volume.

    Args:
        scene: Scene of both nodes.
        made: Finished volume.
        chosen: Node to keep; if it is None or of another class, `made` stays.

    Returns:
        The node that holds the result. A kept node keeps its name and its display.
    """
    if chosen is None or chosen is made or chosen.GetClassName() != made.GetClassName():
        return made
    matrix = vtk.vtkMatrix4x4()
    made.GetIJKToRASMatrix(matrix)
    with _one_event(chosen):
        chosen.SetAndObserveImageData(made.GetImageData())
        chosen.SetIJKToRASMatrix(matrix)
        chosen.SetAndObserveTransformNodeID(made.GetTransformNodeID())
        if chosen.GetDisplayNode() is None:
            chosen.CreateDefaultDisplayNodes()
    displays = [made.GetNthDisplayNode(n) for n in range(made.GetNumberOfDisplayNodes())]
    scene.RemoveNode(made)
    for display in displays:
        if display is not None and display.GetScene() is scene:
            scene.RemoveNode(display)
    return chosen


def copy_display(
    source: slicer.vtkMRMLVolumeDisplayNode | None,
    target: slicer.vtkMRMLVolumeDisplayNode,
    label: bool,
) -> None:
    """Shows a volume as another one is shown; of label maps, the colors alone."""
    if source is None:
        return
    if source.GetColorNodeID():
        target.SetAndObserveColorNodeID(source.GetColorNodeID())
    if label or not source.IsA("vtkMRMLScalarVolumeDisplayNode"):
        return
    target.SetAutoWindowLevel(False)
    target.SetWindowLevel(source.GetWindow(), source.GetLevel())
    target.SetThreshold(source.GetLowerThreshold(), source.GetUpperThreshold())
    target.SetApplyThreshold(source.GetApplyThreshold())
    target.SetInterpolate(source.GetInterpolate())


def image_of(volume: slicer.vtkMRMLVolumeNode) -> vtk.vtkImageData:
    """Returns the image data of a volume.

    Raises:
        InputError: If the node holds no voxels.
    """
    if volume is None:
        raise InputError("No volume was given; choose one.")
    image = volume.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        raise InputError(
            f"The volume '{volume.GetName()}' is empty; load or choose one that holds voxels."
        )
    return image


@contextmanager
def _one_event(node: slicer.vtkMRMLNode) -> Iterator[None]:
    """Lets observers hear of all changes in the block at once."""
    was_modified = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(was_modified)
