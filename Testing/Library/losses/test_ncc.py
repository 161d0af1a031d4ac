import numpy as np
import pytest
import torch

from DeepRegLib.losses.ncc import NCC


def slow_ncc(fixed, moved, mask):
    values = []
    for b in range(fixed.shape[0]):
        for c in range(fixed.shape[1]):
            covariance = np.cov(
                np.stack([fixed[b, c].ravel(), moved[b, c].ravel()]), aweights=mask[b, 0].ravel()
            )
            values.append(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    return 1.0 - np.mean(values)


def test_slow_version(case):
    fixed, moved, mask = case.fixed.numpy(), case.moved.numpy(), case.mask.numpy()
    ones = np.ones_like(mask)
    assert NCC()(case.fixed, case.moved, case.mask).item() == pytest.approx(
        slow_ncc(fixed, moved, mask)
    )
    assert NCC()(case.fixed, case.moved).item() == pytest.approx(slow_ncc(fixed, moved, ones))


@pytest.mark.parametrize("scale, offset", [(1e-6, 0.0), (3.0, -7.0), (1e5, 2e5)])
def test_affine_intensity(scale, offset, case):
    fixed, moved = case.fixed.float(), case.moved.float()
    value, gradient = NCC().value_and_gradient(fixed, moved, case.mask)
    other, other_gradient = NCC().value_and_gradient(fixed, scale * moved + offset, case.mask)
    assert other.item() == pytest.approx(value.item(), abs=1e-4)
    assert (scale * other_gradient - gradient).norm() < 1e-3 * gradient.norm()
    assert NCC()(fixed, -scale * fixed + offset).item() == pytest.approx(2.0, abs=1e-4)
    assert torch.isclose(NCC()(fixed, fixed), torch.zeros(()), atol=1e-5)
