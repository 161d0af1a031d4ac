"""A grid, a deformation and a pair of smooth images with a known transform."""

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
from DeepRegLib.registration.base import Image, ImagePair


def make_grid(shape=(23, 28, 33), spacing=(2.0, 1.25, 0.8)) -> Grid:
    """A non-cubic, anisotropic, oblique, left-handed grid."""
    turn = rotation_from_vector(torch.tensor([0.2, -0.35, 0.15], dtype=torch.float64)).numpy()
    matrix = np.eye(4)
    matrix[:3, :3] = (turn @ np.diag([-1.0, 1.0, 1.0])) * spacing
    matrix[:3, 3] = (12.0, -31.0, 47.0)
    return Grid(shape, matrix)


def blob(grid: Grid) -> Image:
    """An object of smooth gray values on a black ground, the same scene on every grid."""
    points = grid.to_ras(voxel_coordinates(grid.shape)[0].permute(1, 2, 3, 0).numpy())
    points = points - make_grid().center_ras
    radius = np.linalg.norm(points / (14.0, 11.0, 9.0), axis=-1)
    shade = 1.0 + 0.4 * np.sin(points[..., 0] / 2.5) + 0.3 * np.cos(points[..., 1] / 2.0)
    values = 100.0 * shade / (1.0 + np.exp(8.0 * (radius - 1.0)))
    return Image(torch.from_numpy(values.astype(np.float32))[None, None], grid)


def smooth_field(grid: Grid, size_voxel: float = 1.5) -> Field:
    """A displacement that fades to zero at the rim."""
    unit = [i / (n - 1) * np.pi for i, n in zip(voxel_coordinates(grid.shape)[0], grid.shape)]
    window = torch.sin(unit[0]) * torch.sin(unit[1]) * torch.sin(unit[2])
    parts = [torch.sin(2 * unit[1]) * window, 0.7 * window, torch.cos(unit[0]) * window]
    return Field(size_voxel * torch.stack(parts)[None].float(), grid)


def shift(x: float, y: float, z: float) -> Transform:
    """A translation in RAS mm."""
    matrix = np.eye(4)
    matrix[:3, 3] = (x, y, z)
    return Transform(matrix)


@pytest.fixture
def scene() -> SimpleNamespace:
    """The makers above."""
    return SimpleNamespace(make_grid=make_grid, blob=blob, smooth_field=smooth_field, shift=shift)


@pytest.fixture
def truth(scene) -> Transform:
    """The transform that aligns the pair: a deformation before a small affine map."""
    turn = rotation_from_vector(torch.tensor([0.1, -0.05, 0.2], dtype=torch.float64)).numpy()
    center = make_grid().center_ras
    matrix = np.eye(4)
    matrix[:3, :3] = turn * 1.03
    matrix[:3, 3] = center + (3.0, -2.0, 1.0) - matrix[:3, :3] @ center
    return Transform(matrix, smooth_field(make_grid()))


@pytest.fixture
def pair(truth) -> ImagePair:
    """A moving image on its own grid, and the fixed image that `truth` makes of it."""
    fixed = make_grid()
    matrix = np.diag([1.0, 1.0, 1.0, 1.0])
    matrix[:3, 3] = fixed.center_ras - (24.0, 23.0, 22.0)
    moving = blob(Grid((49, 47, 45), matrix))
    return ImagePair(Image(truth.warp(moving.data, moving.grid, fixed), fixed), moving)
