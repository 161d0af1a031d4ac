"""Dice and Hausdorff distances against slow, plain versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt

from DeepRegLib.errors import InputError
from DeepRegLib.metrics.overlap import dice_per_label, hd95_per_label, labels_present, mean_dice

SPACING = (2.0, 1.25, 0.8)


def label_maps(seed=0, shape=(14, 18, 22)):
    """Two maps of four blobs, the second shifted and with a label of its own."""
    index = np.indices(shape).reshape(3, -1).T
    maps = []
    for offset in (0.0, 1.4):
        centers = np.random.default_rng(seed).random((4, 3)) * shape + offset
        distance = np.linalg.norm((index[:, None] - centers) * SPACING, axis=-1)
        labels = np.where(distance.min(1) < 6.0, distance.argmin(1) + 1, 0)
        maps.append(labels.reshape(shape).astype(np.int16))
    maps[1][0, 0, :3] = 9
    return maps


def slow_hd95(fixed, moved, label):
    one, other = fixed == label, moved == label
    edges = [m & ~binary_erosion(m) for m in (one, other)]
    far = [distance_transform_edt(~edge, SPACING) for edge in edges]
    return max(np.percentile(far[1][edges[0]], 95), np.percentile(far[0][edges[1]], 95))


def test_dice_is_that_of_the_definition():
    fixed, moved = label_maps()
    found = dice_per_label(torch.from_numpy(fixed)[None, None], moved[None, None])
    labels = sorted({*np.unique(fixed), *np.unique(moved)} - {0})
    assert list(found) == labels
    for label in labels:
        one, other = fixed == label, moved == label
        expected = 2 * (one & other).sum() / (one.sum() + other.sum())
        assert found[label] == pytest.approx(expected)
    assert found[9] == 0.0


@pytest.mark.parametrize("kind", ["uint8", "int16", "int64", "uint64", "bool"])
def test_dice_takes_every_integer_type(kind):
    fixed = np.array([0, 1, 1, 1], dtype=kind)
    assert dice_per_label(fixed, fixed[::-1]) == {1: pytest.approx(2 / 3)}


def test_dice_of_large_and_negative_labels():
    fixed, moved = np.array([0, 2**40, -5, -5]), np.array([0, 2**40, -5, 0])
    assert dice_per_label(fixed, moved) == {-5: pytest.approx(2 / 3), 2**40: 1.0}
    assert labels_present(fixed) == [-5, 2**40]
    assert labels_present(np.zeros((2, 3), np.uint8)) == []


def test_mean_dice_counts_labels_that_both_sources_hold():
    dice = {1: 0.8, 2: 0.6, 3: 0.0}
    assert mean_dice(dice) == pytest.approx(1.4 / 3)
    assert mean_dice(dice, [1, 2]) == pytest.approx(0.7)
    # Label 4 has vanished from the moved map: it counts, as 0.
    assert mean_dice(dice, [1, 4]) == pytest.approx(0.4)
    assert math.isnan(mean_dice({}, []))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hausdorff_distance_is_exact(seed):
    fixed, moved = label_maps(seed)
    found = hd95_per_label(torch.from_numpy(fixed), torch.from_numpy(moved)[None, None], SPACING)
    for label, distance in found.items():
        if (fixed == label).any() and (moved == label).any():
            assert distance == pytest.approx(slow_hd95(fixed, moved, label), abs=1e-4)
        else:
            assert distance == math.inf
    assert found[9] == math.inf


def test_hausdorff_distance_of_far_apart_objects():
    fixed, moved = np.zeros((2, 30, 40, 50), np.uint8)
    fixed[1, 2, 3] = moved[28, 37, 44] = 1
    expected = math.dist((0, 0, 0), np.array((27, 35, 41)) * SPACING)
    assert hd95_per_label(fixed, moved, SPACING)[1] == pytest.approx(expected, rel=1e-6)


def test_maps_that_do_not_fit_are_refused():
    fixed, moved = label_maps()
    with pytest.raises(InputError, match="same shape"):
        dice_per_label(fixed, moved[1:])
    with pytest.raises(InputError, match="integers"):
        dice_per_label(fixed, moved.astype(float))
    with pytest.raises(InputError, match="three axes"):
        hd95_per_label(fixed[0], moved[0], SPACING)
