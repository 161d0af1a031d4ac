"""Probabilistic multilayer regularization: posteriors, their draws, fusion, and the ablations."""

import pytest
import torch
from torch import nn

from DeepRegLib.algorithms.pmrn import SPEC, Algorithm, Layer
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.field import compose_displacements
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.registration.trainable import Batch, total

SHAPE = (16, 32, 48)
SMALL = {"channels": (4, 4, 6, 6, 8), "draws": 4, "resolution": "half"}


def images(seed=0, shift=3):
    """A pair of smooth random images that lie some voxels apart along the second axis."""
    generator = torch.Generator().manual_seed(seed)
    image = gaussian_smooth(torch.randn(1, 1, *SHAPE, generator=generator), 2.0)
    image = (image - image.min()) / (image.max() - image.min())
    return image, image.roll(shift, dims=3)


def build(spread=0.0, **values):
    torch.manual_seed(0)
    system = Algorithm(**SPEC.values(**{**SMALL, **values}))
    network = system.build()
    if spread:
        for head in network.mean:
            nn.init.normal_(head.convolution.weight, 0.0, spread)
    return system, network


@pytest.mark.parametrize(("resolution", "levels"), [("full", 5), ("half", 4)])
def test_a_posterior_for_each_resolution(resolution, levels):
    _, network = build(resolution=resolution)
    layers = network(*images())
    assert [tuple(layer.mean.shape[2:]) for layer in layers] == [
        tuple(n // 2**level for n in SHAPE) for level in (4, 3, 2, 1, 0)[:levels]
    ]
    for layer in layers:
        assert layer.mean.shape == layer.log_variance.shape
        assert layer.fixed.shape == layer.moving.shape
        assert layer.fixed.shape[2:] == layer.mean.shape[2:]
        assert layer.mean.abs().max() < 0.05


def test_means_build_on_the_coarser_ones():
    _, network = build()
    for head in network.mean:
        nn.init.zeros_(head.convolution.weight)
    with torch.no_grad():
        network.mean[0].convolution.bias[:] = torch.tensor([1.0, 0.0, -1.0])
    coarse, *_, fine = network(*images())
    expected = 8.0 * coarse.mean.mean(dim=(2, 3, 4), keepdim=True).expand_as(fine.mean)
    assert fine.mean.abs().max() > 1.0
    assert torch.allclose(fine.mean, expected, atol=1e-4)


def test_draws_follow_the_posterior():
    torch.manual_seed(0)
    mean, log_variance = torch.full((1, 3, 8, 8, 8), 2.0), torch.full((1, 3, 8, 8, 8), -2.0)
    mean.requires_grad_(), log_variance.requires_grad_()
    drawn = Layer(mean, mean, mean, log_variance).draw()
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.05)
    assert drawn.std().item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.05)
    drawn.square().sum().backward()
    assert mean.grad.abs().min() > 0 and log_variance.grad.abs().max() > 0


def test_fusion_begins_with_the_finest_velocity_and_sees_them_all():
    _, network = build()
    drawn = [torch.randn_like(layer.mean) for layer in network(*images())]
    for velocity in drawn:
        velocity.requires_grad_()
    fused = network.fuse(drawn)
    assert torch.allclose(fused, drawn[-1], atol=1e-2)
    nn.init.normal_(network.fusion[1].convolution.weight)
    network.fuse(drawn).square().sum().backward()
    assert all(velocity.grad.abs().max() > 0 for velocity in drawn)


@pytest.mark.parametrize("values", [{}, {"feature": 0.0}, {"multilayer": False}])
def test_ablations_leave_terms_out(values):
    system, network = build(spread=0.01, **values)
    terms = system.training_loss(network, Batch(*images(), 3.0))
    expected = {"similarity", "feature", "divergence", "smoothness"}
    assert set(terms) == expected - ({"feature"} if values.get("feature") == 0.0 else set())
    terms["divergence"].backward()
    reached = [h.convolution.bias.grad is not None for h in network.log_variance]
    assert reached == [values.get("multilayer", True)] * 3 + [True]


def test_the_prior_holds_for_the_fused_velocity():
    """Whatever the posteriors are, what the fusion adds is kept smooth."""
    system, network = build(spread=0.01)
    rough = system.training_loss(network, Batch(*images(), 3.0))["smoothness"]
    rough.backward()
    assert network.fusion[1].convolution.weight.grad.abs().max() > 0
    stiff, _ = build(spread=0.01, prior=2.0 * system.values["prior"])
    torch.manual_seed(0)
    one = system.training_loss(network, Batch(*images(), 3.0))["smoothness"]
    torch.manual_seed(0)
    other = stiff.training_loss(network, Batch(*images(), 3.0))["smoothness"]
    assert other.item() == pytest.approx(2.0 * one.item(), rel=1e-5)


def test_features_are_compared_whatever_their_size():
    # Features that shrink towards zero must not look as if they agreed better.
    system, network = build(spread=0.01)
    layer = network(*images())[-1]
    velocity = layer.mean.detach()
    apart = system._apart(layer, velocity)
    smaller = Layer(layer.fixed * 0.1, layer.moving * 0.1, layer.mean, layer.log_variance)
    assert float(system._apart(smaller, velocity)) == pytest.approx(float(apart), rel=0.01)
    same = Layer(layer.fixed, layer.fixed, layer.mean, layer.log_variance)
    assert float(system._apart(same, torch.zeros_like(velocity))) < 1e-6 < float(apart)
    # Nor do features learn to agree: the gradient comes through the velocity alone.
    assert not apart.requires_grad
    taped = system._apart(layer, velocity.requires_grad_())
    (gradient,) = torch.autograd.grad(taped, velocity)
    assert gradient.abs().max() > 0


def test_inverse_undoes_the_displacement():
    system, network = build(spread=0.6)
    with torch.no_grad():
        prediction = system.predict(network, *images(), 2.0)
    inner = (slice(None), slice(None), *(slice(4, -4),) * 3)
    there = prediction.displacement[inner].norm(dim=1)
    left = compose_displacements(prediction.displacement, prediction.inverse)[inner].norm(dim=1)
    assert there.mean() > 0.3
    assert left.mean() < 0.1 * there.mean()


def test_uncertainty_grows_with_the_variance_and_is_the_same_each_time():
    system, network = build()
    pair = images()
    with torch.no_grad():
        maps = [system.predict(network, *pair, 2.0).maps["uncertainty_mm"] for _ in range(2)]
        for head in network.log_variance:
            head.convolution.bias += 2.0
        wider = system.predict(network, *pair, 2.0).maps["uncertainty_mm"]
    assert maps[0].shape == (1, 1, *SHAPE)
    assert torch.equal(*maps) and maps[0].min() > 0
    assert float(wider.mean() / maps[0].mean()) == pytest.approx(2.718, rel=0.1)
    system, network = build(draws=0)
    with torch.no_grad():
        assert system.predict(network, *pair, 2.0).maps == {}


def test_learns_a_pair():
    system, network = build(divergence=0.001)
    fixed, moving = images()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    values = []
    for _ in range(40):
        terms = system.training_loss(network, Batch(fixed, moving, 3.0))
        optimizer.zero_grad()
        total(terms).backward()
        optimizer.step()
        values.append(float(terms["similarity"].detach()))
    assert min(values) < 0.85 * values[0]
    with torch.no_grad():
        field = system.predict(network, fixed, moving, 3.0).displacement
    assert field[:, 1, 4:-4, 8:-8, 8:-8].mean() > 0.5, "towards the true 3 voxels, not away"
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_grids_can_be_halved_as_often_as_there_are_resolutions():
    assert Algorithm(**SPEC.values(channels=(4,) * 3)).multiple == 16
    assert Algorithm(**SPEC.values(channels=(4,) * 6)).multiple == 32
    with pytest.raises(ParameterError, match="two resolutions"):
        Algorithm(**SPEC.values(channels=(4,)))
