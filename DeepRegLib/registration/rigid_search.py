"""Finds the rigid map with the least value of any measure of two images, globally, then exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..networks.composite import moved_by
from .differential_evolution import EvolutionSettings, evolve
from .quasi_newton import minimize
from .rigid_motion import motion_matrix

#: Values (N,) of fixed and moved images (N, 1, *shape); less is better. Differentiable.
Measure = Callable[[Tensor, Tensor], Tensor]

#: Candidates that are computed at once.
_AT_ONCE = 8
#: BFGS may leave the bounds of the global search by this factor.
_SLACK = 1.25
_SEED = 18060


@dataclass(frozen=True)
class SearchSettings:
    """How a rigid map is searched for.

    Args:
        reach_mm: Largest shift along each axis.
        reach_deg: Largest rotation about each axis.
        population: Candidates of a generation of the global search.
        generations: Its generations; 0 leaves it out.
        iterations: Most iterations of BFGS after it.
        passes: Evaluations at small random motions whose mean BFGS minimizes.
        spread: Standard deviation of these motions, in mm and degrees.
    """

    reach_mm: float = 20.0
    reach_deg: float = 15.0
    population: int = 24
    generations: int = 20
    iterations: int = 15
    passes: int = 8
    spread: float = 0.5


class RigidSearch:
    """Differential evolution, then BFGS on a smoothed measure, over the six rigid parameters.

    Haskins et al. 2019, doi:10.1007/s11548-018-1875-7: composite optimization and multi-pass
    averaging. The random motions of the averaging are the same in all evaluations, in pairs of
    opposite ones, so that the mean is a smooth function whose least value is not shifted.

    Args:
        measure: See `Measure`.
        fixed: (1, 1, *shape).
        moving: (1, 1, *shape), on the same grid.
        spacing_mm: Voxel size.
        settings: See `SearchSettings`.
        start: Map that the candidates are composed with, (4, 4) in voxels; identity if omitted.
            Candidates move first, about the middle of the grid.
    """

    def __init__(
        self, measure: Measure, fixed: Tensor, moving: Tensor, spacing_mm: float,
        settings: SearchSettings, start: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._measure, self._fixed, self._moving = measure, fixed, moving
        self._spacing, self._settings = spacing_mm, settings
        self._center = (torch.tensor(fixed.shape[2:], dtype=torch.float64) - 1) / 2
        still = torch.eye(4, dtype=torch.float64)
        self._start = still if start is None else start.detach().double().cpu()
        self._offsets = _offsets(settings)

    def run(self) -> tuple[float, Tensor]:
        """Returns the least smoothed value and its map, (4, 4) in voxels, float64."""
        settings, found = self._settings, np.zeros(6)
        reach = np.array([settings.reach_mm] * 3 + [settings.reach_deg] * 3)
        if settings.generations:
            evolution = EvolutionSettings(settings.population, settings.generations)
            _, found = evolve(self._values, found, reach, evolution)

        def smoothed(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            value, gradient = self._value_and_gradient(parameters)
            beyond = bool((np.abs(parameters) > _SLACK * reach).any())
            return (float("inf") if beyond else value), gradient

        value, found = minimize(smoothed, found, settings.iterations, first_step=1.0,
                                longest_step=4.0, tolerance=0.01)  # fmt: skip
        return value, self._matrices(torch.from_numpy(found)[None])[0]

    def value(self) -> float:
        """Returns the smoothed value of the start."""
        values = self._values(self._offsets.numpy())
        return float(values.mean())

    def _matrices(self, parameters: Tensor) -> Tensor:
        return self._start @ motion_matrix(parameters, self._spacing, self._center)

    def _measured(self, parameters: Tensor) -> Tensor:
        """Returns the values (N,) of parameters (N, 6)."""
        matrices = self._matrices(parameters).to(self._fixed.device, torch.float32)
        shape = (len(matrices), *self._fixed.shape[1:])
        moved = moved_by(self._moving.expand(shape), matrices, None)
        return self._measure(self._fixed.expand(shape), moved)

    def _values(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        with torch.no_grad():
            parts = [self._measured(part) for part in torch.from_numpy(parameters).split(_AT_ONCE)]
        return torch.cat(parts).double().cpu().numpy()

    def _value_and_gradient(
        self, parameters: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        value, gradient = 0.0, np.zeros(6)
        for part in self._offsets.split(_AT_ONCE):
            with torch.enable_grad():
                here = torch.from_numpy(parameters).clone().requires_grad_(True)
                mean = self._measured(here + part).double().sum() / len(self._offsets)
                (slope,) = torch.autograd.grad(mean, here)
            value, gradient = value + float(mean.detach()), gradient + slope.numpy()
        return value, gradient


def _offsets(settings: SearchSettings) -> Tensor:
    """Returns the motions (N, 6) of the averaging: opposite ones, and none if one is left over."""
    generator = torch.Generator().manual_seed(_SEED)
    half = settings.spread * torch.randn(
        settings.passes // 2, 6, generator=generator, dtype=torch.float64
    )
    return torch.cat([half, -half, half.new_zeros(settings.passes % 2, 6)])
