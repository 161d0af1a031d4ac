"""L-BFGS with backtracking, for objectives of very many parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Value and gradient; a value that is not finite refuses the point.
Objective = Callable[[Tensor], tuple[float, Tensor]]
#: Gets value and point of each iteration, and tells whether to go on.
Report = Callable[[float, Tensor], bool]

#: Pairs of steps and changes of the gradient that are remembered.
_MEMORY = 8
#: Least share of the promised decrease that a step must bring (Armijo).
_ARMIJO = 1e-4
#: Reductions of a step before the line search gives up.
_TRIALS = 10


def minimize_lbfgs(
    function: Objective,
    start: Tensor,
    iterations: int,
    first_step: float,
    longest_step: float,
    report: Report,
) -> Tensor:
    """Minimizes a function by the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4).

    A step has to decrease the value (Armijo); the curvature pair is left out where it is not
    positive, as interpolated images are only piecewise smooth. After a failed line search the
    memory is dropped; after one along the gradient itself the run ends.

    Convention:
        All parameters have one unit (mm); lengths of steps are the largest change of any of them.

    Args:
        function: See `Objective`.
        start: Parameters to start from, with a finite value.
        iterations: Most iterations.
        first_step: Length of a step along the gradient, when nothing is remembered.
        longest_step: No step is longer.
        report: See `Report`.

    Returns:
        The best parameters.
    """
    point = start
    value, gradient = function(point)
    pairs: list[tuple[Tensor, Tensor, float]] = []
    for _ in range(iterations):
        if float(gradient.abs().max()) == 0.0:
            break
        direction = _direction(gradient, pairs)
        slope = _dot(direction, gradient)
        longest = float(direction.abs().max())
        direction = direction * (first_step / longest if not pairs else min(
            1.0, longest_step / longest))  # fmt: skip
        slope *= first_step / longest if not pairs else min(1.0, longest_step / longest)
        found = _backtrack(function, point, value, slope, direction)
        if found is None:
            if not pairs:
                break
            pairs.clear()
            continue
        step, value, after = found
        change = after - gradient
        curvature = _dot(step, change)
        if curvature > 1e-10 * float(step.norm() * change.norm()):
            pairs = [*pairs[1 - _MEMORY :], (step, change, curvature)]
        point, gradient = point + step, after
        if not report(value, point):
            break
    return point


def _direction(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Returns minus the inverse Hessian, as far as it is remembered, times the gradient."""
    rest, shares = gradient.clone(), []
    for step, change, curvature in reversed(pairs):
        share = _dot(step, rest) / curvature
        rest.add_(change, alpha=-share)
        shares.append(share)
    if pairs:
        _, change, curvature = pairs[-1]
        rest.mul_(curvature / _dot(change, change))
    for (step, change, curvature), share in zip(pairs, reversed(shares)):
        rest.add_(step, alpha=share - _dot(change, rest) / curvature)
    return rest.neg_()


def _backtrack(
    function: Objective, point: Tensor, value: float, slope: float, direction: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    """Returns a step that brings enough, its value and gradient; None if there is none."""
    scale = 1.0
    for _ in range(_TRIALS):
        new_value, gradient = function(point + scale * direction)
        change = new_value - value
        if torch.isfinite(torch.tensor(new_value)) and change <= _ARMIJO * scale * slope:
            return scale * direction, new_value, gradient
        # The parabola through value, slope and new value has its lowest point here.
        curved = change - scale * slope
        best = -0.5 * scale * slope / curved if 0.0 < curved < float("inf") else 0.0
        scale *= min(max(best, 0.1), 0.5)
    return None


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))
