"""Registration of real volumes; the complete figures are measured under Benchmarks/."""

import numpy as np
import pytest

from DeepRegLib.geometry.affine import rotation_from_vector
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image, read_labels
from DeepRegLib.io.landmarks import read_landmarks
from DeepRegLib.metrics.overlap import dice_per_label, labels_present, mean_dice
from DeepRegLib.registration.base import Image, ImagePair, Progress
from DeepRegLib.registration.compose import parse_stages, run_stages, stage_values

pytestmark = [pytest.mark.data, pytest.mark.slow]


def run(pair, algorithm, preset="fast"):
    keys = parse_stages(algorithm)
    return run_stages(pair, keys, stage_values(keys, preset), Progress()).transform


def dice(transform, fixed, moving):
    moved = transform.warp(moving.data, moving.grid, fixed.grid, "nearest", 0)
    both = set(labels_present(fixed.data)) & set(labels_present(moving.data))
    return mean_dice(dice_per_label(fixed.data, moved), both)


def brain(folder, name):
    return read_image(f"{folder / name}_t1.nii.gz"), read_labels(f"{folder / name}_seg.nii.gz")


def test_one_person_scanned_twice_with_the_head_turned(data_folder):
    import torch

    folder = data_folder / "brain_t1_oasis" / "eval_1mm"
    (fixed, fixed_labels), (moving, moving_labels) = brain(folder, "1003"), brain(folder, "1023")
    turn = np.eye(4)
    vector = torch.tensor([0.5, -0.6, 0.55], dtype=torch.float64)  # 55 degrees
    turn[:3, :3] = rotation_from_vector(vector).numpy()
    turn[:3, 3] = (40.0, -30.0, 25.0)
    grid = Grid(moving.grid.shape, turn @ moving.grid.voxel_to_ras)
    transform = run(ImagePair(fixed, Image(moving.data, grid)), "rigid", "balanced")
    assert dice(transform, fixed_labels, Image(moving_labels.data, grid)) > 0.755


def test_two_people(data_folder):
    folder = data_folder / "brain_t1_oasis" / "train_2mm"
    (fixed, fixed_labels), (moving, moving_labels) = brain(folder, "1000"), brain(folder, "1001")
    transform = run(ImagePair(fixed, moving), "greedy")
    linear = Transform(transform.linear)
    gain = dice(transform, fixed_labels, moving_labels) - dice(linear, fixed_labels, moving_labels)
    assert gain > 0.1
    inside = fixed_labels.data[0] > 0
    assert float(jacobian_determinant(transform.field.displacement)[inside].min()) > 0


def test_skulls_in_arbitrary_pose(data_folder):
    folder = data_folder / "mouse_skull_ct"
    fixed, moving = (read_image(folder / f"{name}.nii.gz") for name in ("A_J_", "CAST_EIJ_"))
    points = [read_landmarks(folder / f"{n}.mrk.json").points_ras for n in ("A_J_", "CAST_EIJ_")]
    before = np.median(np.linalg.norm(points[0] - points[1], axis=1))
    transform = run(ImagePair(fixed, moving), "rigid")
    after = np.median(np.linalg.norm(transform.map_points_ras(points[0]) - points[1], axis=1))
    assert before > 2.0
    assert after < 1.2
