"""Rigid, similarity and affine maps from a few parameters, and rotations."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import GeometryError
from .grid import Matrix

LinearKind = Literal["translation", "rigid", "similarity", "affine"]

#: Number of parameters of each kind, in the order translation, rotation, log scale, shear.
PARAMETER_COUNT: dict[str, int] = {"translation": 3, "rigid": 6, "similarity": 7, "affine": 12}


def linear_matrix(
    parameters: Tensor, kind: LinearKind, center_ras: ArrayLike, radius_mm: float
) -> Tensor:
    """Makes 4 x 4 matrices from parameters that all have the size of a motion in mm.

    The map is x -> R S K (x - c) + c + t: shear K, scale S = diag(exp s), rotation R = exp[r]x and
    translation t about a centre c. Rotation, scale and shear are divided by the radius, so that a
    unit of any parameter moves the rim of the object by about one millimetre; optimisers then
    need no further scaling.

    Args:
        parameters: (..., n) with t (3), r (3), s (1 or 3), k (3) as `kind` says.
        kind: ``translation``, ``rigid``, ``similarity`` or ``affine``.
        center_ras: Centre c in RAS mm.
        radius_mm: Typical distance of the object's rim from the centre.

    Returns:
        (..., 4, 4) RAS-to-RAS matrices in the type of the parameters; differentiable.
    """
    if kind not in PARAMETER_COUNT or parameters.shape[-1] != PARAMETER_COUNT[kind]:
        raise GeometryError(
            f"A {kind} map takes {PARAMETER_COUNT.get(kind)} parameters, not "
            f"{parameters.shape[-1]}."
        )
    batch = parameters.shape[:-1]
    center = torch.as_tensor(np.asarray(center_ras, np.float64)).to(parameters)
    linear = torch.eye(3).to(parameters).expand(*batch, 3, 3)
    if kind != "translation":
        linear = rotation_from_vector(parameters[..., 3:6] / radius_mm)
    if kind in ("similarity", "affine"):
        logs = (
            parameters[..., 6:7].expand(*batch, 3) if kind == "similarity" else parameters[..., 6:9]
        )
        linear = linear * torch.exp(logs / radius_mm)[..., None, :]
    if kind == "affine":
        linear = linear @ _shear(parameters[..., 9:12] / radius_mm)
    offset = center + parameters[..., :3] - (linear @ center[:, None])[..., 0]
    top = torch.cat([linear, offset[..., None]], dim=-1)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(parameters).expand(*batch, 1, 4)
    return torch.cat([top, bottom], dim=-2)


def rotation_from_vector(vector: Tensor) -> Tensor:
    """Returns rotation matrices (..., 3, 3) from rotation vectors (..., 3) in radians."""
    zero = torch.zeros_like(vector[..., 0])
    x, y, z = vector.unbind(-1)
    rows = [torch.stack(row, -1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    return torch.linalg.matrix_exp(torch.stack(rows, -2))


def rotation_angle_deg(matrix: ArrayLike) -> float:
    """Angle of the rotation in the linear part of a matrix (its nearest rotation), degrees."""
    u, _, v = np.linalg.svd(np.asarray(matrix, np.float64)[:3, :3])
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ v)]) @ v
    return math.degrees(math.acos(float(np.clip((np.trace(rotation) - 1) / 2, -1.0, 1.0))))


def uniform_rotations(count: int) -> NDArray[np.float64]:
    """Returns rotations spread evenly over all orientations, the identity first.

    Super-Fibonacci spirals on the unit quaternions (Alexa 2022, doi:10.1109/CVPR52688.2022.00811).

    Returns:
        (count + 1, 3, 3) rotation matrices.
    """
    phi, psi = math.sqrt(2.0), 1.533751168755204288118041
    s = np.arange(count) + 0.5
    t = s / count
    r, big_r = np.sqrt(t), np.sqrt(1.0 - t)
    alpha, beta = 2 * np.pi * s / phi, 2 * np.pi * s / psi
    x, y = r * np.sin(alpha), r * np.cos(alpha)
    z, w = big_r * np.sin(beta), big_r * np.cos(beta)
    rotations = np.empty((count + 1, 3, 3))
    rotations[0] = np.eye(3)
    rotations[1:] = _from_quaternion(w, x, y, z)
    return rotations


def about_point(linear: ArrayLike, point_from_ras: ArrayLike, point_to_ras: ArrayLike) -> Matrix:
    """Returns the 4 x 4 map with a 3 x 3 linear part that takes one point to another."""
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.asarray(point_to_ras) - matrix[:3, :3] @ np.asarray(point_from_ras)
    return matrix


def fit_points(fixed_ras: ArrayLike, moving_ras: ArrayLike, kind: LinearKind) -> Matrix:
    """Least-squares map from fixed to moving points (Umeyama 1991, doi:10.1109/34.88573).

    Args:
        fixed_ras: (N, 3) points in RAS mm.
        moving_ras: (N, 3) corresponding points.
        kind: ``translation``, ``rigid``, ``similarity`` or ``affine``.

    Raises:
        GeometryError: If there are too few points for the kind, or the lists differ in length.
    """
    fixed = np.asarray(fixed_ras, np.float64).reshape(-1, 3)
    moving = np.asarray(moving_ras, np.float64).reshape(-1, 3)
    needed = {"translation": 1, "rigid": 3, "similarity": 3, "affine": 4}[kind]
    if len(fixed) != len(moving) or len(fixed) < needed:
        raise GeometryError(
            f"A {kind} fit needs at least {needed} landmark pairs, but got {len(fixed)} fixed and "
            f"{len(moving)} moving landmarks."
        )
    center_fixed, center_moving = fixed.mean(0), moving.mean(0)
    a, b = fixed - center_fixed, moving - center_moving
    if kind == "affine":
        linear = np.linalg.lstsq(a, b, rcond=None)[0].T
    elif kind == "translation":
        linear = np.eye(3)
    else:
        u, d, v = np.linalg.svd(b.T @ a)
        signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ v)) or 1.0])
        linear = u @ np.diag(signs) @ v
        if kind == "similarity":
            linear = linear * ((d * signs).sum() / (a**2).sum())
    return about_point(linear, center_fixed, center_moving)


def _shear(k: Tensor) -> Tensor:
    one, zero = torch.ones_like(k[..., 0]), torch.zeros_like(k[..., 0])
    rows = ((one, k[..., 0], k[..., 1]), (zero, one, k[..., 2]), (zero, zero, one))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _from_quaternion(w: NDArray, x: NDArray, y: NDArray, z: NDArray) -> NDArray[np.float64]:
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
