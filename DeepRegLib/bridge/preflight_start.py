"""Where a registration would start, before it runs: does it overlap, can it be inverted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from ..geometry.grid import Grid
from .frames import parent_of
from .volumes import grid_of
from .vtk_arrays import from_vtk_matrix, map_points

_IDENTITY_MM = 1e-6
_LATTICE = 17


@dataclass(frozen=True, eq=False)
class Start:
    """The nodes that say where a registration starts; see `frames.initial_transform`."""

    fixed: slicer.vtkMRMLVolumeNode
    moving: slicer.vtkMRMLVolumeNode
    initial: slicer.vtkMRMLTransformNode | None
    from_scene: bool

    @property
    def parents(self) -> tuple[slicer.vtkMRMLTransformNode | None, ...]:
        """The transform above the fixed volume, and that which counts for the moving one."""
        if self.initial is not None:
            return parent_of(self.fixed), self.initial
        if self.from_scene:
            return parent_of(self.fixed), parent_of(self.moving)
        return None, None

    def between(self, back: bool = False) -> vtk.vtkGeneralTransform:
        """Returns the transform of fixed-local to moving-local points, or back."""
        source, target = self.parents[::-1] if back else self.parents
        general = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, general)
        return general

    @property
    def given(self) -> bool:
        """Whether the library is told this start, rather than left to find one."""
        if self.initial is not None:
            return True
        corners = grid_of(self.fixed).corners_ras()
        moved = map_points(self.between(), corners) - corners
        return self.from_scene and float(np.abs(moved).max()) > _IDENTITY_MM


def resting(transform: slicer.vtkMRMLTransformNode) -> bool:
    """Tells whether a transform node holds nothing but the identity."""
    if not transform.IsLinear():
        return False
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToParent(matrix)
    return bool(np.abs(from_vtk_matrix(matrix) - np.eye(4)).max() < _IDENTITY_MM)


def invertible(start: Start) -> bool:
    """Tells whether the start, with all parents, can be applied in both directions."""
    for node in start.parents:
        while node is not None:
            if node.IsLinear() and not _regular(node):
                return False
            node = node.GetParentTransformNode()
    mapped = map_points(start.between(), grid_of(start.fixed).corners_ras())
    return bool(np.isfinite(mapped).all())


def overlap(start: Start) -> float:
    """Returns the share of the smaller image that the larger one covers at the start, roughly."""
    grids = grid_of(start.fixed), grid_of(start.moving)
    shares = [_share(grids[0], grids[1], start.between())]
    linear = vtk.vtkTransform()
    if slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(start.between(), linear):
        shares.append(_share(grids[1], grids[0], start.between(back=True)))
    else:  # the inverse of a non-linear transform is slow
        volumes = [grid.size * grid.voxel_volume_mm3 for grid in grids]
        shares.append(min(1.0, shares[0] * volumes[0] / volumes[1]))
    return max(shares)


def _regular(node: slicer.vtkMRMLTransformNode) -> bool:
    matrix = vtk.vtkMatrix4x4()
    # The side that is stored: the other one may have been made up where no inverse exists.
    node.GetMatrixTransformToParent(matrix)
    rows = from_vtk_matrix(matrix)
    return bool(np.isfinite(rows).all() and abs(np.linalg.det(rows[:3, :3])) > 1e-9)


def _share(one: Grid, other: Grid, transform: vtk.vtkGeneralTransform) -> float:
    axes: list[NDArray] = [np.linspace(-0.49, n - 0.51, _LATTICE) for n in one.shape]
    points = one.to_ras(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))
    where = other.to_voxel(map_points(transform, points))
    inside = ((where >= -0.5) & (where <= np.array(other.shape) - 0.5)).all(axis=1)
    return float(inside.mean())
