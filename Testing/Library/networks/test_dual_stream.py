"""The stream that both images pass, and the correlation of its features."""

import itertools

import pytest
import torch
from torch import nn

from DeepRegLib.errors import GeometryError
from DeepRegLib.networks.correlation import local_correlation
from DeepRegLib.networks.dual_stream import Stream, first_layout

SHAPE = (16, 32, 48)


def pass_through(network):
    """Makes each convolution hand on the mean of its channels, unchanged in space."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            middle = [n // 2 for n in layer.kernel_size]
            with torch.no_grad():
                layer.weight[:, :, middle[0], middle[1], middle[2]] = 1.0 / layer.in_channels


@pytest.mark.parametrize("finest", [0, 1])
def test_levels_channels_and_shapes(finest):
    stream = Stream((4, 6, 8, 10), (5, 7, 9), finest)
    found = stream(torch.rand(2, 1, *SHAPE))
    assert len(found) == 4 - finest
    for level, features in zip((3, 2, 1, 0), found):
        assert tuple(features.shape[2:]) == tuple(n // 2**level for n in SHAPE)
    assert [f.shape[1] for f in found] == stream.channels == [10, 9, 7, 5][: 4 - finest]
    assert stream.multiple == 8


def test_features_stay_centered_on_the_voxels_of_each_level():
    stream = Stream((2, 2, 2, 2), (2, 2, 2))
    pass_through(stream)
    ramp = torch.arange(float(SHAPE[1]))[None, :, None].expand(SHAPE)[None, None]
    coarsest = stream(ramp)[0][0, 0, 0, :, 0]
    centers = 8.0 * (torch.arange(SHAPE[1] // 8) + 0.5) - 0.5
    assert torch.allclose(coarsest, centers, atol=1e-4)


def test_each_image_has_its_own_features():
    stream = Stream((4, 4, 4), (4, 4))
    one, other = torch.rand(2, 1, 1, *SHAPE)
    both = stream(torch.cat([one, other]))
    for found, alone, swapped in zip(both, stream(other), stream(torch.cat([other, one]))):
        assert torch.allclose(found[1:], alone, atol=1e-5)
        assert torch.allclose(found.flip(0), swapped, atol=1e-5)


def test_every_weight_learns():
    stream = Stream((4, 4, 4), (4, 4))
    sum(f.square().mean() for f in stream(torch.rand(2, 1, *SHAPE))).backward()
    for name, weight in stream.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_a_shape_that_cannot_be_halved_is_refused():
    with pytest.raises(GeometryError, match=r"multiples of 8.*\(16, 20, 16\)"):
        Stream((4, 4, 4, 4), (4, 4, 4))(torch.rand(1, 1, 16, 20, 16))


@pytest.mark.parametrize("channels", [1, 3])
def test_layout_changes_no_value(channels):
    image = torch.rand(2, channels, 3, 4, 5)
    turned = first_layout(image)
    assert torch.equal(turned, image)
    assert turned.stride(1) == 1


def slow_correlation(fixed, moved, stride):
    b, c, *shape = fixed.shape
    result = torch.zeros(b, 27, *shape)
    for channel, offset in enumerate(itertools.product((-stride, 0, stride), repeat=3)):
        for voxel in itertools.product(*map(range, shape)):
            there = [x + d for x, d in zip(voxel, offset)]
            if all(0 <= x < n for x, n in zip(there, shape)):
                here = (slice(None), slice(None), *voxel)
                product = fixed[here] * moved[(slice(None), slice(None), *there)]
                result[(slice(None), channel, *voxel)] = product.sum(1) / c
    return result


@pytest.mark.parametrize("stride", [1, 2])
def test_correlation_is_the_mean_product_at_each_offset(stride):
    fixed, moved = torch.randn(2, 2, 3, 4, 3, 5)
    expected = slow_correlation(fixed, moved, stride)
    assert torch.allclose(local_correlation(fixed, moved, stride), expected, atol=1e-6)


def test_correlation_finds_a_shift():
    moved = torch.randn(1, 16, 8, 9, 10)
    fixed = moved.roll((-1, 1, 0), dims=(2, 3, 4))  # fixed(x) = moved(x + (1, -1, 0))
    found = local_correlation(fixed, moved)[:, :, 2:-2, 2:-2, 2:-2].mean(dim=(0, 2, 3, 4))
    offsets = list(itertools.product((-1, 0, 1), repeat=3))
    assert offsets[int(found.argmax())] == (1, -1, 0)
