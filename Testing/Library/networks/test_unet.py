"""The U-Net and its parts: shapes, symmetry of what they share, and the fast convolution."""

import pytest
import torch
from torch import nn

from DeepRegLib.errors import GeometryError, ParameterError
from DeepRegLib.networks.blocks import (
    Convolution,
    Doubling,
    Head,
    channels_last,
    convolved,
    enlarged,
    pair_input,
    resized_vectors,
    warped,
)
from DeepRegLib.networks.unet import UNet, voxelmorph_unet


@pytest.mark.parametrize("shape", [(16, 24, 20), (17, 22, 13), (5, 6, 7)])
def test_ends_at_the_full_or_half_resolution_of_any_shape(shape):
    images = torch.randn(2, 2, *shape)
    whole = voxelmorph_unet((4, 5, 6, 7), (8, 9, 10, 11, 12), (3, 13))
    half = voxelmorph_unet((4, 5, 6, 7), (8, 9, 10, 11, 12))
    assert whole(images).shape == (2, 13, *shape)
    assert half(images).shape == (2, 12, *((n + 1) // 2 for n in shape))
    assert (whole.outputs, half.outputs) == (13, 12)


def test_has_the_size_of_the_published_network():
    network = voxelmorph_unet((16, 32, 32, 32), (32, 32, 32, 32, 32), (16, 16))
    first = 2 * 16 * 27 + 16  # two images to 16 channels
    pairs = [(16, 32), (32, 32), (32, 32)]  # encoder
    pairs += [(32, 32), (64, 32), (64, 32), (48, 32), (32, 32)]  # up to half resolution
    pairs += [(34, 16), (16, 16)]  # the full one, with the images themselves
    expected = first + sum(i * o * 27 + o for i, o in pairs)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_skips_carry_fine_detail():
    torch.manual_seed(0)
    network = voxelmorph_unet((4, 4, 4), (4, 4, 4), (4,)).double()
    images = torch.randn(1, 2, 16, 16, 24, dtype=torch.float64)
    checks = torch.ones_like(images)
    checks[..., 1::2] = -1.0  # no mean over two voxels sees this
    assert (network(images + checks) - network(images)).abs().amax() > 0.05


@pytest.mark.parametrize("groups", [[], [(4,), ()], [(4,)] * 4])
def test_lists_that_do_not_fit_are_refused(groups):
    with pytest.raises(ParameterError, match="decoder"):
        UNet(2, (4, 4), groups)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    "shape", [(8, 6, 5), (9, 6, 5), (4, 7, 3), (7, 5, 6), (3, 4, 4), (1, 5, 6)]
)
@pytest.mark.parametrize("width,stride", [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)])
def test_cutting_a_volume_in_two_changes_no_convolution(shape, width, stride, layout):
    torch.manual_seed(1)
    layer = nn.Conv3d(3, 4, width, stride, width // 2)
    image = torch.randn(1, 3, *shape).contiguous(memory_format=layout).requires_grad_(True)
    found, expected = convolved(image, layer), layer(image)
    assert torch.allclose(found, expected, atol=1e-5) and found.shape == expected.shape
    weight = torch.randn_like(expected)
    (a,) = torch.autograd.grad((found * weight).sum(), image)
    (b,) = torch.autograd.grad((expected * weight).sum(), image)
    assert torch.allclose(a, b, atol=1e-5)


def test_doubling_is_the_transposed_convolution():
    torch.manual_seed(2)
    layer = Doubling(3, 2)
    features = torch.randn(1, 3, 6, 5, 4)
    expected = layer.convolution(features)
    assert torch.allclose(layer(features, (12, 10, 8)), expected, atol=1e-6)
    assert torch.allclose(layer(features, (11, 9, 8)), expected[:, :, :11, :9], atol=1e-6)


@pytest.mark.parametrize("activation,expected", [("leaky", -0.4), ("relu", 0.0), ("linear", -2.0)])
def test_activations(activation, expected):
    layer = Convolution(1, 1, activation=activation, width=1)
    nn.init.constant_(layer.convolution.weight, -1.0)
    assert layer(torch.full((1, 1, 2, 2, 2), 2.0)).mean().item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="tanh"):
        Convolution(1, 1, activation="tanh")


def test_vectors_begin_near_nothing_and_stay_in_single_precision():
    head = Head(4, start=-10.0, spread=1e-10)
    features = torch.randn(1, 4, 8, 8, 8)
    assert torch.allclose(head(features), torch.full((1, 3, 8, 8, 8), -10.0))
    assert 0.0 < Head(4)(features).abs().max() < 1e-2
    with torch.autocast("cpu", torch.bfloat16):
        assert Head(4)(features.bfloat16()).dtype == torch.float32


def test_pair_input_stacks_moving_and_fixed():
    fixed, moving = torch.zeros(2, 1, 4, 5, 6), torch.ones(2, 1, 4, 5, 6)
    both = pair_input(fixed, moving)
    assert both.shape == (2, 2, 4, 5, 6) and both.is_contiguous(
        memory_format=torch.channels_last_3d
    )
    assert (both[:, 0] == 1).all() and (both[:, 1] == 0).all()
    with pytest.raises(GeometryError, match="same shape"):
        pair_input(fixed, moving[..., :5])


def test_channels_last_changes_the_layout_only():
    torch.manual_seed(3)
    network = voxelmorph_unet((4, 4), (4, 4), (3,))
    images = torch.randn(1, 2, 8, 12, 10)
    before = network(images)
    after = channels_last(network)(images.contiguous(memory_format=torch.channels_last_3d))
    assert torch.allclose(before, after, atol=1e-5)


def test_enlarged_repeats_voxels():
    features = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    big = enlarged(features, (4, 4, 3))
    assert big.shape == (1, 1, 4, 4, 3)
    assert (big[0, 0, :2, :2, 0] == 0).all() and (big[0, 0, 2:, 2:, 2] == 7).all()


def test_vectors_grow_with_the_grid():
    field = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, 4, 5, 6)
    big = resized_vectors(field, (8, 5, 9))
    assert big.shape == (1, 3, 8, 5, 9)
    assert torch.allclose(big.mean((0, 2, 3, 4)), torch.tensor([2.0, 2.0, 4.5]))


def test_warped_looks_where_the_vectors_point():
    image = torch.arange(4.0 * 5 * 6).reshape(1, 1, 4, 5, 6)
    step = torch.zeros(1, 3, 4, 5, 6)
    step[:, 1] = 1.0  # one voxel along the second axis
    assert torch.allclose(warped(image, step)[:, :, :, :-1], image[:, :, :, 1:])
