"""The affine network, and the maps that it is made of."""

import math

import numpy as np
import pytest
import torch

from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.networks.affine_net import (
    AffineNetwork,
    affine_matrix,
    apply_affine,
    center_of,
    random_affine,
)

FIXED, MOVING = (12, 17, 14), (15, 10, 21)


def rotation(axis, angle):
    """Rotation about a tensor axis that takes the next axis towards the one after it."""
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i] = matrix[j, j] = math.cos(angle)
    matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
    return matrix


def test_matrix_is_scale_times_shear_times_rotations_about_the_centers():
    t, r = np.array([1.0, -2.0, 3.0]), np.array([0.3, -0.2, 0.5])
    s, k = np.array([1.2, 0.9, 1.1]), np.array([0.1, -0.3, 0.2])
    center, to = np.array(center_of(FIXED)), np.array(center_of(MOVING))
    found = affine_matrix(*(torch.tensor(v)[None] for v in (t, r, s, k)), center, to)[0].numpy()
    shear = np.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = np.tan(k)
    turned = rotation(2, r[2]) @ rotation(1, r[1]) @ rotation(0, r[0])
    linear = np.diag(s) @ shear @ turned
    np.testing.assert_allclose(found[:3, :3], linear, atol=1e-12)
    np.testing.assert_allclose(found[:3, :3] @ center + found[:3, 3], to + t, atol=1e-12)
    np.testing.assert_array_equal(found[3], [0, 0, 0, 1])


def test_network_begins_near_the_identity_between_the_centers():
    torch.manual_seed(0)
    matrix = AffineNetwork(8)(torch.rand(2, 1, *FIXED), torch.rand(2, 1, *MOVING))
    assert matrix.shape == (2, 4, 4)
    assert torch.allclose(matrix[:, :3, :3], torch.eye(3).expand(2, 3, 3), atol=0.05)
    middle = torch.tensor(center_of(FIXED)).reshape(1, 3, 1, 1, 1)
    there = apply_affine(matrix, middle).reshape(2, 3)
    assert torch.allclose(there, torch.tensor(center_of(MOVING)).expand(2, 3), atol=0.5)


def test_pairs_of_a_batch_do_not_touch_each_other():
    network = AffineNetwork(8)
    torch.nn.init.normal_(network.heads.weight)
    fixed, moving = torch.rand(3, 1, *FIXED), torch.rand(3, 1, *MOVING)
    together = network(fixed, moving)
    alone = network(fixed[1:2], moving[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_images_pass_the_same_weights():
    network = AffineNetwork(8)
    image = torch.rand(1, 1, *FIXED)
    assert torch.equal(network.describe(image), network.describe(image.clone()))
    convolutions = [n for n, _ in network.named_parameters() if n.startswith("convolutions")]
    assert len(convolutions) == 10, "five convolutions, not five for each image"


def test_outputs_are_bounded():
    network = AffineNetwork(4)
    torch.nn.init.normal_(network.heads.weight, 0.0, 100.0)
    linear = network(torch.rand(4, 1, *FIXED), torch.rand(4, 1, *FIXED))[:, :3, :3]
    # S K R with scales of at most two and shears of at most 45 degrees.
    assert linear.norm(dim=(1, 2)).max() <= 2.0 * 6.0**0.5 + 1e-4
    assert torch.linalg.det(linear).min() >= 0.5**3 - 1e-4


def test_every_weight_learns():
    network = AffineNetwork(4)
    torch.nn.init.normal_(network.heads.weight)
    network(torch.rand(1, 1, *FIXED), torch.rand(1, 1, *MOVING)).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_applied_matrix_maps_points():
    torch.manual_seed(1)
    matrix = torch.eye(4).repeat(2, 1, 1) + 0.1 * torch.randn(2, 4, 4)
    where = voxel_coordinates((2, 3, 4))
    mapped = apply_affine(matrix, where)
    for pair in range(2):
        points = where.reshape(3, -1).numpy()
        m = matrix[pair].numpy()
        expected = m[:3, :3] @ points + m[:3, 3:]
        np.testing.assert_allclose(mapped[pair].reshape(3, -1).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_random_maps_stay_within_their_amount(amount):
    torch.manual_seed(2)
    maps = random_affine(200, FIXED, amount)
    middle = torch.tensor(center_of(FIXED)).reshape(1, 3, 1, 1, 1)
    moved = (apply_affine(maps, middle) - middle).reshape(200, 3).abs()
    volume = torch.linalg.det(maps[:, :3, :3]).log().abs()
    assert moved.max() <= 4.0 * amount + 1e-4
    assert volume.max() <= 3 * amount * -math.log(0.85) + 1e-4
    if amount:
        assert moved.max() > 3.0 * amount
        torch.manual_seed(2)
        assert torch.equal(random_affine(200, FIXED, amount), maps)
        assert (maps[0] - maps[1]).abs().max() > 0.01
