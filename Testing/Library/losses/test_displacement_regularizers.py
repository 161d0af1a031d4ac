import itertools

import numpy as np
import pytest
import torch

from DeepRegLib.errors import GeometryError, ParameterError
from DeepRegLib.losses.bending import bending_energy
from DeepRegLib.losses.diffusion import diffusion
from DeepRegLib.losses.jacobian import folding, volume_change

SHAPE, SPACING = (9, 7, 11), (1.5, 0.8, 3.0)
ALL = [diffusion, bending_energy, folding, volume_change]
every = pytest.mark.parametrize("regularizer", ALL, ids=lambda f: f.__name__)


@pytest.fixture
def displacement(noise):
    return 8.0 * noise(2, 3, *SHAPE, seed=5) - 4.0


@pytest.fixture
def mask(case):
    return case.mask


def linear(matrix, shape=SHAPE):
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return torch.einsum("ca,adhw->cdhw", torch.as_tensor(matrix, dtype=torch.float64), x)[None]


def average(density, mask):
    return np.average(density, weights=None if mask is None else mask[:, 0].numpy())


def in_mm(displacement):
    return [displacement[:, c].numpy() * SPACING[c] for c in range(3)]


@pytest.mark.parametrize("use_mask", [False, True])
def test_diffusion(displacement, mask, use_mask):
    mask = mask if use_mask else None
    density = sum(
        np.gradient(u, SPACING[a], axis=1 + a) ** 2 for u in in_mm(displacement) for a in range(3)
    )
    value = diffusion(displacement, SPACING, mask)
    assert value.item() == pytest.approx(average(density, mask))


@pytest.mark.parametrize("use_mask", [False, True])
def test_bending(displacement, mask, use_mask):
    mask = mask if use_mask else None
    density = np.zeros((2, *SHAPE))
    for u, a in itertools.product(in_mm(displacement), range(3)):
        last = SHAPE[a] - 1
        for i in range(SHAPE[a]):
            j = min(max(i, 1), last - 1)
            around = [u.take(j + step, axis=1 + a) for step in (-1, 0, 1)]
            pure = (around[0] - 2 * around[1] + around[2]) / SPACING[a] ** 2
            density[(slice(None),) * (1 + a) + (i,)] += pure**2
        for b in range(a + 1, 3):
            first = np.gradient(u, SPACING[a], axis=1 + a)
            density += 2 * np.gradient(first, SPACING[b], axis=1 + b) ** 2
    value = bending_energy(displacement, SPACING, mask)
    assert value.item() == pytest.approx(average(density, mask))


def slow_determinant(displacement):
    derivative = np.stack(
        [np.stack(np.gradient(u, axis=(1, 2, 3))) for u in displacement.numpy().swapaxes(0, 1)]
    )
    return np.linalg.det(np.moveaxis(derivative, (0, 1), (-2, -1)) + np.eye(3))


@pytest.mark.parametrize("use_mask", [False, True])
def test_jacobian(displacement, mask, use_mask):
    mask = mask if use_mask else None
    determinant = slow_determinant(displacement)
    assert (determinant < 0).any() and (determinant > 2).any()
    below, above = np.maximum(0.1 - determinant, 0), np.maximum(determinant - 2, 0)
    value = folding(displacement, mask, 0.1)
    assert value.item() == pytest.approx(average(below, mask))
    value = folding(displacement, mask, 0.1, 2.0)
    assert value.item() == pytest.approx(average(below + above, mask))
    low = determinant < 0.05
    log = np.where(
        low, np.log(0.05) + (determinant - 0.05) / 0.05, np.log(np.where(low, 1.0, determinant))
    )
    assert volume_change(displacement, mask).item() == pytest.approx(average(log**2, mask))


def test_linear_maps():
    matrix = np.diag([0.1, -0.2, 0.3]) + 0.05
    u = linear(matrix)
    assert bending_energy(u, SPACING).item() == pytest.approx(0.0, abs=1e-20)
    scaled = matrix * np.outer(SPACING, 1 / np.array(SPACING))
    assert diffusion(u, SPACING).item() == pytest.approx((scaled**2).sum())
    determinant = np.linalg.det(np.eye(3) + matrix)
    assert volume_change(u).item() == pytest.approx(np.log(determinant) ** 2)
    assert folding(u).item() == 0.0
    assert diffusion(torch.full((1, 3, 5, 6, 7), 2.5)).item() == 0.0
    # A reflection folds everywhere.
    assert folding(linear(np.diag([-2.0, 0.0, 0.0]))).item() == pytest.approx(1.0)


def test_millimetres_do_not_depend_on_the_sampling():
    """The same field in mm on a grid twice as fine along one axis."""
    a = np.array([[0.1, 0.0, 0.2], [0.0, 0.05, 0.0], [0.0, 0.1, 0.0]])
    fine, coarse = np.array([1.0, 1.0, 1.0]), np.array([1.0, 1.0, 2.0])
    values = [diffusion(linear(a * np.outer(1 / s, s)), tuple(s)).item() for s in (fine, coarse)]
    assert values[0] == pytest.approx(values[1])


@every
def test_gradient(regularizer, noise, case):
    u = (2.0 * noise(1, 3, 4, 3, 5, seed=6) - 1.0).requires_grad_(True)
    mask = case.mask[:1, :, :4, :3, 4:9]
    assert torch.autograd.gradcheck(lambda x: regularizer(x), u)
    assert torch.autograd.gradcheck(lambda x: regularizer(x, mask=mask), u)


@every
@pytest.mark.parametrize("shape", [(1, 6, 7), (6, 1, 1), (2, 2, 2)])
def test_flat_grids(regularizer, shape):
    u = torch.randn(1, 3, *shape, requires_grad=True)
    value = regularizer(u)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(u.grad).all()


@every
def test_half_precision_and_untaped(regularizer, displacement):
    u = (0.1 * displacement).half()
    value = regularizer(u)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(regularizer(u.float().requires_grad_(True)).item())


def test_folds_are_pushed_out():
    u = linear(np.diag([-1.5, 0.0, 0.0])).requires_grad_(True)
    for regularizer in (folding, volume_change):
        (gradient,) = torch.autograd.grad(regularizer(u), u)
        better = u.detach() - 1e-3 * gradient / gradient.norm()
        assert regularizer(better) < regularizer(u) and gradient.abs().max() > 0


@every
def test_shapes_that_do_not_fit(regularizer, displacement, mask):
    for bad in (displacement[:, :2], displacement[0], displacement[:, :1]):
        with pytest.raises(GeometryError, match="displacement"):
            regularizer(bad)
    with pytest.raises(GeometryError, match="mask"):
        regularizer(displacement, mask=mask[..., 1:])


def test_values_that_make_no_sense(displacement):
    for regularizer in (diffusion, bending_energy):
        for spacing in ((1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0)):
            with pytest.raises(ParameterError):
                regularizer(displacement, spacing)
    with pytest.raises(ParameterError):
        folding(displacement, least=1.0, most=0.5)
    with pytest.raises(ParameterError):
        volume_change(displacement, least=0.0)
