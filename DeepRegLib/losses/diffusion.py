"""Diffusion regulariser: the mean squared gradient of a displacement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.jacobian import spatial_gradient


def displacement_gradient(displacement: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """Gradient of a displacement, in mm per mm, (B, 3, 3, D, H, W).

    Convention:
        `displacement` is (B, 3, D, H, W) in voxels, component c along tensor axis c. Component and
        derivative are both converted to mm along the axes of the grid, so that the result does not
        depend on how finely an axis is sampled.
    """
    spacing = torch.tensor(spacing_mm, device=displacement.device, dtype=displacement.dtype)
    millimetres = displacement * spacing.view(1, 3, 1, 1, 1)
    return spatial_gradient(millimetres) / spacing.view(1, 1, 3, 1, 1, 1)


def diffusion(
    displacement: Tensor,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    mask: Tensor | None = None,
) -> Tensor:
    """Mean over the voxels (in the mask) of the squared gradient, mm² per mm²; differentiable.

    Horn & Schunck 1981, doi:10.1016/0004-3702(81)90024-2.

    Args:
        displacement: (B, 3, D, H, W) in voxels.
        spacing_mm: Voxel size along the tensor axes.
        mask: (B, 1, D, H, W) weights.
    """
    density = displacement_gradient(displacement, spacing_mm).square().sum(dim=(1, 2))
    return masked_mean(density, mask)


def masked_mean(density: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of a density (B, D, H, W), weighted by a mask (B, 1, D, H, W) if there is one."""
    if mask is None:
        return density.mean()
    w = mask[:, 0].to(density.dtype).expand(density.shape)
    return (density * w).sum() / w.sum().clamp(min=1e-12)
