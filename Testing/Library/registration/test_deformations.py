"""The deformation models of the dense engine on a known bend, on an oblique grid."""

import numpy as np
import pytest
import torch
from pairs import phantom
from support import make_grid

from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.inverse import invert, round_trip_error_mm
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.registration.base import Image, ImagePair, Progress
from DeepRegLib.registration.deformations import DEFORMATIONS
from DeepRegLib.registration.dense import DenseEngine, DenseSettings

SETTINGS = DenseSettings(
    similarity="lncc", radius=2, factors=(2, 1), iterations=(60, 40), step=1.0, update_sigma=1.7,
    field_sigma=0.7, volume_weight=0.1, lattice=2, tolerance=0.0, finest_mm=0.0,
)  # fmt: skip
SHIFT = np.eye(4)
SHIFT[:3, 3] = (3.0, -2.0, 4.0)


def _bend(points):
    parts = (4.0 * np.sin(points[..., 1] / 12), 3.0 * np.cos(points[..., 2] / 11),
             3.5 * np.sin(points[..., 0] / 10))  # fmt: skip
    return np.stack(parts, -1)


@pytest.fixture(scope="module")
def pair():
    """The moving image is the phantom seen through a bend, on a grid of its own, 5 mm away."""
    grid = make_grid("oblique", (33, 38, 27), (2.2, 2.2, 2.8))
    other = make_grid("LPS", (36, 40, 34), (2.1, 2.0, 2.2))
    grid, other = (Grid(g.shape, _centred(g)) for g in (grid, other))
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    there = other.to_ras(np.moveaxis(np.indices(other.shape), 0, -1)) - SHIFT[:3, 3]
    fixed = Image.from_array(phantom(points).astype(np.float32), grid)
    moving = Image.from_array(phantom(there + _bend(there)).astype(np.float32), other)
    return ImagePair(fixed, moving, initial=Transform(SHIFT))


@pytest.fixture(scope="module", params=DEFORMATIONS)
def result(request, pair):
    return DenseEngine(SETTINGS, request.param).register(pair, Progress())


def test_the_bend_is_found(result, pair):
    grid = pair.fixed.grid
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    answer = points.copy()
    for _ in range(100):
        answer = points - _bend(answer)
    found = points + np.moveaxis(result.transform.displacement_ras_mm(grid)[0].numpy(), 0, -1)
    found = found - SHIFT[:3, 3]
    body = np.linalg.norm(points / [26.0, 32.0, 29.0], axis=-1) < 0.95
    before = np.linalg.norm(points - answer, axis=-1)[body].mean()
    assert np.linalg.norm(found - answer, axis=-1)[body].mean() < 0.3 * before


def test_nothing_folds(result):
    assert float(jacobian_determinant(result.transform.field.displacement).min()) > 0


def test_the_inverse_undoes_it(result, pair):
    inverse, _ = invert(result.transform, pair.moving.grid)
    error = round_trip_error_mm(result.transform, inverse, pair.fixed.grid)
    points = pair.fixed.grid.to_ras(np.moveaxis(np.indices(pair.fixed.grid.shape), 0, -1))
    body = torch.from_numpy(np.linalg.norm(points / [26.0, 32.0, 29.0], axis=-1) < 0.95)
    assert float(error[0, 0][body].mean()) < 0.05 * min(pair.fixed.grid.spacing_mm)


@pytest.mark.parametrize("name", ["symmetric", "stationary"])
def test_trading_places_gives_the_inverse(pair, name):
    """On one grid, so that nothing but the roles of the images changes."""
    moving = Image(pair.moving.data, Grid(pair.moving.grid.shape, _unshifted(pair.moving.grid)))
    on_fixed = Transform().warp(moving.data, moving.grid, pair.fixed.grid)
    there = ImagePair(pair.fixed, Image(on_fixed, pair.fixed.grid))
    back = ImagePair(there.moving, there.fixed)
    forth, other = (DenseEngine(SETTINGS, name).register(p, Progress()).transform
                    for p in (there, back))  # fmt: skip
    error = round_trip_error_mm(forth, other, pair.fixed.grid)[0, 0]
    inside = tuple(slice(4, -4) for _ in range(3))
    assert float(error[inside].mean()) < 0.1 * min(pair.fixed.grid.spacing_mm)


def test_volumes_change_less_with_their_weight(pair):
    from dataclasses import replace

    spreads = []
    for weight in (0.0, 0.2):
        settings = replace(SETTINGS, volume_weight=weight)
        field = DenseEngine(settings).register(pair, Progress()).transform.field
        spreads.append(float(jacobian_determinant(field.displacement).log().std()))
    assert spreads[1] < 0.8 * spreads[0]


def _centred(grid):
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] -= grid.center_ras
    return matrix


def _unshifted(grid):
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] -= SHIFT[:3, 3]
    return matrix
