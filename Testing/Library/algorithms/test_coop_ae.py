"""The cooperative autoencoder: who learns from whom and when, and what is atypical."""

import json

import pairs
import pytest
import torch
from torch import nn

from DeepRegLib import models, pipeline
from DeepRegLib.algorithms.coop_ae import SPEC, Algorithm, score_mm
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.losses.kl_velocity import neighbor_energy
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.cooperative_net import FieldAutoencoder, shared_gradient
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.networks.optimizer import network_optimizer
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.pair_fit import FitSettings, fit
from DeepRegLib.registration.trainable import Batch
from DeepRegLib.training.augment import smooth_noise

SMALL = {"encoder": (8, 8, 8), "decoder": (8, 8, 8), "final": (8,), "autoencoder": (8, 8),
         "latent": 4, "cells": (3, 4, 3), "lattice": (6, 8, 6)}  # fmt: skip


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


def loud(system, seed=0):
    """A network that moves voxels, in place of one that has learned nothing."""
    torch.manual_seed(seed)
    network = system.build()
    for head in (network.registration.head, network.autoencoder.head):
        nn.init.normal_(head.convolution.weight, 0.0, 0.1)
    return network


class Stands(nn.Module):
    """Stands for a network that finds the same for every pair."""

    def __init__(self, displacement, rebuilt):
        super().__init__()
        self.found = displacement, rebuilt, torch.tensor([[0.5, -1.0]])

    def forward(self, fixed, moving, share=1.0):
        return self.found


def bump(shape, center, axis, length):
    """A displacement along one axis that is largest at a center."""
    where = voxel_coordinates(shape)
    middle = torch.tensor(center).view(1, 3, 1, 1, 1)
    size = length * torch.exp(-((where - middle) / 4.0).square().sum(1, keepdim=True))
    field = torch.zeros(1, 3, *shape)
    field[:, axis : axis + 1] = size
    return field


@pytest.mark.parametrize("shape", [(16, 24, 20), (13, 18, 11)])
def test_begins_with_the_identity_on_any_shape(shape):
    system = make()
    network = system.build()
    with torch.no_grad():
        found = system.predict(network, *torch.rand(2, 1, 1, *shape), 2.0)
    assert found.displacement.shape == (1, 3, *shape) and found.inverse is None
    assert found.displacement.abs().max() < 0.01
    assert found.maps["atypicality_mm"].shape == (1, 1, *shape)
    assert len(found.values["latent_code"]) == 4
    json.dumps(found.values)


def test_the_weights_switch_from_smoothness_to_the_autoencoder():
    system = make(switch=0.5, rest=0.25, smoothness=0.8, cooperation=0.3)
    assert [system.share(f) for f in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    u = torch.randn(1, 3, 8, 9, 10, generator=torch.Generator().manual_seed(0))
    network = Stands(u, 0.5 * u)
    images = torch.rand(2, 1, 1, 8, 9, 10)
    for fraction, weight in ((0.0, 0.8), (0.25, 0.8 * 0.625), (0.5, 0.2), (1.0, 0.2)):
        terms = system.training_loss(network, Batch(*images, 2.0, fraction=fraction))
        assert set(terms) == {"similarity", "smoothness", "autoencoder"}
        expected = weight * neighbor_energy(u).item()
        assert terms["smoothness"].item() == pytest.approx(expected, rel=1e-5)
        distance = 0.3 * (0.5 * u).square().sum(1).mean().item()
        assert terms["autoencoder"].item() == pytest.approx(distance, rel=1e-5)


def test_without_cooperation_it_is_plain_registration_with_smoothness():
    system = make(cooperation=0.0, smoothness=0.8)
    u = torch.randn(1, 3, 8, 9, 10)
    images = torch.rand(2, 1, 1, 8, 9, 10)
    terms = system.training_loss(Stands(u, 0 * u), Batch(*images, 2.0, fraction=1.0))
    assert set(terms) == {"similarity", "smoothness"}
    assert terms["smoothness"].item() == pytest.approx(0.8 * neighbor_energy(u).item(), rel=1e-5)


def test_a_share_of_the_gradient():
    for share, expected in ((0.0, 0.0), (0.25, 0.5), (1.0, 2.0)):
        x = torch.tensor([3.0], requires_grad=True)
        shared = shared_gradient(x, share)
        assert shared.item() == 3.0
        (2.0 * shared).sum().backward()
        assert x.grad.item() == pytest.approx(expected)


def gradients(fraction):
    """Sizes of the gradients of the autoencoder's term, by part of the network."""
    system = make(switch=0.5)
    network = loud(system)
    batch = Batch(*torch.rand(2, 1, 1, 12, 16, 14, generator=torch.Generator().manual_seed(3)), 2.0,
                  fraction=fraction)  # fmt: skip
    system.training_loss(network, batch)["autoencoder"].backward()
    found = {"registration": 0.0, "autoencoder": 0.0}
    for name, weight in network.named_parameters():
        if weight.grad is not None:
            found[name.split(".")[0]] += float(weight.grad.square().sum())
    return {name: value**0.5 for name, value in found.items()}


def test_the_autoencoder_learns_from_the_beginning_and_leads_later():
    first, half, last = (gradients(f) for f in (0.0, 0.25, 0.5))
    assert first["registration"] == 0.0 < last["registration"]
    assert half["registration"] == pytest.approx(0.5 * last["registration"], rel=1e-3)
    assert first["autoencoder"] == pytest.approx(last["autoencoder"], rel=1e-3)
    assert last["autoencoder"] > 0


def test_every_weight_learns(shifted):
    system = make()
    network = loud(system)
    batch = Batch(shifted.fixed, shifted.moving, 3.0, fraction=1.0)
    sum(system.training_loss(network, batch).values()).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("name", ["lncc", "mse"])
def test_learns_a_shift_in_the_right_direction(name, shifted, learn, shift_at_object):
    weights = {"smoothness": 0.02, "cooperation": 0.02} if name == "lncc" else {
        "smoothness": 0.001, "cooperation": 0.001}  # fmt: skip
    system = make(similarity=name, **weights)
    network, first, last = learn(system, shifted, steps=50)
    with torch.no_grad():
        u = system.predict(network, shifted.fixed, shifted.moving, 3.0).displacement
    shift = shift_at_object(u, shifted)
    assert last["similarity"] < 0.8 * first["similarity"]
    assert 1.0 < shift[1] < 3.0 and shift[[0, 2]].abs().max() < 0.5


def test_atypicality_is_a_distance_in_mm_inside_the_object():
    shape = (6, 7, 8)
    u = torch.zeros(1, 3, *shape)
    u[:, 1] = 2.0
    u[:, 1, :3] = 8.0
    fixed = torch.zeros(1, 1, *shape)
    fixed[:, :, 3:] = 0.7
    found = make().predict(Stands(u, torch.zeros_like(u)), fixed, torch.rand(1, 1, *shape), 2.5)
    assert torch.allclose(found.maps["atypicality_mm"][:, :, 3:], torch.tensor(5.0))
    assert torch.allclose(found.maps["atypicality_mm"][:, :, :3], torch.tensor(20.0))
    assert found.values["atypicality_mm"] == pytest.approx(5.0)
    assert found.values["latent_code"] == [0.5, -1.0]
    # Without an object all voxels count.
    away = found.maps["atypicality_mm"]
    assert score_mm(away, torch.zeros_like(fixed)) == pytest.approx(212.5**0.5)


def test_principal_modes_are_found_in_a_hundred_steps():
    # Smooth random modes of falling size; the code holds the four largest.
    shape, generator = (12, 16, 10), torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 0.8, 0.6, 0.5, 0.1, 0.1])
    modes = smooth_noise(shape, 6, 3, 5.0, generator) * sizes.view(6, 1, 1, 1, 1)

    def population(count):
        return torch.einsum("nk,kcxyz->ncxyz", torch.randn(count, 6, generator=generator), modes)

    def unexplained(part, fields):
        with torch.no_grad():
            rest = part(fields)[0] - fields
        return float(rest.square().sum() / fields.square().sum())

    torch.manual_seed(0)
    part = FieldAutoencoder((8, 8), 4, (3, 4, 3), (6, 8, 5))
    others = population(20)
    assert unexplained(part, others) > 0.8
    muon = network_optimizer("muon", part, list(part.parameters()), 1e-3)
    for step in range(100):
        muon.set_rate(1e-3 * (1.0 - step / 100))
        fields = population(1)
        muon.zero_grad()
        (part(fields)[0] - fields).square().sum(1).mean().backward()
        muon.step()
    assert unexplained(part, others) < 0.25


def test_what_the_population_does_not_do_is_atypical():
    shape = (12, 16, 10)
    torch.manual_seed(0)
    part = FieldAutoencoder((8, 8), 2, (3, 4, 3), (5, 7, 6))
    adam = torch.optim.Adam(part.parameters(), lr=5e-3)
    for _ in range(150):
        lengths = 4.0 * torch.rand(4) - 2.0
        fields = torch.cat([bump(shape, (6.0, 8.0, 5.0), 0, float(n)) for n in lengths])
        loss = (part(fields)[0] - fields).square().sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    system = make(latent=2)
    network = system.build()
    network.autoencoder = part
    fixed = torch.ones(1, 1, *shape)
    usual, code, turned, aside = (
        system.judge(network, field, fixed, 3.0)
        for field in (
            bump(shape, (6.0, 8.0, 5.0), 0, 1.2), bump(shape, (6.0, 8.0, 5.0), 0, -1.2),
            bump(shape, (6.0, 8.0, 5.0), 1, 1.2), bump(shape, (3.0, 12.0, 5.0), 0, 1.2),
        )
    )  # fmt: skip
    assert usual[1].shape == (1, 1, *shape) and usual[0].shape == (1, 2)
    assert turned[2] > 2 * usual[2] and aside[2] > 2 * usual[2]
    assert (usual[0] - code[0]).norm() > 0.1  # opposite fields have different codes


def test_the_population_stays_as_it_is_while_a_pair_is_fitted(shifted):
    system = make()
    network = loud(system)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit(system, network, [shifted], FitSettings(5, 1e-2))
    changed = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    assert changed and all(name.startswith("registration.") for name in changed)


def test_map_and_code_come_back_with_a_registration(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    system = make()
    network = loud(system)
    values = {p.name: system.values[p.name] for p in SPEC.parameters if p.training}
    card = ModelCard("usual", "coop_ae", values, 4.0, (16, 16, 16))
    save_model(tmp_path / "usual.safetensors", network, card)
    pair = pairs.make_pair()
    result = pipeline.run(pair, "+coop_ae", "balanced", {}, "cpu", Progress())
    said = result.provenance["learned"]["coop_ae"]["values"]
    assert len(said["latent_code"]) == 4 and said["atypicality_mm"] > 0
    away = result.extras["atypicality_mm"]
    assert away.grid.matches(pair.fixed.grid) and away.data.min() >= 0
    # The map is in mm: about the score where the object is.
    inside = pair.fixed.data > 20.0
    level = float(away.data[inside].square().mean().sqrt())
    assert level == pytest.approx(said["atypicality_mm"], rel=0.5)


def test_a_lattice_has_three_sizes():
    with pytest.raises(ParameterError, match="three numbers"):
        make(cells=(4, 4))
