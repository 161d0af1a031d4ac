"""Small pairs of images with a known transform, for tests of whole registrations.

The images are a function of RAS evaluated on two unlike grids (non-cubic, anisotropic, oblique),
so that no interpolation stands between the truth and the images.
"""

from __future__ import annotations

import numpy as np
import torch
from support import make_grid

from DeepRegLib.geometry.affine import rotation_from_vector
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.registration.base import Image, ImagePair


def phantom(points: np.ndarray) -> np.ndarray:
    """A head-like object of 60 mm: a body with thirty blobs, values 0 to about 100."""
    rng = np.random.default_rng(7)
    radii = np.array([26.0, 32.0, 29.0])
    depth = np.linalg.norm(points / radii, axis=-1)
    body = 1.0 / (1.0 + np.exp((depth - 1.0) * 14.0))
    value = 40.0 * body
    for _ in range(30):
        center = rng.uniform(-0.7, 0.7, 3) * radii
        width = rng.uniform(3.5, 7.0)
        square = ((points - center) ** 2).sum(-1) / (2 * width**2)
        value = value + rng.uniform(-30, 55) * np.exp(-square) * body
    return value


def label_phantom(points: np.ndarray) -> np.ndarray:
    """Three labels that belong to the phantom."""
    labels = (np.linalg.norm(points / [26.0, 32.0, 29.0], axis=-1) < 1.0).astype(np.int16)
    labels[np.linalg.norm(points - [8.0, 10.0, -4.0], axis=-1) < 9.0] = 2
    labels[np.linalg.norm(points - [-9.0, -12.0, 6.0], axis=-1) < 8.0] = 3
    return labels


def voxel_points(grid: Grid) -> np.ndarray:
    """RAS of all voxels, (*shape, 3)."""
    return grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))


def fixed_grid() -> Grid:
    return _centred(make_grid("oblique", (22, 28, 20), (3.4, 2.8, 3.9)), (0.0, 0.0, 0.0))


def moving_grid() -> Grid:
    return _centred(make_grid("LPS", (26, 24, 30), (3.1, 3.6, 2.9)), (3.0, -2.0, 4.0))


def known_matrix(turn=(0.10, -0.08, 0.12), shift=(4.0, -3.0, 2.5), scale=1.0) -> np.ndarray:
    """Fixed RAS to moving RAS."""
    matrix = np.eye(4)
    vector = torch.tensor(turn, dtype=torch.float64)
    matrix[:3, :3] = rotation_from_vector(vector).numpy() * scale
    matrix[:3, 3] = shift
    return matrix


def make_image(grid: Grid, to_phantom: np.ndarray | None = None, noise: float = 0.5) -> Image:
    points = voxel_points(grid)
    if to_phantom is not None:
        points = points @ to_phantom[:3, :3].T + to_phantom[:3, 3]
    values = phantom(points) + np.random.default_rng(grid.size).normal(0, noise, grid.shape)
    return Image.from_array(values.astype(np.float32), grid)


def make_labels(grid: Grid, to_phantom: np.ndarray | None = None) -> Image:
    points = voxel_points(grid)
    if to_phantom is not None:
        points = points @ to_phantom[:3, :3].T + to_phantom[:3, 3]
    return Image.from_array(label_phantom(points), grid)


def make_pair(matrix: np.ndarray | None = None, **extra) -> ImagePair:
    """A pair whose true transform (fixed to moving) is `matrix`."""
    matrix = known_matrix() if matrix is None else matrix
    back = np.linalg.inv(matrix)
    return ImagePair(make_image(fixed_grid()), make_image(moving_grid(), back), **extra)


def body_points(count: int = 200) -> np.ndarray:
    """Points inside the phantom, RAS of the fixed space."""
    return np.random.default_rng(1).uniform(-0.55, 0.55, (count, 3)) * [26.0, 32.0, 29.0]


def error_mm(transform, matrix: np.ndarray) -> float:
    """Mean distance from the truth inside the phantom."""
    points = body_points()
    truth = points @ matrix[:3, :3].T + matrix[:3, 3]
    return float(np.linalg.norm(transform.map_points_ras(points) - truth, axis=1).mean())


def _centred(grid: Grid, center) -> Grid:
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] += np.asarray(center) - grid.center_ras
    return Grid(grid.shape, matrix)
