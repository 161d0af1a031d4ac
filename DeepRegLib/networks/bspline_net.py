"""A network that finds the control points of a cubic B-spline between two images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry.bspline import BSplineLattice, apply_along_axes
from ..geometry.grid import Grid
from .affine_net import start_weights
from .blocks import convolved, halved, result_layer
from .dual_stream import check_multiple, first_layout

#: Share of the spacing below which no vectors at control points can make a cubic B-spline fold
#: (Choi & Lee 2000, doi:10.1006/gmod.1999.0516: 1 / 2.48 of it in three dimensions).
_BOUND = 0.4


class SplineNetwork(nn.Module):
    """DIRNet: a convolutional network whose outputs are vectors at control points.

    De Vos et al. 2019, doi:10.1016/j.media.2018.11.010. The pair goes through five convolutions of
    3 x 3 x 3 with ELU; average pooling follows the first of them until the features are as far
    apart as the control points. Two dense layers for each control point and a linear one, zero at
    first, give the vectors. Features lie in the middle of the elements of the lattice, control
    points at their corners and one element beyond: a convolution of 2 x 2 x 2 over features with
    two elements of padding gives exactly one output for each control point.

    Args:
        halvings: The control points are 2^halvings voxels apart.
        channels: Features of each layer.
        bounded: Whether vectors are kept below 0.4 of the spacing, where splines cannot fold.
    """

    def __init__(self, halvings: int, channels: int = 32, bounded: bool = True) -> None:
        super().__init__()
        self.halvings, self.bounded = halvings, bounded
        inputs = [2, *[channels] * (max(5, halvings) - 1)]
        self.convolutions = nn.ModuleList(nn.Conv3d(i, channels, 3, padding=1) for i in inputs)
        self.corners = nn.Conv3d(channels, 2 * channels, 2, padding=2)
        self.dense = nn.Conv3d(2 * channels, 2 * channels, 1)
        self.vectors = result_layer(nn.Conv3d(2 * channels, 3, 1))
        start_weights(self)
        nn.init.zeros_(self.vectors.weight)

    @property
    def spacing(self) -> int:
        """Distance of the control points in voxels."""
        return int(2**self.halvings)

    def lattice(self, shape: Sequence[int]) -> BSplineLattice:
        """Returns the lattice over a grid in which a voxel is a unit of length.

        Raises:
            GeometryError: If the shape is no multiple of the spacing.
        """
        check_multiple(shape, self.spacing)
        return unit_lattice(shape, [size // self.spacing for size in shape])

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Finds the coefficients of the displacement.

        Args:
            fixed: (B, 1, *shape).
            moving: (B, 1, *shape), already moved by earlier stages.

        Returns:
            (B, 3, *lattice(shape).control_grid.shape), in voxels, component c along tensor axis c.
        """
        check_multiple(fixed.shape[2:], self.spacing)
        features = first_layout(torch.cat([fixed, moving], dim=1))
        for position, layer in enumerate(self.convolutions):
            assert isinstance(layer, nn.Conv3d)
            features = F.elu(convolved(features, layer))
            if position < self.halvings:
                features = halved(features)
        features = F.elu(self.dense(F.elu(self.corners(features))))
        found = self.vectors(features).float().contiguous()
        if self.bounded:
            limit = _BOUND * self.spacing
            found = limit * torch.tanh(found / limit)
        return found


def unit_lattice(shape: Sequence[int], mesh: Sequence[int]) -> BSplineLattice:
    """Returns a lattice over a grid whose voxels are units of length.

    Control points count alike in voxels on any grid of the same shape.
    """
    grid = Grid(tuple(shape), np.eye(4))  # type: ignore[arg-type]
    return BSplineLattice(grid, tuple(mesh))  # type: ignore[arg-type]


def fitted_coefficients(lattice: BSplineLattice, displacement: Tensor) -> Tensor:
    """Returns the coefficients whose spline is nearest to a displacement, in the least squares.

    The basis is a product over the axes, and so is its pseudo-inverse.

    Args:
        lattice: The lattice, on a grid of the shape of the displacement.
        displacement: (B, 3, *shape), in any unit.
    """
    solvers = [
        torch.linalg.pinv(lattice.basis(axis, position)).to(displacement)
        for axis, position in enumerate(lattice.positions(lattice.grid))
    ]
    return apply_along_axes(solvers, displacement)


def halvings_of(spacing: int) -> int | None:
    """Returns how often a grid is halved for control points that far apart; None if it cannot."""
    count = int(math.log2(spacing)) if spacing > 0 else 0
    return count if 2**count == spacing else None
