"""Derivatives of images and fields, and the Jacobian determinant of a deformation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import GeometryError


def axis_gradient(image: Tensor, axis: int) -> Tensor:
    """Derivative of (B, C, D, H, W) along a tensor axis, per voxel.

    Central differences inside, one-sided at the two ends, zero where the axis has one voxel.
    """
    dim, size = 2 + axis, image.shape[2 + axis]
    if size == 1:
        return torch.zeros_like(image)
    result = torch.empty_like(image)
    if size > 2:
        inner = result.narrow(dim, 1, size - 2)
        torch.sub(image.narrow(dim, 2, size - 2), image.narrow(dim, 0, size - 2), out=inner)
        inner.mul_(0.5)
    first = image.narrow(dim, 1, 1) - image.narrow(dim, 0, 1)
    last = image.narrow(dim, size - 1, 1) - image.narrow(dim, size - 2, 1)
    result.narrow(dim, 0, 1).copy_(first)
    result.narrow(dim, size - 1, 1).copy_(last)
    return result


def spatial_gradient(image: Tensor) -> Tensor:
    """Gradient of (B, C, D, H, W) per voxel, shape (B, C, 3, D, H, W); differentiable.

    Central differences inside, one-sided at the border, zero along axes of one voxel.
    """
    if image.ndim != 5:
        raise GeometryError(f"The gradient takes (B, C, D, H, W), but got {tuple(image.shape)}.")
    parts = []
    for axis in range(3):
        if image.shape[2 + axis] == 1:
            parts.append(torch.zeros_like(image))
        elif image.requires_grad:
            parts.append(torch.gradient(image, dim=2 + axis)[0])
        else:
            parts.append(axis_gradient(image, axis))
    return torch.stack(parts, dim=2)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Determinant of the Jacobian of x + u(x).

    Convention:
        `displacement` is (B, 3, D, H, W) in voxels, component c along tensor axis c. The
        determinant does not depend on spacing or orientation: 1 keeps the volume, 0 or less folds.

    Returns:
        Shape (B, D, H, W).
    """
    if displacement.ndim != 5 or displacement.shape[1] != 3:
        raise GeometryError(
            f"A displacement has the shape (B, 3, D, H, W), but got {tuple(displacement.shape)}."
        )
    if displacement.requires_grad:
        g = spatial_gradient(displacement)
        rows = [[g[:, c, a] + float(c == a) for a in range(3)] for c in range(3)]
    else:
        rows = [[axis_gradient(displacement[:, c : c + 1], a)[:, 0] for a in range(3)]
                for c in range(3)]  # fmt: skip
        for c in range(3):
            rows[c][c] += 1.0
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rows
    first, second = yy * zz - yz * zy, yx * zz - yz * zx
    return xx * first - xy * second + xz * (yx * zy - yy * zx)
