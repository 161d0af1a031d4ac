import numpy as np
import pytest
import torch

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.bspline import BSplineLattice


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


def _evaluate(grid, slope):
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    return grid.to_ras(index) @ slope
