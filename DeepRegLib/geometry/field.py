"""A displacement field together with the grid whose voxels it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .. import kernels
from ..errors import GeometryError
from .grid import Grid, invert_matrix
from .sampling import (
    Interpolation,
    Padding,
    apply_matrix,
    resize_image,
    sample,
    voxel_coordinates,
)


@dataclass(frozen=True, eq=False)
class Field:
    """Displacement u on a grid; maps a point x of the grid to x + u(x).

    Convention:
        `displacement` is (B, 3, *grid.shape), float32, in voxels of `grid`, component c along
        tensor axis c. An image is pulled back: moved(x) = moving(x + u(x)). Outside its grid the
        field repeats its edge.

    Args:
        displacement: The vectors.
        grid: The grid that they live on and whose voxels they count.

    Raises:
        GeometryError: If the shapes do not fit.
    """

    displacement: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        shape = tuple(self.displacement.shape)
        if len(shape) != 5 or shape[1] != 3 or shape[2:] != self.grid.shape:
            raise GeometryError(
                f"A field on {self.grid} has the shape (B, 3, *grid.shape), but got {shape}."
            )

    @classmethod
    def identity(cls, grid: Grid, device: torch.device | str | None = None) -> Field:
        """Returns the field that moves nothing."""
        return cls(torch.zeros(1, 3, *grid.shape, device=device), grid)

    @classmethod
    def from_ras_mm(cls, vectors_ras_mm: Tensor, grid: Grid) -> Field:
        """Makes a field from vectors in RAS mm, shape (B, 3, *grid.shape), components R, A, S."""
        return cls(_rotate(grid.ras_to_voxel, vectors_ras_mm).float(), grid)

    def to_ras_mm(self) -> Tensor:
        """Returns the vectors in RAS mm, shape (B, 3, *grid.shape), components R, A, S."""
        return _rotate(self.grid.voxel_to_ras, self.displacement)

    def to(self, device: torch.device | str) -> Field:
        """Returns the field on another device."""
        return Field(self.displacement.to(device), self.grid)

    def coordinates(self) -> Tensor:
        """Returns x + u(x) for every voxel, shape (B, 3, *grid.shape), in voxels."""
        identity = voxel_coordinates(self.grid.shape, self.displacement.device)
        return identity + self.displacement

    def at(self, coordinates_voxel: Tensor) -> Tensor:
        """Samples the displacement at voxel coordinates (B, 3, *out), linearly."""
        return sample(self.displacement, coordinates_voxel)

    def compose(self, inner: Field) -> Field:
        """Returns the field of x -> self(inner(x)), on the same grid.

        Raises:
            GeometryError: If the two fields live on different grids.
        """
        if not self.grid.matches(inner.grid):
            raise GeometryError("Fields on different grids cannot be composed; resample one first.")
        return Field(compose_displacements(self.displacement, inner.displacement), self.grid)

    def resized(self, shape: Sequence[int]) -> Field:
        """Returns the same deformation on a grid of another shape over the same extent.

        The vectors are rescaled with the voxels, so lengths in mm stay as they are.
        """
        grid = self.grid.resized(shape)
        if tuple(shape) == self.grid.shape:
            return self
        vectors = resize_image(self.displacement, shape, antialias=False)
        scale = [n / o for n, o in zip(grid.shape, self.grid.shape)]
        factor = torch.tensor(scale, device=vectors.device, dtype=vectors.dtype)
        return Field(vectors * factor.view(1, 3, 1, 1, 1), grid)

    def on_grid(self, grid: Grid) -> Field:
        """Returns the same deformation sampled on any other grid (its edge repeated outside)."""
        if grid.matches(self.grid):
            return Field(self.displacement, grid)
        matrix = grid.voxel_to_voxel(self.grid)
        where = voxel_coordinates(grid.shape, self.displacement.device)
        vectors = self.at(apply_matrix(matrix, where))
        return Field(_rotate(invert_matrix(matrix), vectors), grid)

    def warp(
        self,
        image: Tensor,
        interpolation: Interpolation = "linear",
        padding: Padding = "border",
        fill: float = 0.0,
    ) -> Tensor:
        """Pulls an image of the same grid, (B, C, *grid.shape), back through the field."""
        return sample(image, self.coordinates(), interpolation, padding, fill)

    def map_points_ras(self, points_ras: ArrayLike) -> NDArray[np.float64]:
        """Maps points of shape (N, 3) in RAS mm to x + u(x)."""
        points = np.asarray(points_ras, np.float64).reshape(-1, 3)
        if len(points) == 0:
            return points
        voxel = self.grid.to_voxel(points)
        where = torch.from_numpy(voxel.T.copy()).reshape(1, 3, -1, 1, 1)
        vectors = sample(self.displacement[:1].double(), where.to(self.displacement.device))
        moved = voxel + vectors.reshape(3, -1).T.cpu().numpy()
        return self.grid.to_ras(moved)

    def faded(self, width_voxel: int = 4) -> Field:
        """Returns the field with its rim faded to zero, so that every tool continues it alike.

        Beyond its grid VTK repeats the edge vector of a grid transform, ITK applies none; with a
        zero edge both do nothing.

        Args:
            width_voxel: Thickness of the rim; the outermost layer becomes exactly zero.
        """
        window = fade_window(self.grid.shape, width_voxel, self.displacement.device)
        return Field(self.displacement * window, self.grid)


def compose_displacements(outer: Tensor, inner: Tensor) -> Tensor:
    """Returns the displacement of x -> outer(inner(x)), (B, 3, *shape) in voxels of one grid."""
    fused = kernels.compose(outer, inner)
    if fused is not None:
        return fused
    where = voxel_coordinates(inner.shape[2:], inner.device, inner.dtype) + inner
    return inner + sample(outer, where)


def vector_lengths(vectors: Tensor) -> Tensor:
    """Returns the lengths of vectors (B, C, *shape), (B, 1, *shape); differentiable.

    The slope is zero where a vector is zero. `Tensor.norm` takes dozens of times as long along a
    dimension that is not the last.
    """
    square = vectors.square().sum(dim=1, keepdim=True)
    # The root alone has no slope at zero; the product makes it zero again.
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt() * (square > 0)


def rim_motion(displacement: Tensor) -> float:
    """Returns the longest of the vectors (B, 3, *shape) in the outermost layers.

    An axis of one or two voxels has no inside, so it has no such layers either.
    """
    layers = [
        displacement.select(axis, end)
        for axis in (2, 3, 4)
        if displacement.shape[axis] > 2
        for end in (0, -1)
    ]
    return max((float(vector_lengths(layer).max()) for layer in layers), default=0.0)


def fade_window(
    shape: Sequence[int], width_voxel: int, device: torch.device | str | None = None
) -> Tensor:
    """Returns weights (1, 1, *shape) that rise from 0 at the edge to 1 at `width_voxel`.

    An axis of fewer than four voxels keeps the weight 1: there is no inside to fade towards.
    """
    window = torch.ones(1, 1, *shape, device=device)
    for axis, size in enumerate(shape):
        if size < 4:
            continue
        width = max(1, min(width_voxel, (size - 1) // 2))
        i = torch.arange(size, device=device, dtype=torch.float32)
        depth = torch.minimum(i, size - 1 - i).clamp(max=width) / width
        ramp = 0.5 - 0.5 * torch.cos(torch.pi * depth)
        view = [1, 1, 1, 1, 1]
        view[2 + axis] = size
        window = window * ramp.view(view)
    return window


def _rotate(matrix: NDArray[np.float64], vectors: Tensor) -> Tensor:
    """Applies the linear part of a 4 x 4 matrix to vectors (B, 3, *shape)."""
    m = torch.from_numpy(np.ascontiguousarray(matrix[:3, :3])).to(vectors.device, vectors.dtype)
    return torch.matmul(m, vectors.flatten(2)).reshape(vectors.shape)
