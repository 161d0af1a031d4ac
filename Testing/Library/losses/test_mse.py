import numpy as np
import pytest

from DeepRegLib.losses.mse import MSE


def test_slow_version(case):
    fixed, moved, mask = case.fixed.numpy(), case.moved.numpy(), case.mask.numpy()
    total = weight = 0.0
    for b, c, i, j, k in np.ndindex(*fixed.shape):
        w = mask[b, 0, i, j, k]
        total += w * (moved[b, c, i, j, k] - fixed[b, c, i, j, k]) ** 2
        weight += w
    assert MSE()(case.fixed, case.moved, case.mask).item() == pytest.approx(total / weight)
    assert MSE()(case.fixed, case.moved).item() == pytest.approx(((moved - fixed) ** 2).mean())
    assert MSE()(case.fixed, case.fixed).item() == 0.0
