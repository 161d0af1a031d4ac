"""The bending energy of direct neighbors: against loops, and what it sees."""

import torch

from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.losses.bending import bending_energy
from DeepRegLib.losses.curvature import curvature_energy

SHAPE = (4, 6, 5)


def by_loops(u):
    """Second differences of each component, one after the other, for both orders of the axes."""
    total = 0.0
    steps = torch.eye(3, dtype=torch.int64)
    for a in range(3):
        for b in range(3):
            for x in torch.cartesian_prod(*(torch.arange(n) for n in SHAPE)):
                if a == b:
                    points = [(x + steps[a], 1), (x, -2), (x - steps[a], 1)]
                else:
                    points = [(x + steps[a] + steps[b], 1), (x + steps[a], -1),
                              (x + steps[b], -1), (x, 1)]  # fmt: skip
                if all(0 <= p[i] < SHAPE[i] for p, _ in points for i in range(3)):
                    values = [sign * u[(0, slice(None), *p.tolist())] for p, sign in points]
                    total += float(torch.stack(values).sum(0).square().sum())
    return total / (4 * 6 * 5)


def test_it_is_the_sum_of_all_second_differences():
    u = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert abs(float(curvature_energy(u)) - by_loops(u)) < 1e-3


def test_linear_maps_bend_nothing():
    x = voxel_coordinates(SHAPE, dtype=torch.float64)
    matrix = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.4, -0.1], [0.2, 0.1, -0.3]]).double()
    u = torch.einsum("ij,bjdhw->bidhw", matrix, x) + 3.0
    assert float(curvature_energy(u)) < 1e-20


def test_it_sees_what_alternates_from_voxel_to_voxel():
    signs = (-1.0) ** voxel_coordinates((8, 9, 10)).sum(1, keepdim=True)
    u = signs.expand(1, 3, 8, 9, 10).contiguous()
    inner = bending_energy(u, mask=_inside(u))
    assert float(inner) < 1e-10 and float(curvature_energy(u)) > 10.0


def _inside(u):
    """Where no one-sided difference at the border is involved."""
    mask = torch.zeros_like(u[:, :1])
    mask[:, :, 2:-2, 2:-2, 2:-2] = 1.0
    return mask


def test_the_gradient_lowers_it():
    u = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    value = curvature_energy(u)
    value.backward()
    assert curvature_energy(u.detach() - 0.01 * u.grad) < value.detach()
