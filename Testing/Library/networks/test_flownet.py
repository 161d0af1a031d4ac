"""FlowNet in 3D: resolutions, directions of its parts, vectors that grow with the grid."""

import pytest
import torch
from torch import nn

from DeepRegLib.errors import GeometryError, ParameterError
from DeepRegLib.networks.blocks import channels_last
from DeepRegLib.networks.flownet import FlowNet


def images(shape, batch=1):
    torch.manual_seed(1)
    return torch.rand(2, batch, 1, *shape).unbind(0)


@pytest.mark.parametrize(
    "shape,coarsest",
    [((32, 64, 96), (1, 2, 3)), ((48, 64, 40), (2, 2, 2)), ((21, 35, 18), (1, 2, 1))],
)
def test_flows_at_five_resolutions(shape, coarsest):
    torch.manual_seed(0)
    network = FlowNet((4, 4, 6, 6, 6))
    flows = network(*images(shape, 2))
    assert len(flows) == 5 and tuple(flows[0].shape[2:]) == coarsest
    sizes = [tuple(f.shape[2:]) for f in flows]
    for coarse, fine in zip(sizes, sizes[1:]):
        assert all(c == -(-f // 2) for c, f in zip(coarse, fine))
    assert sizes[-1] == tuple(-(-n // 2) for n in shape)
    assert all(f.shape[:2] == (2, 3) and f.dtype == torch.float32 for f in flows)


def test_nothing_moves_at_first_and_everything_learns():
    torch.manual_seed(0)
    network = channels_last(FlowNet((4, 4, 6, 6, 6)))
    flows = network(*images((32, 32, 64)))
    assert max(float(f.detach().abs().max()) for f in flows) < 0.05
    sum(f.square().sum() for f in flows).backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_kernels_and_channels_are_those_of_the_publication():
    network = FlowNet()
    strided = [level[0].convolution for level in network.down]
    assert [c.kernel_size[0] for c in strided] == [7, 5, 5, 3, 3]
    assert [c.stride[0] for c in strided] == [2] * 5
    assert [c.out_channels for c in strided] == [16, 32, 64, 128, 128]
    assert [len(level) for level in network.down] == [1, 1, 2, 2, 2]
    assert all(level[1].convolution.stride == (1, 1, 1) for level in network.down[2:])
    assert [c.convolution.out_channels for c in network.up] == [64, 32, 16, 8]


def test_a_flow_reaches_the_next_resolution_with_its_vectors_grown():
    torch.manual_seed(0)
    network = FlowNet((2, 2, 2))
    seen = []

    class Seen(nn.Module):
        def forward(self, features):
            seen.append(features)
            return torch.full((1, 3, *features.shape[2:]), 1.0)

    network.flows = nn.ModuleList([Seen(), Seen(), Seen()])
    with torch.no_grad():
        network(*images((16, 24, 32)))
    # The last channels of what a flow is made from are the flow before, in voxels half as wide.
    for features in seen[1:]:
        assert torch.allclose(features[:, -3:], torch.full_like(features[:, -3:], 2.0))
    assert [tuple(f.shape[2:]) for f in seen] == [(2, 3, 4), (4, 6, 8), (8, 12, 16)]


def test_both_images_have_their_place():
    torch.manual_seed(0)
    network = FlowNet((4, 4))
    network.flows.apply(
        lambda m: nn.init.normal_(m.weight, 0.0, 0.1) if isinstance(m, nn.Conv3d) else None
    )
    fixed, moving = images((16, 16, 16))
    with torch.no_grad():
        assert not torch.allclose(network(fixed, moving)[-1], network(moving, fixed)[-1], atol=1e-3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ParameterError, match="two resolutions"):
        FlowNet((8,))
    with pytest.raises(GeometryError):
        FlowNet((2, 2))(torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 16, 16, 8))
