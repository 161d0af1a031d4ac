"""From what a network says on its own grid to a transform and maps on the images' grids."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..geometry.bspline import BSpline, BSplineLattice
from ..geometry.field import Field, fade_window, rim_motion
from ..geometry.grid import Grid, Matrix, invert_matrix
from ..geometry.inverse import invert
from ..geometry.sampling import Interpolation, apply_matrix, voxel_coordinates
from ..geometry.transform import Transform
from .base import Image, ImagePair, Result
from .preprocess import object_region
from .thin import are_slices
from .trainable import Prediction

#: Voxels of the model's grid over which a displacement fades to zero beyond it.
_LEAST_FADE, _MOST_FADE = 4, 24
#: Elements of a cubic B-spline that its outermost control points reach beyond its domain.
_REACH = 3
#: Begin of the names of maps that belong to the moving image.
_OF_MOVING = "moving_"
#: Ends of the names of maps in mm that mean nothing where the fixed image shows nothing.
_OF_OBJECT = ("uncertainty_mm", "error_mm", "atypicality_mm")


def placed(prediction: Prediction, grid: Grid, pair: ImagePair) -> Result:
    """Returns the transform of a prediction, its inverse if the network knows it, and its maps.

    The network saw the moving image through `pair.initial`, so the whole is
    T(p) = initial(A(p + u(p))), with u at rest beyond the grid of the network.

    Convention:
        Maps come back on the fixed grid; those whose name begins with ``moving_`` show the moving
        image as the network saw it, and come back on the moving grid. Integer maps are labels.
        Uncertainties and errors are 0 outside the object of the fixed image.

    Args:
        prediction: In voxels of `grid`.
        grid: Grid of the network, in the fixed space.
        pair: The images; the result lies on their grids.

    Raises:
        InputError: If the prediction is not finite.
    """
    _check_finite(prediction)
    matrix = _to_ras(prediction.linear, grid)
    spline = _spline(prediction, grid)
    field = None
    if spline is not None:
        field = _sampled(spline, pair.fixed.grid, min(grid.spacing_mm))
    elif prediction.displacement is not None:
        field = _resting(prediction.displacement, grid).on_grid(pair.fixed.grid)
    if field is not None and are_slices(pair):
        field, spline = _in_plane(field), None
    transform = _after_start(matrix, field, spline, pair)
    return Result(
        transform, _inverse(prediction, grid, transform, pair), extras=_maps(prediction, grid, pair)
    )


def conjugated(field: Field, grid: Grid, matrix: Matrix, where: Tensor | None = None) -> Tensor:
    """Returns the displacement of p -> M^-1(M p + w(M p)), in voxels of another grid.

    Args:
        field: w, on any grid.
        grid: Grid whose voxels the result counts.
        matrix: M, 4 x 4, RAS mm.
        where: Points in voxels of `grid`, (1, 3, *out); all its voxels if omitted.

    Returns:
        (1, 3, *out).
    """
    if where is None:
        where = voxel_coordinates(grid.shape, field.displacement.device)
    onto = grid.voxel_to_voxel(field.grid, matrix)
    back = np.eye(4)
    back[:3, :3] = invert_matrix(onto)[:3, :3]
    return apply_matrix(back, field.at(apply_matrix(onto, where)))


def _in_plane(field: Field) -> Field:
    """Returns the field of a slice without what leads out of it, where no image tells it."""
    vectors = field.displacement.clone()
    vectors[:, field.grid.shape.index(1)] = 0.0
    return Field(vectors, field.grid)


def _after_start(
    matrix: Matrix, field: Field | None, spline: BSpline | None, pair: ImagePair
) -> Transform:
    """Returns p -> initial(A(p + u(p))) with one linear part L A and one field.

    With initial(q) = L(q + w(q)) the field is u(p) + A^-1 w(A(p + u(p))), A^-1 without its shift.
    """
    start, fixed = pair.initial or Transform(), pair.fixed.grid
    if start.field is None:
        return Transform(start.linear @ matrix, field, spline)
    where = voxel_coordinates(fixed.shape, start.field.displacement.device)
    shift = torch.zeros_like(where) if field is None else field.displacement
    shift = shift + conjugated(start.field, fixed, matrix, where + shift)
    return Transform(start.linear @ matrix, Field(shift, fixed))


def _resting(displacement: Tensor, grid: Grid) -> Field:
    """Returns a displacement on a larger grid, on which it fades to zero beyond its own.

    Nothing changes on the network's own grid. A fade over twice the motion cannot fold.
    """
    rim = rim_motion(displacement.float())
    width = min(max(_LEAST_FADE, math.ceil(2.0 * rim)), _MOST_FADE)
    larger = F.pad(displacement.float(), [width] * 6, mode="replicate")
    window = fade_window(larger.shape[2:], width, larger.device)
    return Field(larger * window, grid.padded(width))


def _spline(prediction: Prediction, grid: Grid) -> BSpline | None:
    """Returns the deformation by control points, with a domain that reaches to where it rests.

    ITK and Slicer do nothing beyond the domain; elements without coefficients around it let the
    spline end there by itself instead of with a step, and change nothing inside.
    """
    control, mesh = prediction.control_points, prediction.mesh
    if control is None or mesh is None:
        return None
    a, b, c = (m + 2 * _REACH for m in mesh)
    lattice = BSplineLattice(grid.resized(mesh).padded(_REACH), (a, b, c))
    to_mm = np.eye(4)
    to_mm[:3, :3] = grid.voxel_to_ras[:3, :3]
    return BSpline(lattice, apply_matrix(to_mm, F.pad(control.float(), [_REACH] * 6)))


def _sampled(spline: BSpline, fixed: Grid, spacing_mm: float) -> Field:
    """Returns a spline as a field on the fixed grid, which may be oblique to its lattice."""
    along = fixed.voxel_to_voxel(spline.lattice.grid)[:3, :3]
    if np.allclose(along, np.diag(np.diag(along)), atol=1e-6):
        return spline.field(fixed)
    fine = spline.lattice.grid.with_spacing(min(spacing_mm, *fixed.spacing_mm))
    return spline.field(fine).on_grid(fixed)


def _inverse(
    prediction: Prediction, grid: Grid, transform: Transform, pair: ImagePair
) -> Transform | None:
    """Returns q -> L^-1(q + L w(L^-1 q)) with the network's own w, L without its shift."""
    bent = pair.initial is not None and pair.initial.field is not None
    if prediction.inverse is None or bent:
        return None
    back = invert_matrix(transform.linear)
    own, moving = _resting(prediction.inverse, grid), pair.moving.grid
    return Transform(back, Field(conjugated(own, moving, back), moving))


def _maps(prediction: Prediction, grid: Grid, pair: ImagePair) -> dict[str, Image]:
    """Returns the maps on the grids of the images."""
    extras = {}
    there = None
    for name, values in prediction.maps.items():
        onto, transform = pair.fixed.grid, Transform()
        if name.startswith(_OF_MOVING):
            onto = pair.moving.grid
            if there is None:
                there = invert(pair.initial or Transform(), onto)[0]
            transform = there
        floating = values.is_floating_point()
        values = values.float() if floating else values.to(torch.int32)
        how: Interpolation = "linear" if floating else "nearest"
        pixel_type = "float32" if floating else _smallest_type(values)
        placed_map = transform.warp(values, grid, onto, how)
        if name.endswith(_OF_OBJECT) and onto is pair.fixed.grid:
            region = object_region(pair.fixed)
            placed_map = placed_map * (region if bool(region.any()) else 1)
        extras[name] = Image(placed_map, onto, pixel_type)
    return extras


def _smallest_type(labels: Tensor) -> str:
    """Returns the numpy name of the integer type that files of these labels need."""
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high <= 255:
        return "uint8"
    return "int16" if low >= -(2**15) and high < 2**15 else "int32"


def _to_ras(linear: Tensor | None, grid: Grid) -> Matrix:
    """Returns a matrix in voxels of a grid as one in RAS mm."""
    if linear is None:
        return np.eye(4)
    matrix = linear.detach().double().cpu().numpy().reshape(4, 4)
    return np.asarray(grid.voxel_to_ras @ matrix @ grid.ras_to_voxel)


def _check_finite(prediction: Prediction) -> None:
    parts = (prediction.displacement, prediction.inverse, prediction.linear,
             prediction.control_points)  # fmt: skip
    if not all(part is None or bool(torch.isfinite(part).all()) for part in parts):
        raise InputError(
            "The network's answer has values that are no numbers; the images may be unlike those "
            "that the model was trained on. Take another model or algorithm."
        )
