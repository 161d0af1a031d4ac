"""Folds, Jacobians, displacements, inverse consistency and landmark errors with known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from DeepRegLib.errors import InputError
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.inverse import invert
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.metrics.landmarks import tre_mm, tre_summary
from DeepRegLib.metrics.regularity import (
    inverse_consistency_mm,
    regularity,
    total_displacement_mm,
)


def stretched(grid: Grid, factors) -> Field:
    """The field of x -> factor * x along each tensor axis."""
    x = voxel_coordinates(grid.shape)
    return Field(x * (torch.tensor(factors).view(1, 3, 1, 1, 1) - 1), grid)


def test_uniform_stretch(scene):
    grid = scene.make_grid()
    found = regularity(stretched(grid, (1.2, 0.9, 1.1)))
    assert found["jacobian_p01"] == pytest.approx(1.188, abs=1e-4)
    assert found["jacobian_p99"] == pytest.approx(1.188, abs=1e-4)
    assert found["folds_percent"] == 0 and found["sdlogj"] == pytest.approx(0, abs=1e-4)


def test_percentiles_hold_the_linear_part_and_sdlogj_does_not(scene):
    field = scene.smooth_field(scene.make_grid())
    alone = regularity(field)
    matrix = np.diag([1.5, 1.0, 1.2, 1.0])
    both = regularity(Transform(matrix, field))
    assert both["jacobian_p01"] == pytest.approx(1.8 * alone["jacobian_p01"], rel=1e-5)
    assert both["jacobian_p99"] == pytest.approx(1.8 * alone["jacobian_p99"], rel=1e-5)
    for key in ("sdlogj", "sdlogj_l2r", "folds_percent", "deformation_max_mm"):
        assert both[key] == alone[key]
    linear = regularity(Transform(matrix))
    assert linear["jacobian_p01"] == linear["jacobian_p99"] == pytest.approx(1.8)
    assert linear["sdlogj"] == linear["folds_percent"] == 0.0


def test_sdlogj_is_the_true_one_and_learn2regs_is_compressed(scene):
    field = scene.smooth_field(scene.make_grid(), 2.5)
    determinant = jacobian_determinant(field.displacement)[0, 2:-2, 2:-2, 2:-2].double().numpy()
    found = regularity(field)
    assert found["sdlogj"] == pytest.approx(np.log(determinant.clip(1e-9, 1e9)).std(), rel=1e-6)
    l2r = np.log((determinant + 3).clip(1e-9, 1e9)).std()
    assert found["sdlogj_l2r"] == pytest.approx(l2r, rel=1e-6)
    assert found["sdlogj_l2r"] < 0.5 * found["sdlogj"]


def test_folds_are_counted_before_clipping_and_without_the_border():
    grid = Grid((10, 12, 14), np.eye(4))
    flipped = stretched(grid, (-0.5, 1.0, 1.0))
    assert regularity(flipped)["folds_percent"] == 100.0
    one = torch.zeros(1, 3, *grid.shape)
    one[0, 0, 5, 6, 7] = -4.0  # x + u folds on one side of this voxel
    inside = regularity(Field(one, grid))["folds_percent"]
    assert inside == pytest.approx(100 / (6 * 8 * 10), rel=1e-6)
    rim = torch.zeros(1, 3, *grid.shape)
    rim[0, 0, 0] = 4.0
    assert regularity(Field(rim, grid))["folds_percent"] == 0.0


def test_mask_restricts(scene):
    grid = scene.make_grid()
    field = scene.smooth_field(grid)
    field.displacement[:, :, : grid.shape[0] // 2] = 0.0
    mask = torch.zeros(1, 1, *grid.shape)
    mask[:, :, : grid.shape[0] // 2 - 2] = 1
    assert regularity(field, mask)["deformation_max_mm"] == 0.0
    assert regularity(field)["deformation_max_mm"] > 0.5
    with pytest.raises(InputError, match="has the shape"):
        regularity(field, mask[:, :, 1:])
    with pytest.raises(InputError, match="no voxel"):
        regularity(field, mask * 0)


def test_lengths_are_in_mm_on_an_anisotropic_oblique_grid():
    grid = Grid((9, 10, 11), np.diag([3.0, 2.0, 0.5, 1.0]))
    for axis, spacing in enumerate(grid.spacing_mm):
        displacement = torch.zeros(1, 3, *grid.shape)
        displacement[:, axis] = 2.0
        found = regularity(Field(displacement, grid))
        assert found["deformation_mean_mm"] == pytest.approx(2.0 * spacing)
        assert found["deformation_max_mm"] == pytest.approx(2.0 * spacing)


def test_total_displacement_joins_both_parts(scene):
    grid = scene.make_grid()
    found = total_displacement_mm(scene.shift(3.0, 0.0, 4.0), grid)
    assert found["displacement_mean_mm"] == pytest.approx(5.0, abs=1e-4)
    field = Field.from_ras_mm(torch.tensor([3.0, 0.0, 0.0]).view(1, 3, 1, 1, 1)
                              .expand(1, 3, *grid.shape).contiguous(), grid)  # fmt: skip
    both = total_displacement_mm(Transform(scene.shift(0.0, 0.0, 4.0).linear, field), grid)
    assert both["displacement_max_mm"] == pytest.approx(5.0, abs=1e-3)


def test_single_slice_and_tiny_grids_can_be_measured():
    for shape in ((1, 12, 14), (3, 4, 5)):
        found = regularity(Field.identity(Grid(shape, np.eye(4))))
        assert found["folds_percent"] == 0.0 and found["jacobian_p01"] == pytest.approx(1.0)


def test_inverse_consistency(pair, truth):
    fixed, moving = pair.fixed.grid, pair.moving.grid
    good = inverse_consistency_mm(truth, invert(truth, moving)[0], fixed)
    assert good["inverse_p95_mm"] < 0.05 and good["inverse_mean_mm"] < 0.02
    voxel = fixed.voxel_volume_mm3 ** (1 / 3)
    assert good["inverse_max_voxel"] == pytest.approx(good["inverse_max_mm"] / voxel)
    # The negated displacement is not the inverse.
    field = Field(-truth.field.displacement, truth.field.grid)
    bad = inverse_consistency_mm(
        Transform(np.eye(4), truth.field), Transform(np.eye(4), field), fixed
    )
    assert bad["inverse_max_mm"] > 0.3


def test_inverse_consistency_of_linear_maps_and_of_no_overlap(scene):
    grid = scene.make_grid()
    found = inverse_consistency_mm(scene.shift(3, 4, 0), scene.shift(0, 0, 0), grid)
    assert found["inverse_mean_mm"] == pytest.approx(5.0, abs=1e-4)
    away = scene.shift(900, 0, 0)
    inverse = Transform(np.linalg.inv(away.linear), Field.identity(grid))
    assert math.isnan(inverse_consistency_mm(away, inverse, grid)["inverse_mean_mm"])


def test_landmark_error_goes_from_fixed_to_moving(scene):
    fixed = np.array([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [0.0, 10.0, 5.0]])
    transform = Transform(np.diag([2.0, 1.0, 1.0, 1.0])).then_linear(scene.shift(1, 0, 0).linear)
    moving = np.array([[1.0, 0.0, 0.0], [21.0, 3.0, 0.0], [1.0, 10.0, 9.0]])
    np.testing.assert_allclose(tre_mm(transform, fixed, moving), [0, 3, 4], atol=1e-12)
    assert tre_summary([0, 3, 4, np.nan]) == {
        "count": 3, "mean_mm": pytest.approx(7 / 3), "median_mm": 3.0, "max_mm": 4.0}  # fmt: skip


def test_landmarks_that_are_not_placed_or_do_not_correspond():
    points = np.array([[0.0, 0.0, 0.0], [np.nan] * 3])
    assert np.isnan(tre_mm(Transform(), points, np.zeros((2, 3)))).tolist() == [False, True]
    with pytest.raises(InputError, match="2 fixed and 1 moving"):
        tre_mm(Transform(), points, points[:1])
    with pytest.raises(InputError, match="No landmark"):
        tre_summary([np.nan])
