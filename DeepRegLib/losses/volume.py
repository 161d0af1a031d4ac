"""Regulariser of volume change, as a step that is composed with a deformation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry.jacobian import axis_gradient, jacobian_determinant

#: Determinants are cut off here, where the logarithm ends.
_LEAST = 1e-3


def volume_descent(displacement: Tensor, relative: tuple[float, float, float]) -> Tensor:
    """Returns the steepest descent of 1/2 of the integral of (log det J)², for composition.

    Composing phi with id + v changes log det J by grad(log det J) . v + div v, so after partial
    integration the descent direction is v = (1 - log det J) grad(log det J): material flows from
    where it is stretched to where it is squeezed. Unlike smoothing of the displacement this leaves
    rotation and shear alone, which anatomy needs, and takes back changes of volume, which noise
    makes. Penalties of log det J: Leow et al. 2007, doi:10.1109/TMI.2007.892646 (there the
    symmetric Kullback-Leibler distance (det J - 1) log det J of the volumes).

    Convention:
        `displacement` is (B, 3, D, H, W) in voxels, component c along tensor axis c; the result is
        one in the same units, steepest in mm.

    Args:
        displacement: u of phi(x) = x + u(x).
        relative: Spacing along each tensor axis in units of the smallest.
    """
    log = jacobian_determinant(displacement)[:, None].clamp_(min=_LEAST).log_()
    # Beyond a factor e the quadratic penalty would push outwards; it is held at no slope there.
    strength = (1.0 - log).clamp_(min=0.0, max=2.0)
    parts = [axis_gradient(log, axis).mul_(strength).div_(relative[axis] ** 2) for axis in range(3)]
    return torch.cat(parts, dim=1)


def divergence_descent(velocity: Tensor, relative: tuple[float, float, float]) -> Tensor:
    """Returns the steepest descent of 1/2 of the integral of (div v)², for a velocity.

    To first order the divergence of a stationary velocity is log det J of its exponential.

    Args:
        velocity: (B, 3, D, H, W) in voxels, component c along tensor axis c.
        relative: Spacing along each tensor axis in units of the smallest.
    """
    divergence = axis_gradient(velocity[:, 0:1], 0)
    for axis in (1, 2):
        divergence += axis_gradient(velocity[:, axis : axis + 1], axis)
    parts = [axis_gradient(divergence, axis).div_(relative[axis] ** 2) for axis in range(3)]
    return torch.cat(parts, dim=1)
