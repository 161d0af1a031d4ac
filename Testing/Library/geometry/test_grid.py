import numpy as np
import pytest

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.grid import Grid, transform_points


def test_axis_order_columns_follow_tensor_axes(grid):
    step = grid.to_ras([3, 4, 6]) - grid.to_ras([3, 4, 5])
    np.testing.assert_allclose(step, grid.voxel_to_ras[:3, 2])
    assert np.linalg.norm(step) == pytest.approx(grid.spacing_mm[2]) == pytest.approx(3.0)


def test_voxel_ras_round_trip(grid):
    points = np.random.default_rng(0).uniform(-5, 20, (50, 3))
    np.testing.assert_allclose(grid.to_voxel(grid.to_ras(points)), points, atol=1e-10)


def test_center_is_half_of_n_minus_one(grid):
    np.testing.assert_allclose(grid.center_ras, grid.corners_ras().mean(0), atol=1e-10)
    np.testing.assert_allclose(grid.to_voxel(grid.center_ras), [6.0, 8.0, 5.0], atol=1e-10)


@pytest.mark.parametrize("shape", [(26, 34, 22), (5, 9, 4), (1, 17, 30)])
def test_resizing_keeps_the_outer_corners(grid, shape):
    resized = grid.resized(shape)
    assert resized.shape == shape
    np.testing.assert_allclose(resized.corners_ras(), grid.corners_ras(), atol=1e-9)


def test_halving_moves_the_origin_by_half_a_voxel():
    grid = Grid((8, 8, 8), np.eye(4))
    np.testing.assert_allclose(grid.resized((4, 4, 4)).voxel_to_ras[:3, 3], [0.5, 0.5, 0.5])


def test_cropping_and_padding_keep_positions(grid):
    block = grid.cropped((2, 3, 1), (5, 6, 7))
    np.testing.assert_allclose(block.to_ras([1, 1, 1]), grid.to_ras([3, 4, 2]), atol=1e-10)
    assert grid.padded(3).cropped((3, 3, 3), grid.shape).matches(grid)


def test_matches_notices_shift_shape_and_turn(grid):
    shifted = Grid(grid.shape, _shifted(grid.voxel_to_ras, 0.01))
    assert grid.matches(Grid(grid.shape, grid.voxel_to_ras.copy()))
    assert not grid.matches(shifted)
    assert not grid.matches(grid.resized((13, 17, 12)))


def test_voxel_to_voxel_goes_through_the_linear_map(grid):
    other = grid.resized((7, 20, 9)).cropped((1, -2, 3), (5, 5, 5))
    linear = np.eye(4)
    linear[:3, 3] = (4.0, -2.0, 1.0)
    matrix = grid.voxel_to_voxel(other, linear)
    expected = other.to_voxel(grid.to_ras([2.0, 3.0, 4.0]) + linear[:3, 3])
    np.testing.assert_allclose(transform_points(matrix, [2.0, 3.0, 4.0]), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "matrix", "words"),
    [
        ((3, 4), np.eye(4), "three positive sizes"),
        ((3, 0, 4), np.eye(4), "three positive sizes"),
        ((3, 4, 5), np.full((4, 4), np.nan), "finite"),
        ((3, 4, 5), np.diag([1.0, 1.0, 0.0, 1.0]), "one plane"),
        ((3, 4, 5), np.ones((4, 4)), "last row"),
    ],
)
def test_bad_grids_are_refused(shape, matrix, words):
    with pytest.raises(GeometryError, match=words):
        Grid(shape, matrix)


def test_the_matrix_cannot_be_changed_from_outside():
    matrix = np.eye(4)
    grid = Grid((2, 3, 4), matrix)
    matrix[0, 3] = 9.0
    assert grid.voxel_to_ras[0, 3] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        grid.voxel_to_ras[0, 3] = 1.0


def _shifted(matrix, offset):
    moved = matrix.copy()
    moved[:3, 3] += offset
    return moved
