"""Smoothing kernels of velocities, given by their Fourier transforms, in mm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import GeometryError


class Kernel(Protocol):
    """A translation-invariant smoothing of vector fields, given by its Fourier transform."""

    @property
    def reach_mm(self) -> float:
        """Distance at which the kernel has fallen to about a hundredth."""
        ...

    def response(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the response across and along the wave vector.

        Args:
            square: Squared length of the wave vector, in (radian per mm)².
        """
        ...


@dataclass(frozen=True)
class FluidKernel:
    """Inverse of a power of the fluid operator -alpha laplacian - beta grad div + gamma.

    Convention:
        Lengths are mm: alpha and beta in mm², gamma without unit. With the constants of Quicksilver
        (0.01, 0.01, 0.001), made for voxels of 1 mm, the length is sqrt(alpha / gamma) = 3.2 mm.
        The power 2 is that of Beg et al. 2005, doi:10.1023/B:VISI.0000043755.93987.aa: the norm of
        a velocity is that of the operator applied to it.
    """

    alpha: float = 0.01
    beta: float = 0.01
    gamma: float = 0.001
    power: int = 2

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.gamma <= 0 or self.beta < 0 or self.power < 1:
            raise GeometryError("A fluid kernel has alpha, gamma, power > 0 and beta >= 0.")

    @property
    def reach_mm(self) -> float:
        """Distance at which the kernel has fallen to about a hundredth."""
        return (3.6 + self.power) * math.sqrt(self.alpha / self.gamma)

    def response(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the response across and along the wave vector; see `Kernel`."""
        across = self.alpha * square + self.gamma
        return across**-self.power, (across + self.beta * square) ** -self.power


@dataclass(frozen=True)
class GaussianKernel:
    """A weighted sum of Gaussians, so that one deformation is smooth at several scales.

    Risser et al. 2011, doi:10.1109/TMI.2011.2146787. Each Gaussian has the integral 1, so its
    weight says how strongly it passes what is smoother than itself. (The reference finds weights
    for each pair from the first gradient; here they are settings.)

    Args:
        widths_mm: Standard deviations in mm.
        weights: Weight of each; all 1 if empty.
    """

    widths_mm: tuple[float, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.widths_mm or min(self.widths_mm) <= 0 or min(self.weights, default=1.0) <= 0:
            raise GeometryError("A Gaussian kernel needs widths and weights above zero.")
        if self.weights and len(self.weights) != len(self.widths_mm):
            raise GeometryError(
                f"There are {len(self.widths_mm)} widths but {len(self.weights)} weights; give one "
                "weight for each width."
            )

    @property
    def reach_mm(self) -> float:
        """Distance at which the kernel has fallen to about a hundredth."""
        return 3.0 * max(self.widths_mm)

    def response(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the response across and along the wave vector; see `Kernel`."""
        weights = self.weights or (1.0,) * len(self.widths_mm)
        total = torch.zeros_like(square)
        for width, weight in zip(self.widths_mm, weights):
            total = total + weight * torch.exp(-0.5 * width**2 * square)
        return total, total
