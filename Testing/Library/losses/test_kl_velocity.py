"""The divergence from the smooth prior, against normal distributions written out in full."""

import itertools

import pytest
import torch

from DeepRegLib.losses.kl_velocity import kl_velocity, neighbor_count, neighbor_energy

SHAPE = (2, 3, 4)


def laplacian(shape):
    """L = D - A of the graph of six neighbors, voxel by voxel."""
    voxels = list(itertools.product(*(range(n) for n in shape)))
    matrix = torch.zeros(len(voxels), len(voxels), dtype=torch.float64)
    for i, a in enumerate(voxels):
        for j, b in enumerate(voxels):
            if sum(abs(x - y) for x, y in zip(a, b)) == 1:
                matrix[i, j] -= 1.0
                matrix[i, i] += 1.0
    return matrix


def velocity(seed, shape=SHAPE, batch=1):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(batch, 3, *shape, generator=generator, dtype=torch.float64)
    return mean, torch.randn(batch, 3, *shape, generator=generator, dtype=torch.float64) - 1.0


def full_divergence(mean, log_variance, weight, ridge=1e-7):
    """KL of multivariate normals; the ridge makes the prior proper, and only adds a constant."""
    n = mean[0, 0].numel()
    precision = weight * laplacian(mean.shape[2:]) + ridge * torch.eye(n, dtype=torch.float64)
    total = 0.0
    for c in range(3):
        q = torch.distributions.MultivariateNormal(
            mean[0, c].reshape(-1), torch.diag(log_variance[0, c].reshape(-1).exp())
        )
        zero = torch.zeros(n, dtype=torch.float64)
        p = torch.distributions.MultivariateNormal(zero, precision_matrix=precision)
        total += torch.distributions.kl_divergence(q, p)
    return total / n


@pytest.mark.parametrize("weight", [0.5, 10.0])
def test_differs_from_the_divergence_of_normals_by_a_constant(weight):
    first, second = velocity(0), velocity(1)
    expected = full_divergence(*first, weight) - full_divergence(*second, weight)
    found = kl_velocity(*first, weight) - kl_velocity(*second, weight)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_energy_is_the_quadratic_form_of_the_laplacian():
    mean, _ = velocity(2)
    matrix = laplacian(SHAPE)
    flat = mean[0].reshape(3, -1)
    expected = sum(v @ matrix @ v for v in flat) / flat.shape[1]
    assert neighbor_energy(mean).item() == pytest.approx(expected.item())


def test_energy_sees_what_central_differences_do_not():
    field = torch.ones(1, 3, 6, 6, 6)
    field[..., 1::2] = -1.0
    assert neighbor_energy(field).item() == pytest.approx(3 * 4.0 * 5 / 6)
    assert neighbor_energy(torch.full((1, 3, 4, 5, 6), 3.0)) == 0


def test_neighbors_are_those_of_the_graph():
    count = neighbor_count(SHAPE)
    assert count.shape == (1, 1, *SHAPE)
    assert torch.equal(count.reshape(-1).double(), laplacian(SHAPE).diagonal())
    assert neighbor_count((1, 1, 3)).reshape(-1).tolist() == [1.0, 2.0, 1.0]


def test_value_is_for_each_voxel_and_pair():
    mean, log_variance = velocity(3)
    twice = kl_velocity(torch.cat([mean, mean]), torch.cat([log_variance, log_variance]), 2.0)
    assert twice.item() == pytest.approx(kl_velocity(mean, log_variance, 2.0).item())


def test_best_variance_is_one_over_weight_times_degree():
    mean = torch.zeros(1, 3, 3, 4, 5, dtype=torch.float64)
    best = -(7.0 * neighbor_count((3, 4, 5))).log().double().expand(1, 3, 3, 4, 5)
    log_variance = best.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(kl_velocity(mean, log_variance, 7.0), log_variance)
    assert slope.abs().max() < 1e-9
    assert kl_velocity(mean, best + 0.1, 7.0) > kl_velocity(mean, best, 7.0)


def test_is_differentiable():
    mean, log_variance = velocity(4, (2, 2, 3))
    inputs = (mean.requires_grad_(True), log_variance.requires_grad_(True))
    assert torch.autograd.gradcheck(lambda m, s: kl_velocity(m, s, 3.0), inputs)
