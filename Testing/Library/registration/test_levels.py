"""Levels and lattices: the coarser grid of the deformation holds what the images' grid needs."""

import numpy as np
import pytest
import torch
from support import make_grid

from DeepRegLib import registry
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from DeepRegLib.losses import similarity
from DeepRegLib.registration.base import Image, ImagePair, Progress
from DeepRegLib.registration.dense import DenseEngine, dense_settings
from DeepRegLib.registration.levels import Lattice, PairLevel, levels_with_detail
from DeepRegLib.registration.objective import LevelObjective

GRID = make_grid("oblique", (25, 34, 12), (1.0, 1.2, 4.0), (5, -7, 3))


def test_lattice_voxels_are_whole_voxels_of_the_images():
    lattice = Lattice.over(GRID, 2)
    assert lattice.factors == (2, 2, 1)
    assert lattice.shape == (13, 17, 12)
    # The first lattice voxel is the mean of the first two image voxels along the two fine axes.
    center = lattice.grid.to_ras((0, 0, 0))
    np.testing.assert_allclose(center, GRID.to_ras((0.5, 0.5, 0.0)), atol=1e-9)


def test_a_refined_displacement_is_the_same_field_on_the_images():
    lattice = Lattice.over(GRID, 2)
    vectors = gaussian_smooth(torch.randn(1, 3, *lattice.shape, generator=_seed()), 2.0)
    expected = Field(vectors, lattice.grid).on_grid(GRID).displacement
    np.testing.assert_allclose(lattice.refined(vectors), expected, atol=1e-4)


def test_a_field_of_any_grid_keeps_its_millimetres_on_a_lattice():
    other = make_grid("LPS", (30, 20, 26), (2.0, 3.0, 2.0), (-20, 30, -28))
    vectors = torch.tensor([1.5, -2.0, 0.7]).view(1, 3, 1, 1, 1).expand(1, 3, *other.shape)
    lattice = Lattice.over(GRID, 2)
    carried = lattice.carried(Field.from_ras_mm(vectors.contiguous(), other), torch.device("cpu"))
    found = Field(carried, lattice.grid).to_ras_mm()
    np.testing.assert_allclose(found[0, :, 3, 4, 5], [1.5, -2.0, 0.7], atol=1e-4)


def test_gathering_averages_the_voxels_of_a_lattice_voxel():
    lattice = Lattice.over(GRID, 2)
    image = torch.rand(1, 2, *GRID.shape, generator=_seed())
    gathered = lattice.gathered(image)
    np.testing.assert_allclose(
        gathered[0, :, 3, 5, 7], image[0, :, 6:8, 10:12, 7].mean((1, 2)), rtol=1e-5
    )


def test_single_slices_keep_their_axis():
    flat = make_grid("RAS", (40, 44, 1), (1.0, 1.0, 5.0))
    assert Lattice.over(flat, 2).factors == (2, 2, 1)


@pytest.mark.parametrize("factor", [1, 2])
def test_the_force_points_where_the_value_falls(factor):
    """Against finite differences of the value, along a smooth update composed on the right."""
    grid = make_grid("oblique", (24, 28, 14), (1.0, 1.3, 2.0))
    fixed, moving = (_blob(grid, shift) for shift in ((0, 0, 0), (1.5, -1.0, 1.0)))
    level = PairLevel.of(ImagePair(fixed, moving), np.eye(4), 1.0)
    lattice = Lattice.over(level.grid, factor)
    objective = LevelObjective(level, [(0.7, similarity("mse"))], lattice)
    displacement = gaussian_smooth(torch.randn(1, 3, *lattice.shape, generator=_seed()), 3.0) * 4
    value, force = objective.force(displacement)
    assert float(value) > 0
    # Steepest descent in mm: a step along it lowers the value at the rate of its squared length.
    step = 1e-2 / float(force.abs().max())
    lower, _ = objective.force(_composed(displacement, force * step))
    higher, _ = objective.force(_composed(displacement, force * -step))
    assert float(lower) < float(value) < float(higher)
    # dE/d(update) in voxels of the lattice: from the mean over a lattice voxel back to the sum, and
    # from the steepest descent in mm back to the derivative.
    fine, coarse = np.array(grid.spacing_mm), np.array(lattice.grid.spacing_mm)
    unit = fine.min() * coarse.min()
    for axis in range(3):
        direction = torch.zeros_like(force)
        direction[:, axis] = gaussian_smooth(force[:, axis : axis + 1], 2.0)[:, 0]
        direction *= 0.05 / direction.abs().max()
        ahead, _ = objective.force(_composed(displacement, direction))
        behind, _ = objective.force(_composed(displacement, -direction))
        slope = -float((force * direction).sum()) * np.prod(lattice.factors)
        expected = slope * coarse[axis] ** 2 / unit
        assert float(ahead - behind) / 2 == pytest.approx(expected, rel=0.15)


def test_forces_of_both_images_are_alike_when_they_trade_places():
    grid = make_grid("oblique", (20, 22, 18), (1.0, 1.1, 1.4))
    fixed, moving = (_blob(grid, shift) for shift in ((0, 0, 0), (1.0, -1.0, 0.5)))
    there = LevelObjective(
        PairLevel.of(ImagePair(fixed, moving), np.eye(4), 1.0),
        [(1.0, similarity("lncc"))],
        Lattice.over(grid, 1),
    )
    back = LevelObjective(
        PairLevel.of(ImagePair(moving, fixed), np.eye(4), 1.0),
        [(1.0, similarity("lncc"))],
        Lattice.over(grid, 1),
    )
    a, b = gaussian_smooth(torch.randn(2, 3, *grid.shape, generator=_seed()), 3.0).split(1)
    value, by_fixed, by_moving = there.forces(a, b)
    other, by_moving_too, by_fixed_too = back.forces(b, a)
    assert float(value) == pytest.approx(float(other), rel=1e-4)
    np.testing.assert_allclose(by_fixed, by_fixed_too, atol=1e-6)
    np.testing.assert_allclose(by_moving, by_moving_too, atol=1e-6)


def test_levels_of_a_few_voxels_are_left_out():
    # The longest axis counts in mm: 34 voxels of 1.2 mm here, 12 of 4 mm (48 mm).
    assert levels_with_detail([16.0, 8.0, 4.0, 1.0], GRID) == [1, 2, 3]
    assert levels_with_detail([32.0, 16.0], GRID) == [1]  # something has to be left


def test_iterations_stay_with_their_level_when_a_coarse_one_is_left_out():
    values = {**registry.specs()["greedy"].values("fast"), "factors": (64, 2), "tolerance": 0.0,
              "iterations": (9, 3)}  # fmt: skip
    pair = ImagePair(_blob(GRID, 0.0), _blob(GRID, np.array([2.0, -1.0, 1.0])))
    history = DenseEngine(dense_settings(values)).register(pair, Progress()).history
    assert [entry["iteration"] for entry in history] == [0, 1, 2]


def _composed(displacement, update):
    where = voxel_coordinates(displacement.shape[2:]) + update
    return update + sample(displacement, where)


def _blob(grid, shift_mm):
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1)) - grid.center_ras - shift_mm
    extent = np.array(grid.shape) * grid.spacing_mm / 5
    data = np.exp(-0.5 * ((points / extent[[0, 1, 2]].mean()) ** 2).sum(-1))
    return Image.from_array((data + 0.2 * np.sin(points[..., 0] / 3) * data).astype("f4"), grid)


def _seed(number=0):
    return torch.Generator().manual_seed(number)
