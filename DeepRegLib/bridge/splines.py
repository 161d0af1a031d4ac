"""B-spline transform nodes: a free-form deformation as its control points.

Without a linear part the node is a B-spline transform node; p -> A(p + u(p)) is a general one,
which holds the B-spline, then A. (VTK's B-spline transform could hold A as its bulk matrix, but
Slicer saves that as a type that ITK no longer reads.) Both are one file, which ITK reads. Inside
the fixed image (up to its outermost voxel centers) this is the library's transform; beyond it VTK
lets the spline fade out within two elements, where ITK and the library apply A alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import slicer
import vtk
from numpy.typing import ArrayLike, NDArray

from ..errors import GeometryError
from ..geometry.grid import Grid
from .scene import add_node
from .transforms import _relate
from .vtk_arrays import from_vtk_matrix, ijk_to_ras_of, to_vtk_image, to_vtk_matrix

if TYPE_CHECKING:
    from ..geometry.transform import Transform


def add_spline_transform(
    scene: slicer.vtkMRMLScene,
    name: str,
    transform: Transform,
    fixed: slicer.vtkMRMLVolumeNode | None = None,
    moving: slicer.vtkMRMLVolumeNode | None = None,
) -> slicer.vtkMRMLTransformNode:
    """Adds a transform of the library that is held by control points.

    Args:
        scene: Scene to add to.
        name: Wished name; a number is added if it is taken.
        transform: Fixed to moving, with a `spline`.
        fixed: Fixed volume: its parent becomes the parent, and it is noted as the fixed one.
        moving: Moving volume, noted as such.

    Raises:
        GeometryError: If the transform has no B-spline, or its axes are not at right angles.
    """
    if transform.spline is None:
        raise GeometryError("This transform is not held by control points; add it as a grid.")
    vectors = transform.spline.coefficients[0].detach().cpu().numpy()
    content = spline_content(transform.linear, vectors, transform.spline.lattice.control_grid)
    single = content.IsA("vtkOrientedBSplineTransform")
    node = slicer.vtkMRMLBSplineTransformNode() if single else slicer.vtkMRMLTransformNode()
    node.SetAndObserveTransformFromParent(content)
    add_node(scene, node, name)
    _relate(node, fixed, moving)
    return node


def spline_content(
    linear: ArrayLike, coefficients_ras_mm: ArrayLike, control_grid: Grid
) -> vtk.vtkAbstractTransform:
    """Returns the VTK transform p -> linear(p + u(p)); it touches no node.

    Args:
        linear: 4 x 4, fixed RAS to moving RAS.
        coefficients_ras_mm: Control points of u, (3, *control_grid.shape), components R, A, S.
        control_grid: Where the control points lie.

    Raises:
        GeometryError: If the parts do not fit, or the axes are not at right angles.
    """
    matrix = np.asarray(linear, np.float64)
    vectors = np.asarray(coefficients_ras_mm, np.float64)
    if vectors.shape != (3, *control_grid.shape) or not np.isfinite(vectors).all():
        raise GeometryError(
            f"Control points on {control_grid} have the shape (3, *shape) and are finite, but got "
            f"{vectors.shape}."
        )
    ijk_to_ras = from_vtk_matrix(ijk_to_ras_of(control_grid))
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    directions = np.eye(4)
    directions[:3, :3] = ijk_to_ras[:3, :3] / spacing
    _check_right_angles(directions[:3, :3])
    image = to_vtk_image(np.ascontiguousarray(np.moveaxis(vectors, 0, -1)))
    image.SetSpacing(*spacing)
    image.SetOrigin(*ijk_to_ras[:3, 3])
    spline = slicer.vtkOrientedBSplineTransform()
    spline.SetGridDirectionMatrix(to_vtk_matrix(directions))
    spline.SetCoefficientData(image)
    spline.SetBorderModeToZero()
    if np.array_equal(matrix, np.eye(4)):
        return spline
    affine = vtk.vtkTransform()
    affine.SetMatrix(to_vtk_matrix(matrix))
    result = vtk.vtkGeneralTransform()
    result.PostMultiply()
    result.Concatenate(spline)
    result.Concatenate(affine)
    return result


def _check_right_angles(directions: NDArray[np.float64]) -> None:
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        raise GeometryError(
            "A B-spline transform needs axes at right angles; add the transform as a grid."
        )
