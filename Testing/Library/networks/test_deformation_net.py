"""Modes of deformations, and the network that values steps along them."""

import pytest
import torch

from DeepRegLib.networks.deformation_net import DeformationAgent, DeformationModes

MESH, SHAPE = (2, 3, 2), (12, 18, 14)
LATTICE = (5, 6, 5)


def examples(count=12, seed=0):
    """Examples of three modes of unlike size about a mean."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(3 * 150, 3, generator=generator))[0].T
    sizes = torch.tensor([9.0, 4.0, 1.0])
    scores = torch.randn(count, 3, generator=generator) * sizes
    mean = torch.randn(3 * 150, generator=generator)
    return (mean + scores @ basis).reshape(count, 3, *LATTICE)


def taught(count=5):
    model = DeformationModes(count, MESH)
    model.learn(examples())
    return model


def test_modes_are_principal_components():
    points, model = examples(), taught()
    flat = points.flatten(1)
    assert torch.allclose(model.mean[0], points.mean(dim=0), atol=1e-5)
    modes = model.modes.flatten(1)
    gram = modes @ modes.T
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-3
    # Squared lengths are the variances, and three modes hold all of them.
    variance = (flat - flat.mean(dim=0)).square().sum() / (len(flat) - 1)
    assert gram.diagonal()[:3].sum() == pytest.approx(float(variance), rel=1e-4)
    assert gram.diagonal().tolist() == sorted(gram.diagonal().tolist(), reverse=True)
    assert model.known.tolist() == [True] * 3 + [False] * 2


def test_few_examples_give_few_modes():
    model = DeformationModes(5, MESH)
    assert not model.known.any()
    model.learn(examples(3))
    assert model.known.tolist() == [True, True, False, False, False]


def test_coefficients_come_back_from_the_displacement():
    model = taught(3)
    wanted = torch.tensor([[1.0, -0.5, 2.0], [0.0, 0.0, 0.0]])
    u = model.displacement(wanted, SHAPE)
    assert u.shape == (2, 3, *SHAPE)
    assert torch.allclose(model.coefficients(u), wanted, atol=1e-3)
    # Examples have coefficients of deviation one.
    scores = (examples() - model.mean).flatten(1) @ model.modes.flatten(1).T
    scores = scores / model.modes.flatten(1).square().sum(dim=1)
    assert torch.allclose(scores.std(dim=0), torch.ones(3), atol=1e-4)


def test_without_examples_nothing_moves():
    model = DeformationModes(4, MESH)
    assert not model.displacement(torch.randn(2, 4), SHAPE).any()
    assert not model.coefficients(torch.randn(1, 3, *SHAPE)).any()


@pytest.mark.parametrize("shape", [SHAPE, (16, 16, 16), (33, 20, 48)])
def test_values_for_images_of_any_shape(shape):
    network = DeformationAgent(5, MESH, (4, 4, 8), (16, 8))
    found = network(*torch.rand(2, 2, 1, *shape))
    assert found.shape == (2, 10) and (found < 0).all()
    assert torch.equal(found[:, 0], found[:, 1])


def test_each_image_has_a_stream_of_its_own():
    torch.manual_seed(0)
    network = DeformationAgent(5, MESH, (4, 4, 8), (16, 8))
    torch.nn.init.normal_(network.last.weight, 0.0, 1.0)
    fixed, moved = torch.rand(2, 1, 1, *SHAPE)
    assert not torch.allclose(network(fixed, moved), network(moved, fixed), atol=1e-3)
    assert {"model.mean", "model.modes"} <= set(network.state_dict())
    assert not any(name.startswith("model") for name, _ in network.named_parameters())
