"""Parts of networks against the plain functions that they stand for."""

import pytest
import torch
import torch.nn.functional as F

from DeepRegLib.networks.blocks import halved, standardized

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


def test_each_channel_of_each_image_is_standardized_by_itself():
    image = torch.rand(2, 3, 5, 7, 9, generator=torch.Generator().manual_seed(0))
    image[0, 1] = 40.0 * image[0, 1] - 7.0
    found = standardized(image)
    for batch in range(2):
        for channel in range(3):
            part = found[batch, channel]
            assert abs(float(part.mean())) < 1e-5
            assert float(part.square().mean()) == pytest.approx(1.0, rel=1e-4)
    # What has no contrast gets none.
    assert not standardized(torch.full((1, 1, 5, 7, 9), 0.5)).any()
