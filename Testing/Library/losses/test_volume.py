"""The descent of volume change, against finite differences of what it descends."""

import numpy as np
import pytest
import torch

from DeepRegLib.geometry.field import compose_displacements, fade_window
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.losses.volume import divergence_descent, volume_descent

SHAPE, SPACING = (36, 30, 26), (1.0, 1.5, 2.5)


def _smooth(seed, amplitude):
    noise = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(seed))
    # At rest over several voxels of rim, where one-sided differences are not adjoint.
    field = gaussian_smooth(noise.double(), 5.0) * fade_window(SHAPE, 12).double() ** 3
    return field * (amplitude / field.abs().max())


def _energy(displacement):
    return float(0.5 * jacobian_determinant(displacement).log().square().sum())


def test_descent_is_the_gradient_for_composition():
    displacement, direction = _smooth(0, 2.0), _smooth(1, 1.0)
    descent = volume_descent(displacement, SPACING)
    # Steepest in mm: the slope along a direction is its product with the descent in mm.
    metric = torch.tensor(SPACING).double().view(1, 3, 1, 1, 1) ** 2
    expected = -float((descent * metric * direction).sum())
    step = 1e-3
    ahead = _energy(compose_displacements(displacement, direction * step))
    behind = _energy(compose_displacements(displacement, direction * -step))
    assert (ahead - behind) / (2 * step) == pytest.approx(expected, rel=0.05)


def test_steps_lower_the_energy_and_leave_rotation_alone():
    displacement = _smooth(2, 3.0)
    before = _energy(displacement)
    for _ in range(20):
        step = volume_descent(displacement, (1.0, 1.0, 1.0)) * 0.1
        displacement = compose_displacements(displacement, step)
    assert _energy(displacement) < 0.5 * before
    index = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in SHAPE), indexing="ij"))
    cos, sin = np.cos(0.3), np.sin(0.3)
    turned = torch.stack([cos * index[0] - sin * index[1], sin * index[0] + cos * index[1],
                          index[2]])  # fmt: skip
    assert float(volume_descent((turned - index)[None], (1.0, 1.0, 1.0)).abs().max()) < 1e-9


def test_divergence_descent_lowers_the_divergence():
    from DeepRegLib.geometry.jacobian import axis_gradient

    def energy(v):
        parts = [axis_gradient(v[:, a : a + 1], a) for a in range(3)]
        return float(0.5 * sum(parts).square().sum())

    velocity, direction = _smooth(3, 2.0), _smooth(4, 1.0)
    metric = torch.tensor(SPACING).double().view(1, 3, 1, 1, 1) ** 2
    expected = -float((divergence_descent(velocity, SPACING) * metric * direction).sum())
    measured = (energy(velocity + 1e-3 * direction) - energy(velocity - 1e-3 * direction)) / 2e-3
    assert measured == pytest.approx(expected, rel=0.02)
