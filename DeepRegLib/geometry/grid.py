"""The voxel grid of an image and its place in the patient: shape and voxel-to-RAS matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import GeometryError

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and voxel-to-RAS matrix of a 3-D image, both in tensor index order.

    Convention:
        Column c of `voxel_to_ras` is the step in RAS mm for one voxel along tensor axis c, so a
        Slicer array (k, j, i) and a NIfTI array (i, j, k) need no transposition. Voxel centres
        have integer coordinates; the image covers -0.5 ... n - 0.5 along each axis.

    Args:
        shape: Number of voxels along each tensor axis.
        voxel_to_ras: 4 x 4 matrix, float64.

    Raises:
        GeometryError: If the shape is not three positive numbers, or the matrix is not an
            invertible 4 x 4 affine matrix.

    Example:
        >>> grid = Grid((4, 5, 6), np.diag([1.0, 2.0, 3.0, 1.0]))
        >>> grid.spacing_mm
        (1.0, 2.0, 3.0)
    """

    shape: tuple[int, int, int]
    voxel_to_ras: Matrix

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        matrix = np.array(self.voxel_to_ras, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"A grid has three positive sizes, but {self.shape} was given.")
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise GeometryError("The voxel-to-RAS matrix must be 4 x 4 and finite.")
        if not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise GeometryError("The last row of the voxel-to-RAS matrix must be 0 0 0 1.")
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        if lengths.min() == 0 or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
            raise GeometryError(
                "The axes of the image are zero or lie in one plane; mend the header of the image."
            )
        matrix.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "voxel_to_ras", matrix)

    @property
    def ras_to_voxel(self) -> Matrix:
        """Inverse of `voxel_to_ras`."""
        return invert_matrix(self.voxel_to_ras)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxel centres along each tensor axis."""
        a, b, c = np.linalg.norm(self.voxel_to_ras[:3, :3], axis=0)
        return float(a), float(b), float(c)

    @property
    def center_ras(self) -> NDArray[np.float64]:
        """RAS position of the middle of the image, at voxel (n - 1) / 2."""
        return self.to_ras((np.array(self.shape) - 1) / 2)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel."""
        return float(abs(np.linalg.det(self.voxel_to_ras[:3, :3])))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))

    def to_ras(self, points_voxel: ArrayLike) -> NDArray[np.float64]:
        """Converts voxel coordinates of shape (..., 3) to RAS mm."""
        return transform_points(self.voxel_to_ras, points_voxel)

    def to_voxel(self, points_ras: ArrayLike) -> NDArray[np.float64]:
        """Converts RAS mm of shape (..., 3) to voxel coordinates."""
        return transform_points(self.ras_to_voxel, points_ras)

    def corners_ras(self) -> NDArray[np.float64]:
        """Returns the eight outer corners (at -0.5 and n - 0.5), shape (8, 3), RAS mm."""
        ends = [(-0.5, n - 0.5) for n in self.shape]
        return self.to_ras(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3))

    def voxel_to_voxel(self, other: Grid, linear: ArrayLike | None = None) -> Matrix:
        """Returns the 4 x 4 matrix from voxels of this grid to voxels of another.

        Args:
            other: Grid to arrive at.
            linear: 4 x 4 RAS-to-RAS matrix applied in between; identity if omitted.
        """
        between = np.eye(4) if linear is None else np.asarray(linear, np.float64)
        return other.ras_to_voxel @ between @ self.voxel_to_ras

    def resized(self, shape: Sequence[int]) -> Grid:
        """Returns a grid of another shape over the same extent (outer edges, not centres)."""
        scale = np.array(self.shape) / np.array(shape)
        matrix = self.voxel_to_ras.copy()
        matrix[:3, :3] *= scale
        # The first voxel centre moves by half a new minus half an old voxel.
        matrix[:3, 3] = self.to_ras((scale - 1) / 2)
        return Grid(tuple(shape), matrix)  # type: ignore[arg-type]

    def with_spacing(self, spacing_mm: float | Sequence[float]) -> Grid:
        """Returns a grid of the same extent whose spacing is as near as whole voxels allow."""
        wanted = np.broadcast_to(np.asarray(spacing_mm, float), 3)
        extent = np.array(self.shape) * self.spacing_mm
        return self.resized([max(1, int(n)) for n in np.round(extent / wanted)])

    def cropped(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """Returns the grid of a block of voxels; negative starts and larger shapes pad."""
        matrix = self.voxel_to_ras.copy()
        matrix[:3, 3] = self.to_ras(start)
        return Grid(tuple(shape), matrix)  # type: ignore[arg-type]

    def padded(self, margin: int | Sequence[int]) -> Grid:
        """Returns the grid with `margin` voxels added on both sides of each axis."""
        margins = np.broadcast_to(np.asarray(margin, int), 3)
        return self.cropped(-margins, np.array(self.shape) + 2 * margins)  # type: ignore[arg-type]

    def matches(self, other: Grid, tolerance_voxel: float = 1e-3) -> bool:
        """Tells whether both grids have the same voxels, up to a tolerance in voxels."""
        if self.shape != other.shape:
            return False
        offsets = other.to_voxel(self.corners_ras()) - self.to_voxel(self.corners_ras())
        return bool(np.abs(offsets).max() <= tolerance_voxel)

    def __repr__(self) -> str:
        spacing = " x ".join(f"{s:.4g}" for s in self.spacing_mm)
        return f"Grid({' x '.join(map(str, self.shape))} voxels of {spacing} mm)"


def transform_points(matrix: ArrayLike, points: ArrayLike) -> NDArray[np.float64]:
    """Applies a 4 x 4 affine matrix to points of shape (..., 3)."""
    matrix = np.asarray(matrix, np.float64)
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def invert_matrix(matrix: ArrayLike) -> Matrix:
    """Returns the inverse of a square matrix, float64."""
    return np.asarray(np.linalg.inv(np.asarray(matrix, np.float64)), np.float64)
