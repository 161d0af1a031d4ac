"""There and back: zero for inverses, not for negations, and in the right order."""

import pytest
import torch

from DeepRegLib.geometry.field import fade_window
from DeepRegLib.geometry.inverse import invert_displacement
from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.losses.inverse_consistency import inverse_consistency, inverse_residual


def smooth(seed, shape=(18, 24, 20), length=1.5):
    """Waves of each component across another axis, at rest at the border."""
    generator = torch.Generator().manual_seed(seed)
    x = voxel_coordinates(shape)
    phase = 6.3 * torch.rand(3, generator=generator)
    waves = [torch.sin(0.45 * x[:, (c + 1) % 3] + phase[c]) for c in range(3)]
    return length * torch.stack(waves, 1) * fade_window(shape, 6)


def test_is_small_for_inverses_and_large_for_negations():
    u = smooth(0)
    inverse, _ = invert_displacement(u)
    miss = inverse_residual(u, inverse).norm(dim=1).mean()
    negated = inverse_residual(u, -u).norm(dim=1).mean()
    assert miss < 0.05 and negated > 4 * miss


def test_reads_the_way_back_where_the_first_one_leads():
    shape = (9, 8, 7)
    u = torch.zeros(1, 3, *shape)
    u[:, 0] = 2.0
    w = torch.zeros(1, 3, *shape)
    w[:, 1] = voxel_coordinates(shape)[:, 0]  # how far back depends on the first coordinate
    residual = inverse_residual(u, w)
    assert torch.allclose(residual[0, :, 3, 4, 4], torch.tensor([2.0, 5.0, 0.0]))
    assert torch.allclose(inverse_residual(w, u)[0, :, 3, 4, 4], torch.tensor([2.0, 3.0, 0.0]))


def test_adds_both_orders_and_averages_over_voxels_and_pairs():
    u, w = smooth(1), smooth(2)
    both = [inverse_residual(a, b).square().sum(1).mean() for a, b in ((u, w), (w, u))]
    assert inverse_consistency(u, w).item() == pytest.approx(sum(both).item())
    twice = inverse_consistency(torch.cat([u, u]), torch.cat([w, w]))
    assert twice.item() == pytest.approx(sum(both).item(), rel=1e-5)


def test_both_ways_get_a_gradient():
    u, w = smooth(3).requires_grad_(True), smooth(4).requires_grad_(True)
    slopes = torch.autograd.grad(inverse_consistency(u, w), (u, w))
    with torch.no_grad():
        for field, slope, make in (
            (u, slopes[0], lambda x: inverse_consistency(x, w)),
            (w, slopes[1], lambda x: inverse_consistency(u, x)),
        ):
            step = smooth(5) * 1e-2
            change = (make(field + step) - make(field - step)).item() / 2
            assert change == pytest.approx((slope * step).sum().item(), rel=0.05, abs=1e-6)
