"""FAIM: its penalty of folds, the shape of its network, and that it learns."""

import pytest
import torch

from DeepRegLib.algorithms import vxm
from DeepRegLib.algorithms.faim import SPEC, Algorithm
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.losses.kl_velocity import neighbor_energy
from DeepRegLib.registration.trainable import Batch

SMALL = {"kernels": (3, 5), "width_channels": 4, "channels": 8, "radius": 2}


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


@pytest.mark.parametrize("shape", [(16, 24, 32), (13, 18, 11)])
def test_begins_with_the_identity_on_any_shape(shape):
    algorithm = make()
    found = algorithm.predict(algorithm.build(), *torch.rand(2, 1, 1, *shape), 2.0)
    assert found.displacement.shape == (1, 3, *shape)
    assert found.displacement.abs().max() < 0.01


def test_negative_determinants_cost_and_others_do_not():
    torch.manual_seed(0)
    folded = torch.randn(1, 3, 8, 9, 10)
    batch = Batch(*torch.rand(2, 1, 1, 8, 9, 10), 2.0)
    terms = make(folding=3.0, smoothness=0.2).training_loss(lambda f, m: folded, batch)
    det = jacobian_determinant(folded)
    assert (det < 0).any()
    expected = 3.0 * 0.5 * (det.abs() - det).mean()
    assert terms["folding"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(terms["smoothness"], 0.2 * neighbor_energy(folded))
    smooth = make().training_loss(lambda f, m: 0.01 * folded, batch)
    assert smooth["folding"] == 0 and set(smooth) == {"similarity", "smoothness", "folding"}


def test_is_smaller_than_voxelmorph():
    ours = Algorithm(**SPEC.values()).build()
    other = vxm.Algorithm(**vxm.SPEC.values()).build()
    count = [sum(p.numel() for p in n.parameters()) for n in (ours, other)]
    assert count[0] < 0.7 * count[1]


def test_first_layer_sees_as_far_as_its_widest_kernel():
    network = make(kernels=(3, 6), width_channels=1).build()  # even widths grow by one
    widths = [layer.convolution.kernel_size[0] for layer in network.wide]
    assert widths == [3, 7]


@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_learns_a_shift_in_the_right_direction(weight, shifted, learn, shift_at_object):
    algorithm = make(folding=weight, smoothness=0.02)
    network, first, last = learn(algorithm, shifted)
    u = algorithm.predict(network, shifted.fixed, shifted.moving, 3.0).displacement.detach()
    shift = shift_at_object(u, shifted)
    assert last["similarity"] < 0.8 * first["similarity"]
    assert 1.0 < shift[1] < 3.0 and shift[[0, 2]].abs().max() < 0.5


def test_the_penalty_takes_folds_away(learn):
    torch.manual_seed(1)
    batch = Batch(*torch.rand(2, 1, 1, 12, 12, 16), 3.0)  # noise: only folds could match it
    folds = []
    for weight in (0.0, 100.0):
        algorithm = make(folding=weight, smoothness=0.0, similarity="mse")
        network, _, _ = learn(algorithm, batch, steps=30)
        u = algorithm.predict(network, batch.fixed, batch.moving, 3.0).displacement
        folds.append((jacobian_determinant(u.detach()) <= 0).float().mean().item())
    assert folds[0] > 0.005 and folds[1] < 0.2 * folds[0]


def test_every_weight_learns(shifted):
    algorithm = make()
    network = algorithm.build()
    torch.nn.init.normal_(network.head.convolution.weight, 0.0, 0.1)
    sum(algorithm.training_loss(network, shifted).values()).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
