"""The network that values actions: its size, and what it says before it learned."""

import pytest
import torch

from DeepRegLib.errors import ParameterError
from DeepRegLib.networks.agent_net import AgentNetwork, _pushes

SMALL = (4, 4, 4, 8, 8)


@pytest.mark.parametrize("size", [16, 32])
def test_twelve_values_of_a_view(size):
    network = AgentNetwork(size, SMALL, (16, 8))
    assert network.dense[0].in_features == 8 * (size // 8) ** 3
    assert [layer.out_features for layer in network.dense] == [16, 8]
    found = network(*torch.rand(2, 3, 1, size, size, size))
    assert found.shape == (3, 12) and found.dtype == torch.float32
    # No action promises anything before anything is learned.
    assert (found < 0).all() and torch.equal(found[:, 0], found[:, 1])


def test_it_tells_places_apart():
    torch.manual_seed(0)
    network = AgentNetwork(32, SMALL, (16, 8))
    torch.nn.init.normal_(network.last.weight, 0.0, 1.0)
    view = torch.zeros(1, 1, 32, 32, 32)
    view[..., 4:10, 4:10, 4:10] = 1.0
    # The same object in another place, by as much as the poolings keep together.
    other = view.roll(16, dims=2)
    assert not torch.allclose(network(view, view), network(other, other), atol=1e-3)


@pytest.mark.parametrize(
    "arguments", [(20, SMALL, (8,)), (8, SMALL, (8,)), (16, (4, 4), (8,)), (16, SMALL, ())]
)
def test_what_does_not_fit_is_refused(arguments):
    with pytest.raises(ParameterError, match="multiple of 8"):
        AgentNetwork(*arguments)


def test_shifts_and_turns_are_told_from_what_is_shown():
    # Averages of the products over places tell both, by a linear map.
    x = torch.stack(torch.meshgrid(*[torch.linspace(-3, 3, 16)] * 3, indexing="ij"))
    fixed = (x[0].sin() + (1.3 * x[1]).cos() + (0.8 * x[2]).sin() * x[0].cos())[None, None]
    shown = []
    for angle in (-0.1, 0.1):
        a, b = x[0] - angle * x[1], x[1] + angle * x[0]
        moved = (a.sin() + (1.3 * b).cos() + (0.8 * x[2]).sin() * a.cos())[None, None]
        shown.append(torch.nn.functional.avg_pool3d(_pushes(fixed, moved), 8).flatten(1))
    # There and back again: the signs of the products follow the turn.
    assert torch.corrcoef(torch.stack([s[0, 16:] for s in shown]).float())[0, 1] < -0.8
    assert shown[0].shape == (1, 5 * 8)
