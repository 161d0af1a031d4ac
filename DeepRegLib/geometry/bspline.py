"""Free-form deformation by cubic B-splines over a lattice of control points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import GeometryError
from .field import Field
from .grid import Grid
from .sampling import cubic_bspline

#: How far, in voxels, the axes of two grids may be from parallel.
_PARALLEL = 1e-3


@dataclass(frozen=True, eq=False)
class BSplineLattice:
    """Control points that carry a cubic B-spline deformation over the whole extent of a grid.

    Rueckert et al. 1999, doi:10.1109/42.796284. The domain is the extent of `grid` (outer edges);
    it is cut into `mesh` elements along each axis, with mesh + 3 control points, as ITK's
    BSplineTransform has them.

    Args:
        grid: Grid that the deformation is evaluated on.
        mesh: Number of elements along each tensor axis.
    """

    grid: Grid
    mesh: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.mesh) != 3 or min(self.mesh) < 1:
            raise GeometryError(f"A B-spline mesh has three positive sizes, not {self.mesh}.")

    @classmethod
    def with_spacing(cls, grid: Grid, spacing_mm: float | Sequence[float]) -> BSplineLattice:
        """Returns the lattice whose spacing is as near to the wanted one as the extent allows."""
        extent = np.array(grid.shape) * grid.spacing_mm
        wanted = np.broadcast_to(np.asarray(spacing_mm, float), 3)
        a, b, c = (max(1, round(float(e / w))) for e, w in zip(extent, wanted))
        return cls(grid, (a, b, c))

    @classmethod
    def between_centers(cls, grid: Grid, mesh: Sequence[int]) -> BSplineLattice:
        """Returns the lattice whose domain ends at the outermost voxel centers of a grid.

        A deformation that is zero at the ends of its domain is then zero in the outermost voxels,
        as every result is. An axis of one voxel keeps its extent.
        """
        start = [0.5 if n > 1 else 0.0 for n in grid.shape]
        a, b, c = (max(1, n - 1) for n in grid.shape)
        domain = grid.cropped(start, (a, b, c))  # type: ignore[arg-type]
        return cls(domain, tuple(int(m) for m in mesh))  # type: ignore[arg-type]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring control points along each tensor axis."""
        a, b, c = (n * s / m for n, s, m in zip(self.grid.shape, self.grid.spacing_mm, self.mesh))
        return a, b, c

    @property
    def control_grid(self) -> Grid:
        """Grid of the control points, which reaches one element beyond the extent."""
        a, b, c = self.mesh
        elements = self.grid.resized(self.mesh)  # voxel centres are the element centres
        return elements.cropped((-1.5, -1.5, -1.5), (a + 3, b + 3, c + 3))  # type: ignore[arg-type]

    def evaluate(self, coefficients: Tensor, grid: Grid | None = None) -> Tensor:
        """Evaluates the deformation on a grid whose axes are parallel to those of the lattice.

        Args:
            coefficients: (B, C, *control_grid.shape), in any unit.
            grid: Such a grid, for example a resized one (the lattice's own if omitted). Beyond
                the domain the spline fades out within two elements.

        Returns:
            (B, C, *grid.shape) in the unit of the coefficients; differentiable.

        Raises:
            GeometryError: If the coefficients do not fit the lattice, or the axes differ.
        """
        if coefficients.shape[2:] != self.control_grid.shape:
            raise GeometryError(
                f"This lattice has {self.control_grid.shape} control points, but got "
                f"{tuple(coefficients.shape[2:])}."
            )
        matrices = [self.basis(a, p) for a, p in enumerate(self.positions(grid or self.grid))]
        return apply_along_axes([m.to(coefficients) for m in matrices], coefficients)

    def positions(self, grid: Grid) -> list[Tensor]:
        """Returns where the voxel centers of a grid lie along each axis, in elements.

        Raises:
            GeometryError: If the axes of the grid are not parallel to those of the lattice.
        """
        matrix = grid.voxel_to_voxel(self.grid)
        aside = matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))
        if np.abs(aside * np.array(grid.shape)).max() > _PARALLEL:
            raise GeometryError("A B-spline is evaluated on grids along the axes of its lattice.")
        found = []
        for axis, size in enumerate(grid.shape):
            voxel = torch.arange(size, dtype=torch.float64)
            inside = voxel * matrix[axis, axis] + matrix[axis, 3] + 0.5
            found.append(inside * (self.mesh[axis] / self.grid.shape[axis]))
        return found

    def basis(self, axis: int, position: Tensor, derivative: int = 0) -> Tensor:
        """Returns the weights of the control points of one axis, or their derivatives in elements.

        Args:
            axis: Tensor axis.
            position: (N,) in elements from the beginning of the domain, float64.
            derivative: 0, 1 or 2.

        Returns:
            (N, mesh + 3), float64.
        """
        control = torch.arange(self.mesh[axis] + 3, dtype=torch.float64) - 1.0
        return _BASES[derivative](position[:, None] - control[None])

    def refined(self, mesh: Sequence[int]) -> tuple[BSplineLattice, list[Tensor]]:
        """Returns a lattice of as many or twice as many elements, and how its coefficients follow.

        Knots are inserted half way: c'(2i) = (c(i-1) + 6 c(i) + c(i+1)) / 8 and c'(2i+1) =
        (c(i) + c(i+1)) / 2 (Catmull & Clark 1978, doi:10.1016/0010-4485(78)90110-0), so that the
        deformation does not change at all.

        Returns:
            The lattice, and one matrix for each axis for `apply_along_axes`, float64.

        Raises:
            GeometryError: If an axis gets another number of elements.
        """
        matrices = []
        for old, new in zip(self.mesh, mesh):
            if new not in (old, 2 * old):
                raise GeometryError(f"A mesh of {self.mesh} cannot be refined to {tuple(mesh)}.")
            matrices.append(torch.eye(old + 3, dtype=torch.float64) if new == old else _halved(old))
        return BSplineLattice(self.grid, tuple(mesh)), matrices  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class BSpline:
    """A free-form deformation p -> p + u(p) as it is held by its control points.

    Convention:
        `coefficients` are (1, 3, *lattice.control_grid.shape), vectors in RAS mm with the
        components R, A, S. Beyond its domain the deformation does nothing, as in ITK.

    Args:
        lattice: Where the control points lie.
        coefficients: Their vectors.

    Raises:
        GeometryError: If the shapes do not fit.
    """

    lattice: BSplineLattice
    coefficients: Tensor

    def __post_init__(self) -> None:
        shape = (1, 3, *self.lattice.control_grid.shape)
        if tuple(self.coefficients.shape) != shape:
            raise GeometryError(
                f"The coefficients of this B-spline have the shape {shape}, but got "
                f"{tuple(self.coefficients.shape)}."
            )

    def to(self, device: torch.device | str) -> BSpline:
        """Returns the deformation on another device."""
        return BSpline(self.lattice, self.coefficients.to(device))

    def field(self, grid: Grid) -> Field:
        """Returns the deformation as a displacement on a grid parallel to the lattice."""
        return Field.from_ras_mm(self.lattice.evaluate(self.coefficients, grid), grid)

    def map_points_ras(self, points_ras: ArrayLike) -> NDArray[np.float64]:
        """Maps points of shape (N, 3) in RAS mm to p + u(p), exactly also between voxels."""
        points = np.asarray(points_ras, np.float64).reshape(-1, 3)
        mesh = np.array(self.lattice.mesh)
        voxel = self.lattice.grid.to_voxel(points)
        position = (voxel + 0.5) * (mesh / np.array(self.lattice.grid.shape))
        inside = ((position > -1e-6) & (position < mesh + 1e-6)).all(axis=1)
        first = np.clip(np.floor(position), 0, mesh - 1).astype(np.int64)
        control = self.coefficients[0].detach().cpu().double().numpy()
        taps = []
        for k in range(4):
            # Control point i lies at i - 1, so the four that count begin at floor(position).
            distance = torch.from_numpy(np.clip(position, 0, mesh) - (first + k - 1))
            taps.append((first + k, cubic_bspline(distance).numpy()))
        moved = np.zeros_like(points)
        for (i, wi), (j, wj), (k, wk) in itertools.product(taps, repeat=3):
            weight = wi[:, 0] * wj[:, 1] * wk[:, 2]
            moved += (control[:, i[:, 0], j[:, 1], k[:, 2]] * weight).T
        return points + np.where(inside[:, None], moved, 0.0)


def apply_along_axes(matrices: Sequence[Tensor], tensor: Tensor) -> Tensor:
    """Applies a matrix (new, old) along each of the three last axes of a tensor (..., D, H, W).

    Axes that shrink go first, so that the work is least.
    """
    order = sorted(range(3), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1])
    for axis in order:
        matrix = matrices[axis]
        if axis == 2:
            tensor = tensor @ matrix.T
        elif axis == 1:
            tensor = matrix @ tensor
        else:
            *lead, _, h, w = tensor.shape
            tensor = (matrix @ tensor.flatten(-2)).reshape(*lead, matrix.shape[0], h, w)
    return tensor


def _slope(t: Tensor) -> Tensor:
    """First derivative of the cubic B-spline basis function."""
    a = t.abs()
    near, far = 1.5 * a * a - 2.0 * a, -0.5 * (2.0 - a).clamp(min=0.0) ** 2
    return t.sign() * torch.where(a < 1.0, near, far)


def _curvature(t: Tensor) -> Tensor:
    """Second derivative of the cubic B-spline basis function."""
    a = t.abs()
    return torch.where(a < 1.0, 3.0 * a - 2.0, (2.0 - a).clamp(min=0.0))


_BASES = (cubic_bspline, _slope, _curvature)


def _halved(mesh: int) -> Tensor:
    """Matrix (2 mesh + 3, mesh + 3) from control points to those at half their distance."""
    matrix = torch.zeros(2 * mesh + 3, mesh + 3, dtype=torch.float64)
    for row in range(2 * mesh + 3):
        # Row r is the fine point r - 1; column c is the coarse point c - 1, at twice that.
        left, odd = divmod(row - 1, 2)
        taps = ((0, 0.5), (1, 0.5)) if odd else ((-1, 0.125), (0, 0.75), (1, 0.125))
        for offset, weight in taps:
            matrix[row, left + offset + 1] = weight
    return matrix
