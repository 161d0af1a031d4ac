"""Free-form deformations: gradients, regularity, refinement, and known motions of all kinds."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from support import make_grid, smooth_displacement

from DeepRegLib import registry
from DeepRegLib.errors import InputError
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.losses import similarity
from DeepRegLib.registration.base import Image, ImagePair, Progress
from DeepRegLib.registration.free_form import (
    FreeFormObjective,
    control_meshes,
    displacement_mm,
    spline_space,
    without_folds,
)
from DeepRegLib.registration.lbfgs import minimize_lbfgs
from DeepRegLib.registration.levels import PairLevel
from DeepRegLib.registration.spline_space import SplineSpace

CPU = torch.device("cpu")


def make_space(orientation="oblique", shape=(13, 17, 11), mesh=(3, 4, 3), level=None):
    grid = make_grid(orientation, shape)
    return spline_space(grid, mesh, grid if level is None else grid.resized(level), CPU)


def random_parameters(space, size_mm=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return space.held(torch.randn(3, *space.shape, generator=generator, dtype=torch.float64)
                      * size_mm)  # fmt: skip


def check_gradient(function, parameters, step=1e-4, tolerance=2e-3):
    """Compares a gradient with central differences along random directions."""
    _, gradient = function(parameters)
    for seed in range(4):
        direction = torch.randn(parameters.shape, generator=torch.Generator().manual_seed(seed),
                                dtype=torch.float64) * (gradient.abs() > 0)  # fmt: skip
        ahead, behind = (float(function(parameters + s * step * direction)[0]) for s in (1, -1))
        expected = (ahead - behind) / (2 * step)
        found = float((gradient * direction).sum())
        assert found == pytest.approx(expected, rel=tolerance, abs=1e-5 * float(gradient.norm()))


# --- the space of deformations --------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["LPS", "SAR", "oblique"])
def test_the_rim_is_at_rest_and_the_inside_is_not(orientation):
    space = make_space(orientation)
    u = space.displacement_mm(random_parameters(space))
    for axis in range(1, 4):
        assert float(u.select(axis, 0).abs().max()) < 1e-5
        assert float(u.select(axis, -1).abs().max()) < 1e-5
    assert float(u.abs().max()) > 0.5


def test_the_spline_in_ras_is_the_displacement():
    space = make_space()
    parameters = random_parameters(space)
    field = space.spline(parameters).field(space.grid)
    found = displacement_mm(field, space.grid)
    np.testing.assert_allclose(found, space.displacement_mm(parameters), atol=1e-5)


def test_gathering_is_the_transpose_of_evaluating():
    space = make_space(level=(6, 9, 7))
    p = random_parameters(space)
    g = torch.randn(3, 6, 9, 7, generator=torch.Generator().manual_seed(1))
    left = float((space.displacement_mm(p) * g).sum())
    assert left == pytest.approx(float((p * space.gathered(g)).sum()), rel=1e-4)


def test_a_finer_space_holds_the_same_deformation():
    coarse, fine = make_space(mesh=(3, 4, 2)), make_space(mesh=(6, 8, 2))
    parameters = random_parameters(coarse)
    refined = coarse.refined(parameters, fine)
    assert tuple(refined.shape[1:]) == fine.shape
    np.testing.assert_allclose(
        fine.displacement_mm(refined), coarse.displacement_mm(parameters), atol=1e-5
    )


def test_projection_finds_the_parameters_again():
    space = make_space()
    parameters = random_parameters(space)
    found = space.projected(space.displacement_mm(parameters))
    np.testing.assert_allclose(found, parameters, atol=1e-4)


def test_bending_is_the_mean_squared_second_derivative():
    """Against differences on a fine grid, for an anisotropic spacing; the gradient is exact."""
    space = make_space(mesh=(4, 5, 3))
    fine = SplineSpace(space.lattice, space.lattice.grid.resized((96, 120, 90)), space.flat, CPU)
    parameters = random_parameters(space)
    u = fine.displacement_mm(parameters).double()
    steps = fine.grid.spacing_mm
    inner = (slice(2, -2), slice(2, -2), slice(2, -2))
    total = 0.0
    for a in range(3):
        first = torch.gradient(u, spacing=steps[a], dim=a + 1)[0]
        for b in range(3):
            second = torch.gradient(first, spacing=steps[b], dim=b + 1)[0]
            total += float(second.square().sum(0)[inner].mean())
    value, _ = space.bending(parameters)
    assert float(value) == pytest.approx(total, rel=0.1)
    check_gradient(space.bending, parameters, tolerance=1e-6)


def test_volume_is_the_mean_squared_log_determinant():
    space = make_space(mesh=(4, 5, 3))
    fine = SplineSpace(space.lattice, space.lattice.grid.resized((96, 120, 90)), space.flat, CPU)
    parameters = random_parameters(space, 0.4)
    voxel = fine.displacement_mm(parameters) / torch.tensor(fine.grid.spacing_mm).view(3, 1, 1, 1)
    expected = float(jacobian_determinant(voxel[None]).log().square().mean())
    value, _ = space.volume(parameters)
    assert float(value) == pytest.approx(expected, rel=0.05)
    check_gradient(space.volume, parameters, 1e-3, tolerance=5e-3)


def test_folds_are_refused_and_taken_back():
    space = make_space()
    parameters = random_parameters(space, 8.0)
    assert space.volume(parameters)[0] == torch.inf
    smaller = without_folds(parameters, space)
    assert torch.isfinite(space.volume(smaller)[0]) and float(smaller.abs().max()) > 0.1


def test_meshes_double_up_to_the_wanted_spacing():
    grid = make_grid("oblique", (81, 107, 84), (2.0, 2.0, 2.0))
    meshes = control_meshes(grid, 10.0, 3)
    assert meshes == [(4, 5, 4), (8, 10, 8), (16, 20, 16)]
    thick = control_meshes(make_grid("RAS", (1, 120, 20), (5.0, 1.0, 5.0)), 4.0, 3)
    assert [m[0] for m in thick] == [1, 1, 1] and thick[-1][1] in (28, 30, 32)
    assert thick[-1][2] <= 27  # never closer than the slices by much


# --- the objective --------------------------------------------------------------------------------


def make_level(masks=False, flat=False, name="mse"):
    """A level of two smooth images on unlike grids, with a turned linear part."""
    # The moving image reaches beyond the fixed one, so that the overlap does not change.
    moving, fixed = pairs.moving_grid().resized((52, 48, 60)).padded(14), pairs.fixed_grid()
    if flat:
        fixed = fixed.cropped((10, 0, 0), (1, *fixed.shape[1:]))
    back = np.linalg.inv(pairs.known_matrix())
    extra = {}
    if masks:
        inside = np.linalg.norm(pairs.voxel_points(moving) / 30.0, axis=-1) < 1.0
        extra["moving_mask"] = Image.from_array(inside.astype(np.uint8), moving)
    pair = ImagePair(pairs.make_image(fixed), pairs.make_image(moving, back, 0.0), **extra)
    level = PairLevel.of(pair, pairs.known_matrix((0.1, -0.05, 0.15)), 1.0)
    space = spline_space(fixed, control_meshes(fixed, 12.0, 1)[0], level.grid, CPU)
    options = {"radius": 2} if name == "lncc" else {}
    return FreeFormObjective(level, similarity(name, **options), space, 0.1, 0.1), space


@pytest.mark.parametrize("name", ["mse", "lncc", "mi", "mind"])
@pytest.mark.parametrize("flat", [False, True])
def test_the_gradient_of_the_objective(name, flat):
    """The image's gradient is that of central differences, so it agrees up to interpolation."""
    # Features are compared on the coarse fixed grid, where differences are less exact.
    tolerance = 0.25 if name == "mind" else 0.08
    objective, space = make_level(flat=flat, name=name)
    parameters = random_parameters(space, 0.8)
    value, gradient = objective(parameters)
    assert np.isfinite(value)
    ahead, behind = (objective(parameters - s * 0.3 * gradient / gradient.abs().max())[0]
                     for s in (1, -1))  # fmt: skip
    expected = (behind - ahead) / 0.6 * float(gradient.abs().max())
    assert float(gradient.square().sum()) == pytest.approx(expected, rel=tolerance)
    if flat:
        assert float(gradient[0].abs().max()) == 0.0


def test_lbfgs_finds_the_lowest_point_of_a_valley():
    def valley(x):
        a, b = x[0], x[1]
        value = (1 - a) ** 2 + 100 * (b - a * a) ** 2
        slope = torch.stack([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)])
        return (float("inf") if float(a) > 1.5 else float(value)), slope

    values = []
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    found = minimize_lbfgs(valley, start, 80, 0.1, 1.0, lambda v, x: not values.append(v))
    np.testing.assert_allclose(found, [1.0, 1.0], atol=1e-3)
    assert values == sorted(values, reverse=True)
    short = minimize_lbfgs(valley, start, 80, 0.1, 1.0, lambda v, x: False)
    assert not torch.allclose(short, found)


# --- whole runs -----------------------------------------------------------------------------------


def run(pair, **settings):
    values = registry.spec("bspline").values("balanced", **settings)
    return registry.create("bspline", **values).register(pair, Progress())


def bent(points):
    """A smooth motion of up to 3 mm in the fixed space."""
    return points + 3.0 * np.sin(points[..., [1, 2, 0]] / 11.0)


def bent_pair(fixed=None, **extra):
    """A pair whose moving points are `bent` fixed points, up to a shift of the moving grid."""
    fixed = pairs.fixed_grid().resized((33, 42, 30)) if fixed is None else fixed
    moving = pairs.moving_grid().resized((39, 36, 45))
    image = Image.from_array(
        pairs.phantom(bent(pairs.voxel_points(moving))).astype(np.float32), moving
    )
    return ImagePair(pairs.make_image(fixed), image, **extra)


def error_mm(transform, points=None):
    points = pairs.body_points() if points is None else points
    back = bent(transform.map_points_ras(points))
    return float(np.linalg.norm(back - points, axis=1).mean())


def test_it_finds_a_known_motion_and_keeps_its_control_points():
    pair = bent_pair()
    result = run(pair)
    transform = result.transform
    assert error_mm(Transform()) > 2.0 and error_mm(transform) < 0.8
    field = transform.spline.field(pair.fixed.grid)
    assert torch.equal(field.displacement, transform.field.displacement)
    assert float(jacobian_determinant(transform.field.displacement).min()) > 0.0
    values = [h["value"] for h in result.history if h["level"] == 2]
    assert values == sorted(values, reverse=True)


def test_different_contrasts():
    pair = bent_pair()
    inverted = Image(120.0 - pair.moving.data, pair.moving.grid)
    result = run(replace(pair, moving=inverted), modality="different")
    assert error_mm(result.transform) < 0.9


@pytest.mark.parametrize("name", ["mind", "ngf", "mse"])
def test_other_similarities(name):
    result = run(bent_pair(), similarity=name, factors=(2, 1), iterations=(30, 15))
    assert error_mm(result.transform) < 1.4


def test_thick_slices_and_a_cut_moving_image():
    """5 mm slices, and a moving image that ends inside the fixed one."""
    fixed = pairs.fixed_grid().with_spacing((5.0, 1.8, 1.8))
    pair = bent_pair(fixed)
    size = pair.moving.grid.shape
    cut = pair.moving.grid.cropped((0, 0, 12), (size[0], size[1], size[2] - 12))
    moving = Image(pair.moving.data[..., 12:].contiguous(), cut)
    transform = run(replace(pair, moving=moving)).transform
    points = pairs.body_points()
    inside = cut.to_voxel(points)[:, 2] > 3
    assert error_mm(transform, points[inside]) < 1.0
    assert float(jacobian_determinant(transform.field.displacement).min()) > 0.0


def test_a_single_slice_moves_in_its_plane():
    fixed = pairs.fixed_grid().resized((22, 56, 40)).cropped((10, 0, 0), (1, 56, 40))
    points = pairs.voxel_points(fixed)
    normal, a, b = fixed.voxel_to_ras[:3, :3].T / np.array(fixed.spacing_mm)[:, None]
    wave = 2.5 * np.sin(points @ b / 9.0)
    moved = points + wave[..., None] * a
    moving = Image.from_array(pairs.phantom(moved).astype(np.float32), fixed)
    transform = run(ImagePair(pairs.make_image(fixed), moving)).transform
    body = np.linalg.norm(points / [22.0, 26.0, 24.0], axis=-1).ravel() < 1.0
    flat = points.reshape(-1, 3)[body]
    found = transform.map_points_ras(flat) - flat
    assert float(np.abs(found @ normal).max()) < 1e-5
    mapped = flat + found
    back = mapped + 2.5 * np.sin(mapped @ b / 9.0)[:, None] * a
    before = np.abs(2.5 * np.sin(flat @ b / 9.0)).mean()
    assert float(np.linalg.norm(back - flat, axis=1).mean()) < 0.5 * before


def test_a_given_deformation_is_taken_over_by_projection():
    """Without any iteration a start that control points can hold comes back unchanged."""
    pair = bent_pair()
    first = run(pair)
    start = replace(pair, initial=first.transform)
    kept = run(start, iterations=(0, 0, 0)).transform
    np.testing.assert_allclose(
        kept.field.displacement, first.transform.field.displacement, atol=1e-3
    )
    other = Field(smooth_displacement(pair.fixed.grid.shape, 1.5, sigma=5.0), pair.fixed.grid)
    near = run(replace(pair, initial=Transform(np.eye(4), other)), iterations=(0, 0, 0)).transform
    assert float((near.field.displacement - other.displacement).abs().mean()) < 0.05


def test_levels_and_iterations_have_to_fit():
    with pytest.raises(InputError, match="3 levels but 2"):
        run(bent_pair(), iterations=(5, 5))


def test_an_image_without_content_stays():
    grid = Grid((9, 10, 8), np.eye(4))
    empty = Image.from_array(np.zeros(grid.shape, np.float32), grid)
    transform = run(ImagePair(empty, empty)).transform
    assert float(transform.field.displacement.abs().max()) < 1e-3
