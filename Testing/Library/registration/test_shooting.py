"""Shooting on pairs: exact gradients, known deformations, levels, masks, starts, stop."""

import numpy as np
import pairs
import pytest
import torch
from support import make_grid, smooth_displacement

from DeepRegLib.errors import InputError
from DeepRegLib.geometry.field import Field, compose_displacements
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.inverse import invert, round_trip_error_mm
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.momentum import MomentumSpace, geodesic
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.geometry.velocity_kernels import FluidKernel, GaussianKernel
from DeepRegLib.losses import similarity
from DeepRegLib.registration.base import Image, ImagePair, Progress
from DeepRegLib.registration.levels import Lattice, PairLevel
from DeepRegLib.registration.momentum_objective import MomentumObjective
from DeepRegLib.registration.shooting import (
    ShootingEngine,
    ShootingSettings,
    optimize_momentum,
)


def settings(**changes):
    values = {
        "modality": "same", "similarity": "auto", "radius": 2, "kernel": "gaussian",
        "widths": (6.0, 3.0), "weights": (1.0, 1.0), "fluid": (0.01, 0.01, 0.001), "sigma": 0.03,
        "time_steps": 5, "factors": (2, 1), "iterations": (20, 8), "lattice": 2,
        "tolerance": 0.0, "finest_mm": 0.0,
    }  # fmt: skip
    return ShootingSettings(**{**values, **changes})


def centred(grid):
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] -= grid.center_ras
    return Grid(grid.shape, matrix)


@pytest.fixture(scope="module")
def known():
    """A pair that differs by the geodesic of a known momentum, on an oblique, uneven grid."""
    grid = centred(make_grid("oblique", (34, 30, 44), (2.0, 2.8, 1.7)))
    space = MomentumSpace(GaussianKernel((9.0, 5.0)), grid, 5)
    momentum = smooth_displacement(grid.shape, sigma=2.5, seed=6)
    momentum *= 3.0 / (space.velocity(momentum) / space.spacing).norm(dim=1).max()
    end = geodesic(momentum, space)
    # The moving image is the phantom seen through the forward map: fixed = moving o phi^-1.
    points = Field(end.forward, grid).to_ras_mm()[0].movedim(0, -1).numpy()
    moving = pairs.phantom(pairs.voxel_points(grid) + points)
    fixed = Image.from_array(pairs.phantom(pairs.voxel_points(grid)).astype(np.float32), grid)
    return ImagePair(fixed, Image.from_array(moving.astype(np.float32), grid)), end.inverse


def error_mm(transform, truth, grid):
    body = np.linalg.norm(pairs.voxel_points(grid) / [26.0, 32.0, 29.0], axis=-1) < 0.9
    rest = Field(transform.field.displacement - truth, grid).to_ras_mm()
    return float(rest.norm(dim=1)[0][torch.from_numpy(body)].mean())


@pytest.fixture(scope="module")
def result(known):
    engine = ShootingEngine(settings())
    return engine.register(known[0], Progress()), engine


def test_it_recovers_a_known_diffeomorphism(known, result):
    pair, truth = known
    before = error_mm(Transform(np.eye(4), Field.identity(pair.fixed.grid)), truth, pair.fixed.grid)
    after = error_mm(result[0].transform, truth, pair.fixed.grid)
    assert before > 1.5
    assert after < 0.45 * before, (before, after)
    assert jacobian_determinant(result[0].transform.field.displacement).min() > 0.0


def test_the_objective_falls_and_is_kept(result):
    for level in (0, 1):
        values = [e["value"] for e in result[0].history if e["level"] == level]
        assert values == sorted(values, reverse=True) and len(values) >= 5
    last = result[0].history[-1]
    assert last["value"] == pytest.approx(last["energy"] + last["similarity"] / (2 * 0.03**2))


def test_the_momentum_shoots_to_the_result(known, result):
    """What a learned system takes over: the momentum gives deformation and inverse again."""
    pair, engine = known[0], result[1]
    grid = engine.momentum.grid
    kernel = settings().kernel_on(grid, pair.fixed.grid)
    end = geodesic(engine.momentum.values, MomentumSpace(kernel, grid, 4), 5)
    again = Field(end.inverse, grid).on_grid(pair.fixed.grid).displacement
    assert torch.allclose(again, result[0].transform.field.displacement, atol=1e-4)
    forward = Field(end.forward, grid).on_grid(pair.fixed.grid).displacement
    assert compose_displacements(forward, again).norm(dim=1).mean() < 0.03


def test_the_numerical_inverse_is_exact_enough(known, result):
    grid = known[0].fixed.grid
    inverse, _ = invert(result[0].transform, grid)
    assert round_trip_error_mm(result[0].transform, inverse, grid).mean() < 0.05


@pytest.mark.parametrize("name", ["mse", "lncc"])
def test_the_gradient_is_that_of_the_objective(name):
    """Finite differences in float64, through lattice, start, sampling and time steps."""
    grid = make_grid("oblique", (12, 10, 14), (2.0, 3.0, 1.6))
    generator = torch.Generator().manual_seed(3)
    images = [smooth_displacement(grid.shape, sigma=1.2, seed=k)[:, :1].double() for k in (1, 2)]
    mask = (torch.rand(1, 1, *grid.shape, generator=generator) > 0.2).double()
    level = PairLevel(images[0], images[1], mask, None, grid, np.eye(4), False)
    lattice = Lattice.over(grid, 2)
    space = MomentumSpace(FluidKernel(), lattice.grid, 2, dtype=torch.float64)
    start = smooth_displacement(lattice.shape, 0.4, seed=8).double()
    loss = similarity(name)
    objective = MomentumObjective(level, loss, lattice, space, 0.3, 3, start)
    momentum = smooth_displacement(lattice.shape, sigma=1.5, seed=4).double()
    momentum *= 0.4 / (space.velocity(momentum) / space.spacing).abs().max()
    direction = torch.randn(momentum.shape, generator=generator).double() * momentum.abs().max()
    step = 1e-6
    ends = [objective(momentum + k * step * direction).value for k in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    found = objective(momentum).gradient
    assert float((found * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_a_bad_start_is_left_and_a_better_one_kept(known):
    pair = known[0]
    level = PairLevel.of(pair, np.eye(4), 5.0)
    lattice = Lattice.over(level.grid, 1)
    space = MomentumSpace(GaussianKernel((10.0,)), lattice.grid, 3)
    objective = MomentumObjective(level, similarity("mse"), lattice, space, 0.05, 4)
    zero = torch.zeros(1, 3, *lattice.shape)
    seen = []
    best = optimize_momentum(objective, zero, 6, report=lambda _, e: seen.append(e.value))
    assert best.value == min(seen) < objective(zero).value
    again = optimize_momentum(objective, best.momentum, 1)
    assert again.value <= best.value


@pytest.mark.parametrize("changes", [
    {"kernel": "fluid", "fluid": (0.02, 0.01, 0.001)},
    {"similarity": "mse", "sigma": 0.005},
    {"modality": "different"},
    {"similarity": "mind", "sigma": 0.01},
])  # fmt: skip
def test_other_kernels_and_similarities_align_too(known, changes):
    pair, truth = known
    changes = {"factors": (2,), "iterations": (15,), "time_steps": 3, **changes}
    found = ShootingEngine(settings(**changes)).register(pair, Progress())
    before = error_mm(Transform(np.eye(4), Field.identity(pair.fixed.grid)), truth, pair.fixed.grid)
    assert error_mm(found.transform, truth, pair.fixed.grid) < 0.75 * before


def test_a_given_deformation_is_composed_with_the_geodesic(known, result):
    """From the solution, almost nothing is left to do, and the linear part stays."""
    pair, truth = known
    start = Transform(np.eye(4), result[0].transform.field)
    pair = ImagePair(pair.fixed, pair.moving, initial=start)
    engine = ShootingEngine(settings(factors=(1,), iterations=(3,)))
    found = engine.register(pair, Progress())
    grid = pair.fixed.grid
    assert error_mm(found.transform, truth, grid) < error_mm(start, truth, grid) + 0.05
    assert np.array_equal(found.transform.linear, np.eye(4))


def test_partial_overlap_and_thick_slices():
    """The moving image ends inside the fixed one; its slices are thick."""
    fixed = centred(make_grid("SAR", (30, 36, 28), (2.5, 2.4, 2.6)))
    whole = centred(make_grid("oblique", (16, 34, 36), (5.0, 2.2, 2.1)))
    part = whole.cropped((3, 0, 0), (13, 34, 36))
    points = pairs.voxel_points(part)
    bent = points + 3.0 * np.sin(points[..., [1, 2, 0]] / 9.0)
    moving = Image.from_array(pairs.phantom(bent).astype(np.float32), part)
    pair = ImagePair(pairs.make_image(fixed), moving)
    found = ShootingEngine(settings(iterations=(10, 6))).register(pair, Progress())
    inner = pairs.body_points() * 0.6
    errors = []
    for transform in (Transform(), found.transform):
        there = transform.map_points_ras(inner)
        back = there + 3.0 * np.sin(there[:, [1, 2, 0]] / 9.0)
        errors.append(np.linalg.norm(back - inner, axis=1).mean())
    assert errors[1] < 0.5 * errors[0], errors
    assert jacobian_determinant(found.transform.field.displacement).min() > 0.0


def test_a_single_slice_is_bent_in_its_plane():
    grid = make_grid("oblique", (48, 1, 44), (1.5, 4.0, 1.6))
    flat = centred(grid)
    in_plane = np.moveaxis(np.indices(flat.shape), 0, -1) * flat.spacing_mm
    in_plane = in_plane - in_plane.reshape(-1, 3).mean(0)
    bent = in_plane + 2.5 * np.sin(in_plane[..., [2, 1, 0]] / 8.0) * [1.0, 0.0, 1.0]
    images = [Image.from_array(pairs.phantom(p).astype(np.float32), flat) for p in (in_plane, bent)]
    found = ShootingEngine(settings()).register(ImagePair(*images), Progress())
    u = found.transform.field.displacement
    assert u[:, 1].abs().max() < 1e-12
    moved = found.transform.warp(images[1].data, flat, flat)
    rest = (moved - images[0].data).square().mean()
    assert rest < 0.25 * (images[1].data - images[0].data).square().mean()


def test_levels_and_iterations_belong_together(known):
    with pytest.raises(InputError, match="levels"):
        ShootingEngine(settings(iterations=(3,))).register(known[0], Progress())
