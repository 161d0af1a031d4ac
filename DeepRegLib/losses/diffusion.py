"""Diffusion regularizer: the mean squared gradient of a displacement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import GeometryError, ParameterError
from ..geometry.jacobian import spatial_gradient
from .base import check_mask, full


def diffusion(
    displacement: Tensor,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    mask: Tensor | None = None,
) -> Tensor:
    """Mean over the voxels (in the mask) of the squared gradient of a displacement.

    Convention:
        The displacement is in voxels, component c along tensor axis c. Components and derivatives
        are both converted to mm, so the value (mm² per mm²) does not depend on how finely an axis
        is sampled. With the default spacing both are per voxel. Central differences, one-sided at
        the border; they do not see an alternation from voxel to voxel.

    Args:
        displacement: (B, 3, D, H, W) in voxels; differentiable.
        spacing_mm: Voxel size along the tensor axes.
        mask: (B, 1, D, H, W) weights of the voxels; all alike by default.

    Returns:
        A scalar, zero for translations.

    Raises:
        GeometryError: If the shapes do not fit.

    References:
        Horn & Schunck 1981, doi:10.1016/0004-3702(81)90024-2.
    """
    density = displacement_gradient(displacement, spacing_mm).square().sum(dim=(1, 2))
    return masked_mean(density, mask)


def displacement_gradient(displacement: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """Gradient of a displacement in mm per mm, (B, 3, 3, D, H, W): component, then derivative."""
    check_displacement(displacement)
    displacement = full(displacement)
    spacing = spacing_tensor(spacing_mm, displacement)
    in_mm = displacement * spacing.view(1, 3, 1, 1, 1)
    return spatial_gradient(in_mm) / spacing.view(1, 1, 3, 1, 1, 1)


def masked_mean(density: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of a density (B, D, H, W), weighted by a mask (B, 1, D, H, W) if there is one."""
    check_mask(density[:, None], mask)
    if mask is None:
        return density.mean()
    w = mask[:, 0].to(density.dtype).expand(density.shape)
    return (density * w).sum() / w.sum().clamp(min=1e-12)


def check_displacement(displacement: Tensor) -> None:
    """Checks the shape of a displacement.

    Raises:
        GeometryError: If it is not (B, 3, D, H, W).
    """
    if displacement.ndim != 5 or displacement.shape[1] != 3:
        raise GeometryError(
            f"A displacement has the shape (B, 3, D, H, W), but got {tuple(displacement.shape)}."
        )


def spacing_tensor(spacing_mm: Sequence[float], like: Tensor) -> Tensor:
    """Returns a spacing as a tensor (3,) of the type and on the device of another tensor.

    Raises:
        ParameterError: If it is not three positive numbers.
    """
    spacing = torch.as_tensor([float(s) for s in spacing_mm], device=like.device, dtype=like.dtype)
    if spacing.shape != (3,) or not bool((spacing > 0).all()):
        raise ParameterError(
            f"A spacing is three positive lengths in mm, but got {tuple(spacing_mm)}."
        )
    return spacing
