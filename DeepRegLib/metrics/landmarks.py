"""Distance of corresponding landmarks after registration."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..geometry.transform import Transform


def tre_mm(
    transform: Transform, fixed_points_ras: ArrayLike, moving_points_ras: ArrayLike
) -> NDArray[np.float64]:
    """Target registration error of each landmark, |T(fixed) - moving| in mm.

    Convention:
        A transform maps fixed points to the moving space, so the error is measured there.

    Args:
        transform: Fixed to moving.
        fixed_points_ras: (N, 3), RAS mm.
        moving_points_ras: (N, 3), the corresponding points in the same order.

    Returns:
        (N,) distances; NaN where a point is not placed in one of the lists.

    Raises:
        InputError: If the lists differ in length.
    """
    fixed = np.asarray(fixed_points_ras, np.float64).reshape(-1, 3)
    moving = np.asarray(moving_points_ras, np.float64).reshape(-1, 3)
    if len(fixed) != len(moving):
        raise InputError(
            f"There are {len(fixed)} fixed and {len(moving)} moving landmarks; they must "
            "correspond one to one, in the same order."
        )
    errors = np.full(len(fixed), np.nan)
    both = np.isfinite(fixed).all(axis=1) & np.isfinite(moving).all(axis=1)
    if both.any():
        mapped = transform.map_points_ras(fixed[both])
        errors[both] = np.linalg.norm(mapped - moving[both], axis=1)
    return errors


def tre_summary(errors_mm: ArrayLike) -> dict[str, float]:
    """Returns count, mean, median and maximum of the errors that are not NaN."""
    errors = np.asarray(errors_mm, np.float64)
    errors = errors[np.isfinite(errors)]
    if errors.size == 0:
        raise InputError("No landmark is placed in both lists, so there is no error to report.")
    return {
        "count": int(errors.size),
        "mean_mm": float(errors.mean()),
        "median_mm": float(np.median(errors)),
        "max_mm": float(errors.max()),
    }
