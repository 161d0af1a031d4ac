"""Registration by geodesic shooting: finds the initial momentum whose geodesic aligns a pair.

Minimised is, per mm³ of the images,

    E(m0) = <m0, K m0> / 2 + similarity(moving o linear o start o phi^-1, fixed) / (2 sigma²),

with phi from EPDiff (`geometry/momentum.py`). Its gradient with respect to m0 is exact: automatic
differentiation runs back through the time steps, each computed again from its start.

References:
    Beg, Miller, Trouvé, Younes. Computing large deformation metric mappings via geodesic flows of
    diffeomorphisms. International Journal of Computer Vision 61, 2005.
    doi:10.1023/B:VISI.0000043755.93987.aa (eq. 1, Sobolev gradient).
    Singh, Hinkle, Joshi, Fletcher. A vector momenta formulation of diffeomorphisms. ISBI 2013.
    doi:10.1109/ISBI.2013.6556661 (shooting of vector momenta).
    Nocedal, Wright. Numerical Optimization, 2006 (algorithm 7.4, limited-memory BFGS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.field import Field, vector_lengths
from ..geometry.grid import Grid
from ..geometry.momentum import Momentum, MomentumSpace
from ..geometry.transform import Transform
from ..geometry.velocity_kernels import FluidKernel, GaussianKernel, Kernel
from ..losses.base import Similarity
from .base import ImagePair, Progress, Result
from .levels import Lattice, PairLevel, level_spacings
from .metric_similarity import similarity_for
from .momentum_objective import Evaluation, MomentumObjective

#: Pairs of steps that the approximate Hessian remembers, Armijo's share, and most halvings.
_MEMORY, _ARMIJO, _HALVINGS = 6, 1e-4, 8
#: Longest velocity of the very first step and of any step, in voxels of the lattice.
_FIRST_STEP, _LONGEST_STEP = 0.5, 2.0
#: Narrowest Gaussian that a lattice holds, in its voxels.
_NARROWEST = 0.6


@dataclass(frozen=True)
class ShootingSettings:
    """Settings of registration by shooting; see `algorithms/lddmm.py` for their meaning."""

    modality: str
    similarity: str
    radius: int
    kernel: str
    widths: tuple[float, ...]
    weights: tuple[float, ...]
    fluid: tuple[float, ...]
    sigma: float
    time_steps: int
    factors: tuple[int, ...]
    iterations: tuple[int, ...]
    lattice: int
    tolerance: float
    finest_mm: float
    rim: int = 4
    metric_model: str = ""

    def kernel_on(self, lattice: Grid, fixed: Grid) -> Kernel:
        """Returns the kernel on a lattice, in mm; widths count voxels of the finest level.

        A Gaussian that a coarse lattice cannot hold is widened. As its integral stays 1, it does
        the same to what is smoother than itself.
        """
        unit = max(min(fixed.spacing_mm), self.finest_mm)
        if self.kernel == "gaussian":
            spacings = [s for s, n in zip(lattice.spacing_mm, lattice.shape) if n > 1]
            coarsest = max(spacings, default=0.0)
            widths = tuple(max(unit * width, _NARROWEST * coarsest) for width in self.widths)
            return GaussianKernel(widths, self.weights)
        if len(self.fluid) != 3:
            raise InputError("The fluid kernel takes three numbers: alpha, beta and gamma.")
        # Divided by gamma the kernel passes constants as they are, like a Gaussian does, so that
        # sigma means the same for both. (The papers' sigma times gamma is sigma here.)
        alpha, beta, gamma = self.fluid
        if gamma <= 0.0:
            raise InputError("Gamma of the fluid kernel, the third number, is above zero.")
        return FluidKernel(alpha / gamma * unit**2, beta / gamma * unit**2, 1.0)

    def similarity_on(self, grid: Grid, device: torch.device | str = "cpu") -> Similarity:
        """Returns the similarity; local correlation, or mutual information across contrasts."""
        name, options = self.similarity, {}
        if name == "auto":
            name = "lncc" if self.modality == "same" else "mi"
        if name == "lncc":
            options = {"radius": self.radius}
        elif name == "ngf":
            options = {"spacing_mm": grid.spacing_mm}  # type: ignore[dict-item]
        return similarity_for(name, grid.spacing_mm, self.metric_model, device, **options)


#: Gets the iteration and the objective there; says whether to stop.
Report = Callable[[int, Evaluation], bool]


def optimize_momentum(
    objective: MomentumObjective,
    start: Tensor,
    iterations: int,
    tolerance: float = 0.0,
    report: Report | None = None,
) -> Evaluation:
    """Lowers the objective from a momentum by preconditioned limited-memory BFGS.

    The gradient by m0 is a velocity, K f, far smoother than the momentum f that it asks for. So the
    inverse Hessian begins as K^-1 (bounded, `MomentumSpace.preconditioned`), which makes the first
    step of the velocity the Sobolev gradient K f of Beg et al.; pairs of later steps refine it.

    Args:
        objective: What to lower.
        start: Momentum to begin with, (1, 3, *lattice shape).
        iterations: Most iterations; each takes one evaluation, rarely more.
        tolerance: Ends when two iterations in a row gain less than this share of the whole gain.
        report: Called after each iteration.

    Returns:
        The best evaluation.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    here = _sound(objective, start)
    first, slow = here.value, 0
    for iteration in range(iterations):
        direction = _direction(objective.space, here.gradient, pairs)
        direction = _bounded(objective.space, direction, _LONGEST_STEP if pairs else _FIRST_STEP)
        there = _backtracked(objective, here, direction)
        if there is None and pairs:
            pairs.clear()
            continue
        if there is None:
            break
        step, change = there.momentum - here.momentum, there.gradient - here.gradient
        if float((step * change).sum()) > 0.0:
            pairs = [*pairs[-(_MEMORY - 1) :], (step, change)]
        gain = here.value - there.value
        here = there
        slow = slow + 1 if gain < tolerance * (first - here.value) else 0
        if (report is not None and report(iteration, here)) or slow >= 2:
            break
    return here


def _sound(objective: MomentumObjective, start: Tensor) -> Evaluation:
    """Returns the start, shortened until it is better than no motion at all.

    A momentum of a coarser level may be too strong for the kernel of a finer one.
    """
    here = objective(start)
    if not bool(start.any()):
        return here
    rest = objective(torch.zeros_like(start))
    for _ in range(_HALVINGS):
        if here.value <= rest.value:
            return here
        start = 0.5 * start
        here = objective(start)
    return rest


def _direction(
    space: MomentumSpace, gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Two-loop recursion (Nocedal & Wright 2006, algorithm 7.4)."""
    rest, shares = gradient.clone(), []
    for step, change in reversed(pairs):
        share = (step * rest).sum() / (step * change).sum()
        rest = rest - share * change
        shares.append(share)
    direction = space.preconditioned(rest)
    if pairs:
        step, change = pairs[-1]
        direction *= (step * change).sum() / (change * space.preconditioned(change)).sum()
    for (step, change), share in zip(pairs, reversed(shares)):
        direction += (share - (change * direction).sum() / (step * change).sum()) * step
    return direction.neg_()


def _bounded(space: MomentumSpace, direction: Tensor, longest: float) -> Tensor:
    """Returns a direction whose velocity is at most so many voxels long; the first exactly."""
    speed = float(vector_lengths(space.velocity(direction) / space.spacing).max())
    if longest == _FIRST_STEP or speed > longest:
        return direction * (longest / max(speed, 1e-20))
    return direction


def _backtracked(
    objective: MomentumObjective, here: Evaluation, direction: Tensor
) -> Evaluation | None:
    promise = float((here.gradient * direction).sum())
    if promise >= 0.0:
        return None
    scale = 1.0
    for _ in range(_HALVINGS):
        there = objective(here.momentum + scale * direction)
        if np.isfinite(there.value) and there.value <= here.value + _ARMIJO * scale * promise:
            return there
        scale *= 0.5
    return None


class ShootingEngine:
    """Registers a pair by an initial momentum that is refined from level to level.

    Args:
        settings: See `ShootingSettings`.
    """

    def __init__(self, settings: ShootingSettings) -> None:
        self._settings = settings
        self._history: list[dict[str, Any]] = []
        #: Initial momentum of the last pair, on the lattice of its last level.
        self.momentum: Momentum | None = None

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair from `pair.initial` (or the stored positions).

        Raises:
            InputError: If factors and iterations differ in number.
        """
        s = self._settings
        if len(s.factors) != len(s.iterations):
            raise InputError(
                f"There are {len(s.factors)} levels but {len(s.iterations)} numbers of iterations; "
                "give one number of iterations for each level."
            )
        self._history, self.momentum = [], None
        initial = pair.initial or Transform()
        spacings = level_spacings(s.finest_mm, s.factors, pair.fixed.grid.spacing_mm)
        costs = np.array([n / f**3 for n, f in zip(s.iterations, s.factors)])
        ends = np.concatenate([[0.0], np.cumsum(costs) / max(costs.sum(), 1e-9)])
        field: Field | None = None
        with torch.no_grad():
            for index, iterations in enumerate(s.iterations):
                if iterations == 0:
                    continue
                last = index + 1 == len(s.iterations)
                objective = self._objective(pair, initial, spacings[index], last)
                report = _Reporter(index, iterations, (ends[index], ends[index + 1]), progress,
                                   self._history, objective, initial)  # fmt: skip
                best = optimize_momentum(
                    objective, self._begin(objective), iterations, s.tolerance, report
                )
                grid = objective.lattice.grid
                self.momentum = Momentum(best.momentum, grid)
                field = Field(best.displacement, grid)
                if progress.stop_requested:
                    break
            return Result(_joined(initial, field, pair.fixed.grid), history=self._history)

    def _objective(
        self, pair: ImagePair, initial: Transform, spacing_mm: float, last: bool
    ) -> MomentumObjective:
        s = self._settings
        level = PairLevel.of(pair, initial.linear, spacing_mm)
        lattice = Lattice.over(level.grid, s.lattice)
        kernel = s.kernel_on(lattice.grid, pair.fixed.grid)
        space = MomentumSpace(kernel, lattice.grid, s.rim, pair.device)
        # A coarse level finds where the next begins; half of the time steps do for that.
        steps = s.time_steps if last else max(2, s.time_steps // 2)
        start = None if initial.field is None else lattice.carried(initial.field, pair.device)
        return MomentumObjective(
            level, s.similarity_on(level.grid, pair.device), lattice, space, s.sigma, steps, start
        )

    def _begin(self, objective: MomentumObjective) -> Tensor:
        grid = objective.lattice.grid
        if self.momentum is None:
            return torch.zeros_like(objective.space.identity)
        return self.momentum.on_grid(grid).values


def shooting_settings(values: Mapping[str, Any]) -> ShootingSettings:
    """Makes settings from the parameters of `algorithms/lddmm.py`."""
    return ShootingSettings(**values)


def _joined(initial: Transform, field: Field | None, fixed: Grid) -> Transform:
    """Returns linear o start o phi^-1 on the fixed grid."""
    if field is None:
        return initial
    field = field.on_grid(fixed)
    if initial.field is not None:
        field = initial.field.to(field.displacement.device).on_grid(fixed).compose(field)
    return Transform(initial.linear, field)


@dataclass(eq=False)
class _Reporter:
    """Keeps the history of a level and passes it on."""

    level: int
    iterations: int
    span: tuple[float, float]
    progress: Progress
    history: list[dict[str, Any]]
    objective: MomentumObjective
    initial: Transform

    def __call__(self, iteration: int, found: Evaluation) -> bool:
        self.history.append(
            {"level": self.level, "iteration": iteration, "value": found.value,
             "energy": found.energy, "similarity": found.dissimilarity}
        )  # fmt: skip
        done = (iteration + 1) / self.iterations
        self.progress.update(self.span[0] + (self.span[1] - self.span[0]) * done, found.value)
        if self.progress.wants_preview():
            field = Field(found.displacement, self.objective.lattice.grid)
            self.progress.preview(_joined(self.initial, field, self.objective.lattice.grid))
        return self.progress.stop_requested
