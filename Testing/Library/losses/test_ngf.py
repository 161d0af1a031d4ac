import numpy as np
import pytest
import torch

from DeepRegLib.losses.ngf import NGF

SPACING = (1.5, 0.8, 3.0)


def slow_ngf(fixed, moved, mask, eta):
    values, weights = [], []
    shape = fixed.shape[2:]
    for b, c in np.ndindex(*fixed.shape[:2]):
        inner = np.zeros(shape)
        for where in np.ndindex(*shape):
            cross = [mask[b, 0][where]]
            for axis in range(3):
                for step in (-1, 1):
                    other = list(where)
                    other[axis] += step
                    if 0 <= other[axis] < shape[axis]:
                        cross.append(mask[b, 0][tuple(other)])
            inner[where] = min(cross)
        f, m = (np.stack(np.gradient(x[b, c], *SPACING)) for x in (fixed, moved))
        eta_f, eta_m = (eta or np.average(np.linalg.norm(g, axis=0), weights=inner) for g in (f, m))
        for where in np.ndindex(*shape):
            gf, gm = f[(slice(None), *where)], m[(slice(None), *where)]
            cosine = (gf @ gm) ** 2
            cosine /= (gf @ gf + eta_f**2) * (gm @ gm + eta_m**2)
            values.append(1.0 - cosine)
            weights.append(inner[where])
    return np.average(values, weights=weights)


@pytest.mark.parametrize("eta", [None, 0.05])
def test_slow_version(eta, case):
    fixed, moved, mask = case.fixed.numpy(), case.moved.numpy(), case.mask.numpy()
    mask[:, :, 2:7, 1:6, 2:9] = 1.0
    similarity = NGF(SPACING, eta)
    expected = slow_ngf(fixed, moved, mask, eta)
    assert similarity(case.fixed, case.moved, case.mask).item() == pytest.approx(expected)
    expected = slow_ngf(fixed, moved, np.ones_like(mask), eta)
    assert similarity(case.fixed, case.moved).item() == pytest.approx(expected)


def test_gradient_in_every_voxel(case):
    fixed, moved = (
        case.fixed[:1, :, :4, :2, :6],
        case.moved[:1, :, :4, :2, :6].clone().requires_grad_(True),
    )
    mask = torch.ones_like(case.mask[:1, :, :4, :2, :6])
    mask[:, :, 0] = 0.0
    similarity = NGF(SPACING, eta=0.1)
    for m in (None, mask):
        assert torch.autograd.gradcheck(lambda x, m=m: similarity(fixed, x, m), moved)


@pytest.mark.parametrize("scale, offset", [(1e-4, 0.0), (-3.0, 7.0), (1e3, 2e3)])
def test_affine_intensity(scale, offset, case):
    fixed, moved = case.fixed.float(), case.moved.float()
    value, gradient = NGF(SPACING).value_and_gradient(fixed, abs(scale) * moved + offset)
    expected, expected_gradient = NGF(SPACING).value_and_gradient(fixed, moved)
    assert value.item() == pytest.approx(expected.item(), abs=1e-3)
    assert (abs(scale) * gradient - expected_gradient).norm() < 2e-2 * expected_gradient.norm()


def test_spacing_matters(case):
    assert NGF(SPACING)(case.fixed, case.moved) != NGF()(case.fixed, case.moved)
    # One eta for all units: twice the voxel size halves the gradients.
    double = NGF(tuple(2 * s for s in SPACING), eta=0.05)(case.fixed, case.moved)
    assert double.item() == pytest.approx(NGF(SPACING, eta=0.1)(case.fixed, case.moved).item())


def test_automatic_eta_is_a_constant_in_the_gradient(case):
    def mean_length(image):
        parts = np.gradient(image[0, 0].numpy(), *SPACING)
        return np.linalg.norm(np.stack(parts), axis=0).mean()

    fixed, moved = case.fixed[:1, :1], case.moved[:1, :1]
    moved = moved * (mean_length(fixed) / mean_length(moved))
    one = NGF(SPACING).value_and_gradient(fixed, moved)
    two = NGF(SPACING, eta=mean_length(fixed)).value_and_gradient(fixed, moved)
    assert one[0].item() == pytest.approx(two[0].item()) and torch.allclose(one[1], two[1])
