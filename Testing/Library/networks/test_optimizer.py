"""The optimizers of networks: what they do to a matrix, which layers they take, how fast they go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from DeepRegLib.networks.blocks import Convolution, Head, result_layer
from DeepRegLib.networks.optimizer import (
    NetworkOptimizer,
    hidden_weights,
    network_optimizer,
    orthogonal,
)
from DeepRegLib.networks.unet import voxelmorph_unet


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 54), (54, 8), (12, 12)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    matrix = _random(*shape) @ torch.diag(torch.logspace(-1, 1, shape[1]))
    found = orthogonal(matrix)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    mine = torch.linalg.svdvals(found)
    strong = values > 0.05 * values.norm()
    assert values[0] > 3 * values[-1]
    assert mine[strong].min() > 0.6 and mine.max() < 1.3
    # In the basis of the matrix it is still diagonal: only the singular values have changed.
    inside = left.T @ found @ right.T
    torch.testing.assert_close(inside, torch.diag(inside.diag()), atol=1e-4, rtol=0)
    assert (inside.diag() > 0).all()


@pytest.mark.parametrize("shape", [(16, 300), (300, 16), (20, 20)])
def test_the_iteration_is_that_of_the_publication(shape):
    matrix = _random(*shape, seed=1)
    long = (matrix if shape[0] <= shape[1] else matrix.T).double()
    expected = long / long.norm()
    for _ in range(5):
        gram = expected @ expected.T
        expected = 3.4445 * expected + (-4.7750 * gram + 2.0315 * gram @ gram) @ expected
    found = orthogonal(matrix)
    found = found if shape[0] <= shape[1] else found.T
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


def test_the_scale_of_the_gradient_does_not_matter():
    matrix = _random(6, 27)
    torch.testing.assert_close(orthogonal(matrix), orthogonal(1e-6 * matrix), atol=1e-4, rtol=0)


def test_no_gradient_no_change():
    assert torch.equal(orthogonal(torch.zeros(4, 9)), torch.zeros(4, 9))


def test_last_layers_biases_and_norms_are_left_to_adam():
    network = nn.Sequential(
        Convolution(2, 4), nn.BatchNorm3d(4), Convolution(4, 8), Head(8),
        result_layer(nn.Linear(8, 3)),
    )  # fmt: skip
    hidden = hidden_weights(network)
    assert hidden == {id(network[0].convolution.weight), id(network[2].convolution.weight)}
    assert hidden_weights(voxelmorph_unet((4, 8), (8, 8), (4,)))


def test_adam_is_that_of_torch():
    mine = nn.Linear(5, 3)
    other = copy.deepcopy(mine)
    one = network_optimizer("adam", mine, list(mine.parameters()), 0.01)
    two = torch.optim.Adam(other.parameters(), 0.01)
    for step in range(5):
        for network, optimizer in ((mine, one), (other, two)):
            optimizer.zero_grad()
            (network(_random(7, 5, seed=step)) ** 3).mean().backward()
            optimizer.step()
    torch.testing.assert_close(mine.weight, other.weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mine.bias, other.bias, atol=1e-6, rtol=1e-5)


def test_a_step_of_a_hidden_layer_has_the_size_of_the_rate():
    layer = Convolution(3, 4)
    before = layer.convolution.weight.detach().clone()
    optimizer = network_optimizer("muon", layer, list(layer.parameters()), 1e-3)
    layer(_random(1, 3, 5, 6, 7)).square().sum().backward()
    optimizer.step()
    change = (layer.convolution.weight - before).detach().reshape(4, -1)
    values = torch.linalg.svdvals(change)
    assert 0.02 * 0.6 < values.max() < 0.02 * 1.3


def test_weights_without_a_gradient_stay():
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    network = nn.ModuleList([one, two])
    kept = two.weight.detach().clone()
    optimizer = network_optimizer("muon", network, list(network.parameters()), 0.1)
    one(_random(3, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(two.weight, kept)


def test_a_layer_that_had_no_gradient_at_first_learns_later():
    layer = nn.Linear(6, 4, bias=False)
    before = layer.weight.detach().clone()
    optimizer = network_optimizer("muon", layer, [layer.weight], 1e-3)
    for gradient in (torch.zeros(4, 6), torch.zeros(4, 6), _random(4, 6)):
        layer.weight.grad = gradient
        optimizer.step()
    assert float((layer.weight.detach() - before).norm()) > 0.02


def test_one_outlier_does_not_lead_astray():
    """After a gradient a thousand times too large, the next usual ones decide again."""
    layer = nn.Linear(6, 4, bias=False)
    optimizer = network_optimizer("muon", layer, [layer.weight], 1e-3)
    usual, outlier = _random(4, 6), 1000.0 * _random(4, 6, seed=1)
    for gradient in [*[usual] * 30, outlier, usual]:
        layer.weight.grad = gradient.clone()
        before = layer.weight.detach().clone()
        optimizer.step()
    change = before - layer.weight.detach()
    expected = orthogonal(usual) * 0.02
    assert float((change - expected).norm() / expected.norm()) < 0.5


def test_its_state_goes_on():
    network = nn.Sequential(Convolution(1, 4), Head(4))
    again = copy.deepcopy(network)

    def step(net: nn.Module, optimizer: NetworkOptimizer) -> None:
        optimizer.zero_grad()
        (net(_random(1, 1, 6, 5, 4)) - 1).square().mean().backward()
        optimizer.step()

    first = network_optimizer("muon", network, list(network.parameters()), 1e-3)
    for _ in range(4):
        step(network, first)
    other = network_optimizer("muon", again, list(again.parameters()), 1e-3)
    for _ in range(2):
        step(again, other)
    later = network_optimizer("muon", again, list(again.parameters()), 1e-3)
    later.load_state_dict(other.state_dict())
    for _ in range(2):
        step(again, later)
    for one, two in zip(network.parameters(), again.parameters()):
        assert torch.equal(one, two)


def test_an_ill_conditioned_layer_learns_faster_than_with_adam():
    """Inputs of very different size: where Adam of the same steps is still far, Muon has arrived."""
    inputs = _random(256, 16) @ torch.linalg.qr(_random(16, 16, seed=1)).Q
    inputs = inputs @ torch.diag(torch.logspace(0, -2, 16)) @ torch.linalg.qr(_random(16, 16)).Q
    wanted = inputs @ _random(16, 16, seed=2)

    def loss_after(kind: str) -> float:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(16, 16, bias=False))
        optimizer = network_optimizer(kind, network, list(network.parameters()), 5e-3)
        for step in range(300):
            optimizer.set_rate(5e-3 * (1 - step / 300))
            optimizer.zero_grad()
            loss = (network(inputs) - wanted).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    assert loss_after("muon") < 0.2 * loss_after("adam")
