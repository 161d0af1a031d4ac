"""Latent diffeomorphic registration: its bound, its codes, and maps that never fold."""

import json
from dataclasses import replace

import pairs
import pytest
import torch

from DeepRegLib import models, pipeline
from DeepRegLib.algorithms.cvae import SPEC, Algorithm, divergence
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import gaussian_smooth, resize_image
from DeepRegLib.geometry.velocity import exponential
from DeepRegLib.losses import similarity
from DeepRegLib.losses.inverse_consistency import inverse_residual
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.blocks import resized_vectors, warped
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.pair_fit import FitSettings, fit
from DeepRegLib.registration.trainable import Batch

SMALL = {"encoder": (8, 8, 4), "decoder": (8, 8), "final": 8, "cells": (3, 4, 3), "latent": 6,
         "smoothing": 1.0, "bound": 4.0}  # fmt: skip


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


def loud(system, spread=1.0, seed=0):
    """A network whose codes lead somewhere, in place of one that has learned nothing."""
    torch.manual_seed(seed)
    network = system.build()
    for head in network.decoder.heads:
        torch.nn.init.normal_(head.convolution.weight, 0.0, spread)
    return network.eval()


class Stands(torch.nn.Module):
    """Stands for a network that finds the same for every pair."""

    def __init__(self, mean, log_variance, velocities):
        super().__init__()
        self.found = mean, log_variance, velocities

    def forward(self, fixed, moving):
        return self.found


def smooth(shape, length, seed):
    noise = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(seed))
    v = gaussian_smooth(noise, 2.0)
    return v * (length / v.norm(dim=1).max())


@pytest.mark.parametrize("shape", [(16, 24, 20), (13, 18, 11)])
def test_begins_with_the_identity_on_any_shape(shape):
    system = make()
    network = system.build().eval()
    fixed, moving = torch.rand(2, 1, 1, *shape)
    mean, log_variance, velocities = network(fixed, moving)
    assert mean.shape == log_variance.shape == (1, 6)
    quarter, half = (tuple(-(-n // smaller) for n in shape) for smaller in (4, 2))
    assert [tuple(v.shape) for v in velocities] == [(1, 3, *quarter), (1, 3, *half)]
    found = system.predict(network, fixed, moving, 2.0)
    assert found.displacement.shape == found.inverse.shape == (1, 3, *shape)
    assert found.displacement.abs().max() < 0.01
    assert len(found.values["latent_code"]) == len(found.values["latent_deviation"]) == 6
    assert found.values["latent_code"] == pytest.approx(mean[0].tolist())
    json.dumps(found.values)


def test_the_published_network():
    system = Algorithm(**SPEC.values())
    network = system.build()
    assert network.encoder.numbers.layers[0].in_features == 6 * 8 * 6 * 4
    assert [h.convolution.in_channels for h in network.decoder.heads] == [32, 32, 16]
    assert not system.in_tiles and system.pair_modules == ("encoder",)


def test_divergence_is_that_of_normal_numbers():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 5)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    p = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(q, p).sum(1).mean()
    assert divergence(mean, log_variance).item() == pytest.approx(expected.item(), rel=1e-5)
    assert divergence(torch.zeros(2, 4), torch.zeros(2, 4)).item() == 0.0


@pytest.mark.parametrize("name", ["lncc", "mse"])
def test_objective_is_symmetric_at_all_resolutions(name):
    velocities = [smooth(s, 1.0, i) for i, s in enumerate([(7, 8, 9), (14, 16, 18)])]
    fixed, moving = torch.rand(2, 1, 1, 28, 32, 36)
    system = make(similarity=name, likelihood=100.0, radius=1)
    found = torch.full((1, 6), 0.5), torch.full((1, 6), -1.0), velocities
    terms = system.training_loss(Stands(*found), Batch(fixed, moving, 2.0))
    measure = similarity(name, radius=1) if name == "lncc" else similarity(name)
    expected = []
    # The finest one is compared at the resolution of the images.
    for v, shape in zip(velocities, [(7, 8, 9), (28, 32, 36)]):
        f, m = (resize_image(image, shape) for image in (fixed, moving))
        there, back = (resized_vectors(exponential(sign * v, 4), shape) for sign in (1, -1))
        expected += [measure(f, warped(m, there)), measure(m, warped(f, back))]
    assert set(terms) == {"similarity", "divergence"}
    assert terms["similarity"].item() == pytest.approx(sum(expected).item() / 4, rel=1e-5)
    kl = divergence(*found[:2]).item() / 100.0
    assert terms["divergence"].item() == pytest.approx(kl, rel=1e-5)
    # The other way round is the same registration, backwards.
    back = Stands(*found[:2], [-v for v in velocities])
    turned = system.training_loss(back, Batch(moving, fixed, 2.0))
    assert turned["similarity"].item() == pytest.approx(terms["similarity"].item(), rel=1e-5)


def test_codes_are_drawn_in_training_and_are_their_mean_in_use():
    system = make()
    network = loud(system)
    batch = Batch(*torch.rand(2, 1, 1, 12, 16, 14), 2.0)

    def loss(training, seed):
        network.train(training)
        torch.manual_seed(seed)
        with torch.no_grad():
            return system.training_loss(network, batch)["similarity"].item()

    assert loss(True, 0) == loss(True, 0) != loss(True, 1)
    assert loss(False, 0) == loss(False, 1)
    network.eval()
    with torch.no_grad():
        code, _ = system.encode(network, batch.fixed, batch.moving)
        there, _ = system.decode(network, code, batch.moving)
        found = system.predict(network, batch.fixed, batch.moving, 2.0)
    assert torch.equal(there, found.displacement)


@pytest.mark.parametrize(("bound", "least", "most"), [(4.0, 4.0, 0.5), (1.0, 0.8, 0.05)])
def test_every_code_decodes_to_a_map_that_can_be_inverted(bound, least, most):
    shape = (24, 28, 20)
    # What random weights give is rougher than anything that a trained decoder does; the inverse
    # of a few squarings misses by more the farther it leads.
    system = make(smoothing=1.5, bound=bound, squarings=4)
    network = loud(system, 3.0)
    codes = 2.0 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    moving = torch.rand(1, 1, *shape).expand(4, -1, -1, -1, -1)
    with torch.no_grad():
        there, back = system.decode(network, codes, moving)
    assert there.norm(dim=1).max() > least and jacobian_determinant(there).min() > 0
    assert jacobian_determinant(back).min() > 0
    inner = (slice(None), slice(None), *(slice(5, -5),) * 3)
    miss = inverse_residual(there, back)[inner].norm(dim=1).mean()
    negated = inverse_residual(there, -there)[inner].norm(dim=1).mean()
    assert miss < most and negated > 3 * miss


def test_smoothing_and_squarings_are_what_prevents_folds():
    codes = 2.0 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    moving = torch.rand(4, 1, 24, 28, 20)
    rough = make(smoothing=0.5, bound=4.0, squarings=1, coarsening=1)
    with torch.no_grad():
        folded, _ = rough.decode(loud(rough, 3.0), codes, moving)
    assert jacobian_determinant(folded).min() < 0


@pytest.mark.parametrize("coarsening", [1, 2])
def test_the_bound_holds_in_voxels_of_the_images_at_each_resolution(coarsening):
    system = make(bound=4.0, decoder=(8, 8, 8), coarsening=coarsening)
    network = system.build().eval()
    for head in network.decoder.heads:
        torch.nn.init.constant_(head.convolution.bias, 50.0)
    moving = torch.rand(1, 1, 16, 24, 32)
    velocities = network.decoder(torch.zeros(1, 6), moving)
    for smaller, velocity in zip((4 * coarsening, 2 * coarsening, coarsening), velocities):
        assert tuple(velocity.shape[2:]) == (16 // smaller, 24 // smaller, 32 // smaller)
        assert torch.allclose(velocity, torch.full_like(velocity, 4.0 / smaller), atol=1e-4)
    there, _ = system.decode(network, torch.zeros(1, 6), moving)
    middle = there[0, :, 4, 10, 14]
    assert torch.allclose(middle, torch.full((3,), 4.0), atol=1e-3)


def test_the_decoder_looks_at_the_moving_image_and_never_at_the_fixed_one():
    system = make()
    network = loud(system)
    code = torch.randn(1, 6, generator=torch.Generator().manual_seed(2))
    one, other = torch.rand(2, 1, 1, 12, 16, 14)
    with torch.no_grad():
        here, there = (system.decode(network, code, image)[0] for image in (one, other))
        again = system.decode(network, code, one)[0]
        apart = system.decode(network, code + 1.0, one)[0]
    assert torch.equal(here, again)
    assert (here - there).abs().max() > 1e-3 and (here - apart).abs().max() > 1e-3


def test_codes_are_single_precision_in_a_training_in_half_precision():
    network = make().build().eval()
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_variance, velocities = network(*torch.rand(2, 1, 1, 12, 16, 14))
    found = [mean, log_variance, *velocities]
    assert all(values.dtype == torch.float32 for values in found)


def test_the_decoder_keeps_the_meaning_of_codes_while_a_pair_is_fitted(shifted):
    system = make()
    network = loud(system, 0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit(system, network, [shifted], FitSettings(5, 1e-2))
    changed = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    assert changed and all(name.startswith("encoder.") for name in changed)


@pytest.mark.parametrize("name", ["lncc", "mse"])
def test_learns_a_shift_in_the_right_direction(name, shifted, learn, shift_at_object):
    system = make(similarity=name, likelihood=1e5)
    network, first, last = learn(system, shifted, steps=40, rate=1e-2)
    network.eval()
    found = system.predict(network, shifted.fixed, shifted.moving, 3.0)
    shift = shift_at_object(found.displacement.detach(), shifted)
    assert last["similarity"] < 0.8 * first["similarity"]
    assert 1.0 < shift[1] < 3.0 and shift[[0, 2]].abs().max() < 0.5
    back = shift_at_object(found.inverse.detach(), Batch(shifted.moving, shifted.fixed, 3.0))
    assert -3.0 < back[1] < -1.0


def test_every_weight_learns(shifted):
    system = make()
    network = loud(system, 0.1).train()
    sum(system.training_loss(network, shifted).values()).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_the_code_travels_with_a_registration(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    system = make()
    network = loud(system, 0.05)
    values = {p.name: system.values[p.name] for p in SPEC.parameters if p.training}
    card = ModelCard("codes", "cvae", values, 4.0, (16, 16, 16))
    save_model(tmp_path / "codes.safetensors", network, card)
    pair = pairs.make_pair()
    result = pipeline.run(pair, "+cvae", "balanced", {}, "cpu", Progress())
    said = result.provenance["learned"]["cvae"]
    code = said["values"]["latent_code"]
    assert said["model"]["name"] == "codes" and len(code) == 6
    assert result.transform.field.displacement.norm(dim=1).max() > 0.05
    assert result.quality["folds_percent"] == 0.0
    json.dumps(result.provenance["learned"])
    # Another pair has another code, the same pair the same one.
    other = replace(pair, moving=replace(pair.moving, data=pair.moving.data.flip(2)))
    again, apart = (
        pipeline.run(p, "+cvae", "balanced", {}, "cpu", Progress()).provenance["learned"]["cvae"]
        for p in (pair, other)
    )
    assert again["values"]["latent_code"] == code != apart["values"]["latent_code"]


def test_a_lattice_has_three_sizes():
    with pytest.raises(ParameterError, match="three numbers"):
        make(cells=(4, 4))
