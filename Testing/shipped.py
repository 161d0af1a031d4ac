"""The models that come with DeepReg, and a pair of brains with a known deformation for them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from support import ORIENTATIONS, smooth_displacement

from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image
from DeepRegLib.registration.base import Image, ImagePair

ROOT = Path(__file__).resolve().parents[1]
MODELS = sorted((ROOT / "Resources" / "Models").glob("*.safetensors"))
SAMPLE = ROOT / "Resources" / "SampleData" / "Colin27_T1_brain.nii.gz"
#: Share of the error that a model may leave; more where so far it has learned less (measured: dlir
#: 0.70, dual_prnet 0.67, icnet 0.77, faim 0.79; vxm 0.58, vxm_prob 0.52).
LEFT = 0.6
LEFT_BY = {"dlir": 0.75, "dual_prnet": 0.7, "icnet": 0.8, "faim": 0.8}

#: Largest displacement along an axis, and the distance over which it changes, mm.
_MOST_MM, _WIDTH_MM = 9.0, 14.0


@functools.cache
def known_pair() -> tuple[ImagePair, np.ndarray, np.ndarray]:
    """A brain, and the same brain bent, on grids that are oblique, anisotropic and different.

    Returns:
        The pair; points of the fixed brain, (N, 3) RAS mm; where they belong in the moving one.
    """
    brain = read_image(str(SAMPLE))
    fixed = _onto(brain, Transform(), _around(brain.grid, "oblique", (1.7, 2.3, 2.9)))
    moving_grid = _around(brain.grid, "LPS", (2.6, 1.6, 2.1))
    # The moving image at x is the brain at bend(x), so a point of the brain belongs at its inverse.
    bend = _bend(brain.grid)
    moving = _onto(brain, bend, moving_grid)
    voxels = (fixed.data[0, 0] > 0.2 * float(fixed.data.max())).nonzero().numpy()[::97]
    goal = fixed.grid.to_ras(voxels.astype(float))
    return ImagePair(fixed, moving), goal, _inverse_points(bend, goal)


def error_mm(transform: Transform) -> float:
    """Mean distance of where the points are taken from where they belong."""
    _, points, goal = known_pair()
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
