"""Deformations rest beyond the moving image, and are untouched where they lead into it."""

import numpy as np
import pytest
import torch

from DeepRegLib.geometry.grid import Grid, transform_points
from DeepRegLib.registration.field_of_view import FieldOfView
from DeepRegLib.registration.levels import Lattice, PairLevel

SPACING = (1.5, 2.5, 2.0)
SHAPE = (24, 20, 40)


def oblique(shape):
    """A turned grid about the origin with voxels of three sizes."""
    matrix = np.eye(4)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    matrix[:3, :3] = turn * SPACING
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, matrix)


def level(moving_grid, fixed_grid, linear):
    fixed, moving = (torch.ones(1, 1, *grid.shape) for grid in (fixed_grid, moving_grid))
    to_moving = fixed_grid.voxel_to_voxel(moving_grid, linear)
    return PairLevel(fixed, moving, None, None, fixed_grid, to_moving, True)


@pytest.mark.parametrize("factor", [1, 2])
def test_vectors_fade_beyond_the_moving_image(factor):
    """Half of the object is cut off; a shift along the cut axis moves what is seen."""
    fixed_grid = oblique(SHAPE)
    lattice = Lattice.over(fixed_grid, factor)
    linear = np.eye(4)
    linear[:3, 3] = [1.0, -2.0, 0.5]
    axis = fixed_grid.voxel_to_ras[:3, 2] / SPACING[2]
    # The moving image holds the first thirteen slices of the fixed one, and room at its other sides.
    moving_grid = oblique((60, 60, 30))
    edge = fixed_grid.to_ras(np.array([[11.5, 9.5, 12.5]]))[0]
    placed = moving_grid.voxel_to_ras.copy()
    placed[:3, 3] += transform_points(linear, edge[None])[0]
    placed[:3, 3] -= moving_grid.to_ras(np.array([[29.5, 29.5, 29.5]]))[0]
    moving_grid = Grid(moving_grid.shape, placed)
    view = FieldOfView(level(moving_grid, fixed_grid, linear), lattice)
    vectors = torch.randn(1, 3, *lattice.shape, generator=torch.Generator().manual_seed(0))
    still = torch.zeros_like(vectors)

    centers = lattice.grid.to_ras(np.indices(lattice.shape).reshape(3, -1).T)
    depth = torch.tensor((centers - edge) @ axis).reshape(lattice.shape)
    for shift_mm in (0.0, 6.0):
        step = np.linalg.solve(lattice.grid.voxel_to_ras[:3, :3], axis * shift_mm)
        displacement = still + torch.tensor(step).float().view(1, 3, 1, 1, 1)
        rested = view.rested(vectors, displacement)
        seen = depth + shift_mm < -1e-3
        assert 0 < int(seen.sum()) < seen.numel()
        assert torch.equal(rested[0][:, seen], vectors[0][:, seen])
        share = (rested / vectors)[0, 0]
        width = factor * SPACING[2]
        far, near = depth + shift_mm > 7 * width, (depth + shift_mm > 0) & ~seen
        assert share[far].abs().max() < 0.01
        assert share[near].min() >= 0.0 and share[near].max() <= 1.0
        assert 0.2 < share[near & (depth + shift_mm < 3 * width)].mean() < 0.9


def test_nothing_changes_where_all_is_seen():
    fixed_grid, moving_grid = oblique(SHAPE), oblique((60, 60, 60))
    lattice = Lattice.over(fixed_grid, 2)
    vectors = torch.randn(1, 3, *lattice.shape)
    whole = level(moving_grid, fixed_grid, np.eye(4))
    assert FieldOfView(whole, lattice).rested(vectors, torch.zeros_like(vectors)) is vectors
