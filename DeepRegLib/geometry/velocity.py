"""Stationary velocity fields: exponential and inverse by scaling and squaring."""

from __future__ import annotations

import math

from torch import Tensor

from .field import compose_displacements


def exponential(velocity: Tensor, steps: int | None = None) -> Tensor:
    """Integrates a stationary velocity over unit time by scaling and squaring.

    Arsigny et al. 2006, doi:10.1007/11866565_113. The inverse of the result is the exponential of
    the negative velocity.

    Convention:
        `velocity` is (B, 3, D, H, W) in voxels per unit time, component c along tensor axis c; the
        result is a displacement in the same units.

    Args:
        velocity: The stationary velocity.
        steps: Number of squarings; by default as many as bring the first step below a quarter
            voxel.

    Returns:
        Displacement of the same shape; differentiable.
    """
    if steps is None:
        largest = float(velocity.detach().abs().max())
        steps = max(0, math.ceil(math.log2(max(largest, 1e-12) / 0.25)))
    displacement = velocity / 2.0**steps
    for _ in range(steps):
        displacement = compose_displacements(displacement, displacement)
    return displacement


def logarithm(displacement: Tensor, iterations: int = 10) -> Tensor:
    """Finds the stationary velocity whose exponential is a displacement, as near as there is one.

    Fixed-point iteration v <- v + (exp(-v) o phi - id), from the first terms of the
    Baker-Campbell-Hausdorff series (Bossa et al. 2007, doi:10.1007/978-3-540-75757-3_81).

    Args:
        displacement: (B, 3, D, H, W) in voxels, of an invertible deformation.
        iterations: Number of iterations.

    Returns:
        Velocity of the same shape and units; the best met.
    """
    velocity = best = displacement
    least = float("inf")
    for _ in range(iterations):
        residual = compose_displacements(exponential(-velocity), displacement)
        error = float(residual.square().mean())
        if error >= least:
            break
        best, least = velocity, error
        velocity = velocity + residual
    return best
