"""Pairs that cannot be registered are refused; unusual ones only get a remark."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from DeepRegLib.errors import InputError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.checks import check_pair
from DeepRegLib.registration.base import Image, ImagePair


def scaled(grid: Grid, factor: float) -> Grid:
    return Grid(grid.shape, np.diag([factor] * 3 + [1.0]) @ grid.voxel_to_ras)


def on(grid: Grid, image: Image) -> Image:
    return Image(image.data, grid, image.pixel_type)


@pytest.fixture
def pair(scene) -> ImagePair:
    fixed = scene.make_grid()
    return ImagePair(scene.smooth_image(fixed), scene.smooth_image(scene.moving_grid(fixed)))


def labels(grid: Grid, *voxels) -> Image:
    data = torch.zeros(1, 1, *grid.shape, dtype=torch.int16)
    for voxel in voxels:
        data[(0, 0, *voxel)] = 1
    return Image(data, grid, "int16")


def test_usual_pair_has_no_remarks(pair):
    assert check_pair(pair) == []


def test_same_volume_twice(pair):
    again = Image(pair.fixed.data.clone(), pair.fixed.grid)
    with pytest.raises(InputError, match="same volume; choose two different"):
        check_pair(replace(pair, moving=again))
    elsewhere = pair.fixed.grid.cropped((1, 0, 0), pair.fixed.grid.shape)
    assert check_pair(replace(pair, moving=on(elsewhere, again))) == []


@pytest.mark.parametrize(("value", "sentence"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_values_that_are_no_numbers(pair, value, sentence):
    pair.moving.data[0, 0, 1, 2, 3] = value
    with pytest.raises(InputError, match=f"'moving image' has 1 voxels that are.*{sentence}"):
        check_pair(pair)


def test_constant_image(pair):
    pair.fixed.data.fill_(7.0)
    with pytest.raises(InputError, match="'fixed image' has the value 7 everywhere"):
        check_pair(pair)


def test_vector_image(pair):
    color = Image(pair.fixed.data.expand(1, 3, *pair.fixed.grid.shape), pair.fixed.grid)
    with pytest.raises(InputError, match="The fixed image has 3 components"):
        check_pair(replace(pair, fixed=color))


@pytest.mark.parametrize(("factor", "unit"), [(0.001, "meters"), (1000.0, "micrometers")])
def test_image_in_another_unit(pair, factor, unit):
    moving = on(scaled(pair.moving.grid, factor), pair.moving)
    with pytest.raises(InputError, match=rf"'moving image' is.*{unit}.*by 1000"):
        check_pair(replace(pair, moving=moving))


def test_sizes_that_differ_by_a_unit(pair):
    fixed = on(scaled(pair.fixed.grid, 0.02), pair.fixed)
    moving = on(scaled(pair.moving.grid, 20.0), pair.moving)
    with pytest.raises(InputError, match=r"moving image is \d+ times as large.*factor of 1000"):
        check_pair(replace(pair, fixed=fixed, moving=moving))


def test_empty_and_misplaced_masks(pair):
    grid = pair.fixed.grid
    assert check_pair(replace(pair, fixed_mask=labels(grid, (3, 4, 5)))) == []
    with pytest.raises(InputError, match="The fixed mask is empty"):
        check_pair(replace(pair, fixed_mask=labels(grid)))
    far = grid.cropped((100, 0, 0), (5, 5, 5))
    with pytest.raises(InputError, match="The moving mask lies entirely outside"):
        check_pair(replace(pair, moving_mask=labels(far, (1, 1, 1))))
    with pytest.raises(InputError, match="The moving label map is empty"):
        check_pair(replace(pair, moving_labels=labels(pair.moving.grid)))


def test_landmarks_that_do_not_correspond(pair):
    points = np.zeros((3, 3))
    with pytest.raises(InputError, match="3 fixed and 2 moving landmarks"):
        check_pair(replace(pair, fixed_landmarks_ras=points, moving_landmarks_ras=points[:2]))
    with pytest.raises(InputError, match="3 fixed and 0 moving landmarks"):
        check_pair(replace(pair, fixed_landmarks_ras=points))
    with pytest.raises(InputError, match="not placed"):
        check_pair(replace(pair, fixed_landmarks_ras=points * np.nan, moving_landmarks_ras=points))


def test_pair_without_overlap_is_remarked_unless_a_start_is_given(pair):
    matrix = pair.moving.grid.voxel_to_ras.copy()
    matrix[:3, 3] += 5000.0
    far = replace(pair, moving=on(Grid(pair.moving.grid.shape, matrix), pair.moving))
    (remark,) = check_pair(far)
    assert "do not overlap" in remark
    assert check_pair(replace(far, initial=Transform(), initial_is_given=True)) == []


def test_unusual_pairs_are_remarked(pair, scene):
    flat = scene.smooth_image(scene.make_grid(shape=(1, 22, 27)))
    assert any("single slice" in remark for remark in check_pair(replace(pair, fixed=flat)))
    matrix = np.diag([6.0, 1.0, 1.0, 1.0])
    matrix[:3, 3] = pair.fixed.grid.center_ras - [30.0, 15.0, 15.0]
    thick = scene.smooth_image(Grid((11, 31, 31), matrix))
    assert any("6 x 1 x 1 mm" in remark for remark in check_pair(replace(pair, fixed=thick)))
    large = on(scaled(pair.moving.grid, 3.0), pair.moving)
    assert any("times as long" in remark for remark in check_pair(replace(pair, moving=large)))
