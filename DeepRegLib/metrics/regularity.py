"""How smooth and invertible a transform is: folds, Jacobian, displacement, inverse consistency."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..geometry.field import Field, vector_lengths
from ..geometry.grid import Grid
from ..geometry.inverse import round_trip_error_mm
from ..geometry.jacobian import jacobian_determinant
from ..geometry.sampling import inside_image
from ..geometry.transform import Transform

#: Layers of voxels that are left out at each end of an axis: one-sided derivatives are unlike the
#: others there (Learn2Reg crops the same two).
_BORDER = 2


def regularity(transform: Transform | Field, mask: Tensor | None = None) -> dict[str, float]:
    """Measures the deformation on the grid of its field.

    Convention:
        Folds and both `sdlogj` are of the displacement field alone (a linear map changes neither,
        but for the +3). The percentiles are of the whole map: the determinant of the field times
        that of the linear part. A linear transform has no folds and `sdlogj` 0.

    Args:
        transform: Transform or field.
        mask: (1, 1, *field.grid.shape); measured where it is positive, everywhere if omitted. Two
            layers at the border of the grid are always left out.

    Returns:
        ``folds_percent``: voxels whose determinant is 0 or less, before any clipping.
        ``sdlogj``: standard deviation of log det J, det J clipped to 1e-9 ... 1e9.
        ``sdlogj_l2r``: the same of log(det J + 3), as Learn2Reg's script computes it.
        ``jacobian_p01`` and ``jacobian_p99``: percentiles of the determinant of the whole map.
        ``deformation_mean_mm`` and ``deformation_max_mm``: length of the displacement field.

    Raises:
        InputError: If the mask has another shape, or no voxel away from the border.
    """
    field = transform if isinstance(transform, Field) else transform.field
    linear = np.eye(4) if isinstance(transform, Field) else transform.linear
    scale = float(np.linalg.det(linear[:3, :3]))
    if field is None:
        return {"folds_percent": 0.0, "sdlogj": 0.0, "sdlogj_l2r": 0.0, "jacobian_p01": scale,
                "jacobian_p99": scale, "deformation_mean_mm": 0.0,
                "deformation_max_mm": 0.0}  # fmt: skip
    inside = _region(mask, field.grid, field.displacement.device)
    determinant = jacobian_determinant(field.displacement.detach())[:1, None][inside]
    length = vector_lengths(field.to_ras_mm()[:1].detach())[inside]
    low, high = _percentiles(determinant, (1.0, 99.0))
    ends = sorted((low * scale, high * scale))
    return {
        "folds_percent": 100.0 * float((determinant <= 0).double().mean()),
        "sdlogj": _spread(determinant),
        "sdlogj_l2r": _spread(determinant + 3.0),
        "jacobian_p01": ends[0],
        "jacobian_p99": ends[1],
        "deformation_mean_mm": float(length.double().mean()),
        "deformation_max_mm": float(length.max()),
    }


def total_displacement_mm(
    transform: Transform, grid: Grid, mask: Tensor | None = None
) -> dict[str, float]:
    """Length of T(p) - p, linear part and field together, over a grid.

    Returns:
        ``displacement_mean_mm`` and ``displacement_max_mm``.
    """
    length = vector_lengths(transform.displacement_ras_mm(grid).detach())
    inside = _region(mask, grid, length.device, border=0)
    return {
        "displacement_mean_mm": float(length[inside].double().mean()),
        "displacement_max_mm": float(length[inside].max()),
    }


def inverse_consistency_mm(
    transform: Transform, inverse: Transform, grid: Grid, mask: Tensor | None = None
) -> dict[str, float]:
    """Distance of inverse(T(p)) from p over a grid.

    Points that T takes out of the grid on which the field of the inverse is known are left out:
    nothing is known there.

    Args:
        transform: Fixed to moving.
        inverse: Moving to fixed.
        grid: Fixed grid.
        mask: (1, 1, *grid.shape), where to measure; everywhere if omitted.

    Returns:
        ``inverse_mean_mm``, ``inverse_p95_mm``, ``inverse_max_mm``, and the same three in mean
        voxel sizes of the grid (``inverse_mean_voxel`` ...). NaN if no point can be measured.
    """
    error = round_trip_error_mm(transform, inverse, grid)
    inside = _region(mask, grid, error.device, border=0)
    if inverse.field is not None:
        middle = inverse.field.grid
        where = transform.moving_coordinates(grid, middle, error.device)
        inside = inside & inside_image(where, middle.shape)
    values = error[inside]
    figures = dict.fromkeys(("mean", "p95", "max"), float("nan"))
    if values.numel():
        (p95,) = _percentiles(values, (95.0,))
        figures = {"mean": float(values.double().mean()), "p95": p95, "max": float(values.max())}
    voxel = grid.voxel_volume_mm3 ** (1.0 / 3.0)
    in_mm = {f"inverse_{name}_mm": value for name, value in figures.items()}
    return in_mm | {f"inverse_{name}_voxel": value / voxel for name, value in figures.items()}


def measurable(mask: Tensor | None, grid: Grid) -> bool:
    """Tells whether a mask leaves any voxel to measure once the border is cropped."""
    return mask is None or bool((_cropped(grid, mask.device) & (mask > 0)).any())


def _cropped(grid: Grid, device: torch.device, border: int = _BORDER) -> Tensor:
    """Returns the grid without its border, (1, 1, *shape) bool."""
    inside = torch.zeros(1, 1, *grid.shape, dtype=torch.bool, device=device)
    # Axes too short to lose both borders keep all of their voxels.
    crop = [slice(border, n - border) if n > 2 * border else slice(None) for n in grid.shape]
    inside[(slice(None), slice(None), *crop)] = True
    return inside


def _region(mask: Tensor | None, grid: Grid, device: torch.device, border: int = _BORDER) -> Tensor:
    """Returns where to measure, (1, 1, *shape) bool: the mask without the border."""
    inside = _cropped(grid, device, border)
    if mask is not None:
        if tuple(mask.shape) != (1, 1, *grid.shape):
            raise InputError(
                f"A mask on {grid} has the shape {(1, 1, *grid.shape)}, but got "
                f"{tuple(mask.shape)}."
            )
        inside = inside & (mask.to(device) > 0)
    if not bool(inside.any()):
        raise InputError("The mask has no voxel where the transform can be measured; enlarge it.")
    return inside



def _spread(determinant: Tensor) -> float:
    logs = determinant.double().clamp(1e-9, 1e9).log()
    return float(logs.std(unbiased=False))


def _percentiles(values: Tensor, percents: tuple[float, ...]) -> list[float]:
    array: NDArray = values.detach().cpu().numpy()
    return [float(v) for v in np.percentile(array, percents)]
