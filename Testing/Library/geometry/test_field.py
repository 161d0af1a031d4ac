import numpy as np
import pytest
import torch
from support import make_grid, smooth_displacement

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.field import (
    Field,
    compose_displacements,
    fade_window,
    rim_motion,
    vector_lengths,
)
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.jacobian import jacobian_determinant, spatial_gradient
from DeepRegLib.geometry.velocity import exponential


def test_ras_millimetres_round_trip_and_length(grid):
    field = Field(smooth_displacement(grid.shape), grid)
    back = Field.from_ras_mm(field.to_ras_mm(), grid)
    torch.testing.assert_close(back.displacement, field.displacement, atol=1e-5, rtol=0)
    one = torch.zeros(1, 3, *grid.shape)
    one[:, 2] = 2.0
    assert Field(one, grid).to_ras_mm()[0, :, 0, 0, 0].norm() == pytest.approx(6.0)


def test_vectors_in_ras_agree_with_moved_points(grid):
    field = Field(smooth_displacement(grid.shape, 2.0), grid)
    voxel = np.array([[6, 8, 5], [4, 9, 6]])
    points = grid.to_ras(voxel)
    vectors = field.to_ras_mm()[0].numpy()
    expected = points + np.array([vectors[:, i, j, k] for i, j, k in voxel])
    np.testing.assert_allclose(field.map_points_ras(points), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(26, 34, 22), (7, 9, 6)])
def test_resizing_rescales_the_vectors(grid, shape):
    """A field that is linear in space keeps its millimetres on any resized grid."""
    field = _linear_field(grid)
    resized = field.resized(shape)
    expected = _linear_field(grid.resized(shape))
    inner = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(
        resized.displacement[inner], expected.displacement[inner], atol=2e-4, rtol=1e-3
    )


def test_on_grid_keeps_the_deformation_across_orientations(grid):
    field = Field(smooth_displacement(grid.shape, 1.5), grid)
    other = make_grid("RAS", (18, 16, 20), (1.1, 1.3, 1.7), tuple(grid.center_ras - [9, 10, 17]))
    points = grid.center_ras + np.random.default_rng(1).uniform(-3, 3, (30, 3))
    moved = field.on_grid(other).map_points_ras(points)
    # Two linear interpolations of a smooth field differ by a fraction of its curvature.
    assert np.abs(moved - field.map_points_ras(points)).max() < 0.35
    assert np.abs(moved - points).max() > 0.5


def test_composition_is_that_of_points(grid):
    outer, inner = (Field(smooth_displacement(grid.shape, 1.5, seed), grid) for seed in (1, 2))
    voxel = np.array([[6, 8, 5], [4, 9, 6], [7, 3, 4]])
    points = grid.to_ras(voxel)
    expected = outer.map_points_ras(inner.map_points_ras(points))
    composed = outer.compose(inner).map_points_ras(points)
    np.testing.assert_allclose(composed, expected, atol=1e-4)
    wrong = inner.compose(outer).map_points_ras(points)
    assert np.abs(wrong - expected).max() > 1e-2


def test_composition_of_different_grids_is_refused(grid):
    with pytest.raises(GeometryError, match="different grids"):
        Field.identity(grid).compose(Field.identity(grid.padded(1)))


def test_pull_back_direction(grid):
    """moved(x) = moving(x + u(x)): a positive displacement brings what lies ahead to here."""
    image = torch.zeros(1, 1, *grid.shape)
    image[0, 0, 6, 9, 5] = 1.0
    u = torch.zeros(1, 3, *grid.shape)
    u[:, 1] = 2.0
    assert torch.nonzero(Field(u, grid).warp(image)[0, 0]).tolist() == [[6, 7, 5]]


def test_fading_reaches_zero_at_the_rim_and_keeps_the_inside():
    grid = make_grid("oblique", (20, 24, 18))
    field = Field(torch.ones(1, 3, *grid.shape), grid).faded(4)
    u = field.displacement
    assert u[..., 0, :, :].abs().max() == 0 == u[..., :, :, -1].abs().max()
    assert float(u[..., 10, 12, 9].min()) == 1.0
    assert fade_window((1, 8, 8), 2)[0, 0, 0, 4, 4] == 1.0


def test_wrong_shape_is_refused(grid):
    with pytest.raises(GeometryError, match="shape"):
        Field(torch.zeros(1, 3, 4, 4, 4), grid)


def test_jacobian_of_a_linear_map_is_its_determinant():
    grid = Grid((12, 10, 14), np.eye(4))
    matrix = torch.tensor([[1.1, 0.2, -0.1], [0.05, 0.9, 0.3], [0.0, -0.2, 1.2]])
    where = torch.stack(
        torch.meshgrid(*[torch.arange(float(n)) for n in grid.shape], indexing="ij")
    )
    u = (torch.einsum("ab,bdhw->adhw", matrix, where) - where)[None]
    det = jacobian_determinant(u)
    torch.testing.assert_close(
        det, torch.full_like(det, float(torch.det(matrix))), atol=1e-4, rtol=0
    )


def test_jacobian_counts_a_fold():
    u = torch.zeros(1, 3, 8, 8, 8)
    u[0, 1, :, 4] = -3.0
    assert jacobian_determinant(u).min() < 0


def test_jacobian_with_and_without_tape_agree():
    u = smooth_displacement((9, 8, 7), 2.0)
    plain = jacobian_determinant(u)
    taped = jacobian_determinant(u.clone().requires_grad_())
    torch.testing.assert_close(plain, taped.detach())


def test_gradient_of_one_voxel_axes_is_zero():
    g = spatial_gradient(torch.randn(1, 2, 1, 5, 6))
    assert g.shape == (1, 2, 3, 1, 5, 6)
    assert g[:, :, 0].abs().max() == 0 < g[:, :, 1].abs().max()


def test_exponential_of_minus_v_is_the_inverse():
    v = smooth_displacement((24, 30, 20), 2.0, sigma=5.0)
    forward, backward = exponential(v), exponential(-v)
    assert compose_displacements(forward, backward).norm(dim=1).mean() < 0.03
    # The negated displacement is no inverse at all.
    assert compose_displacements(forward, -forward).norm(dim=1).mean() > 0.05


def test_exponential_of_a_constant_is_the_constant():
    v = torch.full((1, 3, 6, 7, 8), 1.7)
    torch.testing.assert_close(exponential(v), v)
    torch.testing.assert_close(exponential(v, steps=5), v)


def test_exponential_matches_small_euler_steps():
    v = smooth_displacement((16, 18, 14), 2.0, seed=5, sigma=5.0).double()
    u = torch.zeros_like(v)
    for _ in range(512):
        u = compose_displacements(v / 512, u)
    assert (exponential(v, steps=9) - u).norm(dim=1).mean() < 0.01


def _linear_field(grid):
    center = grid.center_ras
    gradient = np.array([[0.05, 0.02, 0.0], [-0.03, 0.04, 0.01], [0.0, 0.02, -0.05]])
    index = np.moveaxis(np.indices(grid.shape), 0, -1)
    vectors = (grid.to_ras(index) - center) @ gradient.T
    return Field.from_ras_mm(torch.from_numpy(np.moveaxis(vectors, -1, 0)[None]), grid)


def test_logarithm_undoes_the_exponential():
    from DeepRegLib.geometry.field import fade_window
    from DeepRegLib.geometry.sampling import gaussian_smooth
    from DeepRegLib.geometry.velocity import exponential, logarithm

    shape = (26, 30, 22)
    noise = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(5))
    velocity = gaussian_smooth(noise, 4.0) * fade_window(shape, 10)
    velocity = velocity * (3.0 / velocity.abs().max())
    displacement = exponential(velocity)
    found = exponential(logarithm(displacement))
    before = (displacement - exponential(displacement)).abs().mean()
    # What remains is the interpolation of the squarings, which the exponential has as well.
    assert float((found - displacement).abs().mean()) < 0.35 * float(before)


def test_lengths_are_those_of_norm_with_no_slope_at_zero():
    vectors = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    vectors[:, :, 1, 2, 3] = 0.0
    vectors.requires_grad_()
    found = vector_lengths(vectors)
    torch.testing.assert_close(found, vectors.norm(dim=1, keepdim=True), atol=1e-6, rtol=1e-6)
    assert (found[:, :, 1, 2, 3] == 0.0).all()
    found.sum().backward()
    slope = vectors.grad
    assert (slope[:, :, 1, 2, 3] == 0).all() and slope.isfinite().all()
    torch.testing.assert_close(slope[:, :, 0].norm(dim=1), torch.ones(2, 5, 6))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_motion_of_the_rim_is_the_longest_in_any_outermost_layer(axis):
    displacement = torch.zeros(1, 3, 6, 5, 7)
    displacement[0, :, 2, 2, 3] = 9.0
    assert rim_motion(displacement) == 0.0
    place = [2, 2, 3]
    for end in (0, -1):
        place[axis] = end
        displacement[(0, slice(None), *place)] = torch.tensor([3.0 + end, 0.0, 4.0])
    assert rim_motion(displacement) == pytest.approx(5.0)
    flat = torch.ones(1, 3, 6, 5, 1)
    assert rim_motion(flat) == pytest.approx(3**0.5) and rim_motion(flat[:, :, :2, :2]) == 0.0
