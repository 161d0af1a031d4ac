"""Probabilistic VoxelMorph: its bound, its inverse, and what its uncertainty means."""

import math

import pytest
import torch

from DeepRegLib.algorithms.vxm_prob import SPEC, Algorithm
from DeepRegLib.geometry.field import fade_window
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.losses.inverse_consistency import inverse_residual
from DeepRegLib.losses.kl_velocity import kl_velocity
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration.trainable import Batch

SMALL = {"encoder": (8, 8, 8), "decoder": (8, 8, 8), "radius": 2}


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


class Fixed:
    """Stands for a network that gives the same posterior for every pair."""

    def __init__(self, mean, log_variance):
        self.mean, self.log_variance = mean, log_variance

    def __call__(self, fixed, moving):
        return self.mean, self.log_variance


def velocity(shape, length, seed=0):
    """Smooth and at rest near the border."""
    noise = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(seed))
    v = gaussian_smooth(noise, 2.0) * fade_window(shape, 4)
    return v * (length / v.norm(dim=1).max())


@pytest.mark.parametrize("shape,half", [((16, 24, 32), (8, 12, 16)), ((13, 18, 11), (7, 9, 6))])
def test_velocity_has_half_the_resolution(shape, half):
    algorithm = make(draws=2)
    fixed, moving = torch.rand(2, 1, *shape)[:, None]
    network = algorithm.build()
    mean, log_variance = network(fixed, moving)
    assert mean.shape == log_variance.shape == (1, 3, *half)
    assert mean.abs().max() < 0.01 and (log_variance + 10).abs().max() < 0.01
    found = algorithm.predict(network, fixed, moving, 2.0)
    assert found.displacement.shape == found.inverse.shape == (1, 3, *shape)
    assert all(m.shape == (1, 1, *shape) for m in found.maps.values())


def test_objective_is_the_evidence_bound_times_twice_the_variance_of_the_noise():
    half, shape, sigma = (5, 6, 7), (10, 12, 14), 0.3
    mean, log_variance = velocity(half, 1.0), torch.full((1, 3, *half), -60.0)
    fixed, moving = torch.rand(2, 1, 1, *shape)
    algorithm = make(similarity="mse", image_sigma=sigma, prior=4.0)
    terms = algorithm.training_loss(Fixed(mean, log_variance), Batch(fixed, moving, 2.0))
    u = algorithm.predict(Fixed(mean, log_variance), fixed, moving, 2.0).displacement
    moved = warped(moving, u)
    voxels = math.prod(shape)
    bound = ((fixed - moved) ** 2).sum() / (2 * sigma**2)
    bound = bound + math.prod(half) * kl_velocity(mean, log_variance, 4.0)
    expected = bound * 2 * sigma**2 / voxels
    assert sum(terms.values()).item() == pytest.approx(expected.item(), rel=1e-4)


def test_draws_from_the_posterior_in_training():
    half, shape = (5, 6, 7), (10, 12, 14)
    posterior = Fixed(torch.zeros(1, 3, *half), torch.zeros(1, 3, *half))
    batch = Batch(*torch.rand(2, 1, 1, *shape), 2.0)
    values = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        values.append(make().training_loss(posterior, batch)["similarity"].item())
    assert values[0] == values[2] != values[1]


@pytest.mark.parametrize("length", [1.0, 2.0])
def test_inverse_undoes_and_nothing_folds(length):
    half, shape = (14, 16, 18), (28, 32, 36)
    posterior = Fixed(velocity(half, length), torch.full((1, 3, *half), -8.0))
    images = torch.rand(2, 1, 1, *shape)
    found = make(draws=0).predict(posterior, *images, 2.0)
    miss = inverse_residual(found.displacement, found.inverse).norm(dim=1).mean()
    negated = inverse_residual(found.displacement, -found.displacement).norm(dim=1).mean()
    assert miss < 0.05 and negated > 4 * miss
    assert (jacobian_determinant(found.displacement) > 0).all()
    assert found.displacement.norm(dim=1).max() > length  # in voxels twice as fine


def test_enlarged_displacement_points_as_far_in_mm():
    half = (6, 7, 8)
    mean = torch.zeros(1, 3, *half)
    mean[:, 1] = 1.5  # of the coarse voxels, everywhere
    found = make().predict(
        Fixed(mean, torch.full_like(mean, -20.0)), *torch.rand(2, 1, 1, 12, 14, 16), 2.0
    )
    middle = found.displacement[0, :, 6, 5, 8]
    assert torch.allclose(middle, torch.tensor([0.0, 3.0, 0.0]), atol=1e-4)
    assert torch.allclose(found.inverse[0, :, 6, 8, 8], -middle, atol=1e-4)


def test_uncertainty_is_in_mm():
    half, spacing, deviation = (8, 9, 10), 2.5, 0.05
    log_variance = torch.full((1, 3, *half), 2 * math.log(deviation))
    posterior = Fixed(torch.zeros(1, 3, *half), log_variance)
    images = torch.rand(2, 1, 1, 16, 18, 20)
    expected = math.sqrt(3) * deviation * 2 * spacing  # coarse voxels are two fine ones
    found = make(draws=200).predict(posterior, *images, spacing)
    assert found.maps["velocity_deviation_mm"].mean().item() == pytest.approx(expected)
    # Small velocities are the displacements themselves, but for their interpolation.
    spread = found.maps["uncertainty_mm"]
    assert spread.mean().item() == pytest.approx(expected, rel=0.1)
    assert found.values["uncertainty_mean_mm"] == pytest.approx(spread.mean().item())
    plain = make(draws=0).predict(posterior, *images, spacing)
    assert torch.equal(plain.maps["uncertainty_mm"], found.maps["velocity_deviation_mm"])


def test_uncertainty_shows_where_the_posterior_is_wide_and_repeats():
    half = (8, 9, 30)
    log_variance = torch.full((1, 3, *half), -8.0)
    log_variance[:, :, :, :, 15:] = -3.0
    posterior = Fixed(velocity(half, 1.0), log_variance)
    images = torch.rand(2, 1, 1, 16, 18, 60)
    before = torch.get_rng_state()
    first = make(draws=20).predict(posterior, *images, 2.0).maps["uncertainty_mm"]
    again = make(draws=20).predict(posterior, *images, 2.0).maps["uncertainty_mm"]
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert first[..., 45:].mean() > 5 * first[..., :15].mean()


@pytest.mark.parametrize("name", ["mse", "lncc"])
def test_learns_a_shift_in_the_right_direction(name, shifted, learn, shift_at_object):
    sigma = 0.02 if name == "mse" else 0.1
    algorithm = make(similarity=name, image_sigma=sigma, prior=1.0, draws=4)
    network, first, last = learn(algorithm, shifted)
    found = algorithm.predict(network, shifted.fixed, shifted.moving, 3.0)
    shift = shift_at_object(found.displacement.detach(), shifted)
    assert last["similarity"] < 0.8 * first["similarity"]
    assert 1.0 < shift[1] < 3.0 and shift[[0, 2]].abs().max() < 0.5
    back = shift_at_object(found.inverse.detach(), Batch(shifted.moving, shifted.fixed, 3.0))
    assert -3.0 < back[1] < -1.0
