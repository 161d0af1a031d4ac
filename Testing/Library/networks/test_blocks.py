"""Parts of networks against the plain functions that they stand for."""

import pytest
import torch
import torch.nn.functional as F

from DeepRegLib.networks.blocks import halved

LAST = torch.channels_last_3d


def features(shape=(2, 3, 6, 10, 8), dtype=torch.float64):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return made.to(memory_format=LAST)


@pytest.mark.parametrize("shape", [(2, 3, 6, 10, 8), (1, 4, 7, 5, 9), (2, 1, 6, 4, 8)])
def test_halving_is_the_mean_of_eight_voxels(shape):
    image = features(shape).requires_grad_()
    expected = F.avg_pool3d(image, 2)
    found = halved(image)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), image)
    (slope,) = torch.autograd.grad((found * weight).sum(), image)
    torch.testing.assert_close(slope, wanted)


def test_halving_keeps_layout_and_type():
    for dtype in (torch.float32, torch.bfloat16):
        image = features(dtype=dtype).requires_grad_()
        found = halved(image)
        assert found.dtype == dtype and found.is_contiguous(memory_format=LAST)
        (slope,) = torch.autograd.grad(found.float().sum(), image)
        assert slope.dtype == dtype and slope.is_contiguous(memory_format=LAST)
        exact = F.avg_pool3d(image.detach().double(), 2)
        assert (found.double() - exact).abs().max() < (1e-6 if dtype == torch.float32 else 0.02)


def test_halving_leaves_its_input_alone():
    image = features()
    kept = image.clone()
    halved(image)
    assert torch.equal(image, kept)
    assert torch.autograd.gradcheck(halved, features((1, 2, 4, 2, 6)).requires_grad_())
