"""Free-form deformation by cubic B-splines over a lattice of control points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import GeometryError
from .grid import Grid
from .sampling import cubic_bspline


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

    @property
    def control_grid(self) -> Grid:
        """Grid of the control points, which reaches one element beyond the extent."""
        a, b, c = self.mesh
        elements = self.grid.resized(self.mesh)  # voxel centres are the element centres
        return elements.cropped((-1.5, -1.5, -1.5), (a + 3, b + 3, c + 3))  # type: ignore[arg-type]

    def evaluate(self, coefficients: Tensor, grid: Grid | None = None) -> Tensor:
        """Evaluates the deformation on a grid of the same extent.

        Args:
            coefficients: (B, C, *control_grid.shape), in any unit.
            grid: A resized version of the lattice's grid (the lattice's own if omitted).

        Returns:
            (B, C, *grid.shape) in the unit of the coefficients; differentiable.

        Raises:
            GeometryError: If the coefficients do not fit the lattice.
        """
        if coefficients.shape[2:] != self.control_grid.shape:
            raise GeometryError(
                f"This lattice has {self.control_grid.shape} control points, but got "
                f"{tuple(coefficients.shape[2:])}."
            )
        shape = (grid or self.grid).shape
        result = coefficients
        for axis in range(3):
            weights = self._weights(axis, shape[axis]).to(result.device, result.dtype)
            result = torch.movedim(torch.movedim(result, 2 + axis, -1) @ weights.T, -1, 2 + axis)
        return result

    def _weights(self, axis: int, size: int) -> Tensor:
        """Weights of all control points for all voxels of one axis, (size, mesh + 3)."""
        position = (torch.arange(size, dtype=torch.float64) + 0.5) * self.mesh[axis] / size
        control = torch.arange(self.mesh[axis] + 3, dtype=torch.float64) - 1.0
        return cubic_bspline(position[:, None] - control[None])
