"""The Jacobian determinant of a transform given in millimetres, without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import GeometryError
from ..geometry.grid import Grid
from .compose import blocks


def jacobian_of(
    displacement_ras_mm: NDArray, linear: ArrayLike | None, grid: Grid
) -> NDArray[np.float32]:
    """Returns the Jacobian determinant of p -> linear(p + u(p)), p in RAS mm.

    Central differences inside, one-sided at the border, none along axes of one voxel, as
    `geometry.jacobian` takes them.

    Args:
        displacement_ras_mm: u, (3, *grid.shape), components R, A, S.
        linear: 4 x 4 matrix; identity if None.
        grid: Grid of the displacement, turned in any way.

    Returns:
        Shape grid.shape; 1 keeps the volume, above it the moving image is larger there than the
        fixed one, 0 or less folds.

    Raises:
        GeometryError: If the displacement does not fit the grid.
    """
    if displacement_ras_mm.shape != (3, *grid.shape):
        raise GeometryError(
            f"A displacement on {grid} has the shape {(3, *grid.shape)}, but got "
            f"{displacement_ras_mm.shape}."
        )
    to_voxel = grid.ras_to_voxel[:3, :3].astype(np.float32)
    matrix = np.eye(4) if linear is None else np.asarray(linear, np.float64)
    scale = np.float32(np.linalg.det(matrix[:3, :3]))
    result = np.empty(grid.shape, np.float32)
    # Components are the first axis here, and a block needs a layer more at both ends.
    for block in blocks((grid.shape[0], 9 * grid.shape[1], grid.shape[2])):
        start, stop = block.start, min(block.stop, grid.shape[0])
        first = max(0, start - 1)
        part = np.asarray(displacement_ras_mm[:, first : stop + 1], np.float32)
        inner = slice(start - first, stop - first)
        result[block] = scale * _determinant(part, to_voxel)[inner]
    return result


def _determinant(u: NDArray[np.float32], to_voxel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Determinant of I + du/dp, with du/dp = du/dvoxel . dvoxel/dp."""
    rows = []
    for component, values in enumerate(u):
        slopes = [
            np.gradient(values, axis=axis) if values.shape[axis] > 1 else np.zeros_like(values)
            for axis in range(3)
        ]
        row = [sum(slopes[a] * to_voxel[a, p] for a in range(3)) for p in range(3)]
        row[component] = row[component] + np.float32(1)
        rows.append(row)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rows
    determinant: NDArray[np.float32] = (
        xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx)
    )
    return determinant
