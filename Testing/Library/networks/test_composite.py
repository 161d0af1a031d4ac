"""Affine map and displacement: composed in the right order, and in full precision."""

import torch

from DeepRegLib.geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from DeepRegLib.networks.affine_net import affine_matrix, apply_affine, center_of
from DeepRegLib.networks.composite import composed, moved_by

SHAPE = (14, 20, 18)


def turned():
    values = ([1.0, -2.0, 0.5], [0.3, -0.2, 0.4], [1.1, 0.9, 1.0], [0.1, 0.0, -0.1])
    middle = center_of(SHAPE)
    return affine_matrix(*(torch.tensor([v]) for v in values), middle, middle)


def bent(seed=0):
    noise = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return 12.0 * gaussian_smooth(noise, 3.0)


def test_the_displacement_comes_before_the_affine_map():
    matrix, u = turned(), bent()
    where = composed(SHAPE, matrix, u)
    x = (5, 11, 7)
    point = torch.tensor([*map(float, x)]) + u[0, :, 5, 11, 7]
    expected = matrix[0, :3, :3] @ point + matrix[0, :3, 3]
    assert torch.allclose(where[0, :, 5, 11, 7], expected, atol=1e-5)
    identity = voxel_coordinates(SHAPE)
    added = identity + u + (apply_affine(matrix, identity) - identity)
    assert (where - added).abs().max() > 0.3, "composed, not added"


def test_a_part_that_is_missing_does_nothing():
    matrix, u, identity = turned(), bent(), voxel_coordinates(SHAPE)
    assert torch.equal(composed(SHAPE, None, None), identity)
    assert torch.equal(composed(SHAPE, None, u), identity + u)
    assert torch.allclose(composed(SHAPE, matrix, None), apply_affine(matrix, identity))


def test_images_are_resampled_once_with_zeros_outside():
    image = torch.rand(1, 2, *SHAPE)
    matrix, u = turned(), bent()
    expected = sample(image, composed(SHAPE, matrix, u), padding="fill")
    assert torch.equal(moved_by(image, matrix, u), expected)
    assert (expected == 0).any() and not (moved_by(image, matrix, u, fill=False) == 0).any()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(moved_by(image, matrix, u), expected)
