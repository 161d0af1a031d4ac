"""ITK's world: LPS millimeters, its transforms and their files. The only place that knows LPS."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import FileFormatError, InputError
from ..geometry.bspline import BSpline
from ..geometry.field import Field
from ..geometry.grid import Grid, Matrix
from ..geometry.transform import Transform
from .files import (
    IMAGE_SUFFIXES,
    LINEAR_SUFFIXES,
    PathLike,
    check_suffix,
    read_sitk,
    readable_by_itk,
    require_file,
    suffix_of,
    write_whole,
)

#: Signs that turn LPS points into RAS points, and back.
_SIGNS = np.array([-1.0, -1.0, 1.0])
#: Suffixes that are read as displacement images; all others are read as ITK transforms.
_READ_AS_IMAGE = (*IMAGE_SUFFIXES, ".mhd", ".nhdr", ".img", ".hdr", ".vtk")


class ItkGeometry(NamedTuple):
    """Size, origin, spacing and direction as ITK counts them: index (i, j, k), LPS mm."""

    size: Sequence[int]
    origin: Sequence[float]
    spacing: Sequence[float]
    direction: Sequence[float]


def flip_points(points: ArrayLike) -> NDArray[np.float64]:
    """Converts points or vectors (..., 3) from LPS to RAS or back; the input stays as it is."""
    return np.asarray(points, np.float64) * _SIGNS


def flip_matrix(matrix: ArrayLike) -> Matrix:
    """Converts a 4 x 4 point-to-point matrix from LPS to RAS or back."""
    flip = np.diag([*_SIGNS, 1.0])
    return flip @ np.asarray(matrix, np.float64) @ flip


def grid_from_itk(geometry: ItkGeometry) -> Grid:
    """Makes the grid, in tensor order (k, j, i) and RAS mm, of a 3-D image in ITK's terms."""
    columns = np.array(geometry.direction).reshape(3, 3) * np.array(geometry.spacing)
    matrix = np.eye(4)
    matrix[:3, :3] = (_SIGNS[:, None] * columns)[:, ::-1]
    matrix[:3, 3] = flip_points(geometry.origin)
    return Grid(tuple(int(n) for n in geometry.size[::-1]), matrix)  # type: ignore[arg-type]


def grid_to_itk(grid: Grid) -> ItkGeometry:
    """Describes a grid in ITK's terms; ITK's index is the tensor index reversed."""
    columns = (_SIGNS[:, None] * grid.voxel_to_ras[:3, :3])[:, ::-1]
    spacing = np.linalg.norm(columns, axis=0)
    origin = flip_points(grid.voxel_to_ras[:3, 3])
    direction = (columns / spacing).ravel()
    return ItkGeometry(grid.shape[::-1], origin.tolist(), spacing.tolist(), direction.tolist())


def has_right_angles(grid: Grid) -> bool:
    """Whether the axes of a grid are at right angles, as ITK's directions have to be."""
    axes = grid.voxel_to_ras[:3, :3] / grid.spacing_mm
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-4))


def check_grid(grid: Grid, path: PathLike) -> None:
    """Refuses to write a sheared grid as NIfTI, where ITK would silently straighten it.

    Raises:
        FileFormatError: If the axes of the grid are not at right angles and the file is NIfTI.
    """
    if suffix_of(path).startswith(".nii") and not has_right_angles(grid):
        raise FileFormatError(
            f"'{Path(path).name}' cannot hold a grid whose axes are not at right angles; write it "
            "as .nrrd."
        )


def transform_to_sitk(transform: Transform, fixed: Grid) -> sitk.Transform:
    """Makes the SimpleITK transform that maps fixed to moving points in LPS mm.

    A rigid map becomes Euler3D, any other linear map Affine, both about the center of the fixed
    grid; a deformation becomes a displacement field on the fixed grid, or a B-spline if it is held
    by one, and with a linear part a composite that applies the deformation first.
    """
    if transform.field is None:
        return _linear_to_sitk(transform.linear, fixed)
    if transform.spline is not None and has_right_angles(fixed):
        deformation: sitk.Transform = spline_to_sitk(transform.spline)
    else:
        vectors = transform.field.on_grid(fixed).to_ras_mm()
        deformation = sitk.DisplacementFieldTransform(_vector_image(vectors, fixed, np.float64))
    if np.array_equal(transform.linear, np.eye(4)):
        return deformation
    # ITK applies the transform that was added last first.
    return sitk.CompositeTransform([_linear_to_sitk(transform.linear, fixed), deformation])


def spline_to_sitk(spline: BSpline) -> sitk.BSplineTransform:
    """Makes ITK's cubic B-spline transform over the domain of a lattice at right angles.

    Beyond the domain ITK applies no displacement.
    """
    lattice = spline.lattice
    domain = grid_to_itk(lattice.grid)
    result = sitk.BSplineTransform(3, 3)
    # The domain begins at the outer edge of the first voxel, half a voxel before its center.
    corner = lattice.grid.to_ras([-0.5, -0.5, -0.5])
    result.SetTransformDomainOrigin(flip_points(corner).tolist())
    result.SetTransformDomainDirection(domain.direction)
    extent = np.array(domain.size) * domain.spacing
    result.SetTransformDomainPhysicalDimensions(extent.tolist())
    result.SetTransformDomainMeshSize([int(m) for m in lattice.mesh[::-1]])
    # All of L, then P, then S, each with the index i running fastest.
    vectors = spline.coefficients[0].detach().cpu().double().numpy()
    result.SetParameters((vectors * _SIGNS[:, None, None, None]).ravel().tolist())
    return result


def transform_from_sitk(transform: sitk.Transform, fixed: Grid | None = None) -> Transform:
    """Makes a transform from any SimpleITK transform of three dimensions.

    Linear maps, one displacement field, and a field between linear maps are taken over exactly.
    Anything else (B-splines, several fields) is evaluated at the voxels of the fixed grid. Beyond
    a field's grid the result repeats its edge, as Slicer does and ITK does not.

    Args:
        transform: Fixed to moving, LPS mm.
        fixed: Grid to evaluate on.

    Raises:
        FileFormatError: If the transform is not 3-D, not invertible or not finite, or must be
            evaluated and no grid is given.
    """
    if transform.GetDimension() != 3:
        raise FileFormatError(
            f"A 3-D transform is needed, but this one is {transform.GetDimension()}-D."
        )
    parts = _flatten(transform)
    curved = [i for i, part in enumerate(parts) if not part.IsLinear()]
    if len(curved) == 1 and isinstance(parts[curved[0]], sitk.DisplacementFieldTransform):
        return _with_field(parts, curved[0])
    linear = _product([part for part in parts if part.IsLinear()])
    if not curved:
        return Transform(linear)
    if fixed is None:
        kinds = ", ".join(dict.fromkeys(parts[i].GetName() for i in curved))
        raise FileFormatError(
            f"This transform ({kinds}) has to be evaluated on a grid of voxels; give the fixed "
            "image with it."
        )
    return _evaluated(transform, linear, fixed)


def write_transform(transform: Transform, path: PathLike, fixed: Grid) -> None:
    """Writes a transform for ITK, ANTs and Slicer, whole or not at all.

    Convention:
        ``.h5`` and, for linear maps, ``.tfm .txt .mat`` are ITK transform files; B-splines take
        ``.tfm .txt`` as well (``.mat`` cannot hold several parts).
        ``.nrrd .mha .nii .nii.gz`` are displacement images with the total displacement T(p) - p on
        the fixed grid in LPS mm. As NIfTI they carry the intent code "vector" (1007), which every
        version of ITK and ANTs and Slicer reads alike; only Slicer adds a warning.

    Args:
        transform: Fixed to moving.
        path: File to write.
        fixed: Grid of the fixed image.

    Raises:
        FileFormatError: If the suffix does not fit the transform, or writing fails.
    """
    compact = transform.is_linear
    if transform.spline is not None and has_right_angles(fixed):
        compact = suffix_of(path) != ".mat"
    suffix = check_suffix(path, ("linear",) if compact else ("deformable",))
    if suffix in IMAGE_SUFFIXES:
        write_displacement(transform, path, fixed)
        return
    result = transform_to_sitk(transform, fixed)
    write_whole(path, lambda temporary: sitk.WriteTransform(result, str(temporary)))


def write_displacement(transform: Transform, path: PathLike, fixed: Grid) -> None:
    """Writes the total displacement on the fixed grid as an image of LPS vectors in mm."""
    check_grid(fixed, path)
    image = _vector_image(transform.displacement_ras_mm(fixed), fixed, np.float32)
    write_whole(path, lambda temporary: sitk.WriteImage(image, str(temporary), True))


def read_transform(path: PathLike, fixed: Grid | None = None) -> Transform:
    """Reads an ITK transform file or a displacement image, as ITK, ANTs, Elastix or Slicer write.

    Args:
        path: Transform (``.h5 .tfm .txt .mat .xfm``) or displacement image (``.nrrd .nii.gz``...),
            whose field then lives on the grid of the file.
        fixed: Grid to evaluate B-splines and chains of fields on.

    Raises:
        FileFormatError: If the file is missing, cut short, or not a transform of three dimensions.
        InputError: If a displacement image does not hold three finite components in each voxel.
    """
    path = require_file(path)
    if suffix_of(path) in _READ_AS_IMAGE:
        image = read_sitk(path, components=3)
        field = _field_from_image(image)
        return Transform(np.eye(4), field)
    try:
        with readable_by_itk(path) as readable:
            found = sitk.ReadTransform(str(readable))
    except RuntimeError as error:
        raise FileFormatError(
            f"'{path.name}' is not a transform that ITK can read, or it is damaged. Slicer's own "
            "kinds (such as the inverse of a grid or thin-plate spline) have to be converted "
            "first: module Transforms, Convert, then save."
        ) from error
    _check_whole(path, found)
    try:
        return transform_from_sitk(found, fixed)
    except (FileFormatError, InputError) as error:
        raise type(error)(f"'{path.name}': {error}") from error


def _linear_to_sitk(matrix: Matrix, fixed: Grid) -> sitk.Transform:
    lps = flip_matrix(matrix)
    center = flip_points(fixed.center_ras)
    result = _euler(lps[:3, :3], center) or _affine(lps[:3, :3], center)
    # The image of the center is exact even where the rotation was made orthogonal.
    result.SetTranslation((lps[:3, :3] @ center + lps[:3, 3] - center).tolist())
    return result


def _affine(linear: NDArray[np.float64], center: NDArray[np.float64]) -> sitk.AffineTransform:
    affine = sitk.AffineTransform(3)
    affine.SetCenter(center.tolist())
    affine.SetMatrix(linear.ravel().tolist())
    return affine


def _euler(
    linear: NDArray[np.float64], center: NDArray[np.float64]
) -> sitk.Euler3DTransform | None:
    """Returns the Euler transform of a rotation, or None if angles do not give it back."""
    u, _, v = np.linalg.svd(linear)
    rotation = u @ v
    if np.abs(rotation - linear).max() > 1e-6 or np.linalg.det(rotation) < 0:
        return None
    euler = sitk.Euler3DTransform()
    euler.SetCenter(center.tolist())
    euler.SetMatrix(rotation.ravel().tolist(), 1e-9)
    # Files hold the angles, which near gimbal lock do not give the matrix back.
    again = sitk.Euler3DTransform()
    again.SetFixedParameters(euler.GetFixedParameters())
    again.SetParameters(euler.GetParameters())
    held = np.array(again.GetMatrix()).reshape(3, 3)
    return again if np.abs(held - rotation).max() < 1e-8 else None


def _vector_image(vectors_ras_mm: Tensor, grid: Grid, kind: type) -> sitk.Image:
    """Makes an image of LPS vectors from (1, 3, *grid.shape) RAS vectors."""
    array = np.moveaxis(vectors_ras_mm[0].detach().cpu().numpy(), 0, -1) * _SIGNS
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=kind), isVector=True)
    geometry = grid_to_itk(grid)
    image.SetOrigin(geometry.origin)
    image.SetSpacing(geometry.spacing)
    image.SetDirection(geometry.direction)
    return image


def _field_from_image(image: sitk.Image) -> Field:
    array = sitk.GetArrayFromImage(image)
    if not np.isfinite(array).all():
        raise InputError("The displacement field has NaN or infinite vectors; make it again.")
    geometry = ItkGeometry(
        image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()
    )
    vectors = torch.from_numpy(np.ascontiguousarray(np.moveaxis(flip_points(array), -1, 0)))
    return Field.from_ras_mm(vectors[None], grid_from_itk(geometry))


def _flatten(transform: sitk.Transform) -> list[sitk.Transform]:
    """Returns the parts of a transform in the order in which they are applied."""
    transform = transform.Downcast()
    # SimpleITK shows linear types that it has no class for as composites of themselves.
    if transform.IsLinear() or not isinstance(transform, sitk.CompositeTransform):
        return [transform]
    count = transform.GetNumberOfTransforms()
    parts = [_flatten(transform.GetNthTransform(i)) for i in reversed(range(count))]
    return [leaf for part in parts for leaf in part]


def _product(parts: Sequence[sitk.Transform]) -> Matrix:
    """Returns the RAS matrix of linear transforms that are applied one after the other."""
    matrix = np.eye(4)
    for part in parts:
        # Mapping the unit points is the same for all twelve linear types.
        corners = [part.TransformPoint(p) for p in np.vstack([np.zeros(3), np.eye(3)]).tolist()]
        step = np.eye(4)
        step[:3, 3] = corners[0]
        step[:3, :3] = (np.array(corners[1:]) - corners[0]).T
        matrix = step @ matrix
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise FileFormatError("The linear part of this transform is not invertible; make it again.")
    return flip_matrix(matrix)


def _with_field(parts: Sequence[sitk.Transform], position: int) -> Transform:
    """Joins linear maps L1 before and L2 after one displacement field D, without resampling.

    L2(D(L1 p)) = L2 L1 (p + u(p)), where u has the voxels of D on its grid moved by L1^-1.
    """
    before, after = _product(parts[:position]), _product(parts[position + 1 :])
    deformation = parts[position]
    assert isinstance(deformation, sitk.DisplacementFieldTransform)
    field = _field_from_image(deformation.GetDisplacementField())
    moved = Grid(field.grid.shape, np.linalg.inv(before) @ field.grid.voxel_to_ras)
    return Transform(after @ before, Field(field.displacement, moved))


def _evaluated(transform: sitk.Transform, linear: Matrix, fixed: Grid) -> Transform:
    """Samples p -> linear^-1 T(p) - p on a grid, so that the linear map holds beyond it."""
    dense = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, *_itk_arguments(fixed)
    )
    total = flip_points(sitk.GetArrayFromImage(dense)).reshape(-1, 3)
    if not np.isfinite(total).all():
        raise InputError("The transform gives NaN or infinite points; make it again.")
    start = fixed.to_ras(np.indices(fixed.shape).reshape(3, -1).T)
    back = np.linalg.inv(linear)
    vectors = (start + total) @ back[:3, :3].T + back[:3, 3] - start
    tensor = torch.from_numpy(np.ascontiguousarray(vectors.T.reshape(1, 3, *fixed.shape)))
    return Transform(linear, Field.from_ras_mm(tensor, fixed))


def _itk_arguments(grid: Grid) -> tuple:
    geometry = grid_to_itk(grid)
    return list(geometry.size), geometry.origin, geometry.spacing, geometry.direction


def _check_whole(path: Path, found: sitk.Transform) -> None:
    """Refuses what SimpleITK reads only in part: cut text files, and several loose transforms."""
    content = path.read_bytes()
    if suffix_of(path) in LINEAR_SUFFIXES and content.startswith(b"#Insight"):
        heads, tails = content.count(b"\nParameters:"), content.count(b"\nFixedParameters:")
        if heads != tails:
            raise FileFormatError(f"'{path.name}' is cut short; copy or export it again.")
    if found.GetName() == "CompositeTransform":
        return
    names = re.findall(rb"(\w+)_(?:double|float)_\d_\d", content)
    if len(names) > 1:
        raise FileFormatError(
            f"'{path.name}' holds {len(names)} separate transforms, of which ITK would use only "
            "the first; join them into one (in Slicer: harden, or save as a composite .h5)."
        )
