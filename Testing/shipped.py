"""The models that come with DeepReg, and pairs of brains with a known alignment for them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pairs
import torch
from support import ORIENTATIONS, smooth_displacement

from DeepRegLib import models, registry
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image
from DeepRegLib.registration.base import Image, ImagePair

ROOT = Path(__file__).resolve().parents[1]
EVERY = sorted((ROOT / "Resources" / "Models").glob("*.safetensors"))
SAMPLE = ROOT / "Resources" / "SampleData" / "Colin27_T1_brain.nii.gz"


def system_of(path: Path) -> str:
    """Key of the system that a model belongs to."""
    return models.read_card(path).algorithm


#: Models that judge a registration, and those that make one.
JUDGES = [path for path in EVERY if registry.spec(system_of(path)).transform == "none"]
MODELS = [path for path in EVERY if path not in JUDGES]
#: Share of the error that a model may leave; more where so far it has learned less (measured: dlir
#: 0.70, dual_prnet 0.67, icnet 0.77, faim 0.62; vxm 0.58, vxm_prob 0.56, pmrn 0.46).
LEFT = 0.6
LEFT_BY = {"dlir": 0.75, "dual_prnet": 0.7, "icnet": 0.8, "faim": 0.7}

#: Largest displacement along an axis, and the distance over which it changes, mm.
_MOST_MM, _WIDTH_MM = 9.0, 14.0


#: A motion, for systems that give linear transforms: turn about an axis in radians, shift in mm.
_TURN, _SHIFT_MM = (0.16, -0.12, 0.14), (9.0, -8.0, 7.0)


@functools.cache
def known_pair(linear: bool = False) -> tuple[ImagePair, np.ndarray, np.ndarray]:
    """A brain, and the same brain bent, on grids that are oblique, anisotropic and different.

    Args:
        linear: Whether it is moved as a rigid body instead.

    Returns:
        The pair; points of the fixed brain, (N, 3) RAS mm; where they belong in the moving one.
    """
    brain = read_image(str(SAMPLE))
    fixed = _onto(brain, Transform(), _around(brain.grid, "oblique", (1.7, 2.3, 2.9)))
    moving_grid = _around(brain.grid, "LPS", (2.6, 1.6, 2.1))
    truth = Transform(_motion(brain.grid)) if linear else _bend(brain.grid)
    # The moving image at x is the brain at truth(x), so a point of the brain belongs at its inverse.
    moving = _onto(brain, truth, moving_grid)
    voxels = (fixed.data[0, 0] > 0.2 * float(fixed.data.max())).nonzero().numpy()[::97]
    points = fixed.grid.to_ras(voxels.astype(float))
    return ImagePair(fixed, moving), points, _inverse_points(truth, points)


def pair_for(system: str) -> tuple[ImagePair, np.ndarray, np.ndarray]:
    """The pair that a system is tested with."""
    return known_pair(registry.spec(system).transform == "linear")


def unbent() -> Transform:
    """What undoes the deformation of `known_pair`, fixed to moving."""
    brain = read_image(str(SAMPLE))
    grid = _around(brain.grid, "RAS", (4.0, 4.0, 4.0))
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3).astype(float))
    moved = _inverse_points(_bend(brain.grid), points) - points
    field = np.moveaxis(moved.reshape(*grid.shape, 3), -1, 0)
    return Transform(np.eye(4), Field.from_ras_mm(torch.tensor(field)[None], grid))


def error_mm(transform: Transform, system: str) -> float:
    """Mean distance of where the points are taken from where they belong."""
    _, points, goal = pair_for(system)
    return float(np.linalg.norm(transform.map_points_ras(points) - goal, axis=1).mean())


def _around(grid: Grid, orientation: str, spacing: tuple[float, float, float]) -> Grid:
    """A grid of another orientation and spacing with the same center, 200 mm wide."""
    shape = tuple(round(200.0 / s) for s in spacing)
    matrix = np.eye(4)
    matrix[:3, :3] = ORIENTATIONS[orientation] * np.array(spacing)
    matrix[:3, 3] = grid.center_ras - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, matrix)  # type: ignore[arg-type]


def _onto(image: Image, transform: Transform, grid: Grid) -> Image:
    return Image(transform.warp(image.data, image.grid, grid), grid)


def _motion(around: Grid) -> np.ndarray:
    """A rigid motion about the center of a grid, 4 x 4, RAS mm."""
    to_center = np.eye(4)
    to_center[:3, 3] = around.center_ras
    return to_center @ pairs.known_matrix(_TURN, _SHIFT_MM) @ np.linalg.inv(to_center)


def _bend(around: Grid) -> Transform:
    """A smooth random displacement."""
    grid = _around(around, "RAS", (4.0, 4.0, 4.0))
    field = smooth_displacement(grid.shape, _MOST_MM / 4.0, seed=4, sigma=_WIDTH_MM / 4.0)
    return Transform(np.eye(4), Field(field, grid))


def _inverse_points(bend: Transform, points: np.ndarray) -> np.ndarray:
    """Finds where `bend` takes to the points, by repeated correction."""
    found = points.copy()
    for _ in range(30):
        found += points - bend.map_points_ras(found)
    assert np.abs(bend.map_points_ras(found) - points).max() < 1e-3
    return found
