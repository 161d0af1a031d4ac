"""ICNet: one network for both directions, its bound, and each term of its objective."""

import pytest
import torch

from DeepRegLib.algorithms.icnet import SPEC, Algorithm
from DeepRegLib.losses import similarity
from DeepRegLib.losses.folding import axis_folding
from DeepRegLib.losses.inverse_consistency import inverse_consistency, inverse_residual
from DeepRegLib.losses.kl_velocity import neighbor_energy
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration.trainable import Batch

SMALL = {"channels": 4, "radius": 2}


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


def lively(algorithm, seed=0):
    """A network whose vectors are long."""
    torch.manual_seed(seed)
    network = algorithm.build()
    torch.nn.init.normal_(network.head.convolution.weight, 0.0, 1.0)
    return network


@pytest.mark.parametrize("shape", [(16, 24, 32), (13, 18, 11)])
def test_begins_with_the_identity_on_any_shape(shape):
    algorithm = make()
    found = algorithm.predict(algorithm.build(), *torch.rand(2, 1, 1, *shape), 2.0)
    assert found.displacement.shape == found.inverse.shape == (1, 3, *shape)
    assert found.displacement.abs().max() < 0.01


def test_vectors_are_bounded():
    algorithm = make(reach=2.5)
    found = algorithm.predict(lively(algorithm), *(40 * torch.rand(2, 1, 1, 16, 16, 20)), 2.0)
    longest = found.displacement.abs().max()
    assert 2.0 < longest <= 2.5


def test_one_network_gives_both_directions():
    algorithm = make()
    network = lively(algorithm)
    fixed, moving = torch.rand(2, 1, 1, 16, 16, 24)
    there, back = (
        algorithm.predict(network, *images, 2.0) for images in ((fixed, moving), (moving, fixed))
    )
    assert torch.allclose(there.displacement, back.inverse, atol=1e-4)
    assert torch.allclose(there.inverse, back.displacement, atol=1e-4)
    assert (there.displacement - there.inverse).abs().max() > 0.1
    miss = inverse_residual(there.displacement, there.inverse).norm(dim=1, keepdim=True) * 2.0
    assert torch.allclose(there.maps["inconsistency_mm"], miss)


@pytest.mark.parametrize("name", ["mse", "lncc"])
def test_terms_are_those_of_the_publication(name):
    torch.manual_seed(0)
    fields = {4.0: 2.0 * torch.randn(1, 3, 8, 9, 10), 5.0: 2.0 * torch.randn(1, 3, 8, 9, 10)}

    def network(fixed, moving):  # tells the directions by the brightness of the fixed image
        return torch.cat([fields[round(f.mean().item())] for f in fixed[:, None]])

    fixed, moving = 4.0 + 0.1 * torch.rand(1, 1, 8, 9, 10), 5.0 + 0.1 * torch.rand(1, 1, 8, 9, 10)
    u, w = fields[4.0], fields[5.0]
    algorithm = make(similarity=name, inverse_consistency=0.3, folding=7.0, smoothness=0.2)
    terms = algorithm.training_loss(network, Batch(fixed, moving, 2.0))
    measure = similarity(name, radius=2) if name == "lncc" else similarity(name)
    if name == "mse":
        fixed, moving = ((i - i.mean()) / i.std(correction=0) for i in (fixed, moving))
    both = measure(fixed, warped(moving, u)) + measure(moving, warped(fixed, w))
    assert torch.allclose(terms["similarity"], both)
    assert torch.allclose(terms["inverse_consistency"], 0.3 * inverse_consistency(u, w))
    assert terms["folding"].item() > 0
    assert torch.allclose(terms["folding"], 7.0 * (axis_folding(u) + axis_folding(w)))
    assert torch.allclose(terms["smoothness"], 0.2 * (neighbor_energy(u) + neighbor_energy(w)))


def test_learns_a_shift_in_both_directions(shifted, learn, shift_at_object):
    algorithm = make(smoothness=0.01, inverse_consistency=0.01, folding=10.0, channels=8)
    network, first, last = learn(algorithm, shifted, steps=24, rate=3e-3)
    found = algorithm.predict(network, shifted.fixed, shifted.moving, 3.0)
    assert last["similarity"] < 0.8 * first["similarity"]
    shift = shift_at_object(found.displacement.detach(), shifted)
    back = shift_at_object(found.inverse.detach(), Batch(shifted.moving, shifted.fixed, 3.0))
    assert 1.0 < shift[1] < 3.0 and -3.0 < back[1] < -1.0


def test_the_weight_makes_the_directions_undo_each_other(shifted, learn):
    missed = []
    for weight in (0.0, 0.3):
        algorithm = make(smoothness=0.0, inverse_consistency=weight, folding=0.0, channels=8)
        network, _, _ = learn(algorithm, shifted, steps=16, rate=2e-3)
        found = algorithm.predict(network, shifted.fixed, shifted.moving, 3.0)
        missed.append(found.values["inconsistency_mean_mm"])
    assert missed[1] < 0.5 * missed[0]


def test_has_no_constants_and_every_weight_learns(shifted):
    algorithm = make(folding=0.0)
    network = lively(algorithm)
    assert not [n for n, _ in network.named_parameters() if n.endswith("bias")]
    sum(algorithm.training_loss(network, shifted).values()).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
