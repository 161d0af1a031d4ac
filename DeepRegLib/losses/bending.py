"""Bending energy: the mean squared second derivative of a displacement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.jacobian import spatial_gradient
from .diffusion import displacement_gradient, masked_mean


def bending_energy(
    displacement: Tensor,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    mask: Tensor | None = None,
) -> Tensor:
    """Mean over the voxels (in the mask) of all squared second derivatives, mm² per mm⁴.

    Rueckert et al. 1999, doi:10.1109/42.796284, eq. 4; zero for linear maps; differentiable.

    Args:
        displacement: (B, 3, D, H, W) in voxels.
        spacing_mm: Voxel size along the tensor axes.
        mask: (B, 1, D, H, W) weights.
    """
    first = displacement_gradient(displacement, spacing_mm)
    spacing = torch.tensor(spacing_mm, device=displacement.device, dtype=displacement.dtype)
    second = spatial_gradient(first.flatten(1, 2)) / spacing.view(1, 1, 3, 1, 1, 1)
    return masked_mean(second.square().sum(dim=(1, 2)), mask)
