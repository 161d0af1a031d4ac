"""Transforms that meet landmark pairs: a start that is bent to them, and a pull that holds them.

The correction is a sum of compactly supported radial functions, so that a landmark acts on its
surroundings only and the rest of the transform stays as it is.

References:
    Fornefett, Rohr, Stiehl. Radial basis functions with compact support for elastic registration of
    medical images. Image and Vision Computing 19:87-96, 2001. doi:10.1016/S0262-8856(00)00057-3
    (the function psi 3,1, equation 12).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..geometry.affine import fit_points
from ..geometry.field import Field, vector_lengths
from ..geometry.grid import Grid, Matrix, transform_points
from ..geometry.sampling import apply_matrix, voxel_coordinates
from ..geometry.transform import Transform

#: Most voxels of the correction; it is smooth, so a coarser grid loses nothing.
_MAX_VOXELS = 500_000
#: The same for the pull, which is computed at every step.
_MAX_PULL_VOXELS = 40_000
#: Longest motion of one pull, in voxels; far below the support, so that it cannot fold.
_LONGEST_PULL_VOXEL = 2.0
#: Least support of a landmark, and its share of the image's diagonal by default.
_LEAST_SUPPORT_MM, _SUPPORT_SHARE = 30.0, 0.25
#: Largest slope of the correction; below 1 it cannot fold.
_STEEPEST = 0.7
_CHUNK = 65_536


def bent_to_landmarks(
    initial: Transform | None,
    fixed_ras: NDArray[np.float64],
    moving_ras: NDArray[np.float64],
    grid: Grid,
) -> Transform:
    """Returns a transform near `initial` that takes each fixed landmark to its moving one.

    Where no support keeps the correction from folding, it is weakened until it does, and the
    landmarks are then met in part.

    Args:
        initial: Transform so far; the best rigid map of three or more pairs if None.
        fixed_ras: (N, 3), RAS mm.
        moving_ras: (N, 3), RAS mm.
        grid: Grid of the fixed image.

    Raises:
        InputError: If there are no landmark pairs.
    """
    if len(fixed_ras) == 0 or len(fixed_ras) != len(moving_ras):
        raise InputError("Following landmarks needs the same number of points on both images.")
    if initial is None:
        known = len(fixed_ras) >= 3
        initial = Transform(fit_points(fixed_ras, moving_ras, "rigid") if known else np.eye(4))
    back = np.linalg.inv(initial.linear)
    so_far = fixed_ras if initial.field is None else initial.field.map_points_ras(fixed_ras)
    residual = transform_points(back, moving_ras) - so_far
    if np.abs(residual).max() < 1e-6:
        return initial
    coarse = _thinned(grid)
    correction = _correction(fixed_ras, residual, coarse)
    if initial.field is not None:
        correction = correction + initial.field.on_grid(coarse).to_ras_mm()
    return Transform(initial.linear, Field.from_ras_mm(correction, coarse))


class LandmarkPull:
    """Keeps landmark pairs together while a deformation changes.

    Every `held` composes the deformation with a small smooth motion that takes each fixed landmark
    to its partner, so that image forces act on all but the landmarks.

    Args:
        fixed_ras: (N, 3), RAS mm.
        moving_ras: (N, 3), RAS mm.
        linear: Linear part of the transform p -> linear(p + u(p)).
        grid: Grid of the deformation.
        device: Where it is computed.
        strength: Share of the remaining distance that one pull covers; 1 holds the landmarks, less
            weighs them against the images.
    """

    def __init__(
        self,
        fixed_ras: NDArray[np.float64],
        moving_ras: NDArray[np.float64],
        linear: Matrix,
        grid: Grid,
        device: torch.device,
        strength: float = 1.0,
    ) -> None:
        self._strength = strength
        self._grid, self._coarse = grid, _thinned(grid, _MAX_PULL_VOXELS)
        self._support = _support(grid)
        self._longest = _LONGEST_PULL_VOXEL * min(grid.spacing_mm)
        wanted = transform_points(np.linalg.inv(linear), moving_ras)
        self._wanted = torch.from_numpy(wanted).to(device, torch.float32)
        self._fixed = torch.from_numpy(grid.to_voxel(fixed_ras).T.copy()).to(device, torch.float32)
        where = voxel_coordinates(self._coarse.shape, device)
        self._where = apply_matrix(self._coarse.voxel_to_voxel(grid), where)

    def held(self, displacement: Tensor) -> Tensor:
        """Returns a displacement (1, 3, *grid.shape), in voxels, that meets the landmarks."""
        field = Field(displacement, self._grid)
        centers = self._reached_mm(field, self._fixed[None, :, :, None, None])
        residual = (self._wanted - centers) * self._strength
        length = residual.norm(dim=1, keepdim=True).clamp(min=1e-9)
        residual = residual * (self._longest / length).clamp(max=1.0)
        kernel = _wendland(torch.cdist(centers, centers) / self._support)
        kernel = kernel + 1e-3 * torch.eye(len(centers), device=kernel.device)
        weights = torch.linalg.solve(kernel, residual)
        there = self._reached_mm(field, self._where)
        motion = _wendland(torch.cdist(there, centers) / self._support) @ weights
        motion = motion.T.reshape(1, 3, *self._coarse.shape).contiguous()
        finer = Field.from_ras_mm(motion, self._coarse).resized(self._grid.shape)
        return displacement + finer.displacement

    def _reached_mm(self, field: Field, voxels: Tensor) -> Tensor:
        """Returns x + u(x) for voxel coordinates (1, 3, ...), as (N, 3) in RAS mm."""
        reached = voxels + field.at(voxels)
        return apply_matrix(self._grid.voxel_to_ras, reached)[0].reshape(3, -1).T.contiguous()


def _correction(points: NDArray, residual: NDArray, grid: Grid) -> Tensor:
    """Returns the interpolating displacement (1, 3, *grid.shape), RAS mm."""
    support = _support(grid)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    for _ in range(4):
        kernel = _wendland(torch.from_numpy(apart / support)).numpy()
        weights = np.linalg.solve(kernel + 1e-6 * np.eye(len(points)), residual)
        field = _sum_of(points, weights, support, grid)
        slope = _steepest(field, grid)
        if slope <= _STEEPEST:
            return field
        support *= 1.6
    return field * (_STEEPEST / slope)


def _sum_of(points: NDArray, weights: NDArray, support: float, grid: Grid) -> Tensor:
    where = apply_matrix(grid.voxel_to_ras, voxel_coordinates(grid.shape, None, torch.float32))
    flat = where[0].reshape(3, -1).T
    centers = torch.from_numpy(points).to(flat)
    strengths = torch.from_numpy(weights).to(flat)
    parts = [_wendland(torch.cdist(p, centers) / support) @ strengths for p in flat.split(_CHUNK)]
    return torch.cat(parts).T.reshape(1, 3, *grid.shape).contiguous()


def _wendland(r: Tensor) -> Tensor:
    """The function psi 3,1: 1 at the center, twice differentiable, 0 from r = 1 on."""
    return (1.0 - r).clamp(min=0.0) ** 4 * (4.0 * r + 1.0)


def _steepest(field: Tensor, grid: Grid) -> float:
    """Largest change of the displacement per mm along an axis of the grid."""
    slopes = [0.0]
    for axis, spacing in enumerate(grid.spacing_mm):
        if grid.shape[axis] > 1:
            change = torch.diff(field, dim=2 + axis)
            slopes.append(float(vector_lengths(change).max()) / spacing)
    return max(slopes)


def _support(grid: Grid) -> float:
    """Reach of a landmark, in mm."""
    diagonal = float(np.linalg.norm(np.ptp(grid.corners_ras(), axis=0)))
    return max(_LEAST_SUPPORT_MM, _SUPPORT_SHARE * diagonal)


def _thinned(grid: Grid, most: int = _MAX_VOXELS) -> Grid:
    if grid.size <= most:
        return grid
    factor = (most / grid.size) ** (1 / 3)
    return grid.resized([max(1, int(n * factor)) for n in grid.shape])
