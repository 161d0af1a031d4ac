"""Geodesics of diffeomorphisms: smoothing kernels, and shooting of an initial momentum.

A geodesic of large deformation diffeomorphic metric mapping (LDDMM) begins at the identity and is
known by its momentum there. The momentum m and the velocity v = K m obey the Euler-Poincaré
equation on diffeomorphisms (EPDiff),

    dm/dt = -(Dv)^T m - (Dm) v - m div v,

whose solution is the coadjoint action m_t = |D psi_t| (D psi_t)^T m_0 o psi_t of the inverse map
psi_t = phi_t^-1. So only the smooth psi has to be integrated, d psi/dt = -D psi v, and never the
momentum, which is as rough as the edges of the image.

References:
    Miller, Trouvé, Younes. Geodesic shooting for computational anatomy. Journal of Mathematical
    Imaging and Vision 24, 2006. doi:10.1007/s10851-005-3624-0 (conservation of momentum).
    Singh, Hinkle, Joshi, Fletcher. A vector momenta formulation of diffeomorphisms for improved
    geodesic regression and atlas construction. ISBI 2013. doi:10.1109/ISBI.2013.6556661.
    Yang, Kwitt, Styner, Niethammer. Quicksilver: fast predictive image registration. NeuroImage
    158, 2017. doi:10.1016/j.neuroimage.2017.07.008 (section 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import GeometryError
from .field import fade_window
from .grid import Grid
from .sampling import apply_matrix, sample, voxel_coordinates
from .velocity_kernels import Kernel

#: Distance in voxels, summed over the axes, that one time step may cover: RK4 with differences of
#: fourth order is stable to about 2.
_LONGEST_STEP = 1.5
#: Most time steps, however fast the flow.
_MOST_STEPS = 60
#: Smallest share of the largest response of the kernel that preconditioning inverts.
_FLOOR = 1e-2


class MomentumSpace:
    """A kernel on a grid: turns momenta into velocities, and measures them.

    Convention:
        Momenta, velocities and displacements are (1, 3, *grid.shape) with component c along tensor
        axis c. Velocities are in mm per unit time; momenta are densities per mm³ in the units in
        which <m, K m> is an energy. Wave numbers are radians per mm, so the kernel is as wide in
        mm along each axis of an anisotropic grid. Axes of one voxel have no component.

        The operator is K = W G W with the kernel G and a window W that falls to zero at the rim:
        symmetric and positive, so EPDiff keeps its energy, while no flow crosses the rim. Zeros
        are added as wide as the kernel reaches, so that opposite sides do not meet.

    Args:
        kernel: The kernel.
        grid: Where momenta live.
        rim: Thickness of the rim in voxels.
        device: Where to compute.
        dtype: Precision.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: Grid,
        rim: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.grid, self.kernel = grid, kernel
        self.spacing = torch.tensor(grid.spacing_mm, device=device, dtype=dtype).view(1, 3, 1, 1, 1)
        self.identity = voxel_coordinates(grid.shape, device, dtype)
        active = torch.tensor([float(n > 1) for n in grid.shape], device=device, dtype=dtype)
        window = fade_window(grid.shape, rim, device).to(dtype)
        self._window = window * active.view(1, 3, 1, 1, 1)
        self._size = [
            n if n == 1 else _odd_size(n + min(math.ceil(kernel.reach_mm / s), n))
            for n, s in zip(grid.shape, grid.spacing_mm)
        ]
        wave = _wave_numbers(self._size, grid.spacing_mm)
        square = wave.square().sum(0, keepdim=True)
        across, along = kernel.response(square)
        floor = _FLOOR * float(across.max())
        unit = wave / square.clamp(min=1e-30).sqrt()
        self._unit = None if torch.equal(across, along) else unit.to(device, dtype)
        self._across, self._along = across.to(device, dtype), along.to(device, dtype)
        self._back = [(1.0 / (r + floor)).to(device, dtype) for r in (across, along)]

    def velocity(self, momentum: Tensor) -> Tensor:
        """Returns K m; differentiable, and its own adjoint."""
        return _Linear.apply(momentum, self._smooth, self._smooth)  # type: ignore[no-any-return]

    def preconditioned(self, gradient: Tensor) -> Tensor:
        """Applies a bounded inverse of the kernel, symmetric and positive.

        The derivative of an objective by m is a velocity K f. The steepest descent in the metric
        of the velocities is K^-1 of it, f: the step of the velocity is then K f, the Sobolev
        gradient. Responses below a hundredth of the largest are hardly inverted: there
        interpolation errors would be blown up.
        """
        return self._filtered(gradient, *self._back)

    def energy(self, momentum: Tensor) -> Tensor:
        """Returns <m, K m> / 2, an integral over mm³."""
        density = (momentum * self.velocity(momentum)).sum()
        return 0.5 * self.grid.voxel_volume_mm3 * density

    def slope(self, vectors: Tensor, axis: int) -> Tensor:
        """Derivative along a tensor axis per mm, of fourth order, with zeros outside."""
        if self.grid.shape[axis] == 1:
            return torch.zeros_like(vectors)
        step = self.grid.spacing_mm[axis]
        return _Linear.apply(  # type: ignore[no-any-return]
            vectors,
            lambda f: _central(f, axis).div_(step),
            lambda f: _central(f, axis).div_(-step),
        )

    def _smooth(self, momentum: Tensor) -> Tensor:
        return self._filtered(momentum * self._window, self._across, self._along) * self._window

    def _filtered(self, vectors: Tensor, across: Tensor, along: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(vectors, s=self._size, dim=(2, 3, 4))
        if self._unit is None:
            spectrum *= across
        else:
            lengthwise = (spectrum[0] * self._unit).sum(0, keepdim=True)
            spectrum = spectrum * across + (lengthwise * (along - across)) * self._unit
        a, b, c = self.grid.shape
        return torch.fft.irfftn(spectrum, s=self._size, dim=(2, 3, 4))[:, :, :a, :b, :c]


@dataclass(frozen=True, eq=False)
class Momentum:
    """A momentum and the grid that it lives on; see `MomentumSpace` for its convention."""

    values: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        if len(shape) != 5 or shape[1] != 3 or shape[2:] != self.grid.shape:
            raise GeometryError(
                f"A momentum on {self.grid} has the shape (1, 3, *grid.shape), but got {shape}."
            )

    def on_grid(self, grid: Grid) -> Momentum:
        """Returns the momentum on a grid with parallel axes, zero where it was not known.

        A density in mm keeps its values when voxels change their size.
        """
        if grid.matches(self.grid):
            return Momentum(self.values, grid)
        where = voxel_coordinates(grid.shape, self.values.device, self.values.dtype)
        where = apply_matrix(grid.voxel_to_voxel(self.grid), where)
        return Momentum(sample(self.values, where, padding="fill"), grid)


@dataclass(frozen=True, eq=False)
class Geodesic:
    """The end of a geodesic.

    Convention:
        Displacements are (1, 3, *grid.shape) in voxels of the grid of the momentum.

    Args:
        inverse: Displacement of phi^-1, which pulls the image that the momentum belongs to.
        forward: Displacement of phi, which pulls images back to the space of the momentum.
        energies: Energy at the start and after each time step; constant but for rounding.
    """

    inverse: Tensor
    forward: Tensor
    energies: tuple[float, ...]


def shoot(momentum: Tensor, space: MomentumSpace, steps: int = 10) -> Tensor:
    """Returns the displacement of phi^-1 at the end of the geodesic of a momentum.

    Differentiable; each time step is computed again when gradients are taken, so that memory holds
    one step and not all.

    Args:
        momentum: Initial momentum (1, 3, *grid.shape); see `MomentumSpace`.
        space: The kernel on the grid.
        steps: Least number of time steps; a fast flow gets more.

    Returns:
        Displacement (1, 3, *grid.shape) in voxels, zero at the rim.
    """
    count = time_steps(momentum, space, steps)

    def rate(state: Tensor, start: Tensor) -> Tensor:
        return _inverse_rate(state, start, space)[0]

    def step(state: Tensor, start: Tensor) -> Tensor:
        return _runge_kutta(lambda s: rate(s, start), state, 1.0 / count)

    state = torch.zeros_like(momentum)
    for _ in range(count):
        if momentum.requires_grad and torch.is_grad_enabled():
            state = checkpoint(step, state, momentum, use_reentrant=False)
        else:
            state = step(state, momentum)
    return state / space.spacing


def geodesic(momentum: Tensor, space: MomentumSpace, steps: int = 10) -> Geodesic:
    """Shoots a momentum and follows both the inverse and the forward map.

    Args:
        momentum: Initial momentum (1, 3, *grid.shape); see `MomentumSpace`.
        space: The kernel on the grid.
        steps: Least number of time steps; a fast flow gets more.
    """
    with torch.no_grad():
        count = time_steps(momentum, space, steps)

        def rate(state: Tensor) -> Tensor:
            inverse, velocity = _inverse_rate(state[:, :3], momentum, space)
            where = space.identity + state[:, 3:] / space.spacing
            return torch.cat([inverse, _sample_smoothly(velocity, where)], dim=1)

        state = torch.cat([torch.zeros_like(momentum)] * 2, dim=1)
        energies = [float(space.energy(momentum))]
        for _ in range(count):
            state = _runge_kutta(rate, state, 1.0 / count)
            energies.append(float(space.energy(carried_momentum(state[:, :3], momentum, space)[0])))
        inverse, forward = state[:, :3] / space.spacing, state[:, 3:] / space.spacing
        return Geodesic(inverse, forward, tuple(energies))


def time_steps(momentum: Tensor, space: MomentumSpace, least: int) -> int:
    """Returns how many time steps keep the integration of a momentum stable."""
    with torch.no_grad():
        speed = (space.velocity(momentum).abs() / space.spacing).sum(1).max()
    longest = float(speed)
    if not math.isfinite(longest):
        return least
    return max(least, min(_MOST_STEPS, math.ceil(longest / _LONGEST_STEP)))


def carried_momentum(
    inverse_mm: Tensor, momentum: Tensor, space: MomentumSpace
) -> tuple[Tensor, Tensor]:
    """Returns |D psi| (D psi)^T m_0 o psi, and D psi as (3 components, 3 axes, *grid.shape).

    Args:
        inverse_mm: psi(x) - x, (1, 3, *grid.shape) in mm along the tensor axes.
        momentum: Initial momentum m_0.
        space: The kernel on the grid.
    """
    slopes = torch.stack([space.slope(inverse_mm, axis)[0] for axis in range(3)], dim=1)
    unit = torch.eye(3, device=slopes.device, dtype=slopes.dtype)
    jacobian = slopes + unit.view(3, 3, 1, 1, 1)
    there = _sample_smoothly(momentum, space.identity + inverse_mm / space.spacing)[0]
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(0) for row in jacobian.unbind(0))
    volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return (volume * (jacobian * there[:, None]).sum(0))[None], jacobian


def _sample_smoothly(values: Tensor, where: Tensor) -> Tensor:
    """Samples with an error of fourth order; linear interpolation would lose energy.

    Between two voxels, at the fraction f, a straight line misses by -f (1 - f) / 2 times the
    second derivative, which is sampled along.
    """
    active = [axis for axis in range(3) if values.shape[2 + axis] > 1]
    curvature = [_curvature(values, axis) for axis in active]
    line, *parts = sample(torch.cat([values, *curvature], dim=1), where).split(3, dim=1)
    for axis, part in zip(active, parts):
        fraction = where[:, axis : axis + 1] - where[:, axis : axis + 1].floor()
        line = line - (0.5 * fraction * (1.0 - fraction)) * part
    return line


def _inverse_rate(
    inverse_mm: Tensor, momentum: Tensor, space: MomentumSpace
) -> tuple[Tensor, Tensor]:
    """Returns d psi/dt = -D psi v in mm, and the velocity v."""
    carried, jacobian = carried_momentum(inverse_mm, momentum, space)
    velocity = space.velocity(carried)
    return -(jacobian * velocity).sum(1)[None], velocity


def _runge_kutta(rate: Callable[[Tensor], Tensor], state: Tensor, step: float) -> Tensor:
    """Makes one time step of fourth order."""
    first = rate(state)
    second = rate(state + (0.5 * step) * first)
    third = rate(state + (0.5 * step) * second)
    fourth = rate(state + step * third)
    return state + (step / 6.0) * (first + 2.0 * (second + third) + fourth)


def _central(vectors: Tensor, axis: int) -> Tensor:
    """Central difference of fourth order per voxel; antisymmetric, as zeros lie outside."""
    dim, size = 2 + axis, vectors.shape[2 + axis]
    padding = [0] * 6
    padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = 2
    wide = F.pad(vectors, padding)
    near = wide.narrow(dim, 3, size) - wide.narrow(dim, 1, size)
    far = wide.narrow(dim, 4, size) - wide.narrow(dim, 0, size)
    return near.mul_(8.0 / 12.0).sub_(far, alpha=1.0 / 12.0)


def _curvature(vectors: Tensor, axis: int) -> Tensor:
    """Second difference per voxel² along an axis, with zeros outside."""
    dim, size = 2 + axis, vectors.shape[2 + axis]
    padding = [0] * 6
    padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = 1
    wide = F.pad(vectors, padding)
    return wide.narrow(dim, 2, size) + wide.narrow(dim, 0, size) - 2.0 * vectors


def _wave_numbers(size: Sequence[int], spacing_mm: Sequence[float]) -> Tensor:
    """Returns the wave vectors of a real transform, (3, *size of the spectrum), float64."""
    axes = [2 * np.pi * np.fft.fftfreq(n, s) for n, s in zip(size[:2], spacing_mm[:2])]
    axes.append(2 * np.pi * np.fft.rfftfreq(size[2], spacing_mm[2]))
    return torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij")))


def _odd_size(least: int) -> int:
    """Returns the next odd number without large prime factors.

    Odd lengths have no wave number of ambiguous sign, which a tensor-valued response needs.
    """
    size = least + 1 - least % 2
    while True:
        rest = size
        for prime in (3, 5, 7, 11):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


class _Linear(torch.autograd.Function):
    """A linear map whose adjoint is known, so that nothing has to be recorded."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.adjoint = adjoint
        return forward(values)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        return ctx.adjoint(slopes[0]), None, None
