"""Grids, smooth images and transforms that the tests of files share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from DeepRegLib.geometry.affine import rotation_from_vector
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.registration.base import Image

SPACING = (2.0, 1.25, 0.8)
#: Columns of the direction for each tensor axis: RAS, LPS, left-handed, and Slicer's order (k j i).
ORIENTATIONS = {
    "ras": np.eye(3),
    "lps": np.diag([-1.0, -1.0, 1.0]),
    "left_handed": np.diag([-1.0, 1.0, 1.0]),
    "kji": np.eye(3)[:, ::-1] * [1.0, -1.0, -1.0],
}


def make_grid(orientation: str = "ras", oblique: bool = True, shape=(17, 22, 27)) -> Grid:
    """A non-cubic, anisotropic grid, turned by an arbitrary rotation, away from the origin."""
    turn = rotation_from_vector(torch.tensor([0.2, -0.35, 0.15], dtype=torch.float64)).numpy()
    axes = (turn if oblique else np.eye(3)) @ ORIENTATIONS[orientation]
    matrix = np.eye(4)
    matrix[:3, :3] = axes * SPACING
    matrix[:3, 3] = (12.0, -31.0, 47.0)
    return Grid(shape, matrix)


def moving_grid(fixed: Grid) -> Grid:
    """A finer grid of another shape and pose that covers the fixed one."""
    turn = rotation_from_vector(torch.tensor([-0.3, 0.1, 0.4], dtype=torch.float64)).numpy()
    matrix = np.eye(4)
    matrix[:3, :3] = turn * (1.1, 1.3, 0.9) * np.array([1.0, -1.0, 1.0])
    shape = (63, 52, 71)
    matrix[:3, 3] = fixed.center_ras - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, matrix)


def smooth_image(grid: Grid, pixel_type: str = "float32") -> Image:
    """A smooth function of the RAS position, so that any grid samples the same scene."""
    points = grid.to_ras(voxel_coordinates(grid.shape)[0].permute(1, 2, 3, 0).numpy())
    x, y, z = np.moveaxis(points, -1, 0)
    values = 100 * np.sin(x / 9) + 80 * np.cos(y / 11 + 0.5) + 60 * np.sin(z / 7 + x / 20)
    return Image(torch.from_numpy(values.astype(np.float32))[None, None], grid, pixel_type)


def smooth_field(grid: Grid, size_voxel: float = 2.0) -> Field:
    """A displacement that differs along every axis and fades to zero at the rim."""
    unit = [i / (n - 1) * np.pi for i, n in zip(voxel_coordinates(grid.shape)[0], grid.shape)]
    window = torch.sin(unit[0]) * torch.sin(unit[1]) * torch.sin(unit[2])
    parts = [torch.sin(2 * unit[1]) * window, 0.7 * window, torch.cos(unit[0]) * window]
    return Field(size_voxel * torch.stack(parts)[None].float(), grid)


def affine_matrix() -> np.ndarray:
    """An affine map with rotation, scale and shear."""
    matrix = np.eye(4)
    turn = rotation_from_vector(torch.tensor([0.1, 0.2, -0.15], dtype=torch.float64)).numpy()
    matrix[:3, :3] = turn @ np.array([[1.05, 0.04, 0.0], [0.0, 0.95, 0.02], [0.0, 0.0, 1.02]])
    center = np.array([20.0, -10.0, 55.0])
    matrix[:3, 3] = center + (2.0, -3.0, 1.5) - matrix[:3, :3] @ center
    return matrix


def rigid_matrix(vector=(0.1, 0.2, -0.15)) -> np.ndarray:
    """A rotation about the origin with a translation."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_from_vector(torch.tensor(vector, dtype=torch.float64)).numpy()
    matrix[:3, 3] = (2.0, -3.0, 1.5)
    return matrix


@pytest.fixture(params=list(ORIENTATIONS))
def grid(request) -> Grid:
    """An oblique grid in each orientation."""
    return make_grid(request.param)


@pytest.fixture
def deformable(grid) -> Transform:
    """A deformation before an affine map."""
    return Transform(affine_matrix(), smooth_field(grid))


@pytest.fixture
def scene() -> SimpleNamespace:
    """The makers above, for tests that need several."""
    return SimpleNamespace(
        make_grid=make_grid,
        moving_grid=moving_grid,
        smooth_image=smooth_image,
        smooth_field=smooth_field,
        affine_matrix=affine_matrix,
        rigid_matrix=rigid_matrix,
    )
