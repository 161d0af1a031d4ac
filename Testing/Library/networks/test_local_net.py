"""The networks of label-driven registration: levels, units, and the affine map."""

import pytest
import torch

from DeepRegLib.errors import GeometryError, ParameterError
from DeepRegLib.networks.blocks import channels_last
from DeepRegLib.networks.local_net import (
    GlobalNet,
    LocalNet,
    RegistrationNet,
    UpBlock,
    linear_map,
)

SHAPE = (16, 48, 32)


def images(count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, count, 1, *SHAPE, generator=generator)


@pytest.mark.parametrize("levels", [(0, 1, 2, 3, 4), (2, 4), (1,), (4,)])
def test_begins_with_the_identity(levels):
    network = LocalNet(2, levels)
    found = network(*images(2))
    assert found.shape == (2, 3, *SHAPE) and not found.any()
    assert len(network.heads) == len(levels) and len(network.up) == 4 - min(levels)


def test_vectors_of_all_levels_count_voxels_of_the_full_grid_and_add_up():
    network = LocalNet(2)
    for number, head in enumerate(network.heads):
        with torch.no_grad():
            head.convolution.bias.copy_(torch.tensor([1.0, -2.0, 0.5]) * 10.0**number)
    found = network(*images())
    expected = 11111.0 * torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1, 1)
    assert torch.allclose(found, expected.expand_as(found), rtol=1e-5)


def test_every_weight_learns():
    torch.manual_seed(0)
    network = channels_last(LocalNet(2))
    for head in network.heads:
        torch.nn.init.normal_(head.convolution.weight, 0.0, 0.1)
    network(*images(2)).square().mean().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_upsampling_is_additive():
    block = UpBlock(2).eval()
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    features, skip = torch.rand(1, 4, 2, 3, 4), torch.rand(1, 2, 4, 6, 8)
    # Without what it learns, the enlarged halves and the skip remain.
    features[:, :, :, :, :] = torch.arange(4.0).view(1, 4, 1, 1, 1)
    expected = skip + torch.tensor([2.0, 4.0]).view(1, 2, 1, 1, 1)
    assert torch.allclose(block(features, skip), expected)


def test_knows_fixed_from_moving():
    torch.manual_seed(1)
    network = LocalNet(2).eval()
    for head in network.heads:
        torch.nn.init.normal_(head.convolution.weight, 0.0, 0.1)
    fixed, moving = images()
    assert (network(fixed, moving) - network(moving, fixed)).abs().max() > 1e-3


def test_the_published_width():
    network = LocalNet(32)
    assert [b.first.convolution.out_channels for b in network.encoder.residual] == [
        32,
        64,
        128,
        256,
    ]
    assert network.encoder.deep.convolution.out_channels == 512
    assert [e.convolution.kernel_size[0] for e in network.encoder.enter] == [7, 3, 3, 3]


def test_the_affine_network_begins_with_the_identity_and_learns():
    torch.manual_seed(0)
    network = GlobalNet(2)
    found = network(*images(2))
    assert torch.allclose(found, torch.eye(4).expand(2, 4, 4))
    torch.nn.init.normal_(network.numbers.weight, 0.0, 0.1)
    network(*images(2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_affine_numbers():
    numbers = torch.zeros(1, 12)
    numbers[0, 1] = 0.2  # the first axis grows along the second
    numbers[0, 9:] = torch.tensor([0.05, 0.0, -0.1])
    matrix = linear_map(numbers, SHAPE)[0]
    middle = torch.tensor([7.5, 23.5, 15.5])
    shift = torch.tensor([1.0, 0.0, -2.0])
    assert torch.allclose(matrix[:3, :3] @ middle + matrix[:3, 3], middle + shift, atol=1e-5)
    point = middle + torch.tensor([0.0, 10.0, 0.0])
    moved = matrix[:3, :3] @ point + matrix[:3, 3]
    assert torch.allclose(moved, point + shift + torch.tensor([2.0, 0.0, 0.0]), atol=1e-5)


def test_the_deformable_network_sees_what_the_affine_one_moved():
    network = RegistrationNet(2, (2,), 2).eval()
    with torch.no_grad():
        network.affine.numbers.bias[9:] = torch.tensor([0.0, 2.0, 0.0])  # 0.1 * 20 * 2 = 4 voxels
    seen = []
    network.local.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    fixed, moving = images()
    found = network(fixed, moving)
    assert found.matrix[0, :3, 3].tolist() == pytest.approx([0.0, 4.0, 0.0], abs=1e-5)
    assert torch.equal(seen[0][0], fixed)
    assert torch.allclose(seen[0][1][:, :, :, :-4], moving[:, :, :, 4:], atol=1e-5)


@pytest.mark.parametrize(("local", "affine"), [(2, None), (None, 2), (2, 2)])
def test_parts(local, affine):
    found = RegistrationNet(local, (1, 4), affine)(*images())
    assert (found.displacement is None) == (local is None)
    assert (found.matrix is None) == (affine is None)


def test_half_precision_keeps_maps_exact():
    torch.manual_seed(0)
    network = RegistrationNet(2, (2, 4), 2).eval()
    with torch.no_grad():
        network.affine.numbers.bias[9:] = 1.0
    pair = images()
    with torch.autocast("cpu", torch.bfloat16):
        found = network(*pair)
    assert found.matrix.dtype == found.displacement.dtype == torch.float32
    assert found.matrix[0, :3, 3].tolist() == pytest.approx([2.0] * 3, abs=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ParameterError, match="levels"):
        LocalNet(2, (0, 5))
    with pytest.raises(GeometryError, match="multiples of 16"):
        LocalNet(2)(*torch.rand(2, 1, 1, 16, 24, 16))
