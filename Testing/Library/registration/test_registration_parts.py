"""The parts of a registration: thresholds, levels, starts, the optimiser, the engine's settings."""

import numpy as np
import pytest
import torch
from pairs import phantom
from support import make_grid

from DeepRegLib.errors import InputError, ParameterError
from DeepRegLib.geometry.affine import rotation_angle_deg, rotation_from_vector
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.registration.base import Image, ImagePair, Progress
from DeepRegLib.registration.compose import parse_stages, run_stages, stage_values
from DeepRegLib.registration.dense import DenseEngine, DenseSettings, for_modality
from DeepRegLib.registration.initialize import candidates, from_landmarks, moments, principal_axes
from DeepRegLib.registration.preprocess import (
    level_grid,
    make_level,
    mask_on_grid,
    object_region,
    otsu_threshold,
    pyramid,
    quantiles,
    rescale_intensity,
)
from DeepRegLib.registration.quasi_newton import minimize


def test_otsu_separates_two_populations_despite_an_outlier():
    values = torch.cat([torch.randn(5000) * 5 + 20, torch.randn(3000) * 8 + 120])
    assert 40 < otsu_threshold(values) < 100
    # A lone bright voxel leaves empty bins whose weight is zero; rounding there once won.
    brain = torch.cat([torch.zeros(60000), torch.rand(40000) * 300 + 400, torch.tensor([2400.0])])
    assert 0 < otsu_threshold(brain) < 450


def test_rescaling_cuts_outliers_and_takes_quantiles_in_the_mask():
    image = torch.rand(1, 1, 20, 20, 20)
    image[0, 0, 0, 0, 0] = 1000.0
    scaled = rescale_intensity(image)
    assert float(scaled.min()) == 0.0
    assert float(scaled.median()) == pytest.approx(0.5, abs=0.05)
    mask = torch.zeros_like(image)
    mask[..., 10:] = 1.0
    image[..., :10] += 500.0
    assert float(rescale_intensity(image, mask)[..., 10:].median()) == pytest.approx(0.5, abs=0.05)


def test_sparse_and_constant_images_rescale():
    sparse = torch.zeros(1, 1, 20, 20, 20)
    sparse[0, 0, 5, 5, 5] = 7.0
    assert float(rescale_intensity(sparse).max()) == 1.0
    assert float(rescale_intensity(torch.full((1, 1, 4, 4, 4), 3.0)).abs().max()) == 0.0


def test_quantiles_are_those_of_torch():
    values = torch.randn(3, 1, 7, 11, generator=torch.Generator().manual_seed(2))
    levels = [0.0, 0.013, 0.5, 0.99, 1.0]
    found = quantiles(values, levels)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.quantile(values, torch.tensor(levels)))
    many = torch.rand(300_001, generator=torch.Generator().manual_seed(3))
    levels = torch.linspace(0.0, 1.0, 256)
    assert torch.equal(quantiles(many, levels.tolist()), torch.quantile(many, levels))


def test_levels_keep_thick_slices_and_the_extent():
    grid = make_grid("oblique", (40, 60, 12), (1.0, 1.0, 5.0))
    coarse = level_grid(grid, 4.0)
    assert coarse.shape == (10, 15, 12)
    np.testing.assert_allclose(coarse.corners_ras(), grid.corners_ras(), atol=1e-9)
    level = make_level(torch.rand(1, 1, *grid.shape), grid, 2.0)
    assert tuple(level.data.shape[2:]) == level.grid.shape == (20, 30, 12)


@pytest.mark.parametrize("spacings", [(1.0, 2.0, 4.0, 8.0), (8.0, 4.0, 3.0, 1.5), (4.0,)])
def test_a_pyramid_is_as_sharp_and_in_place_as_levels_made_at_once(spacings):
    grid = make_grid("oblique", (48, 64, 36), (1.0, 1.1, 2.3))
    noise = torch.randn(1, 1, *grid.shape, generator=torch.Generator().manual_seed(5))
    image = gaussian_smooth(noise, 1.0)
    levels = pyramid(image, grid, spacings)
    for level, spacing in zip(levels, spacings):
        once = make_level(image, grid, spacing)
        assert level.grid.matches(once.grid)
        inner = (..., *(slice(2, -2) if n > 8 else slice(None) for n in level.grid.shape))
        one, other = level.data[inner], once.data[inner]
        assert float(torch.corrcoef(torch.stack([one.ravel(), other.ravel()]))[0, 1]) > 0.985
        assert float(one.std() / other.std()) == pytest.approx(1.0, abs=0.07)


def test_masks_come_onto_any_grid():
    grid = make_grid("LPS", (20, 22, 18), (2.0, 2.0, 2.0), (20, 20, -18))
    inside = np.zeros(grid.shape, np.uint8)
    inside[5:12, 6:14, 4:10] = 3
    other = make_grid("RAS", (30, 28, 26), (1.3, 1.4, 1.5), (-20, -21, -17))
    moved = mask_on_grid(Image.from_array(inside, grid), other, torch.device("cpu"))[0, 0].numpy()
    volume = moved.sum() * other.voxel_volume_mm3
    assert volume == pytest.approx((inside > 0).sum() * grid.voxel_volume_mm3, rel=0.1)
    center = other.to_ras(np.argwhere(moved)).mean(0)
    np.testing.assert_allclose(center, grid.to_ras(np.argwhere(inside)).mean(0), atol=0.5)


def test_moments_find_the_object_in_ras(grid_pair):
    image = grid_pair.moving
    center, covariance = moments(image)
    assert np.linalg.norm(center) < 3.0
    order = np.argsort(np.diag(covariance))
    assert order.tolist() == [0, 2, 1]


def test_principal_axes_hold_the_true_turn(grid_pair):
    turn = rotation_from_vector(torch.tensor([0.6, -0.9, 1.4], dtype=torch.float64)).numpy()
    fixed = np.diag([4.0, 9.0, 25.0])
    rotations = principal_axes(fixed, turn @ fixed @ turn.T)
    assert len(rotations) == 4
    assert min(rotation_angle_deg(turn.T @ r) for r in rotations) < 1e-4


def test_candidates_begin_with_the_stored_position(grid_pair):
    starts = candidates(grid_pair, "auto", 10)
    np.testing.assert_allclose(starts[0], np.eye(4))
    assert len(starts) == 3 + 4 + 11


def test_landmark_start_needs_landmarks(grid_pair):
    with pytest.raises(InputError, match="needs landmarks"):
        from_landmarks(grid_pair, "rigid")


def test_bfgs_on_a_bent_valley():
    def rosenbrock(x):
        value = (1 - x[0]) ** 2 + 20 * (x[1] - x[0] ** 2) ** 2
        slope = [-2 * (1 - x[0]) - 80 * x[0] * (x[1] - x[0] ** 2), 40 * (x[1] - x[0] ** 2)]
        return value, np.array(slope)

    value, x = minimize(rosenbrock, np.array([-1.2, 1.0]), 200, 0.1, 1.0, 1e-9)
    np.testing.assert_allclose(x, [1.0, 1.0], atol=1e-4)
    assert value < 1e-8


def test_bfgs_refuses_steps_without_a_value():
    def walled(x):
        inside = abs(x[0]) < 1.5
        return (x[0] - 1.0) ** 2 if inside else float("inf"), 2 * (x - 1.0)

    value, x = minimize(walled, np.array([-1.4]), 50, first_step=4.0, longest_step=10.0)
    assert x[0] == pytest.approx(1.0, abs=1e-3)
    assert np.isfinite(value)


def test_stage_names_and_values():
    assert parse_stages("greedy") == ("rigid", "affine", "greedy")
    assert parse_stages("+greedy") == ("greedy",)
    assert parse_stages("rigid + greedy") == ("rigid", "greedy")
    assert parse_stages("rigid") == ("rigid",)
    with pytest.raises(ParameterError, match="no algorithm 'bspin'"):
        parse_stages("rigid+bspin")
    with pytest.raises(ParameterError, match="join names"):
        parse_stages("rigid++greedy")
    rigid, greedy = stage_values(
        ("rigid", "greedy"), "fast", {"greedy.step": "0.5", "rigid.iterations": 7}
    )
    assert (rigid["iterations"], greedy["step"]) == (7, 0.5)
    with pytest.raises(ParameterError, match="No stage"):
        stage_values(("rigid",), "fast", {"stepp": 1})


def test_levels_and_iterations_must_agree(grid_pair):
    settings = _settings(factors=(4, 2), iterations=(10,))
    with pytest.raises(InputError, match="2 levels but 1"):
        DenseEngine(settings).register(grid_pair, Progress())


def test_different_contrasts_smooth_more():
    same = for_modality(_settings())
    different = for_modality(_settings(modality="different"))
    assert same.similarity == different.similarity == "lncc"
    assert different.update_sigma > 2 * same.update_sigma
    assert different.radius > same.radius


@pytest.mark.parametrize("similarity", ["lncc", "mi", "mind", "mse", "ncc", "ngf"])
def test_the_engine_lowers_every_similarity_and_never_folds(bent_pair, similarity):
    from DeepRegLib.geometry.jacobian import jacobian_determinant

    engine = DenseEngine(_settings(similarity=similarity))
    result = engine.register(bent_pair, Progress())
    values = [entry["value"] for entry in result.history if entry["level"] == 1]
    assert values[-1] < values[0]
    assert float(jacobian_determinant(result.transform.field.displacement).min()) > 0


def test_the_engine_recovers_a_known_bend(bent_pair):
    engine = DenseEngine(_settings(similarity="lncc", iterations=(60, 60)))
    result = engine.register(bent_pair, Progress())
    grid = bent_pair.fixed.grid
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    # fixed(x) is the phantom at x, moving(y) that at y + bend(y): the answer solves y + bend(y) = x.
    answer = points.copy()
    for _ in range(100):
        answer = points - _bend(answer)
    found = points + np.moveaxis(result.transform.displacement_ras_mm(grid)[0].numpy(), 0, -1)
    body = np.linalg.norm(points / [26.0, 32.0, 29.0], axis=-1) < 0.95
    before = np.linalg.norm(points - answer, axis=-1)[body].mean()
    after = np.linalg.norm(found - answer, axis=-1)[body].mean()
    assert after < 0.4 * before


def test_one_mask_keeps_the_rest_out(bent_pair):
    """With a mask over one half the other half may be rubbish."""
    data = bent_pair.fixed.data.clone()
    half = torch.zeros_like(data)
    half[..., : data.shape[-1] // 2] = 1.0
    spoiled = torch.where(half > 0, data, torch.rand_like(data) * 100)
    pair = ImagePair(Image(spoiled, bent_pair.fixed.grid), bent_pair.moving,
                     fixed_mask=Image(half.to(torch.uint8), bent_pair.fixed.grid))  # fmt: skip
    result = DenseEngine(_settings()).register(pair, Progress())
    error = (data - _pulled(result.transform, pair)).abs()
    before = (data - _pulled(None, pair)).abs()
    region = (..., slice(None), slice(None), slice(0, data.shape[-1] // 2 - 3))
    assert float(error[region].mean()) < 0.6 * float(before[region].mean())


@pytest.fixture
def grid_pair():
    grids = (make_grid("RAS", (30, 36, 20), (2.4, 2.2, 3.6), (-36, -39, -36)),
             make_grid("LPS", (34, 33, 30), (2.2, 2.4, 2.5), (36, 39, -37)))  # fmt: skip
    images = [Image.from_array(_phantom_on(grid), grid) for grid in grids]
    return ImagePair(*images)


@pytest.fixture
def bent_pair():
    """The moving image is the phantom seen through a smooth bend."""
    grid = make_grid("oblique", (30, 34, 26), (2.4, 2.4, 3.0))
    grid = Grid(grid.shape, _centred(grid))
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    points = grid.to_ras(index)
    fixed = Image.from_array(phantom(points).astype(np.float32), grid)
    moving = Image.from_array(phantom(points + _bend(points)).astype(np.float32), grid)
    return ImagePair(fixed, moving)


def _bend(points):
    """A smooth displacement of up to 6 mm, in mm."""
    parts = (4.0 * np.sin(points[..., 1] / 12), 3.0 * np.cos(points[..., 2] / 11),
             3.5 * np.sin(points[..., 0] / 10))  # fmt: skip
    return np.stack(parts, -1)


def _phantom_on(grid):
    return phantom(grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))).astype(np.float32)


def _centred(grid):
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] -= grid.center_ras
    return matrix


def _pulled(transform, pair):
    from DeepRegLib.geometry.transform import Transform

    transform = transform or Transform()
    return transform.warp(pair.moving.data, pair.moving.grid, pair.fixed.grid)


def _settings(**changes):
    values = {
        "similarity": "auto", "radius": 2, "factors": (2, 1), "iterations": (30, 20), "step": 1.0,
        "update_sigma": 1.7, "field_sigma": 0.7, "volume_weight": 0.1, "lattice": 1,
        "tolerance": 0.0, "finest_mm": 0.0,
    }  # fmt: skip
    return DenseSettings(**{**values, **changes})


def test_a_start_without_overlap_never_wins():
    from DeepRegLib.registration.linear import _rank

    turned = np.eye(4)
    turned[:3, :3] = rotation_from_vector(torch.tensor([1.5, 0.0, 0.0]).double()).numpy()
    found = [(float("inf"), np.eye(4)), (-1.2, turned), (-0.4, 2.0 * np.eye(4))]
    assert _rank(found)[0] is turned
    with pytest.raises(InputError, match="overlap"):
        _rank([(float("inf"), np.eye(4))])


def test_images_far_apart_and_turned_are_found(grid_pair):
    """No overlap as stored: the start comes from the centres and the search."""
    moving = grid_pair.moving
    motion = np.eye(4)
    motion[:3, :3] = rotation_from_vector(torch.tensor([0.7, -0.9, 0.4]).double()).numpy()
    motion[:3, 3] = (400.0, -300.0, 250.0)
    far = Image(moving.data, Grid(moving.grid.shape, motion @ moving.grid.voxel_to_ras))
    keys = ("rigid",)
    pair = ImagePair(grid_pair.fixed, far)
    result = run_stages(pair, keys, stage_values(keys, "balanced"), Progress())
    points = np.array([[0.0, 0.0, 0.0], [20.0, 0.0, 0.0], [0.0, 25.0, 0.0], [0.0, 0.0, 20.0]])
    expected = points @ motion[:3, :3].T + motion[:3, 3]
    assert np.abs(result.transform.map_points_ras(points) - expected).max() < 0.7


def test_object_region_holds_what_the_object_encloses():
    """A shell with a dark middle, on an oblique, anisotropic grid."""
    grid = make_grid("oblique", (30, 40, 50), (4.0, 2.5, 2.0))
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1)) - grid.center_ras
    radius = np.linalg.norm(points, axis=-1)
    shell = ((radius > 14) & (radius < 32)).astype(np.float32) * 100
    region = object_region(Image.from_array(shell, grid)).numpy()[0, 0]
    assert region[(radius > 14) & (radius < 32)].all()
    gaps = shell.copy()
    cleft = (np.abs(points[..., 0]) < 6) & (radius > 18) & (radius < 26)
    gaps[cleft] = 0  # dark, inside the shell
    assert object_region(Image.from_array(gaps, grid)).numpy()[0, 0][cleft].all()
    assert not region[radius > 32 + 3 * 4.0].any()
    cut = np.ascontiguousarray(shell[12:])  # the edge of the image cuts the object off
    there = object_region(Image.from_array(cut, grid.cropped((12, 0, 0), cut.shape)))
    assert there.numpy()[0, 0][cut > 0].all()
