"""The penalty of folds along an axis, voxel by voxel, and what it must not punish."""

import pytest
import torch

from DeepRegLib.losses.folding import axis_folding


def slow(u):
    """The formula as it is written, with loops."""
    total = 0.0
    _, _, *shape = u.shape
    for axis in range(3):
        for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist():
            after = list(index)
            after[axis] += 1
            if after[axis] == shape[axis]:
                continue
            slope = u[0, axis][tuple(after)] - u[0, axis][tuple(index)]
            total += max(0.0, -(slope.item() + 1.0)) * slope.item() ** 2
    return total / (shape[0] * shape[1] * shape[2])


def test_agrees_with_loops():
    torch.manual_seed(0)
    u = 2.0 * torch.randn(1, 3, 3, 4, 5, dtype=torch.float64)
    assert slow(u) > 0.1
    assert axis_folding(u).item() == pytest.approx(slow(u))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbors_that_pass_each_other_cost(axis):
    u = torch.zeros(1, 3, 4, 5, 6)
    where = [0, axis, 2, 2, 2]
    u[tuple(where)] = 1.5  # lies beyond its next neighbor now
    assert axis_folding(u).item() == pytest.approx(0.5 * 1.5**2 / 120)
    u[tuple(where)] = 0.9
    assert axis_folding(u) == 0


@pytest.mark.parametrize("component,axis", [(0, 1), (1, 2), (2, 0), (1, 0)])
def test_shear_and_stretch_are_free(component, axis):
    u = torch.zeros(1, 3, 6, 5, 7)
    ramp = torch.arange(u.shape[2 + axis], dtype=torch.float32)
    view = [1, 1, 1]
    view[axis] = -1
    u[:, component] = -3.0 * ramp.view(view)  # steeper than -1, but across
    assert axis_folding(u) == 0
    stretch = torch.zeros(1, 3, 6, 5, 7)
    stretch[:, 2] = 4.0 * torch.arange(7.0)
    assert axis_folding(stretch) == 0


def test_is_differentiable():
    torch.manual_seed(1)
    u = (2.0 * torch.randn(1, 3, 3, 3, 3, dtype=torch.float64)).requires_grad_(True)
    assert torch.autograd.gradcheck(axis_folding, u)
