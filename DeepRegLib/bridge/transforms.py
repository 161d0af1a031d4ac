"""Transform nodes for results.

Every transform is set "from parent": it takes a point of the fixed image to the point of the
moving image that belongs there, RAS mm. Slicer's files of it then hold what ITK expects (from
parent, LPS). To see the moving volume aligned, put it (and all that belongs to it) under the
returned node. The returned node itself hangs under the fixed volume's parent transform, if that
has one, because the transform counts in the fixed volume's own coordinates; see `frames.py`.

Beyond the grid of a displacement VTK repeats the edge vector and ITK applies none. Two layouts
deal with that; in both the deformation u of p -> A(p + u(p)) fades to zero at the rim.

- ``grid``: one grid transform node with the total displacement A(p + u(p)) - p. One file, read by
  every program. Slicer and ITK agree inside the fixed image (up to its outermost voxel centers);
  outside, Slicer goes on with the edge vector, which follows A only roughly, and ITK does
  nothing. With A = identity both do nothing there and agree everywhere.
- ``chain``: a linear node that holds A, under a grid node that holds u alone. Slicer, ITK and the
  library agree everywhere, and the linear part can be read and edited by itself; it takes two
  files, applied as A after u.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import slicer
import vtk
from numpy.typing import ArrayLike, NDArray

from ..errors import GeometryError
from ..geometry.grid import Grid
from .scene import add_node
from .vtk_arrays import from_vtk_image, from_vtk_matrix, ijk_to_ras_of, to_vtk_image, to_vtk_matrix

if TYPE_CHECKING:
    from ..geometry.transform import Transform

Layout = Literal["grid", "chain"]


def add_linear_transform(
    scene: slicer.vtkMRMLScene,
    name: str,
    matrix_fixed_to_moving: ArrayLike,
    fixed: slicer.vtkMRMLVolumeNode | None = None,
    moving: slicer.vtkMRMLVolumeNode | None = None,
) -> slicer.vtkMRMLLinearTransformNode:
    """Adds a linear transform.

    Args:
        scene: Scene to add to.
        name: Wished name; a number is added if it is taken.
        matrix_fixed_to_moving: 4 x 4, fixed RAS to moving RAS, in the volumes' own coordinates.
        fixed: Fixed volume: its parent becomes the parent, and it is noted as the fixed one.
        moving: Moving volume, noted as such; it is not put under the transform.

    Raises:
        GeometryError: If the matrix is not 4 x 4, finite and invertible.
    """
    return add_content(scene, name, warp_content(matrix_fixed_to_moving, None, None), fixed, moving)


def add_grid_transform(
    scene: slicer.vtkMRMLScene,
    name: str,
    displacement_ras_mm: ArrayLike,
    grid: Grid,
    fixed: slicer.vtkMRMLVolumeNode | None = None,
    moving: slicer.vtkMRMLVolumeNode | None = None,
) -> slicer.vtkMRMLGridTransformNode:
    """Adds a displacement as it is, without fading.

    Args:
        scene: Scene to add to.
        name: Wished name; a number is added if it is taken.
        displacement_ras_mm: (3, *grid.shape) or (1, 3, *grid.shape), components R, A, S, from a
            fixed point to where the moving image is sampled.
        grid: Grid of the vectors, in the fixed volume's own RAS; any handedness, also oblique or
            not orthogonal.
        fixed: Fixed volume: its parent becomes the parent, and it is noted as the fixed one.
        moving: Moving volume, noted as such.

    Raises:
        GeometryError: If the vectors do not fit the grid or are not finite.
    """
    return add_content(scene, name, _grid_transform(displacement_ras_mm, grid), fixed, moving)


def add_warp(
    scene: slicer.vtkMRMLScene,
    name: str,
    linear: ArrayLike,
    deformation_ras_mm: ArrayLike | None,
    grid: Grid,
    layout: Layout = "grid",
    fixed: slicer.vtkMRMLVolumeNode | None = None,
    moving: slicer.vtkMRMLVolumeNode | None = None,
    fade_voxel: int | None = None,
) -> slicer.vtkMRMLTransformNode:
    """Adds p -> linear(p + u(p)) in one of the two layouts described at the top of the file.

    Args:
        scene: Scene to add to.
        name: Wished name; a number is added if it is taken.
        linear: 4 x 4, fixed RAS to moving RAS.
        deformation_ras_mm: u, (3, *grid.shape) or (1, 3, *grid.shape), RAS mm; None if linear.
        grid: Grid of u, in the fixed volume's own RAS.
        layout: ``grid`` or ``chain``.
        fixed: Fixed volume: its parent becomes the parent, and it is noted as the fixed one.
        moving: Moving volume, noted as such.
        fade_voxel: Width of the rim where u fades to zero; 0 leaves u as it is. By default twice
            the motion at the rim (at least 4), which cannot fold; none if the rim is at rest.

    Returns:
        The node to put the moving volume under. For ``chain`` that is the linear node; the grid
        node is its parent.

    Raises:
        GeometryError: If the parts do not fit, or the layout is unknown.
    """
    if layout not in ("grid", "chain"):
        raise GeometryError(f"A transform is laid out as 'grid' or 'chain', not '{layout}'.")
    matrix = _checked(linear)
    if deformation_ras_mm is None or layout == "grid":
        content = warp_content(matrix, deformation_ras_mm, grid, fade_voxel)
        return add_content(scene, name, content, fixed, moving)
    u = _rested(_vectors(deformation_ras_mm, grid), grid, fade_voxel)
    outer = add_content(scene, f"{name} (deformation)", _grid_transform(u, grid), fixed, moving)
    inner = add_linear_transform(scene, name, matrix, fixed, moving)
    inner.SetAndObserveTransformNodeID(outer.GetID())
    return inner


def warp_content(
    linear: ArrayLike,
    deformation_ras_mm: ArrayLike | None,
    grid: Grid | None,
    fade_voxel: int | None = None,
) -> vtk.vtkAbstractTransform:
    """Returns what `add_warp` puts into its node in the layout ``grid``.

    This is the slow part; it touches no node, so it may run in any thread.

    Args:
        linear: 4 x 4, fixed RAS to moving RAS.
        deformation_ras_mm: u, (3, *grid.shape), RAS mm; None if linear.
        grid: Grid of u.
        fade_voxel: See `add_warp`.
    """
    matrix = _checked(linear)
    if deformation_ras_mm is None or grid is None:
        content = vtk.vtkTransform()
        content.SetMatrix(to_vtk_matrix(matrix))
        return content
    u = _rested(_vectors(deformation_ras_mm, grid), grid, fade_voxel)
    return _grid_transform(total_ras_mm(matrix, u, grid), grid)


def add_content(
    scene: slicer.vtkMRMLScene,
    name: str,
    content: vtk.vtkAbstractTransform,
    fixed: slicer.vtkMRMLVolumeNode | None = None,
    moving: slicer.vtkMRMLVolumeNode | None = None,
) -> slicer.vtkMRMLTransformNode:
    """Adds a transform node that holds a VTK transform from parent; as `add_warp`."""
    if content.IsA("vtkLinearTransform"):
        node = slicer.vtkMRMLLinearTransformNode()
        node.SetMatrixTransformFromParent(content.GetMatrix())
    else:
        node = slicer.vtkMRMLGridTransformNode()
        node.SetAndObserveTransformFromParent(content)
    add_node(scene, node, name)
    _relate(node, fixed, moving)
    return node


def add_transform(
    scene: slicer.vtkMRMLScene,
    name: str,
    transform: Transform,
    fixed_grid: Grid,
    layout: Layout = "grid",
    fixed: slicer.vtkMRMLVolumeNode | None = None,
    moving: slicer.vtkMRMLVolumeNode | None = None,
    fade_voxel: int | None = None,
) -> slicer.vtkMRMLTransformNode:
    """Adds a transform of the library; as `add_warp`.

    For the inverse pass ``result.inverse`` with the moving grid, the two volumes swapped, and
    ``fade_voxel=0``, as its field need not be at rest at the rim of the moving image.

    Args:
        scene: Scene to add to.
        name: Wished name.
        transform: The result, fixed to moving.
        fixed_grid: Grid for the displacement.
        layout: ``grid`` or ``chain``.
        fixed: Fixed volume.
        moving: Moving volume.
        fade_voxel: Width of the rim where the deformation fades to zero; see `add_warp`.

    Returns:
        The node to put the moving volume under.
    """
    vectors = None
    if transform.field is not None:
        vectors = transform.field.on_grid(fixed_grid).to_ras_mm()[0].detach().cpu().numpy()
    return add_warp(
        scene, name, transform.linear, vectors, fixed_grid, layout, fixed, moving, fade_voxel
    )


def replace_transform(
    scene: slicer.vtkMRMLScene,
    made: slicer.vtkMRMLTransformNode,
    chosen: slicer.vtkMRMLTransformNode | None,
) -> slicer.vtkMRMLTransformNode:
    """Gives a transform's content to a node that was there before, and removes the transform.

    Args:
        scene: Scene of both nodes.
        made: Finished transform.
        chosen: Node to keep; if it is None or of another class, `made` stays.

    Returns:
        The node that holds the result. What hangs under a kept node moves along.
    """
    if chosen is None or chosen is made or chosen.GetClassName() != made.GetClassName():
        return made
    was_modified = chosen.StartModify()
    chosen.SetAndObserveTransformFromParent(made.GetTransformFromParent())
    chosen.SetAndObserveTransformNodeID(made.GetTransformNodeID())
    for role in (made.GetFixedNodeReferenceRole(), made.GetMovingNodeReferenceRole()):
        chosen.SetNodeReferenceID(role, made.GetNodeReferenceID(role))
    chosen.EndModify(was_modified)
    scene.RemoveNode(made)
    return chosen


def apply_transform(
    node: slicer.vtkMRMLTransformNode | None, *nodes: slicer.vtkMRMLTransformableNode
) -> None:
    """Puts nodes that share the moving volume's coordinates under a transform (None: none)."""
    for child in nodes:
        child.SetAndObserveTransformNodeID(None if node is None else node.GetID())


def warp_as_vtk(
    linear: ArrayLike, deformation_ras_mm: ArrayLike | None = None, grid: Grid | None = None
) -> vtk.vtkGeneralTransform:
    """Returns p -> linear(p + u(p)) as a VTK transform, without any node.

    Args:
        linear: 4 x 4, fixed RAS to moving RAS.
        deformation_ras_mm: u, (3, *grid.shape), RAS mm; None if linear.
        grid: Grid of u.

    Raises:
        GeometryError: If the parts do not fit.
    """
    result = vtk.vtkGeneralTransform()
    result.PostMultiply()
    if deformation_ras_mm is not None and grid is not None:
        result.Concatenate(_grid_transform(deformation_ras_mm, grid))
    result.Concatenate(to_vtk_matrix(_checked(linear)))
    return result


def displacement_of(
    node: slicer.vtkMRMLTransformNode,
) -> tuple[NDArray[np.float64], Grid]:
    """Reads the displacement (3, *shape), RAS mm, from parent, and its grid from a grid node.

    Raises:
        GeometryError: If the node does not hold a displacement from parent.
    """
    transform = node.GetTransformFromParentAs("vtkOrientedGridTransform", False, True)
    if transform is None or transform.GetDisplacementGrid() is None:
        raise GeometryError(
            f"'{node.GetName()}' holds no displacement from parent; convert it to a grid transform "
            "in the module Transforms."
        )
    image = transform.GetDisplacementGrid()
    directions = np.eye(4)
    if transform.GetGridDirectionMatrix() is not None:
        directions = from_vtk_matrix(transform.GetGridDirectionMatrix())
    matrix = np.eye(4)
    matrix[:3, :3] = directions[:3, :3] * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    i, j, k = image.GetDimensions()
    vectors = from_vtk_image(image)
    vectors = vectors * transform.GetDisplacementScale() + transform.GetDisplacementShift()
    return np.moveaxis(vectors, -1, 0), Grid((k, j, i), matrix[:, [2, 1, 0, 3]])


def total_ras_mm(linear: ArrayLike, deformation_ras_mm: NDArray, grid: Grid) -> NDArray[np.float32]:
    """Returns A(p + u(p)) - p for every voxel p of a grid, (3, *grid.shape), RAS mm."""
    a = np.asarray(linear, np.float64)
    steps = (a[:3, :3] - np.eye(3)) @ grid.voxel_to_ras[:3, :3]
    start = (a[:3, :3] - np.eye(3)) @ grid.voxel_to_ras[:3, 3] + a[:3, 3]
    k, j, i = np.ogrid[tuple(slice(n) for n in grid.shape)]
    total = np.empty((3, *grid.shape), np.float32)
    for row in range(3):
        part = start[row] + steps[row, 0] * k + steps[row, 1] * j + steps[row, 2] * i
        for column in range(3):
            part += a[row, column] * deformation_ras_mm[column]
        total[row] = part
    return total


def faded(vectors: NDArray[np.float32], width_voxel: int) -> NDArray[np.float32]:
    """Returns vectors (3, *shape) that fall to zero at the rim; as `geometry.field.fade_window`."""
    if width_voxel < 1:
        return vectors
    result = vectors.copy()
    for axis, size in enumerate(vectors.shape[1:]):
        if size == 1:
            continue
        width = max(1, min(width_voxel, (size - 1) // 2))
        i = np.arange(size)
        depth = np.minimum(np.minimum(i, size - 1 - i), width) / width
        ramp = (0.5 - 0.5 * np.cos(np.pi * depth)).astype(np.float32)
        result *= ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    return result


def _rested(u: NDArray[np.float32], grid: Grid, fade_voxel: int | None) -> NDArray[np.float32]:
    return faded(u, _rim_width(u, grid) if fade_voxel is None else fade_voxel)


def _rim_width(vectors: NDArray, grid: Grid) -> int:
    """Width over which vectors fade without folding: twice their motion in the outermost layer."""
    motion = 0.0
    for axis in range(1, 4):
        if vectors.shape[axis] > 1:
            ends = np.take(vectors, (0, -1), axis).reshape(3, -1)
            motion = max(
                motion, float(np.linalg.norm(grid.ras_to_voxel[:3, :3] @ ends, axis=0).max())
            )
    return 0 if motion < 1e-4 else max(4, math.ceil(2 * motion))


def _grid_transform(displacement_ras_mm: ArrayLike, grid: Grid) -> vtk.vtkAbstractTransform:
    vectors = _vectors(displacement_ras_mm, grid)
    image = to_vtk_image(np.moveaxis(vectors, 0, -1))
    ijk_to_ras = from_vtk_matrix(ijk_to_ras_of(grid))
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    image.SetSpacing(*spacing)
    image.SetOrigin(*ijk_to_ras[:3, 3])
    directions = np.eye(4)
    directions[:3, :3] = ijk_to_ras[:3, :3] / spacing
    transform = slicer.vtkOrientedGridTransform()
    transform.SetGridDirectionMatrix(to_vtk_matrix(directions))
    transform.SetDisplacementGridData(image)
    transform.SetInterpolationModeToLinear()
    return transform


def _vectors(displacement_ras_mm: ArrayLike, grid: Grid) -> NDArray[np.float32]:
    vectors = np.asarray(displacement_ras_mm, np.float32)
    if vectors.ndim == 5 and vectors.shape[0] == 1:
        vectors = vectors[0]
    if vectors.shape != (3, *grid.shape) or not np.isfinite(vectors).all():
        raise GeometryError(
            f"A displacement on {grid} has the shape (3, *grid.shape) and is finite, but got "
            f"{vectors.shape}."
        )
    return vectors


def _checked(matrix: ArrayLike) -> NDArray[np.float64]:
    result = np.asarray(matrix, np.float64)
    if result.shape != (4, 4) or not np.isfinite(result).all() or abs(np.linalg.det(result)) < 1e-9:
        raise GeometryError("A linear transform must be a finite, invertible 4 x 4 matrix.")
    return result


def _relate(
    node: slicer.vtkMRMLTransformNode,
    fixed: slicer.vtkMRMLVolumeNode | None,
    moving: slicer.vtkMRMLVolumeNode | None,
) -> None:
    """Notes the two volumes on a transform and puts it under the fixed volume's parent."""
    if moving is not None:
        node.SetNodeReferenceID(node.GetMovingNodeReferenceRole(), moving.GetID())
    if fixed is not None:
        node.SetNodeReferenceID(node.GetFixedNodeReferenceRole(), fixed.GetID())
        parent = fixed.GetParentTransformNode()
        node.SetAndObserveTransformNodeID(None if parent is None else parent.GetID())
