"""Initial alignment: centres, principal axes, landmarks, and a search over all rotations."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry.affine import about_point, fit_points, uniform_rotations
from ..geometry.grid import Matrix
from ..geometry.sampling import mask_voxels
from .base import Image, ImagePair
from .preprocess import foreground, mask_on_grid

#: Ways to begin, as the linear algorithms offer them.
METHODS = ("auto", "stored", "geometry", "mass", "axes", "search", "landmarks")

#: Foreground voxels that centre and spread are estimated from.
_MOST_POINTS = 200_000


def moments(image: Image, mask: Image | None = None) -> tuple[NDArray, NDArray]:
    """Centre of mass and covariance of the foreground, in RAS mm and mm².

    Every foreground voxel counts alike, so that the result does not depend on the contrast; a mask
    restricts it.
    """
    inside = foreground(image)
    region = mask_on_grid(mask, image.grid, image.data.device)
    if region is not None:
        both = inside & (region > 0)
        inside = both if bool(both.any()) else region > 0
    voxels = mask_voxels(inside[0, 0], _MOST_POINTS)
    if len(voxels) == 0:
        return image.grid.center_ras, np.eye(3)
    points = image.grid.to_ras(voxels.double().cpu().numpy())
    center = points.mean(0)
    # A single point or slice has no spread along some axis; a voxel's worth keeps axes defined.
    spread = np.eye(3) * min(image.grid.spacing_mm) ** 2 / 12
    return center, np.cov((points - center).T, bias=True) + spread


def principal_axes(fixed_covariance: NDArray, moving_covariance: NDArray) -> list[NDArray]:
    """Rotations that take the principal axes of one object to those of another.

    The axes have no sign, so four rotations fit equally well.

    Returns:
        Four 3 x 3 rotation matrices.
    """
    fixed_axes = np.linalg.eigh(fixed_covariance)[1]
    moving_axes = np.linalg.eigh(moving_covariance)[1]
    rotations = []
    for signs in itertools.product((1.0, -1.0), repeat=3):
        rotation = moving_axes @ np.diag(signs) @ fixed_axes.T
        if np.linalg.det(rotation) > 0:
            rotations.append(rotation)
    return rotations


def from_landmarks(pair: ImagePair, kind: str) -> Matrix:
    """Least-squares rigid or similarity map of the landmark pairs.

    Raises:
        InputError: If the pair has no landmarks.
    """
    if pair.fixed_landmarks_ras is None or pair.moving_landmarks_ras is None:
        raise InputError("Starting from landmarks needs landmarks on both images; add them first.")
    fit = "similarity" if kind in ("similarity", "affine") else "rigid"
    return fit_points(pair.fixed_landmarks_ras, pair.moving_landmarks_ras, fit)  # type: ignore[arg-type]


def candidates(pair: ImagePair, method: str, rotations: int) -> list[Matrix]:
    """Returns the starts to compare, 4 x 4 fixed RAS to moving RAS; likely ones come first.

    Args:
        pair: The images.
        method: One of `METHODS` but ``landmarks``.
        rotations: Number of orientations that ``search`` and ``auto`` try.
    """
    stored = np.eye(4)
    if method == "stored":
        return [stored]
    geometry = about_point(np.eye(3), pair.fixed.grid.center_ras, pair.moving.grid.center_ras)
    if method == "geometry":
        return [geometry]
    fixed_center, fixed_spread = moments(pair.fixed, pair.fixed_mask)
    moving_center, moving_spread = moments(pair.moving, pair.moving_mask)
    mass = about_point(np.eye(3), fixed_center, moving_center)
    if method == "mass":
        return [mass]
    axes = [
        about_point(rotation, fixed_center, moving_center)
        for rotation in principal_axes(fixed_spread, moving_spread)
    ]
    if method == "axes":
        return axes
    everywhere = [
        about_point(rotation, fixed_center, moving_center)
        for rotation in uniform_rotations(rotations)
    ]
    return everywhere if method == "search" else [stored, geometry, mass, *axes, *everywhere]
