"""Volumes sampled elsewhere, through whatever transforms lie in between."""

from __future__ import annotations

import slicer
import vtk
from numpy.typing import NDArray

from ..geometry.grid import Grid
from .frames import transform_between
from .volumes import image_of, is_label_map
from .vtk_arrays import from_vtk_image, ijk_to_ras_of


def resampled_array(
    volume: slicer.vtkMRMLVolumeNode,
    grid: Grid,
    frame: slicer.vtkMRMLTransformableNode | None = None,
    fill: float = 0.0,
    labels: bool | None = None,
) -> NDArray:
    """Resamples a volume as it lies on screen, through all its parents, linear or not.

    Args:
        volume: Scalar or label volume.
        grid: Where to sample.
        frame: Node in whose local coordinates `grid` lies; None for world coordinates.
        fill: Value where the volume has no voxel.
        labels: Whether to take the nearest voxel; by default only of a label map node.

    Returns:
        Array of shape grid.shape, type kept.
    """
    return array_through(volume, transform_between(frame, volume), grid, fill, labels)


def array_through(
    volume: slicer.vtkMRMLVolumeNode,
    to_local: vtk.vtkAbstractTransform,
    grid: Grid,
    fill: float = 0.0,
    labels: bool | None = None,
) -> NDArray:
    """Resamples a volume through any transform; its own parents are left aside.

    Args:
        volume: Scalar or label volume.
        to_local: From the coordinates that `grid` lies in to the volume's own RAS.
        grid: Where to sample.
        fill: Value where the volume has no voxel.
        labels: Whether to take the nearest voxel; by default only of a label map node.

    Returns:
        Array of shape grid.shape, type kept.
    """
    nearest = is_label_map(volume) if labels is None else labels
    image = vtk.vtkImageData()
    image.ShallowCopy(image_of(volume))
    pull = vtk.vtkGeneralTransform()
    pull.PostMultiply()
    pull.Concatenate(ijk_to_ras_of(grid))
    pull.Concatenate(to_local)
    to_ijk = vtk.vtkMatrix4x4()
    volume.GetRASToIJKMatrix(to_ijk)
    pull.Concatenate(to_ijk)
    return from_vtk_image(_reslice(image, pull, grid, nearest, fill))


def _reslice(
    image: vtk.vtkImageData, pull: vtk.vtkGeneralTransform, grid: Grid, label: bool, fill: float
) -> vtk.vtkImageData:
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(image)
    reslice.SetResliceTransform(pull)
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetOutputOrigin(0, 0, 0)
    k, j, i = grid.shape
    reslice.SetOutputExtent(0, i - 1, 0, j - 1, 0, k - 1)
    reslice.SetBackgroundLevel(fill)
    if label:
        reslice.SetInterpolationModeToNearestNeighbor()
    else:
        reslice.SetInterpolationModeToLinear()
    reslice.Update()
    return reslice.GetOutput()
