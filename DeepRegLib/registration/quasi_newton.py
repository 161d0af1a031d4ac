"""BFGS for objectives of a dozen parameters whose values carry a little noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

#: Least share of the promised decrease that a step must bring (Armijo).
_ARMIJO = 1e-4
#: Halvings of a step before the line search gives up.
_HALVINGS = 12


def minimize(
    function: Callable[[Vector], tuple[float, Vector]],
    start: Vector,
    iterations: int,
    first_step: float = 1.0,
    longest_step: float = 20.0,
    tolerance: float = 1e-3,
) -> tuple[float, Vector]:
    """Minimises a smooth function by BFGS with backtracking (Nocedal & Wright 2006, chapter 6).

    Interpolated objectives such as mutual information are only piecewise smooth, which upsets line
    searches that insist on the curvature condition; here a step needs to decrease the value, and
    the curvature pair is skipped where it is not positive.

    Args:
        function: Returns value and gradient; a value that is not finite refuses the step.
        start: Parameters to start from, all of one natural scale.
        iterations: Most iterations.
        first_step: Length of the first step.
        longest_step: No step is longer.
        tolerance: Ends when a step is shorter.

    Returns:
        The least value met and its parameters.
    """
    x = np.array(start, np.float64)
    value, gradient = function(x)
    inverse_hessian: NDArray | None = None
    for _ in range(iterations):
        norm = float(np.linalg.norm(gradient))
        if norm < 1e-12:
            break
        if inverse_hessian is None:
            direction = -gradient * (first_step / norm)
        else:
            direction = -inverse_hessian @ gradient
            if direction @ gradient >= 0:
                inverse_hessian, direction = None, -gradient * (first_step / norm)
        length = float(np.linalg.norm(direction))
        direction *= min(1.0, longest_step / length)
        found = _backtrack(function, x, value, gradient, direction)
        if found is None:
            if inverse_hessian is None:
                break
            inverse_hessian = None
            continue
        step, new_value, new_gradient = found
        inverse_hessian = _update(inverse_hessian, step, new_gradient - gradient)
        x, value, gradient = x + step, new_value, new_gradient
        if float(np.linalg.norm(step)) < tolerance:
            break
    return value, x


def _backtrack(
    function: Callable[[Vector], tuple[float, Vector]],
    x: Vector,
    value: float,
    gradient: Vector,
    direction: Vector,
) -> tuple[Vector, float, Vector] | None:
    slope = float(gradient @ direction)
    scale = 1.0
    for _ in range(_HALVINGS):
        new_value, new_gradient = function(x + scale * direction)
        if np.isfinite(new_value) and new_value <= value + _ARMIJO * scale * slope:
            return scale * direction, new_value, new_gradient
        scale *= 0.5
    return None


def _update(inverse_hessian: NDArray | None, step: Vector, change: Vector) -> NDArray | None:
    curvature = float(step @ change)
    if curvature <= 1e-10 * float(np.linalg.norm(step) * np.linalg.norm(change)):
        return inverse_hessian
    identity = np.eye(len(step))
    if inverse_hessian is None:
        inverse_hessian = identity * (curvature / float(change @ change))
    left = identity - np.outer(step, change) / curvature
    return left @ inverse_hessian @ left.T + np.outer(step, step) / curvature
