"""Kernels against a slow transform, and what geodesics must keep: energy, inverses, no folds."""

import math

import numpy as np
import pytest
import torch
from support import make_grid, smooth_displacement

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.field import compose_displacements, fade_window
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.momentum import (
    Momentum,
    MomentumSpace,
    carried_momentum,
    geodesic,
    shoot,
    time_steps,
)
from DeepRegLib.geometry.sampling import sample
from DeepRegLib.geometry.velocity_kernels import FluidKernel, GaussianKernel

KERNELS = {
    "gaussian": GaussianKernel((7.0, 4.0), (0.5, 2.0)),
    "fluid": FluidKernel(),
    "compressible": FluidKernel(alpha=0.02, beta=0.3, gamma=0.002, power=1),
}


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


def tiny(shape=(5, 4, 6)):
    return make_grid("oblique", shape, (2.0, 3.0, 1.5))


def flow(kernel, longest_voxel, shape=(33, 41, 27), rim=6, seed=0):
    """A space and a smooth momentum whose velocity is that long at first."""
    space = MomentumSpace(kernel, make_grid("oblique", shape, (2.0, 1.6, 3.0)), rim)
    momentum = smooth_displacement(shape, sigma=2.0, seed=seed)
    speed = (space.velocity(momentum) / space.spacing).norm(dim=1).max()
    return space, momentum * (longest_voxel / speed)


def slow_response(kernel, wave):
    """K at one wave vector as the inverse of a 3 x 3 matrix."""
    square = float(wave @ wave)
    if isinstance(kernel, GaussianKernel):
        return sum(
            w * math.exp(-0.5 * s * s * square) for s, w in zip(kernel.widths_mm, kernel.weights)
        ) * np.eye(3)
    operator = (kernel.alpha * square + kernel.gamma) * np.eye(3)
    operator += kernel.beta * np.outer(wave, wave)
    return np.linalg.matrix_power(np.linalg.inv(operator), kernel.power)


def test_the_kernel_is_that_of_a_dense_transform(kernel):
    """Every wave number of the padded grid, by explicit sums, in float64."""
    grid = tiny()
    space = MomentumSpace(kernel, grid, rim=2, dtype=torch.float64)
    momentum = torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(2)).double()
    window = fade_window(grid.shape, 2).double().numpy()[0, 0]
    size = space._size
    padded = np.zeros((3, *size))
    a, b, c = grid.shape
    padded[:, :a, :b, :c] = momentum.numpy()[0] * window
    transforms = [np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) for n in size]
    spectrum = np.einsum("xa,yb,zc,iabc->ixyz", *transforms, padded)
    axes = [2 * np.pi * np.fft.fftfreq(n, s) for n, s in zip(size, grid.spacing_mm)]
    for index in np.ndindex(*size):
        wave = np.array([axis[i] for axis, i in zip(axes, index)])
        place = (slice(None), *index)
        spectrum[place] = slow_response(kernel, wave) @ spectrum[place]
    back = [t.conj() / len(t) for t in transforms]
    expected = np.einsum("ax,by,cz,ixyz->iabc", *back, spectrum)
    assert np.abs(expected.imag).max() < 1e-9 * np.abs(expected).max()
    found = space.velocity(momentum).numpy()[0]
    expected = expected.real[:, :a, :b, :c] * window
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())


def test_the_kernel_is_symmetric_and_positive(kernel):
    grid = tiny((6, 5, 7))
    space = MomentumSpace(kernel, grid, rim=2, dtype=torch.float64)
    inside = [s.flatten() for s in torch.meshgrid(*[torch.arange(1, n - 1) for n in grid.shape],
                                                  indexing="ij")]  # fmt: skip
    count = len(inside[0])
    basis = torch.zeros(3 * count, 3, *grid.shape, dtype=torch.float64)
    for c in range(3):
        for k in range(count):
            basis[c * count + k, c, inside[0][k], inside[1][k], inside[2][k]] = 1.0
    matrix = torch.stack([space.velocity(m[None])[0] for m in basis]).flatten(1)
    matrix = matrix @ basis.flatten(1).T
    assert (matrix - matrix.T).abs().max() < 1e-9 * matrix.abs().max()
    assert torch.linalg.eigvalsh(matrix).min() > 0.0


def test_the_kernel_is_as_wide_in_mm_along_every_axis():
    grid = make_grid("LPS", (25, 41, 17), (2.0, 1.25, 3.0))
    space = MomentumSpace(GaussianKernel((5.0,)), grid, rim=1)
    middle = tuple(n // 2 for n in grid.shape)
    momentum = torch.zeros(1, 3, *grid.shape)
    momentum[(0, 1, *middle)] = 1.0
    answer = space.velocity(momentum)[0, 1]
    for axis, spacing in enumerate(grid.spacing_mm):
        moved = list(middle)
        steps = round(6.0 / spacing)
        moved[axis] += steps
        expected = math.exp(-0.5 * (steps * spacing / 5.0) ** 2)
        assert float(answer[tuple(moved)] / answer[middle]) == pytest.approx(expected, rel=0.01)


def test_opposite_sides_do_not_meet():
    """Without zeros in between, the periodic transform would carry it across."""
    grid = make_grid("RAS", (20, 24, 22), (2.0, 2.0, 2.0))
    momentum = torch.zeros(1, 3, *grid.shape)
    momentum[0, 0, 3, 12, 11] = 1.0
    answer = MomentumSpace(GaussianKernel((6.0,)), grid, rim=2).velocity(momentum)[0, 0]
    assert float(answer[17, 12, 11].abs()) < 0.01 * float(answer[3, 12, 11])


def test_energy_is_kept_along_the_geodesic(kernel):
    space, momentum = flow(kernel, 3.0)
    energies = np.array(geodesic(momentum, space).energies)
    assert len(energies) >= 11
    assert np.abs(energies / energies[0] - 1.0).max() < 0.015


def test_the_momentum_obeys_the_equation_of_motion():
    """The closed form along the flow against EPDiff, dm/dt = -(Dv)^T m - (Dm) v - m div v."""
    space, momentum = flow(KERNELS["gaussian"], 3.0)
    dt = 1e-2
    velocity = space.velocity(momentum)
    slope_v = torch.stack([space.slope(velocity, a)[0] for a in range(3)], 1)
    slope_m = torch.stack([space.slope(momentum, a)[0] for a in range(3)], 1)
    expected = -(slope_v * momentum[0][:, None]).sum(0) - (slope_m * velocity).sum(1)
    expected -= momentum[0] * (slope_v[0, 0] + slope_v[1, 1] + slope_v[2, 2])
    # psi = x - v dt to first order; both sides of zero, as a central difference in time.
    later, _ = carried_momentum(-velocity * dt, momentum, space)
    earlier, _ = carried_momentum(velocity * dt, momentum, space)
    found = (later - earlier)[0] / (2 * dt)
    difference = space.velocity((found - expected)[None]).norm()
    assert difference < 0.03 * space.velocity(expected[None]).norm()


def test_forward_and_inverse_undo_each_other(kernel):
    """Composed with cubic interpolation: the linear one errs more than the geodesic does."""
    space, momentum = flow(kernel, 2.0)
    end = geodesic(momentum, space)
    assert end.inverse.norm(dim=1).max() > 1.9
    for outer, inner in ((end.inverse, end.forward), (end.forward, end.inverse)):
        error = (inner + sample(outer, space.identity + inner, "bspline")).norm(dim=1)
        assert error.mean() < 0.005 and error.max() < 0.1
        assert compose_displacements(outer, inner).norm(dim=1).mean() < 0.02
    assert torch.allclose(shoot(momentum, space), end.inverse, atol=1e-5)


def test_large_displacements_do_not_fold_where_added_ones_do():
    """The same momentum as a mere displacement K m folds; its geodesic does not."""
    space, momentum = flow(GaussianKernel((7.0,)), 7.0, shape=(33, 41, 27), seed=4)
    added = -space.velocity(momentum) / space.spacing
    assert (jacobian_determinant(added) <= 0).float().mean() > 1e-3
    end = geodesic(momentum, space)
    assert end.inverse.norm(dim=1).max() > 4.0
    assert jacobian_determinant(end.inverse).min() > 0.0
    assert jacobian_determinant(end.forward).min() > 0.0


def test_a_fast_flow_gets_more_time_steps():
    space, momentum = flow(KERNELS["gaussian"], 1.0)
    assert time_steps(momentum, space, 10) == 10
    assert time_steps(30.0 * momentum, space, 10) > 15


def test_the_rim_rests():
    space, momentum = flow(KERNELS["fluid"], 3.0)
    end = shoot(momentum, space)
    rim = fade_window(space.grid.shape, 1) == 0
    assert end[rim.expand(1, 3, -1, -1, -1)].abs().max() == 0.0


def test_a_single_slice_moves_in_its_plane_only():
    grid = make_grid("oblique", (30, 1, 26), (1.5, 4.0, 2.0))
    space = MomentumSpace(GaussianKernel((5.0,)), grid, 4)
    noise = torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(1))
    momentum = noise * (2.0 / (space.velocity(noise) / space.spacing).abs().max())
    end = geodesic(momentum, space)
    assert end.inverse[:, 1].abs().max() == 0.0
    assert end.inverse[:, 0].abs().max() > 0.5
    assert compose_displacements(end.inverse, end.forward).norm(dim=1).mean() < 0.03


def test_gradients_through_the_time_steps_are_right():
    grid = tiny((7, 6, 8))
    space = MomentumSpace(KERNELS["compressible"], grid, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    momentum, direction, weight = torch.randn(3, 1, 3, *grid.shape, generator=generator).double()
    momentum *= 0.7 / (space.velocity(momentum) / space.spacing).abs().max()
    direction *= momentum.abs().max()
    variable = momentum.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((shoot(variable, space, 3) * weight).sum(), variable)
    step = 1e-6  # sampling is smooth between voxels only
    ends = [(shoot(momentum + k * step * direction, space, 3) * weight).sum() for k in (1, -1)]
    slope = float(ends[0] - ends[1]) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)


def test_preconditioning_undoes_the_kernel_where_it_passes():
    grid = make_grid("RAS", (27, 33, 31), (2.0, 2.0, 2.5))
    space = MomentumSpace(GaussianKernel((2.0,)), grid, 1)
    momentum = smooth_displacement(grid.shape, sigma=2.5) * fade_window(grid.shape, 9)
    back = space.preconditioned(space.velocity(momentum))
    assert (back - momentum).norm() < 0.25 * momentum.norm()


def test_a_momentum_is_a_density_on_any_grid():
    coarse = make_grid("oblique", (20, 24, 18), (4.0, 3.0, 5.0))
    fine = coarse.resized((40, 48, 36))
    kernel = GaussianKernel((12.0,))
    momentum = Momentum(smooth_displacement(coarse.shape, sigma=2.5), coarse)
    spaces = [MomentumSpace(kernel, g, r) for g, r in ((coarse, 3), (fine, 6))]
    there = momentum.on_grid(fine)
    energies = [float(s.energy(m.values)) for s, m in zip(spaces, (momentum, there))]
    assert energies[1] == pytest.approx(energies[0], rel=0.1)


def test_wrong_settings_are_refused():
    with pytest.raises(GeometryError, match="weight"):
        GaussianKernel((3.0, 2.0), (1.0,))
    with pytest.raises(GeometryError, match="above zero"):
        GaussianKernel((3.0, 0.0))
    with pytest.raises(GeometryError, match="gamma"):
        FluidKernel(gamma=0.0)
    with pytest.raises(GeometryError, match="shape"):
        Momentum(torch.zeros(1, 2, 5, 4, 6), tiny())
