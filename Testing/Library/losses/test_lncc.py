import numpy as np
import pytest
import torch

from DeepRegLib.losses.lncc import LNCC


def slow_lncc(fixed, moved, mask, radius, signed, floor, relative):
    """Window by window, in the words of the definition."""
    values, weights = [], []
    for b, c in np.ndindex(*fixed.shape[:2]):
        f, m, w = fixed[b, c], moved[b, c], mask[b, 0]
        floor_f, floor_m = (
            floor * (np.cov(x.ravel(), aweights=w.ravel(), ddof=0) if relative else 1.0)
            for x in (f, m)
        )
        for where in np.ndindex(*f.shape):
            window = tuple(slice(max(0, i - radius), i + radius + 1) for i in where)
            weight, total = w[window], w[window].sum()
            if total == 0:
                continue
            df = f[window] - (weight * f[window]).sum() / total
            dm = m[window] - (weight * m[window]).sum() / total
            covariance = (weight * df * dm).sum() / total
            variance_f = (weight * df**2).sum() / total + floor_f
            variance_m = (weight * dm**2).sum() / total + floor_m
            correlation = covariance / np.sqrt(variance_f * variance_m)
            values.append(correlation if signed else correlation**2)
            weights.append(w[where])
    return 1.0 - np.average(values, weights=weights)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "radius, floor, relative", [(1, 1e-4, False), (2, 2e-3, True), (4, 0.1, True)]
)
def test_slow_version(radius, floor, relative, signed, case):
    fixed, moved, mask = case.fixed.numpy(), case.moved.numpy(), case.mask.numpy()
    similarity = LNCC(radius, signed, floor, relative)
    for given, used in ((case.mask, mask), (None, np.ones_like(mask))):
        expected = slow_lncc(fixed, moved, used, radius, signed, floor, relative)
        assert similarity(case.fixed, case.moved, given).item() == pytest.approx(expected)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_gradient_in_every_voxel(signed, relative):
    generator = torch.Generator().manual_seed(0)
    fixed, moved = (
        torch.randn(1, 2, 2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    mask = torch.rand(1, 1, 2, 3, 4, generator=generator, dtype=torch.float64)
    mask = torch.where(mask < 0.3, 0.0, mask)
    similarity = LNCC(1, signed, 0.05, relative)
    for m in (mask, None):
        assert torch.autograd.gradcheck(lambda f, g, m=m: similarity(f, g, m), (fixed, moved))


@pytest.mark.parametrize("scale, offset", [(1e-6, 0.0), (3.0, -70.0), (1e4, 2e5), (1e12, 0.0)])
def test_affine_intensity(scale, offset, case):
    fixed, moved = case.fixed.float(), case.moved.float()
    similarity = LNCC(2, floor=2e-3, relative=True)
    value, gradient = similarity.value_and_gradient(fixed, moved, case.mask)
    other, other_gradient = similarity.value_and_gradient(
        scale * fixed + offset, scale * moved + offset, case.mask
    )
    assert other.item() == pytest.approx(value.item(), abs=1e-3)
    assert (scale * other_gradient - gradient).norm() < 1e-2 * gradient.norm()


def test_sign(case):
    inverted = 1.0 - case.fixed
    assert LNCC()(case.fixed, case.fixed).item() == pytest.approx(0.0, abs=0.05)
    assert LNCC()(case.fixed, inverted).item() == pytest.approx(0.0, abs=0.05)
    assert LNCC(signed=True)(case.fixed, inverted).item() == pytest.approx(2.0, abs=0.05)


def test_constant_regions_count_as_uncorrelated(noise):
    image = noise(1, 1, 10, 12, 9, dtype=torch.float32)
    image[..., :6, :, :] = 0.25
    value, gradient = LNCC(1).value_and_gradient(image, image.clone())
    # Windows around the first five planes see nothing but the constant.
    assert value.item() == pytest.approx(0.5, abs=0.05)
    assert torch.isfinite(gradient).all()
    assert gradient[..., :4, :, :].abs().max() < 1e-2 * gradient.abs().max()


def test_no_contrast_beside_a_bright_spot_keeps_its_digits(noise):
    """A large offset and an extreme voxel must not drown local variances in rounding."""
    fixed, moved = (noise(1, 1, 12, 10, 14, seed=s) for s in (1, 2))
    fixed, moved = fixed + 50.0, moved + 50.0
    moved[0, 0, 0, 0, 0] = 60.0
    exact, exact_gradient = LNCC(2).value_and_gradient(fixed, moved)
    value, gradient = LNCC(2).value_and_gradient(fixed.float(), moved.float())
    assert value.item() == pytest.approx(exact.item(), abs=1e-3)
    assert (gradient - exact_gradient).norm() < 1e-2 * exact_gradient.norm()
