import numpy as np
import pytest
import torch
from support import make_grid, smooth_displacement

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry import inverse as inverse_module
from DeepRegLib.geometry.affine import rotation_from_vector
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.inverse import invert, invert_displacement, round_trip_error_mm
from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.geometry.transform import Transform


@pytest.fixture
def linear():
    matrix = np.eye(4)
    turn = rotation_from_vector(torch.tensor([0.1, 0.2, -0.15], dtype=torch.float64)).numpy()
    matrix[:3, :3] = turn * np.array([1.05, 0.95, 1.1])
    matrix[:3, 3] = (2.0, -1.5, 3.0)
    return matrix


@pytest.fixture
def deformable(linear):
    grid = make_grid("oblique", (24, 30, 18), (1.5, 1.0, 2.0))
    about = grid.center_ras
    linear = linear.copy()
    linear[:3, 3] += about - linear[:3, :3] @ about
    return Transform(linear, Field(smooth_displacement(grid.shape, 2.5), grid))


@pytest.fixture
def moving_grid(deformable):
    center = deformable.map_points_ras([deformable.field.grid.center_ras])[0]
    grid = make_grid("LPS", (40, 36, 44), (1.2, 1.4, 1.1))
    return _centred(grid, center)


def test_points_go_through_the_field_first(deformable):
    grid = deformable.field.grid
    points = grid.center_ras + np.random.default_rng(0).uniform(-5, 5, (20, 3))
    expected = deformable.field.map_points_ras(points) @ deformable.linear[:3, :3].T
    np.testing.assert_allclose(
        deformable.map_points_ras(points), expected + deformable.linear[:3, 3], atol=1e-9
    )


def test_warping_a_function_of_ras_evaluates_it_at_the_mapped_points(deformable, moving_grid):
    """The whole chain (axis order, units, direction, half voxels) on two different grids."""
    fixed = deformable.field.grid
    slope = np.array([0.4, -0.3, 0.7])
    index = np.moveaxis(np.indices(moving_grid.shape), 0, -1)
    image = torch.from_numpy((moving_grid.to_ras(index) @ slope).astype(np.float32))[None, None]
    warped = deformable.warp(image, moving_grid, fixed, fill=np.nan)[0, 0].numpy()
    voxels = np.moveaxis(np.indices(fixed.shape), 0, -1).reshape(-1, 3)
    expected = (deformable.map_points_ras(fixed.to_ras(voxels)) @ slope).reshape(fixed.shape)
    inside = np.isfinite(warped)
    # Where the moving image ends, the outermost half voxel repeats its edge.
    inner = np.abs(moving_grid.to_voxel(deformable.map_points_ras(fixed.to_ras(voxels)))
                   - (np.array(moving_grid.shape) - 1) / 2)  # fmt: skip
    inner = (inner <= (np.array(moving_grid.shape) - 1) / 2).all(-1).reshape(fixed.shape)
    assert (inside & inner).mean() > 0.6
    assert np.abs(warped - expected)[inside & inner].max() < 2e-3


def test_total_displacements_keep_their_digits_far_from_the_origin(linear):
    """A scan of a phantom that lies meters away: large numbers cancel."""
    grid = make_grid("oblique", (9, 11, 7), (1.5, 1.0, 2.0))
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] += (4000.0, -3000.0, 2500.0)
    grid = Grid(grid.shape, matrix)
    about = grid.center_ras
    linear[:3, 3] += about - linear[:3, :3] @ about
    transform = Transform(linear, Field(smooth_displacement(grid.shape, 2.5), grid))
    found = transform.displacement_ras_mm(grid)
    assert found.dtype == torch.float32
    voxels = np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)
    points = grid.to_ras(voxels)
    expected = transform.map_points_ras(points) - points
    np.testing.assert_allclose(found[0].numpy().reshape(3, -1).T, expected, atol=1e-4)


def test_total_displacement_rebuilds_the_same_map(deformable):
    grid = deformable.field.grid
    total = Transform.from_displacement_ras_mm(deformable.displacement_ras_mm(grid), grid)
    voxels = np.random.default_rng(0).integers(3, 15, (40, 3))
    points = grid.to_ras(voxels)
    np.testing.assert_allclose(
        total.map_points_ras(points), deformable.map_points_ras(points), atol=1e-3
    )


def test_inverse_on_another_grid_undoes_the_transform(deformable, moving_grid):
    back, error = invert(deformable, moving_grid)
    assert back.field.grid is moving_grid
    assert error.mean_voxel < 2e-3
    fixed = deformable.field.grid
    points = fixed.center_ras + np.random.default_rng(0).uniform(-8, 8, (200, 3))
    round_trip = back.map_points_ras(deformable.map_points_ras(points))
    assert np.linalg.norm(round_trip - points, axis=1).mean() < 0.08
    # Negating the displacement is no inverse.
    wrong = Transform(
        back.linear, Field(-deformable.field.displacement, fixed).on_grid(moving_grid)
    )
    assert np.linalg.norm(
        wrong.map_points_ras(deformable.map_points_ras(points)) - points, axis=1
    ).mean() > 0.2  # fmt: skip


def test_round_trip_error_equals_that_of_points(deformable, moving_grid):
    back, _ = invert(deformable, moving_grid)
    fixed = deformable.field.grid
    error = round_trip_error_mm(deformable, back, fixed)[0, 0].numpy()
    voxels = np.random.default_rng(0).integers((6, 8, 5), (18, 22, 13), (50, 3))
    points = fixed.to_ras(voxels)
    expected = np.linalg.norm(
        back.map_points_ras(deformable.map_points_ras(points)) - points, axis=1
    )
    np.testing.assert_allclose(error[tuple(voxels.T)], expected, atol=2e-3)


def test_inverse_of_a_strong_stretch_converges():
    """A gradient above one makes the plain fixed-point iteration diverge."""
    x = torch.linspace(-1, 1, 61)
    u = torch.zeros(1, 3, 61, 3, 3)
    u[0, 0] = (-12.0 * torch.sin(torch.pi * x) * 0.98).view(61, 1, 1).expand(61, 3, 3) * -1
    gradient = float((u[0, 0, 1:, 0, 0] - u[0, 0, :-1, 0, 0]).max())
    assert gradient > 1.1
    squeeze, stretch = invert_displacement(u * 0.75)
    assert stretch.mean_voxel < 0.01
    where = voxel_coordinates((61, 3, 3)) + squeeze
    from DeepRegLib.geometry.sampling import sample

    back = where + sample(u * 0.75, where)
    assert (back - voxel_coordinates((61, 3, 3))).abs().mean() < 0.01


def test_linear_inverse_is_exact(linear, grid):
    back, error = invert(Transform(linear), grid)
    np.testing.assert_allclose(back.linear @ linear, np.eye(4), atol=1e-12)
    assert (
        error.maximum_voxel
        == 0.0
        == float(round_trip_error_mm(Transform(linear), back, grid).max().round(decimals=3))
    )


def test_singular_and_misshapen_matrices_are_refused():
    with pytest.raises(GeometryError, match="invertible"):
        Transform(np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(GeometryError, match="4 x 4"):
        Transform(np.eye(3))


def test_labels_through_a_transform_keep_their_type(deformable, moving_grid):
    labels = torch.randint(0, 5, (1, 1, *moving_grid.shape), dtype=torch.int16)
    moved = deformable.warp(labels, moving_grid, deformable.field.grid, "nearest")
    assert moved.dtype == torch.int16
    assert set(moved.unique().tolist()) <= set(range(5))


def test_inverse_module_reports_the_worst_point():
    u = smooth_displacement((12, 14, 10), 1.0)
    _, error = inverse_module.invert_displacement(u, iterations=1)
    _, better = inverse_module.invert_displacement(u)
    assert error.maximum_voxel >= error.mean_voxel > better.mean_voxel


def _centred(grid, center):
    from DeepRegLib.geometry.grid import Grid

    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] += center - grid.center_ras
    return Grid(grid.shape, matrix)
