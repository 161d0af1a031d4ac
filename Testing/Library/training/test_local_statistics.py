"""Covariance with locality, held against the matrix of all voxels on a grid of a few."""

import math

import pytest
import torch

from DeepRegLib.errors import InputError
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.training.local_statistics import LocalCovariance

SHAPE, SPACING = (3, 5, 4), (2.0, 3.0, 4.0)
SIZE = 2 * math.prod(SHAPE)


def deviations(n=4, seed=0, shape=SHAPE, channels=2, sigma=0.0):
    fields = torch.randn(n, channels, *shape, generator=torch.Generator().manual_seed(seed))
    fields = gaussian_smooth(fields, sigma) if sigma else fields
    return fields - fields.mean(0)


def dense(fields, lengths):
    """The damped covariance as a matrix, by its definition."""
    n, channels, *shape = fields.shape
    flat = fields.flatten(1).double()
    sample = flat.T @ flat / (n - 1)
    where = torch.stack(
        torch.meshgrid(*[torch.arange(k) * s for k, s in zip(shape, SPACING)], indexing="ij"), -1
    ).reshape(-1, 3).double()  # fmt: skip
    away = torch.cdist(where, where)
    damping = torch.zeros_like(away)
    for length in lengths:
        damping += torch.exp(-0.5 * (away / length) ** 2) if length else torch.ones_like(away)
    return sample * (damping / len(lengths)).repeat(channels, channels)


@pytest.mark.parametrize("lengths", [(0.0,), (5.0,), (0.0, 9.0, 4.0)])
def test_products_are_those_of_the_matrix(lengths):
    fields = deviations()
    covariance = LocalCovariance(fields, SPACING, lengths)
    expected = dense(fields, lengths)
    found = covariance.apply(torch.eye(SIZE).reshape(SIZE, 2, *SHAPE)).flatten(1).double()
    assert torch.allclose(found, expected, atol=2e-4)
    assert covariance.total == pytest.approx(expected.trace().item(), rel=1e-5)
    if lengths != (0.0,):  # the damping is there
        assert (found - dense(fields, (0.0,))).abs().max() > 0.1


@pytest.mark.parametrize("lengths", [(0.0,), (5.0,), (0.0, 9.0, 4.0)])
def test_samples_have_this_covariance(lengths):
    fields = deviations()
    covariance = LocalCovariance(fields, SPACING, lengths)
    drawn = covariance.draw(40000, torch.Generator().manual_seed(1)).flatten(1).double()
    assert drawn.mean(0).abs().max() < 0.05
    found, expected = drawn.T @ drawn / len(drawn), dense(fields, lengths)
    apart = (found - expected).norm() / expected.norm()
    assert apart < 0.05, apart
    if lengths == (5.0,):
        plain = dense(fields, (0.0,))
        assert (found - plain).norm() / plain.norm() > 0.3


def test_modes_are_those_of_the_matrix():
    fields, lengths = deviations(sigma=0.8), (0.0, 6.0)
    values, modes = LocalCovariance(fields, SPACING, lengths).modes(4)
    expected, vectors = torch.linalg.eigh(dense(fields, lengths))
    expected, vectors = expected.flip(0), vectors.flip(1)
    assert torch.allclose(values.double(), expected[:4], rtol=2e-3)
    for k in range(2):
        along = modes[k].flatten().double() @ vectors[:, k]
        assert abs(along.item()) == pytest.approx(math.sqrt(expected[k]), rel=1e-2)


def test_without_damping_there_are_the_modes_of_the_fields_alone():
    fields = deviations(n=5, shape=(6, 8, 7), sigma=1.0)
    covariance = LocalCovariance(fields, SPACING, (0.0,))
    values, modes = covariance.modes(12)
    flat = fields.flatten(1).double()
    expected = torch.linalg.eigvalsh(flat @ flat.T / 4).flip(0)[:4]
    assert len(values) == 4 and torch.allclose(values.double(), expected, rtol=1e-3)
    assert torch.allclose(modes.flatten(1).square().sum(1), values, rtol=1e-3)
    assert values.sum().item() == pytest.approx(covariance.total, rel=1e-3)
    drawn = covariance.draw(3, torch.Generator().manual_seed(0)).flatten(1).double()
    basis, _ = torch.linalg.qr(flat[:4].T)
    assert torch.allclose(basis @ (basis.T @ drawn.T), drawn.T, atol=1e-4)
    assert covariance.effective_modes() < 4.6


def test_locality_gives_more_freedom_and_parts_far_off_their_own():
    fields = deviations(n=5, shape=(12, 40, 14), sigma=2.0)
    plain = LocalCovariance(fields, (3.0, 3.0, 3.0), (0.0,))
    local = LocalCovariance(fields, (3.0, 3.0, 3.0), (0.0, 30.0, 12.0))
    assert local.effective_modes() > 2 * plain.effective_modes()
    assert len(local.modes(30)[0]) == 30
    assert local.total == pytest.approx(plain.total)
    near_only = LocalCovariance(fields, (3.0, 3.0, 3.0), (12.0,))
    drawn = near_only.draw(500, torch.Generator().manual_seed(2))
    one, other = drawn[:, 0, 6, 3, 7], drawn[:, 0, 6, 36, 7]  # 99 mm apart
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 0.15
    one, other = (plain.draw(500, torch.Generator().manual_seed(2))[:, 0, 6, k, 7] for k in (3, 36))
    expected = (fields[:, 0, 6, 3, 7] * fields[:, 0, 6, 36, 7]).sum() / (
        fields[:, 0, 6, 3, 7].norm() * fields[:, 0, 6, 36, 7].norm()
    )
    assert torch.corrcoef(torch.stack([one, other]))[0, 1].item() == pytest.approx(
        expected.item(), abs=0.15
    )


def test_samples_repeat_and_are_smooth():
    fields = deviations(n=4, shape=(16, 20, 12), sigma=3.0)
    covariance = LocalCovariance(fields, (2.0, 2.0, 2.0), (0.0, 20.0))
    one = covariance.draw(2, torch.Generator().manual_seed(3))
    again = covariance.draw(2, torch.Generator().manual_seed(3))
    other = covariance.draw(2, torch.Generator().manual_seed(4))
    assert torch.equal(one, again) and not torch.equal(one, other)
    rough = one.diff(dim=3).square().mean() / one.square().mean()
    assert rough < 2.5 * fields.diff(dim=3).square().mean() / fields.square().mean()


@pytest.mark.parametrize(
    "fields,lengths", [(deviations(1), (0.0,)), (deviations(), ()), (deviations(), (-1.0,))]
)
def test_what_has_no_statistics_is_refused(fields, lengths):
    with pytest.raises(InputError):
        LocalCovariance(fields, SPACING, lengths)
