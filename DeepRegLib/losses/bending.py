"""Bending energy: the mean squared second derivative of a displacement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.jacobian import spatial_gradient
from .base import full
from .diffusion import check_displacement, displacement_gradient, masked_mean, spacing_tensor


def bending_energy(
    displacement: Tensor,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    mask: Tensor | None = None,
) -> Tensor:
    """Mean over the voxels (in the mask) of all squared second derivatives of a displacement.

    Convention:
        The displacement is in voxels, component c along tensor axis c. Components and derivatives
        are both converted to mm (mm² per mm⁴). With the default spacing both are per voxel. Second
        derivatives along one axis are three-voxel differences, repeated at the border, and zero
        along axes of fewer than three voxels; mixed ones are central differences of central
        differences.

    Args:
        displacement: (B, 3, D, H, W) in voxels; differentiable.
        spacing_mm: Voxel size along the tensor axes.
        mask: (B, 1, D, H, W) weights of the voxels; all alike by default.

    Returns:
        A scalar, zero for linear maps.

    Raises:
        GeometryError: If the shapes do not fit.

    References:
        Rueckert et al. 1999, doi:10.1109/42.796284, eq. 4.
    """
    check_displacement(displacement)
    displacement = full(displacement)
    spacing = spacing_tensor(spacing_mm, displacement)
    in_mm = displacement * spacing.view(1, 3, 1, 1, 1)
    density = torch.zeros_like(displacement[:, 0])
    for axis in range(3):
        if displacement.shape[2 + axis] > 2:
            pure = _second_difference(in_mm, axis) / spacing[axis] ** 2
            density = density + pure.square().sum(dim=1)
    first = displacement_gradient(displacement, spacing_mm)
    for a in (0, 1):
        mixed = spatial_gradient(first[:, :, a])[:, :, a + 1 :]
        mixed = mixed / spacing[a + 1 :].view(1, 1, -1, 1, 1, 1)
        density = density + 2.0 * mixed.square().sum(dim=(1, 2))
    return masked_mean(density, mask)


def _second_difference(image: Tensor, axis: int) -> Tensor:
    dim = 2 + axis
    inner = torch.diff(image, n=2, dim=dim)
    last = inner.shape[dim] - 1
    return torch.cat([inner.narrow(dim, 0, 1), inner, inner.narrow(dim, last, 1)], dim=dim)
