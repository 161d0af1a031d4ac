"""Rigid motions in batches: their units and centers, fits, and the errors that they leave."""

import math

import pytest
import torch

from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.networks.affine_net import apply_affine
from DeepRegLib.registration.rigid_motion import (
    about,
    average_motion,
    known_pairs,
    motion_matrix,
    motion_parameters,
    motions_of_error,
    rigid_of,
    surface_points,
    target_error_mm,
)
from DeepRegLib.registration.trainable import Batch

SHAPE = (18, 22, 26)
CENTER = [(n - 1) / 2 for n in SHAPE]


def random_parameters(count, size=10.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return size * (2.0 * torch.rand(count, 6, generator=generator, dtype=torch.float64) - 1.0)


def take(matrix, point):
    return (matrix[:3, :3] @ torch.tensor(point).double() + matrix[:3, 3]).tolist()


def ball(radius=7.0, count=1):
    away = (voxel_coordinates(SHAPE) - torch.tensor(CENTER).view(1, 3, 1, 1, 1)).norm(dim=1)
    return torch.sigmoid(4.0 * (radius - away))[:, None].expand(count, -1, -1, -1, -1)


def test_parameters_are_mm_and_degrees_about_the_center():
    shift = motion_matrix(torch.tensor([[3.0, 0, 0, 0, 0, 0]]), 1.5, CENTER)[0].double()
    assert take(shift, CENTER) == pytest.approx([CENTER[0] + 2.0, CENTER[1], CENTER[2]])
    turn = motion_matrix(torch.tensor([[0.0, 0, 0, 0, 0, 90.0]]), 1.5, CENTER)[0].double()
    ahead = [CENTER[0] + 4.0, CENTER[1], CENTER[2]]
    assert take(turn, CENTER) == pytest.approx(CENTER)
    assert take(turn, ahead) == pytest.approx([CENTER[0], CENTER[1] + 4.0, CENTER[2]], abs=1e-5)


@pytest.mark.parametrize("size", [1e-7, 0.5, 60.0])
def test_parameters_come_back_from_the_matrix(size):
    wanted = random_parameters(5, size)
    centers = torch.rand(5, 3, dtype=torch.float64) * 20
    matrices = motion_matrix(wanted, 2.0, centers)
    found = motion_parameters(matrices, 2.0, centers)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_centers_may_differ_from_map_to_map():
    one = motion_matrix(random_parameters(1)[0], 2.0, (0.0, 0.0, 0.0))
    centers = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.0, 9.0]], dtype=torch.float64)
    both = about(one, centers)
    for matrix, center in zip(both, centers):
        torch.testing.assert_close(matrix, about(one, center))
        # The center goes where the origin went.
        moved = matrix[:3, :3] @ center + matrix[:3, 3] - center
        torch.testing.assert_close(moved, one[:3, 3])


def test_rigid_part_of_a_displacement():
    matrices = motion_matrix(random_parameters(2, 15.0), 2.0, CENTER)
    where = voxel_coordinates(SHAPE, dtype=torch.float64)
    u = (apply_affine(matrices, where) - where).float()
    found = rigid_of(u, ball(count=2))
    torch.testing.assert_close(found, matrices, rtol=0.0, atol=1e-4)
    still = rigid_of(torch.zeros(2, 3, *SHAPE), ball(count=2))
    assert torch.equal(still, torch.eye(4, dtype=torch.float64).repeat(2, 1, 1))


def test_a_bend_has_the_nearest_rigid_part():
    where = voxel_coordinates(SHAPE)
    u = 0.5 * torch.sin(where[:, [1, 2, 0]] / 2.0) + torch.tensor([2.0, 0, -1.0]).view(
        1, 3, 1, 1, 1
    )
    found = rigid_of(u, ball())[0]
    assert torch.allclose(found[:3, :3].T @ found[:3, :3], torch.eye(3).double(), atol=1e-6)
    middle = torch.tensor(take(found, CENTER)) - torch.tensor(CENTER)
    assert (middle - torch.tensor([2.0, 0.0, -1.0])).abs().max() < 0.3


def test_surface_points_lie_on_the_surface():
    points = surface_points(ball(7.0, 2), 50)
    away = (points - torch.tensor(CENTER).double()).norm(dim=2)
    assert points.shape == (2, 50, 3)
    assert away.min() > 5.5 and away.max() < 8.0
    # Nothing shown: the corners of the image.
    empty = surface_points(torch.zeros(1, 1, *SHAPE), 20)[0]
    assert set(empty[:, 0].tolist()) <= {0.0, SHAPE[0] - 1.0}


def test_target_error_is_a_mean_distance_in_mm():
    points = torch.rand(2, 30, 3, dtype=torch.float64) * 20
    still = torch.eye(4, dtype=torch.float64)
    shift = motion_matrix(torch.tensor([[3.0, 0, 4.0, 0, 0, 0]]).double(), 2.0, CENTER)
    found = target_error_mm(points, shift.expand(2, 4, 4), still, 2.0)
    torch.testing.assert_close(found, torch.full((2,), 5.0, dtype=torch.float64))
    # Composed with any truth it is the same.
    truth = motion_matrix(random_parameters(2, 20.0), 2.0, CENTER)
    torch.testing.assert_close(target_error_mm(points, truth @ shift, truth, 2.0), found)


@pytest.mark.parametrize("affine_share", [0.0, 1.0])
def test_motions_have_the_wanted_error(affine_share):
    torch.manual_seed(0)
    points = surface_points(ball(7.0, 40), 100)
    wanted = torch.linspace(0.2, 20.0, 40)
    matrices, errors = motions_of_error(points, wanted, 3.0, affine_share)
    assert ((errors - wanted).abs() / wanted).max() < 0.05
    torch.testing.assert_close(
        errors, target_error_mm(points, matrices, torch.eye(4, dtype=torch.float64), 3.0)
    )
    linear = matrices[:, :3, :3]
    stiff = (linear.transpose(1, 2) @ linear - torch.eye(3)).abs().amax(dim=(1, 2)) < 1e-6
    assert bool(stiff.all()) if affine_share == 0.0 else not bool(stiff.any())


def test_shifts_and_turns_both_have_a_part_in_the_error():
    torch.manual_seed(1)
    points = surface_points(ball(7.0, 200), 60)
    matrices, _ = motions_of_error(points, torch.full((200,), 6.0), 3.0)
    parameters = motion_parameters(matrices, 3.0, points.mean(dim=1))
    shift = parameters[:, :3].norm(dim=1)
    turn = torch.deg2rad(parameters[:, 3:].norm(dim=1)) * 21.0
    share = shift / (shift + turn)
    assert 0.4 < share.mean() < 0.6 and share.std() > 0.1


def test_average_lies_between():
    sides = random_parameters(1, 8.0)
    pair = motion_matrix(torch.cat([sides, -sides]), 2.0, CENTER)
    torch.testing.assert_close(
        average_motion(pair, CENTER), torch.eye(4, dtype=torch.float64), rtol=0.0, atol=0.02
    )
    middle = average_motion(
        motion_matrix(torch.tensor([[2.0, 0, 0, 0, 0, 10.0], [4.0, 0, 0, 0, 0, 20.0]]).double(),
                      1.0, CENTER), CENTER,
    )  # fmt: skip
    found = motion_parameters(middle, 1.0, CENTER)
    assert found.tolist() == pytest.approx([3.0, 0, 0, 0, 0, 15.0], abs=1e-6)
    assert math.isclose(float(torch.linalg.det(middle)), 1.0, rel_tol=1e-9)


def test_a_pair_without_truth_stands_for_each_image_with_itself():
    fixed, moving = torch.rand(2, 1, 1, *SHAPE)
    known = Batch(fixed, moving, 2.0, truth=torch.zeros(1, 3, *SHAPE))
    assert known_pairs(known)[1] is moving
    ones, others, maps = known_pairs(Batch(fixed, moving, 2.0))
    assert torch.equal(ones, others) and torch.equal(ones, torch.cat([fixed, moving]))
    assert torch.equal(maps, torch.eye(4, dtype=torch.float64).repeat(2, 1, 1))
