import numpy as np
import pytest
import torch

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.bspline import BSpline, BSplineLattice, apply_along_axes
from DeepRegLib.geometry.grid import Grid


def test_constant_and_linear_coefficients_are_reproduced(grid):
    """Cubic B-splines reproduce linear functions of space: this fixes place and order of axes."""
    lattice = BSplineLattice.with_spacing(grid, 5.0)
    slope = np.array([0.3, -0.2, 0.5])
    values = _evaluate(lattice.control_grid, slope)
    dense = lattice.evaluate(torch.from_numpy(values)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(dense, _evaluate(grid, slope), atol=1e-9)


def test_evaluation_on_a_resized_grid_follows_the_grid(grid):
    lattice = BSplineLattice(grid, (3, 4, 2))
    slope = np.array([0.3, -0.2, 0.5])
    values = torch.from_numpy(_evaluate(lattice.control_grid, slope))[None, None]
    finer = grid.resized((20, 30, 15))
    dense = lattice.evaluate(values, finer)[0, 0].numpy()
    np.testing.assert_allclose(dense, _evaluate(finer, slope), atol=1e-9)


def test_one_control_point_has_local_support(grid):
    lattice = BSplineLattice(grid, (6, 8, 5))
    coefficients = torch.zeros(1, 1, *lattice.control_grid.shape)
    coefficients[0, 0, 4, 5, 3] = 1.0
    dense = lattice.evaluate(coefficients)[0, 0]
    peak = np.array(np.unravel_index(int(dense.argmax()), dense.shape))
    place = lattice.control_grid.to_ras([4, 5, 3])
    assert np.linalg.norm(grid.to_ras(peak) - place) < max(grid.spacing_mm)
    assert float(dense.max()) <= (2 / 3) ** 3 + 1e-6
    assert (dense > 0).float().mean() < 0.6


def test_gradient(grid):
    lattice = BSplineLattice(grid, (2, 3, 2))
    c = torch.randn(1, 3, *lattice.control_grid.shape, dtype=torch.float64, requires_grad=True)
    small = grid.resized((4, 5, 3))
    assert torch.autograd.gradcheck(lambda x: lattice.evaluate(x, small), c)


def test_wrong_shapes_are_refused(grid):
    with pytest.raises(GeometryError, match="control points"):
        BSplineLattice(grid, (2, 2, 2)).evaluate(torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(GeometryError, match="mesh"):
        BSplineLattice(grid, (0, 2, 2))


def test_evaluation_on_a_crop_is_a_crop_of_the_evaluation(grid, generator):
    lattice = BSplineLattice(grid, (3, 4, 2))
    c = torch.randn(1, 3, *lattice.control_grid.shape, generator=generator, dtype=torch.float64)
    crop = grid.cropped((2, 3, 1), (7, 9, 6))
    expected = lattice.evaluate(c)[:, :, 2:9, 3:12, 1:7]
    np.testing.assert_allclose(lattice.evaluate(c, crop), expected, atol=1e-12)
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, :2] = matrix[:3, 1::-1]
    with pytest.raises(GeometryError, match="along the axes"):
        lattice.evaluate(c, Grid(grid.shape, matrix))


def test_a_domain_between_centers_ends_at_the_outermost_voxels(grid):
    lattice = BSplineLattice.between_centers(grid, (3, 4, 2))
    for axis, (position, mesh) in enumerate(zip(lattice.positions(grid), lattice.mesh)):
        assert float(position[0]) == pytest.approx(0.0, abs=1e-9)
        assert float(position[-1]) == pytest.approx(mesh)
        length = (grid.shape[axis] - 1) * grid.spacing_mm[axis]
        assert lattice.spacing_mm[axis] * mesh == pytest.approx(length)
    flat = BSplineLattice.between_centers(grid.cropped((3, 0, 0), (1, *grid.shape[1:])), (1, 4, 2))
    assert float(flat.positions(flat.grid)[0][0]) == pytest.approx(0.5)


@pytest.mark.parametrize("mesh", [(6, 8, 4), (3, 8, 2)])
def test_refinement_keeps_the_deformation(grid, generator, mesh):
    lattice = BSplineLattice(grid, (3, 4, 2))
    c = torch.randn(1, 3, *lattice.control_grid.shape, generator=generator, dtype=torch.float64)
    finer, matrices = lattice.refined(mesh)
    refined = apply_along_axes(matrices, c)
    assert refined.shape[2:] == finer.control_grid.shape
    np.testing.assert_allclose(finer.evaluate(refined), lattice.evaluate(c), atol=1e-12)
    with pytest.raises(GeometryError, match="cannot be refined"):
        lattice.refined((6, 8, 5))


def test_derivatives_of_the_basis(grid):
    lattice = BSplineLattice(grid, (3, 4, 2))
    position, step = torch.linspace(0.1, 3.9, 31, dtype=torch.float64), 1e-4
    for order in (1, 2):
        ahead, behind = (lattice.basis(1, position + s * step, order - 1) for s in (1, -1))
        difference = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(lattice.basis(1, position, order), difference, atol=1e-3)


def test_a_spline_in_ras_gives_the_field_in_voxels(grid):
    """A linear displacement in RAS is reproduced exactly by control points that lie on it."""
    lattice = BSplineLattice(grid, (3, 4, 2))
    control = lattice.control_grid
    slope = np.array([[0.1, 0.0, -0.2], [0.3, 0.2, 0.0], [0.0, -0.1, 0.1]])
    points = control.to_ras(np.moveaxis(np.indices(control.shape), 0, -1))
    vectors = torch.from_numpy(np.moveaxis(points @ slope.T, -1, 0).copy())[None]
    spline = BSpline(lattice, vectors)
    places = np.array([[3.0, 5.0, 4.0], [1.0, 2.0, 7.0]])
    start = grid.to_ras(places)
    mapped = spline.field(grid).map_points_ras(start)
    np.testing.assert_allclose(mapped, start + start @ slope.T, atol=1e-4)
    between = grid.to_ras(places + 0.37)
    exact = spline.map_points_ras(between)
    np.testing.assert_allclose(exact, between + between @ slope.T, atol=1e-9)
    beyond = grid.to_ras([[-0.6, 3.0, 3.0]])
    np.testing.assert_array_equal(spline.map_points_ras(beyond), beyond)
    assert spline.map_points_ras(np.zeros((0, 3))).shape == (0, 3)
    with pytest.raises(GeometryError, match="coefficients of this B-spline"):
        BSpline(lattice, vectors[:, :2])


def _evaluate(grid, slope):
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    return grid.to_ras(index) @ slope


def test_points_are_mapped_as_voxels_are(grid, generator):
    lattice = BSplineLattice.between_centers(grid, (3, 4, 2))
    shape = lattice.control_grid.shape
    vectors = torch.randn(1, 3, *shape, generator=generator, dtype=torch.float64)
    spline = BSpline(lattice, vectors)
    points = grid.to_ras(np.indices(grid.shape).reshape(3, -1).T)
    np.testing.assert_allclose(
        spline.map_points_ras(points), spline.field(grid).map_points_ras(points), atol=1e-4
    )
