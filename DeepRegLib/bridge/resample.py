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
) -> NDArray:
    """Resamples a volume as it lies on screen, through all its parents, linear or not.

    Args:
        volume: Scalar or label volume; labels are taken from the nearest voxel.
        grid: Where to sample.
        frame: Node in whose local coordinates `grid` lies; None for world coordinates.
        fill: Value where the volume has no voxel.

    Returns:
        Array of shape grid.shape, type kept.
    """
    image = vtk.vtkImageData()
    image.ShallowCopy(image_of(volume))
    to_ijk = vtk.vtkMatrix4x4()
    volume.GetRASToIJKMatrix(to_ijk)
    pull = vtk.vtkGeneralTransform()
    pull.PostMultiply()
    pull.Concatenate(ijk_to_ras_of(grid))
    pull.Concatenate(transform_between(frame, volume))
    pull.Concatenate(to_ijk)
    return from_vtk_image(_reslice(image, pull, grid, is_label_map(volume), fill))


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
