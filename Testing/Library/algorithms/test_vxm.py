"""VoxelMorph: what it minimizes, which way its vectors point, and that it learns."""

import pytest
import torch

from DeepRegLib.algorithms.vxm import SPEC, Algorithm
from DeepRegLib.losses import similarity
from DeepRegLib.losses.kl_velocity import neighbor_energy
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration.trainable import Batch

SMALL = {"encoder": (8, 8, 8), "decoder": (8, 8, 8), "final": (8,), "radius": 2}


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


@pytest.mark.parametrize("shape", [(16, 24, 32), (13, 18, 11)])
def test_begins_with_the_identity_on_any_shape(shape):
    algorithm = make()
    fixed, moving = torch.rand(2, 1, *shape)[:, None]
    found = algorithm.predict(algorithm.build(), fixed, moving, 2.0)
    assert found.displacement.shape == (1, 3, *shape)
    assert found.displacement.abs().max() < 0.01
    assert found.inverse is None and found.linear is None


@pytest.mark.parametrize("name", ["lncc", "mse"])
def test_terms_are_those_of_the_publication(name):
    torch.manual_seed(0)
    field = torch.randn(2, 3, 8, 9, 10)
    fixed, moving = torch.rand(2, 2, 1, 8, 9, 10)
    terms = make(similarity=name, smoothness=0.7).training_loss(
        lambda f, m: field, Batch(fixed, moving, 2.0)
    )
    measure = similarity(name, radius=2) if name == "lncc" else similarity(name)
    assert set(terms) == {"similarity", "smoothness"}
    assert torch.allclose(terms["similarity"], measure(fixed, warped(moving, field)))
    assert torch.allclose(terms["smoothness"], 0.7 * neighbor_energy(field))


@pytest.mark.parametrize("name", ["lncc", "mse"])
def test_learns_a_shift_in_the_right_direction(name, shifted, learn, shift_at_object):
    algorithm = make(similarity=name, smoothness=0.02 if name == "lncc" else 0.001)
    network, first, last = learn(algorithm, shifted)
    u = algorithm.predict(network, shifted.fixed, shifted.moving, 3.0).displacement
    shift = shift_at_object(u.detach(), shifted)
    assert last["similarity"] < 0.8 * first["similarity"]
    assert 1.0 < shift[1] < 3.0 and shift[[0, 2]].abs().max() < 0.5


def test_every_weight_learns(shifted):
    algorithm = make()
    network = algorithm.build()
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    sum(algorithm.training_loss(network, shifted).values()).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_knows_fixed_from_moving():
    torch.manual_seed(1)
    network = make().build()
    torch.nn.init.normal_(network.head.convolution.weight, 0.0, 0.1)
    fixed, moving = torch.rand(2, 1, 1, 16, 16, 16)
    assert (network(fixed, moving) - network(moving, fixed)).abs().max() > 1e-3


def test_the_number_of_channels_is_a_parameter():
    count = [
        sum(p.numel() for p in make(**v).build().parameters()) for v in ({}, {"final": (4, 4)})
    ]
    assert count[0] != count[1]
    full = Algorithm(**SPEC.values()).build()
    assert 290_000 < sum(p.numel() for p in full.parameters()) < 310_000
