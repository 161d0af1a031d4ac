"""Parent transforms: where a node lies on screen, and the transform that is there already.

A node's own coordinates ("local" RAS) become world coordinates through its chain of parent
transforms. DeepReg registers in local terms: the grids are those of the volumes themselves, and
the transform from fixed-local to moving-local that the parents give, P^-1 . Q, is where the
registration starts. The result replaces the moving volume's parent and hangs under the fixed
volume's parent (`transforms.py`), so the two then agree on screen.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..geometry.grid import Grid, Matrix, transform_points
from .volumes import grid_of
from .vtk_arrays import from_vtk_matrix, map_points

#: Most points at which a non-linear start is sampled; above it the fixed grid is thinned out.
MAX_START_POINTS = 500_000
#: How many of them are mapped at once: some hundredths of a second.
_AT_ONCE = 50_000


@dataclass(frozen=True, eq=False)
class Start:
    """A transform that the scene holds already: p -> linear(p + displacement(p)), RAS mm.

    Convention:
        Maps fixed-local to moving-local coordinates (both their nodes' own RAS), as
        `geometry.transform.Transform` does. `displacement_ras_mm` is (3, *grid.shape), float32,
        components R, A, S.

    Args:
        linear: 4 x 4 matrix.
        displacement_ras_mm: Displacement before the linear map; None if there is none.
        grid: Grid of the displacement, in fixed-local RAS; None if there is none.
    """

    linear: Matrix
    displacement_ras_mm: NDArray[np.float32] | None = None
    grid: Grid | None = None


def parent_of(node: slicer.vtkMRMLTransformableNode | None) -> slicer.vtkMRMLTransformNode | None:
    """Returns the parent transform of a node; None for the world."""
    return None if node is None else node.GetParentTransformNode()


def transform_between(
    source: slicer.vtkMRMLTransformableNode | None, target: slicer.vtkMRMLTransformableNode | None
) -> vtk.vtkGeneralTransform:
    """Returns the transform of local points of one node to local points of another.

    Args:
        source: Node whose local coordinates come in; None for world coordinates.
        target: Node whose local coordinates go out; None for world coordinates.
    """
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        parent_of(source), parent_of(target), general
    )
    return general


def matrix_between(
    source: slicer.vtkMRMLTransformableNode | None, target: slicer.vtkMRMLTransformableNode | None
) -> Matrix | None:
    """Returns the 4 x 4 matrix from local points of one node to those of another.

    Returns:
        None if a transform in between is not linear.
    """
    return _matrix_between_parents(parent_of(source), parent_of(target))


def points_between(
    points_ras: ArrayLike,
    source: slicer.vtkMRMLTransformableNode | None,
    target: slicer.vtkMRMLTransformableNode | None,
) -> NDArray[np.float64]:
    """Maps points (N, 3) from local coordinates of one node (None: world) to those of another."""
    return map_points(transform_between(source, target), points_ras)


def grid_in(
    volume: slicer.vtkMRMLVolumeNode, frame: slicer.vtkMRMLTransformableNode | None = None
) -> Grid:
    """Returns the grid of a volume in the coordinates of another node, exactly.

    Linear parents are folded into the matrix, also where the axes are then no longer orthogonal.

    Args:
        volume: Node of the volume.
        frame: Node whose local coordinates are wanted; None for world coordinates.

    Raises:
        InputError: If a transform in between is not linear; resample the volume then.
    """
    matrix = matrix_between(volume, frame)
    if matrix is None:
        raise InputError(
            f"'{volume.GetName()}' is under a non-linear transform, which no grid can express; "
            "resample it, or take the parent transform off."
        )
    grid = grid_of(volume)
    return Grid(grid.shape, matrix @ grid.voxel_to_ras)


def initial_transform(
    fixed: slicer.vtkMRMLVolumeNode,
    moving: slicer.vtkMRMLVolumeNode,
    chosen: slicer.vtkMRMLTransformNode | None = None,
) -> Start:
    """Returns the transform that the scene shows at present, as a start for the registration.

    With the fixed volume under Q and the moving volume under P (whole chains, linear or not) it
    is P^-1 . Q. A non-linear one is sampled on the fixed grid (thinned out above
    `MAX_START_POINTS` voxels). Its linear part is then the affine map that fits the rim of the
    grid best, so that little deformation is left there; for DeepReg's own results, which fade out
    at the rim, it is exactly their linear part.

    Args:
        fixed: Fixed volume.
        moving: Moving volume.
        chosen: Transform that aligns the moving volume when put above it; takes the place of P.
    """
    steps = initial_steps(fixed, moving, chosen)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def initial_steps(
    fixed: slicer.vtkMRMLVolumeNode,
    moving: slicer.vtkMRMLVolumeNode,
    chosen: slicer.vtkMRMLTransformNode | None = None,
    most_points: int | None = None,
) -> Generator[None, None, Start]:
    """Finds the `initial_transform` in short steps, between which an application stays alive.

    Args:
        fixed: Fixed volume.
        moving: Moving volume.
        chosen: Transform that takes the place of those above the moving volume.
        most_points: Most points at which a non-linear one is sampled; `MAX_START_POINTS` if None.

    Raises:
        InputError: If one of the transforms changes in between.
    """
    source = parent_of(fixed)
    target = parent_of(moving) if chosen is None else chosen
    matrix = _matrix_between_parents(source, target)
    if matrix is not None:
        return Start(matrix)
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, general)
    grid = grid_of(fixed)
    most_points = MAX_START_POINTS if most_points is None else most_points
    if grid.size > most_points:
        factor = (most_points / grid.size) ** (1 / 3)
        grid = grid.resized([max(1, int(n * factor)) for n in grid.shape])
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
    mapped = np.empty_like(points)
    stamp = general.GetMTime()
    for first in range(0, len(points), _AT_ONCE):
        if general.GetMTime() != stamp:
            raise InputError(
                "A transform was changed while it was read; leave the transforms alone for a "
                "moment, and try again."
            )
        block = slice(first, first + _AT_ONCE)
        mapped[block] = map_points(general, points[block])
        yield
    linear = _affine_fit(*(p[_rim(grid.shape)] for p in (points, mapped)))
    vectors = transform_points(np.linalg.inv(linear), mapped) - points
    displacement = np.ascontiguousarray(vectors.T.reshape(3, *grid.shape), dtype=np.float32)
    return Start(linear, displacement, grid)


def _matrix_between_parents(
    source: slicer.vtkMRMLTransformNode | None, target: slicer.vtkMRMLTransformNode | None
) -> Matrix | None:
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, general)
    matrix = vtk.vtkTransform()
    # Asked this way, a transform that is not linear is no error in the application's log.
    linear = slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(general, matrix)
    return from_vtk_matrix(matrix.GetMatrix()) if linear else None


def _rim(shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Tells which voxels, in flat order, lie in the outermost layer."""
    inner = np.zeros(shape, bool)
    inner[tuple(slice(1, -1) if n > 2 else slice(0, 0) for n in shape)] = True
    return ~inner.reshape(-1)


def _affine_fit(source: NDArray, target: NDArray) -> Matrix:
    """Least-squares affine map; identity across an axis along which the points do not spread."""
    center_source, center_target = source.mean(0), target.mean(0)
    offsets = source - center_source
    change, *_ = np.linalg.lstsq(offsets, (target - center_target) - offsets, rcond=1e-9)
    matrix = np.eye(4)
    matrix[:3, :3] += change.T
    matrix[:3, 3] = center_target - matrix[:3, :3] @ center_source
    return matrix
