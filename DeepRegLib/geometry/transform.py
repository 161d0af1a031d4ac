"""The result of every registration: a linear map after an optional displacement field."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import GeometryError
from .bspline import BSpline
from .field import Field
from .grid import Grid, Matrix, transform_points
from .sampling import Interpolation, apply_matrix, sample, voxel_coordinates


@dataclass(frozen=True, eq=False)
class Transform:
    """Maps a point p of the fixed space to linear(p + u(p)) in the moving space, RAS mm.

    This is the pull-back of images (ITK's and Slicer's "from parent" direction): the moved image
    at p is the moving image at the mapped point. A deformable result keeps the two parts apart,
    so that the field can fade to zero at its rim while the linear map holds everywhere.

    Args:
        linear: 4 x 4 matrix, fixed RAS to moving RAS.
        field: Deformation applied before the linear map, usually on the fixed grid.
        spline: The B-spline that `field` is the sampled form of, for files and nodes that hold
            control points. Points are mapped by it, images by `field`; both agree at the voxels,
            so what changes the field has to drop the spline.

    Example:
        >>> shift = np.eye(4); shift[0, 3] = 5.0
        >>> Transform(shift).map_points_ras([[1.0, 2.0, 3.0]])
        array([[6., 2., 3.]])
    """

    linear: Matrix = dataclass_field(default_factory=lambda: np.eye(4))
    field: Field | None = None
    spline: BSpline | None = None

    def __post_init__(self) -> None:
        matrix = np.array(self.linear, np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise GeometryError("The linear part of a transform must be 4 x 4 and finite.")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9 or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise GeometryError(
                "The linear part of a transform must be an invertible affine matrix."
            )
        if self.spline is not None and self.field is None:
            raise GeometryError("A transform with a B-spline also has its field on a grid.")
        matrix.setflags(write=False)
        object.__setattr__(self, "linear", matrix)

    @property
    def is_linear(self) -> bool:
        """Whether there is no displacement field."""
        return self.field is None

    def to(self, device: torch.device | str) -> Transform:
        """Returns the transform with its field on another device."""
        if self.field is None:
            return self
        spline = None if self.spline is None else self.spline.to(device)
        return Transform(self.linear, self.field.to(device), spline)

    def then_linear(self, matrix: ArrayLike) -> Transform:
        """Returns p -> matrix(self(p)); `matrix` is 4 x 4 in RAS mm of the moving space."""
        return Transform(np.asarray(matrix, np.float64) @ self.linear, self.field, self.spline)

    def map_points_ras(self, points_ras: ArrayLike) -> NDArray[np.float64]:
        """Maps points (N, 3) of the fixed space, RAS mm, to the moving space."""
        points = np.asarray(points_ras, np.float64).reshape(-1, 3)
        if self.spline is not None:
            points = self.spline.map_points_ras(points)
        elif self.field is not None:
            points = self.field.map_points_ras(points)
        return transform_points(self.linear, points)

    def moving_coordinates(
        self, fixed: Grid, moving: Grid, device: torch.device | str | None = None
    ) -> Tensor:
        """Returns for every fixed voxel where it falls in voxels of the moving grid.

        Returns:
            Shape (1, 3, *fixed.shape), float32.
        """
        if self.field is None:
            where = voxel_coordinates(fixed.shape, device)
        else:
            where = self.field.on_grid(fixed).to(device or "cpu").coordinates()
        return apply_matrix(fixed.voxel_to_voxel(moving, self.linear), where)

    def warp(
        self,
        image: Tensor,
        moving: Grid,
        fixed: Grid,
        interpolation: Interpolation = "linear",
        fill: float = 0.0,
    ) -> Tensor:
        """Resamples a moving image (B, C, *moving.shape) on a fixed grid, once.

        Args:
            image: The image; labels of any integer type with ``nearest``.
            moving: Grid of the image.
            fixed: Grid of the result.
            interpolation: ``linear``, ``nearest`` or ``bspline``.
            fill: Value where the moving image has no voxel, such as -1000 in CT.
        """
        where = self.moving_coordinates(fixed, moving, image.device)
        return sample(image, where, interpolation, "fill", fill)

    def displacement_ras_mm(self, grid: Grid) -> Tensor:
        """Returns the total displacement T(p) - p on a grid, shape (1, 3, *grid.shape), RAS mm."""
        device = None if self.field is None else self.field.displacement.device
        where = voxel_coordinates(grid.shape, device)
        # Less than a micrometer is lost: the large numbers cancel within the matrix.
        total = apply_matrix((self.linear - np.eye(4)) @ grid.voxel_to_ras, where)
        if self.field is not None:
            turn = self.linear @ grid.voxel_to_ras
            turn[:3, 3] = 0.0
            total += apply_matrix(turn, self.field.on_grid(grid).displacement)
        return total

    @classmethod
    def from_displacement_ras_mm(cls, vectors_ras_mm: Tensor, grid: Grid) -> Transform:
        """Makes a transform from total displacements (1, 3, *grid.shape) in RAS mm."""
        return cls(np.eye(4), Field.from_ras_mm(vectors_ras_mm, grid))
