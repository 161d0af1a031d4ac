"""Regularisers on fields whose derivatives are known, on an anisotropic grid."""

import pytest
import torch

from DeepRegLib.losses.bending import bending_energy
from DeepRegLib.losses.diffusion import diffusion
from DeepRegLib.losses.jacobian import folding, volume_change

SHAPE, SPACING = (7, 9, 8), (1.5, 0.8, 3.0)


def place_mm():
    axes = [torch.arange(n, dtype=torch.float64) * s for n, s in zip(SHAPE, SPACING)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def in_voxels(vectors_mm):
    return (vectors_mm / torch.tensor(SPACING, dtype=torch.float64).view(3, 1, 1, 1))[None]


def test_diffusion_of_a_linear_map_is_its_squared_norm_whatever_the_spacing():
    matrix = torch.tensor([[0.1, 0.2, 0.0], [-0.3, 0.05, 0.1], [0.0, 0.4, -0.2]]).double()
    field = in_voxels(torch.einsum("ab,bxyz->axyz", matrix, place_mm()))
    assert float(diffusion(field, SPACING)) == pytest.approx(float(matrix.square().sum()))
    assert float(bending_energy(field, SPACING)) == pytest.approx(0.0, abs=1e-15)


def test_bending_energy_of_a_parabola():
    x, y, z = place_mm()
    vectors = torch.stack([0.05 * x * x, 0.0 * y, 0.1 * x * z])
    inner = torch.zeros(1, 1, *SHAPE)
    inner[..., 2:-2, 2:-2, 2:-2] = 1.0
    # Second derivatives: 0.1 for xx, and 0.1 for xz and zx of the third component.
    energy = bending_energy(in_voxels(vectors), SPACING, inner)
    assert float(energy) == pytest.approx(0.01 + 2 * 0.01)


def test_jacobian_terms():
    scale = in_voxels(0.25 * place_mm())
    assert float(folding(scale)) == 0.0
    log = torch.log(torch.tensor(1.25**3)) ** 2
    assert float(volume_change(scale)) == pytest.approx(float(log), rel=1e-6)
    shrink = in_voxels((1 / 1.25 - 1) * place_mm())
    assert float(volume_change(shrink)) == pytest.approx(float(log), rel=1e-6)
    mirror = torch.zeros(1, 3, *SHAPE, dtype=torch.float64)
    mirror[:, 0] = -2.0 * torch.arange(7.0).view(7, 1, 1)
    assert float(folding(mirror)) == pytest.approx(1.0)


@pytest.mark.parametrize("term", [diffusion, bending_energy])
def test_mask_and_gradient(term):
    field = torch.randn(1, 3, 5, 6, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(1, 1, 5, 6, 4)
    mask[..., :2, :, :] = 1.0
    assert torch.autograd.gradcheck(lambda u: term(u, SPACING, mask), field)
    (slope,) = torch.autograd.grad(term(field, SPACING, mask), field)
    assert float(slope[..., 4:, :, :].abs().max()) == 0.0 < float(slope.abs().max())


def test_jacobian_gradients():
    field = 0.4 * torch.randn(1, 3, 4, 5, 6, dtype=torch.float64)
    field.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda u: folding(u, least=0.8), field)
    assert torch.autograd.gradcheck(lambda u: volume_change(0.2 * u), field)
