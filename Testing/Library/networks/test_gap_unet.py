"""The U-Net with filled skips: its resolutions, and how many convolutions stand in each skip."""

import pytest
import torch
from torch import nn

from DeepRegLib.errors import GeometryError, ParameterError
from DeepRegLib.networks.blocks import Convolution
from DeepRegLib.networks.gap_unet import GapUNet

SHAPE = (12, 16, 20)


def convolutions(module):
    return sum(isinstance(layer, Convolution) for layer in module.modules())


@pytest.mark.parametrize("filled", [True, False])
def test_a_field_at_each_resolution(filled):
    network = GapUNet(5, (4, 6, 8), filled)
    fields = network(torch.rand(2, 5, *SHAPE))
    assert [tuple(f.shape) for f in fields] == [
        (2, 3, 3, 4, 5), (2, 3, 6, 8, 10), (2, 3, 12, 16, 20)
    ]  # fmt: skip
    assert all(f.abs().max() < 0.01 for f in fields)


def test_skips_have_as_many_convolutions_as_the_way_around():
    network = GapUNet(5, (4, 6, 8, 10))
    assert [convolutions(gap) for gap in network.gaps] == [6, 4, 2]
    bare = GapUNet(5, (4, 6, 8, 10), gap_filling=False)
    assert [convolutions(gap) for gap in bare.gaps] == [0, 0, 0]
    assert convolutions(network) == convolutions(bare) + 12


@pytest.mark.parametrize("filled", [True, False])
def test_every_weight_learns(filled):
    network = GapUNet(5, (4, 6, 8), filled)
    for head in network.heads:
        nn.init.normal_(head.convolution.weight, 0.0, 0.1)
    sum(f.square().sum() for f in network(torch.rand(1, 5, *SHAPE))).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_the_finest_field_sees_the_coarse_levels_and_the_skips():
    torch.manual_seed(0)
    network = GapUNet(5, (4, 6, 8))
    nn.init.normal_(network.heads[0].convolution.weight, 0.0, 0.1)
    images = torch.rand(1, 5, *SHAPE)
    whole = network(images)[-1]
    for part in (network.gaps[0], network.down[2]):
        before = part[0].convolution.weight.detach().clone()
        nn.init.zeros_(part[0].convolution.weight)
        assert (network(images)[-1] - whole).abs().max() > 1e-4
        part[0].convolution.weight.data.copy_(before)


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="multiples of 4"):
        GapUNet(5, (4, 4, 4))(torch.rand(1, 5, 12, 14, 16))
    with pytest.raises(ParameterError, match="two resolutions"):
        GapUNet(5, (4,))
