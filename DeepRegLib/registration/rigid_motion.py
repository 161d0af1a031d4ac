"""Rigid motions of images on the grid of a model, and the errors that they leave, in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.affine import linear_matrix
from ..geometry.sampling import voxel_coordinates
from .preprocess import otsu_threshold
from .trainable import Batch

#: A rotation vector in degrees times a radius of this many units is one in radians.
_DEGREES = 180.0 / math.pi
#: Fewest surface voxels that stand for an object; else the corners of the image do.
_LEAST_SURFACE = 16
#: Corrections of the size of a motion until it has a wanted error.
_CORRECTIONS = 4


def motion_matrix(
    parameters: Tensor, spacing_mm: float, center: Tensor | Sequence[float]
) -> Tensor:
    """Returns x -> R (x - c) + c + t in voxels of a grid of equal spacings.

    Convention:
        `parameters` are t in mm and the rotation vector in degrees, along the tensor axes.

    Args:
        parameters: (..., 6).
        spacing_mm: Voxel size.
        center: c in voxels, (3,) or (..., 3).

    Returns:
        (..., 4, 4) in the type of the parameters; differentiable.
    """
    scaled = torch.cat([parameters[..., :3] / spacing_mm, parameters[..., 3:6]], dim=-1)
    return about(linear_matrix(scaled, "rigid", (0.0, 0.0, 0.0), _DEGREES), center)


def about(matrix: Tensor, center: Tensor | Sequence[float]) -> Tensor:
    """Returns maps about the origin, (..., 4, 4), as the same about a center (3,) or (..., 3)."""
    c = torch.as_tensor(center).to(matrix)
    shift = matrix[..., :3, 3] + c - (matrix[..., :3, :3] @ c[..., None])[..., 0]
    linear = matrix[..., :3, :3].expand(*shift.shape, 3)
    bottom = matrix[..., 3:, :].expand(*shift.shape[:-1], 1, 4)
    return torch.cat([torch.cat([linear, shift[..., None]], dim=-1), bottom], dim=-2)


def motion_parameters(
    matrix: Tensor, spacing_mm: float, center: Tensor | Sequence[float]
) -> Tensor:
    """Returns the (..., 6) parameters of rigid maps (..., 4, 4); see `motion_matrix`."""
    c = torch.as_tensor(center).to(matrix)
    moved = (matrix[..., :3, :3] @ c[..., None])[..., 0] + matrix[..., :3, 3]
    shift = (moved - c) * spacing_mm
    return torch.cat([shift, _DEGREES * rotation_vector(matrix[..., :3, :3])], dim=-1)


def rotation_vector(rotation: Tensor) -> Tensor:
    """Returns rotation vectors (..., 3) in radians, of rotations (..., 3, 3) below 180 degrees."""
    r = rotation
    skew = torch.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0],
                        r[..., 1, 0] - r[..., 0, 1]], dim=-1) / 2  # fmt: skip
    sine = skew.norm(dim=-1, keepdim=True)
    cosine = (r.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - 1) / 2
    angle = torch.atan2(sine, cosine)
    return skew * torch.where(sine > 1e-9, angle / sine.clamp(min=1e-12), torch.ones_like(sine))


def nearest_rotation(linear: Tensor) -> Tensor:
    """Returns the rotations that are nearest to matrices (..., 3, 3), by their singular vectors."""
    u, _, v = torch.linalg.svd(linear)
    signs = torch.ones_like(u[..., 0])
    signs[..., 2] = torch.linalg.det(u @ v)
    return (u * signs[..., None, :]) @ v


def average_motion(matrices: Tensor, center: Tensor | Sequence[float]) -> Tensor:
    """Returns the rigid map between others: mean rotation, and mean shift of the center.

    Args:
        matrices: (K, 4, 4).
        center: (3,).

    Returns:
        (4, 4).
    """
    c = torch.as_tensor(center).to(matrices)
    mean = matrices.mean(dim=0)
    found = torch.eye(4).to(matrices)
    found[:3, :3] = nearest_rotation(mean[:3, :3])
    found[:3, 3] = mean[:3, :3] @ c + mean[:3, 3] - found[:3, :3] @ c
    return found


def rigid_of(displacement: Tensor, images: Tensor) -> Tensor:
    """Returns the rigid maps that are nearest to displacements where images show their objects.

    Least squares (Umeyama 1991, doi:10.1109/34.88573); exact where x + u(x) is rigid itself.

    Args:
        displacement: u, (B, 3, *shape) in voxels.
        images: (B, 1, *shape), 0 to 1; brighter voxels count for more.

    Returns:
        (B, 4, 4), float64.
    """
    matrix = torch.eye(4, dtype=torch.float64, device=displacement.device)
    matrix = matrix.repeat(len(displacement), 1, 1)
    if not bool(displacement.any()):
        return matrix
    # Every other voxel along each axis is plenty for six numbers.
    some = (..., slice(None, None, 2), slice(None, None, 2), slice(None, None, 2))
    where = voxel_coordinates(displacement.shape[2:], displacement.device, torch.float64)
    x = where[some].flatten(2)
    y = x + displacement.double()[some].flatten(2)
    weight = images.double()[some].flatten(2) + 1e-6
    weight = weight / weight.sum(dim=2, keepdim=True)
    from_, to = (x * weight).sum(2, keepdim=True), (y * weight).sum(2, keepdim=True)
    rotation = nearest_rotation(((y - to) * weight) @ (x - from_).transpose(1, 2))
    matrix[:, :3, :3] = rotation
    matrix[:, :3, 3:] = to - rotation @ from_
    return matrix


def known_pairs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns images with a known alignment: fixed, moving, and the rigid map between them.

    A pair whose alignment is not known (one that is to be registered) stands for two: each image
    with itself.

    Returns:
        Images (N, 1, *shape) twice, and (N, 4, 4) in voxels, float64: moving(A x) fits fixed(x).
    """
    if batch.truth is not None:
        return batch.fixed, batch.moving, rigid_of(batch.truth, batch.fixed)
    both = torch.cat([batch.fixed, batch.moving])
    none = torch.eye(4, dtype=torch.float64, device=both.device).repeat(len(both), 1, 1)
    return both, both, none


def surface_points(images: Tensor, count: int) -> Tensor:
    """Draws voxels on the surface of the objects that images show, from torch's global generator.

    Args:
        images: (B, 1, *shape).
        count: Points of each; a voxel may be drawn twice.

    Returns:
        (B, count, 3) in voxels, float64.
    """
    drawn = []
    for image in images:
        shown = (image > otsu_threshold(image)).float()[None]
        inner = -F.max_pool3d(-shown, 3, stride=1, padding=1)
        voxels = (shown > inner)[0, 0].nonzero()
        if len(voxels) < _LEAST_SURFACE:
            ends = [torch.tensor([0, n - 1], device=image.device) for n in image.shape[1:]]
            voxels = torch.cartesian_prod(*ends)
        drawn.append(voxels[torch.randint(len(voxels), (count,), device=image.device)])
    return torch.stack(drawn).double()


def target_error_mm(points: Tensor, found: Tensor, truth: Tensor, spacing_mm: float) -> Tensor:
    """Returns the mean distances between where two maps take points (target registration error).

    Args:
        points: (B, N, 3) in voxels of the fixed grid.
        found: (B, 4, 4) in voxels.
        truth: (B, 4, 4) or (4, 4).
        spacing_mm: Voxel size of the moving grid.

    Returns:
        (B,) in mm.
    """
    difference = found - truth
    apart = points @ difference[..., :3, :3].transpose(-1, -2) + difference[..., None, :3, 3]
    return spacing_mm * apart.norm(dim=-1).mean(dim=-1)


def motions_of_error(
    points: Tensor, errors_mm: Tensor, spacing_mm: float, affine_share: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draws motions that take points about as far as wanted, in random directions.

    All parameters of the direction are lengths at the points' distance from their middle, so that
    shifts and turns have the same part in the error.

    Args:
        points: (B, N, 3) in voxels.
        errors_mm: Wanted mean distances, (B,).
        spacing_mm: Voxel size.
        affine_share: Probability that a motion stretches and shears as well.

    Returns:
        Motions (B, 4, 4) in voxels, and their errors (B,) in mm, both float64.
    """
    center = points.mean(dim=1)
    radius = (points - center[:, None]).norm(dim=2).mean(dim=1, keepdim=True).clamp(min=1.0)
    device = points.device
    direction = torch.randn(len(points), 12, dtype=torch.float64, device=device)
    stiff = torch.rand(len(points), 1, device=device) >= affine_share
    direction[:, 6:] = direction[:, 6:].masked_fill(stiff, 0.0)
    direction = direction / direction.norm(dim=1, keepdim=True)
    unit = torch.cat([direction[:, :3], direction[:, 3:] / radius], dim=1)
    size = (errors_mm.double() / spacing_mm)[:, None]
    still = torch.eye(4, dtype=torch.float64, device=device)
    for _ in range(_CORRECTIONS):
        matrix = about(linear_matrix(size * unit, "affine", (0.0, 0.0, 0.0), 1.0), center)
        found = target_error_mm(points, matrix, still, spacing_mm)
        size = size * (errors_mm.double() / found.clamp(min=1e-9))[:, None].clamp(0.5, 2.0)
    return matrix, found
