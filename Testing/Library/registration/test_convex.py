"""The discrete search and its refinement, against slow readable versions and known motions."""

import itertools
from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from support import make_grid, smooth_displacement

from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.registration.adam_refine import (
    AdamSettings,
    FeatureLevel,
    box_smooth,
    diffusion_and_gradient,
    objective,
    refine,
    smoothing_passes,
)
from DeepRegLib.registration.convex import coarsening, faded_rim, pooled, pooled_grid
from DeepRegLib.registration.convex_search import (
    cost_volume,
    coupled_step,
    inverse_consistent,
    offsets,
    search_radii,
)
from DeepRegLib.registration.folds import without_folds


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make_level(shape=(4, 5, 3), spacing=(2.0, 1.5, 3.0), channels=2, masks=False):
    images = [random(1, channels, *shape, seed=k) for k in (1, 2)]
    weights = [(random(1, 1, *shape, seed=k) > 0.3).float() if masks else None for k in (3, 4)]
    return FeatureLevel(*images, *weights, make_grid("oblique", shape, spacing))


# --- the search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [False, True])
def test_the_cost_volume_is_that_of_nested_loops(masks):
    level, radii = make_level(masks=masks), (1, 2, 0)
    volume = cost_volume(level, radii)
    shape, table = level.grid.shape, offsets(radii).int().tolist()
    for node, x in enumerate(itertools.product(*(range(n) for n in shape))):
        costs, allowed = [], []
        for d in table:
            y = [a + b for a, b in zip(x, d)]
            near = [min(max(a, 0), n - 1) for a, n in zip(y, shape)]
            difference = level.moving[(0, slice(None), *near)] - level.fixed[(0, slice(None), *x)]
            costs.append(float((difference**2).sum()))
            allowed.append(not masks or (near == y and level.moving_mask[(0, 0, *y)] > 0))
        known = [c for c, ok in zip(costs, allowed) if ok]
        neutral = np.mean(known) if known else 0.0
        expected = [c if ok else neutral for c, ok in zip(costs, allowed)]
        if masks and level.fixed_mask[(0, 0, *x)] == 0:
            expected = [0.0] * len(table)
        np.testing.assert_allclose(volume[:, node].numpy(), expected, atol=1e-5)


def test_a_coupled_step_is_the_best_of_all_displacements():
    level, radii, coefficient = make_level(), (1, 2, 1), 0.3
    volume = cost_volume(level, radii)
    smooth = smooth_displacement(level.grid.shape, 1.5, sigma=1.0) + 0.2
    nearest, value = coupled_step(volume, smooth, coefficient, radii, level.grid)
    relative = np.array(level.grid.spacing_mm) / min(level.grid.spacing_mm)
    values = []
    for node, x in enumerate(itertools.product(*(range(n) for n in level.grid.shape))):
        v = smooth[(0, slice(None), *x)].numpy()
        energies = [
            float(volume[k, node]) + coefficient * (((np.array(d) - v) * relative) ** 2).sum()
            for k, d in enumerate(offsets(radii).tolist())
        ]
        best = int(np.argmin(energies))
        assert nearest[(0, slice(None), *x)].tolist() == offsets(radii)[best].tolist()
        values.append(float(volume[best, node]))
    assert value == pytest.approx(np.mean(values), rel=1e-5)


def test_places_without_structure_stay():
    """All displacements cost the same there; the first in the list must not win."""
    level = make_level()
    nothing = torch.zeros_like(level.fixed)
    volume = cost_volume(replace(level, fixed=nothing, moving=nothing), (2, 2, 1))
    still = torch.zeros(1, 3, *level.grid.shape)
    assert not coupled_step(volume, still, 0.003, (2, 2, 1), level.grid)[0].any()


def test_consistent_directions_are_inverse_to_each_other():
    there = smooth_displacement((14, 18, 12), 1.2, seed=1)
    back = smooth_displacement((14, 18, 12), 1.2, seed=2)

    def error(u, w):
        where = voxel_coordinates(u.shape[2:]) + u
        return float((u + sample(w, where)).norm(dim=1).mean())

    after = inverse_consistent(there, back, 15)
    assert error(*after) < 0.02 * error(there, back)
    assert error(after[1], after[0]) < 0.02 * error(there, back)
    # What remains of each is the part on which they agreed.
    assert float((after[0] - 0.5 * (there - back)).norm() / after[0].norm()) < 0.4


def test_the_search_reaches_equally_far_in_mm_and_skips_single_slices():
    grid = make_grid("oblique", (120, 160, 24), (1.0, 0.8, 5.0))
    factors = coarsening(grid, 6, "search")
    assert factors == (5, 6, 1)
    nodes = pooled_grid(grid, factors)
    radii = search_radii(nodes, 4)
    reach = np.array(radii) * nodes.spacing_mm
    assert (np.abs(reach - 4 * 4.8) <= np.array(nodes.spacing_mm) / 2).all()
    flat = make_grid("LPS", (64, 1, 80), (1.0, 9.0, 1.0))
    assert coarsening(flat, 6, "search") == (5, 1, 6)
    assert search_radii(pooled_grid(flat, (5, 1, 6)), 4)[1] == 0


def test_pooling_keeps_positions():
    """A ramp averaged block by block has, at each node, the value of the ramp at its position."""
    grid = make_grid("oblique", (13, 17, 9))
    ramp = torch.from_numpy(pairs.voxel_points(grid)).permute(3, 0, 1, 2)[None].float()
    factors = (3, 2, 4)
    small, nodes = pooled(ramp, factors), pooled_grid(grid, factors)
    expected = np.moveaxis(pairs.voxel_points(nodes), -1, 0)
    full = tuple(slice(0, n // f) for n, f in zip(grid.shape, factors))
    where = (slice(None), *full)
    np.testing.assert_allclose(small[0][where], expected[where], atol=1e-3)


# --- the refinement -------------------------------------------------------------------------------


def smooth_level(masks=True, shape=(20, 26, 17), spacing=(2.0, 1.0, 3.0), sigma=2.5):
    grid = make_grid("oblique", shape, spacing)
    images = [smooth_displacement(shape, 1.0, k, sigma) for k in (1, 2)]
    weights = [
        smooth_displacement(shape, 1.0, k, 4)[:, :1].abs() if masks else None for k in (3, 4)
    ]
    return FeatureLevel(*images, *weights, grid)


@pytest.mark.parametrize("masks", [False, True])
def test_the_gradient_of_the_objective_is_that_of_autograd(masks):
    """Up to differences over one and over two voxels; the deformation is far from the identity."""
    shape = (36, 40, 32)
    level = smooth_level(masks, shape, sigma=5.0)
    u = smooth_displacement(shape, 4.0, 5, 5.0)
    _, slope = objective(level, u, 0.0)
    variable = u.clone().requires_grad_()
    where = voxel_coordinates(shape) + variable
    density = (sample(level.moving, where) - level.fixed).square().sum(1, keepdim=True)
    if masks:
        weight = level.fixed_mask * sample(level.moving_mask, where).detach()
        density = density * weight / weight.mean()
    (expected,) = torch.autograd.grad(density.sum(), variable)
    slope, expected = (box_smooth(g, (3, 3, 3)) for g in (slope, expected))
    error = float((slope - expected).norm() / expected.norm())
    assert error < 0.2
    u.mul_(0.9)
    penalty, _ = diffusion_and_gradient(u, level.grid.spacing_mm)
    plain, weighted = objective(level, u, 0.0)[0], objective(level, u, 3.0)[0]
    assert float(weighted - plain) == pytest.approx(3.0 * float(penalty), rel=1e-4)


def test_the_gradient_of_diffusion_is_that_of_autograd():
    u = random(1, 3, 5, 6, 1, seed=4).double().requires_grad_()
    spacing = (2.0, 0.7, 3.0)
    value, gradient = diffusion_and_gradient(u, spacing)
    (expected,) = torch.autograd.grad(value, u)
    torch.testing.assert_close(gradient.detach() / 30, expected)
    ramp = torch.zeros(1, 3, 5, 6, 4)
    ramp[0, 1] = torch.arange(5.0)[:, None, None] * 0.5  # 0.5 voxel of 0.7 mm every 2 mm
    value, _ = diffusion_and_gradient(ramp, spacing)
    assert float(value) == pytest.approx((0.5 * 0.7 / 2.0) ** 2 * 4 / 5)


def test_box_smoothing_is_its_own_adjoint_and_alike_in_mm():
    a, b = random(1, 3, 6, 1, 7, seed=1), random(1, 3, 6, 1, 7, seed=2)
    passes = (3, 0, 2)
    left, right = (box_smooth(a, passes) * b).sum(), (a * box_smooth(b, passes)).sum()
    torch.testing.assert_close(left, right)
    assert smoothing_passes(make_grid("RAS", (20, 20, 20), (1.0, 1.5, 5.0))) == (3, 1, 0)
    assert smoothing_passes(make_grid("RAS", (20, 1, 20), (2.0, 0.5, 2.0))) == (3, 0, 3)


@pytest.mark.parametrize("masks", [False, True])
def test_refinement_lowers_the_objective(masks):
    level, values = smooth_level(masks), []
    level = replace(level, moving=sample(level.fixed, voxel_coordinates(level.grid.shape) + 0.8))

    def report(_iteration, value, _displacement):
        values.append(value)
        return len(values) == 30

    found = refine(
        level, torch.zeros(1, 3, *level.grid.shape), AdamSettings(90, 0.3, 0.01, 2), report
    )
    assert len(values) == 30 and values[-1] < 0.5 * values[0]
    assert not found[:, :, 0].any() and not found[..., -1].any()


@pytest.mark.parametrize("shape", [(18, 22, 16), (24, 1, 30)])
@pytest.mark.parametrize("strength", [4.0, 12.0])
def test_folds_are_mended_and_the_rest_is_kept(shape, strength):
    u = smooth_displacement(shape, 1.0, seed=3)
    if 1 in shape:
        u[:, 1] = 0.0
    kept = without_folds(u)
    assert kept is u
    middle = [slice(n // 2, n // 2 + 1) for n in shape]
    u = u.clone()
    u[(0, 0, *middle)] += strength
    assert (jacobian_determinant(u) <= 0).any()
    mended = without_folds(u)
    assert (jacobian_determinant(mended) > 0).all()
    torch.testing.assert_close(mended[:, :, 2:4], u[:, :, 2:4], atol=0.05, rtol=0.0)


def test_folds_everywhere_end_as_well():
    wild = 40.0 * (random(1, 3, 9, 11, 8) - 0.5)
    assert (jacobian_determinant(without_folds(wild)) > 0).all()


def test_the_rim_rests():
    grid = make_grid("RAS", (40, 44, 36), (1.0, 1.0, 1.0))
    moving = Field(torch.full((1, 3, *grid.shape), 4.0), grid)
    faded = faded_rim(moving, 4).displacement
    assert not faded[:, :, 0].any() and (jacobian_determinant(faded) > 0).all()
    assert torch.equal(faded[..., 18, 18, 18], moving.displacement[..., 18, 18, 18])
