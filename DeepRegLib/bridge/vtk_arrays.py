"""numpy arrays and matrices to VTK and back."""

from __future__ import annotations

import numpy as np
import vtk
from numpy.typing import ArrayLike, NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..geometry.grid import Grid, Matrix


def to_vtk_matrix(matrix: ArrayLike) -> vtk.vtkMatrix4x4:
    """Returns a 4 x 4 array as a VTK matrix."""
    result = vtk.vtkMatrix4x4()
    result.DeepCopy(np.asarray(matrix, np.float64).reshape(16))
    return result


def from_vtk_matrix(matrix: vtk.vtkMatrix4x4) -> Matrix:
    """Returns a VTK matrix as a 4 x 4 array."""
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


def reversed_axes(matrix: ArrayLike) -> Matrix:
    """Returns a voxel-to-RAS matrix with its first three columns reversed: kji <-> ijk."""
    return np.asarray(matrix, np.float64)[:, [2, 1, 0, 3]]


def grid_from_ijk(shape: tuple[int, int, int], ijk_to_ras: vtk.vtkMatrix4x4) -> Grid:
    """Returns the grid of an array (k, j, i) whose matrix counts i, j, k as MRML does."""
    return Grid(shape, reversed_axes(from_vtk_matrix(ijk_to_ras)))


def ijk_to_ras_of(grid: Grid) -> vtk.vtkMatrix4x4:
    """Returns the matrix of a grid in MRML's axis order i, j, k."""
    return to_vtk_matrix(reversed_axes(grid.voxel_to_ras))


def to_vtk_image(array: NDArray) -> vtk.vtkImageData:
    """Copies an array (k, j, i) or (k, j, i, components) into an image of spacing 1, origin 0.

    bool becomes uint8 and float16 float32, which VTK does not have; other types are kept.
    """
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape[2::-1])
    values = np.ascontiguousarray(array).reshape(
        array.shape[0] * array.shape[1] * array.shape[2], -1
    )
    scalars = numpy_to_vtk(values if values.shape[1] > 1 else values[:, 0], deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def from_vtk_image(image: vtk.vtkImageData) -> NDArray:
    """Copies the voxels of an image into an array (k, j, i), or (k, j, i, components)."""
    i, j, k = image.GetDimensions()
    scalars = image.GetPointData().GetScalars()
    components = scalars.GetNumberOfComponents()
    shape = (k, j, i) if components == 1 else (k, j, i, components)
    return vtk_to_numpy(scalars).reshape(shape).copy()


def map_points(transform: vtk.vtkAbstractTransform, points: ArrayLike) -> NDArray[np.float64]:
    """Maps points (N, 3) through any VTK transform, in double precision."""
    array = np.ascontiguousarray(np.asarray(points, np.float64).reshape(-1, 3))
    if len(array) == 0:
        return array
    before, after = vtk.vtkPoints(), vtk.vtkPoints()
    for holder in (before, after):
        holder.SetDataTypeToDouble()
    before.SetData(numpy_to_vtk(array, deep=True))
    transform.TransformPoints(before, after)
    return vtk_to_numpy(after.GetData()).copy()
