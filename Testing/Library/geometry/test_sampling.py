import numpy as np
import pytest
import torch
from scipy import ndimage

from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry import sampling
from DeepRegLib.geometry.sampling import sample, voxel_coordinates

SHAPE = (9, 14, 6)


@pytest.fixture
def image(generator):
    return torch.randn(1, 2, *SHAPE, generator=generator, dtype=torch.float64)


@pytest.fixture
def inner_points(generator):
    size = torch.tensor(SHAPE, dtype=torch.float64).view(1, 3, 1, 1, 1)
    unit = torch.rand(1, 3, 40, 1, 1, generator=generator, dtype=torch.float64)
    return unit * (size - 1)


@pytest.mark.parametrize(("name", "order"), [("linear", 1), ("nearest", 0), ("bspline", 3)])
def test_matches_scipy_inside(image, inner_points, name, order):
    got = sample(image, inner_points, name)
    where = inner_points.reshape(3, -1).numpy()
    for channel in range(2):
        volume = image[0, channel].numpy()
        expected = ndimage.map_coordinates(volume, where, order=order, mode="mirror")
        np.testing.assert_allclose(got[0, channel].reshape(-1).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "nearest", "bspline"])
def test_voxel_centres_give_voxel_values(image, name):
    got = sample(image, voxel_coordinates(SHAPE, dtype=torch.float64), name)
    torch.testing.assert_close(got, image, atol=1e-8, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_acts_on_its_own_axis(axis):
    image = torch.zeros(1, 1, *SHAPE)
    image[0, 0, 4, 5, 2] = 1.0
    where = voxel_coordinates(SHAPE)
    where[:, axis] += 1.0
    expected = [4, 5, 2]
    expected[axis] -= 1
    assert torch.nonzero(sample(image, where)[0, 0] > 0.5).tolist() == [expected]


def test_fill_begins_half_a_voxel_outside_and_border_repeats():
    image = torch.arange(1.0, 5.0).view(1, 1, 4, 1, 1)
    x = torch.tensor([-0.6, -0.4, 0.0, 3.4, 3.6])
    where = torch.stack([x, x * 0, x * 0]).view(1, 3, 5, 1, 1)
    filled = sample(image, where, padding="fill", fill=-1000.0).flatten().tolist()
    assert filled == [-1000.0, 1.0, 1.0, 4.0, -1000.0]
    assert sample(image, where).flatten().tolist() == [1.0, 1.0, 1.0, 4.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_keep_type_and_values(dtype, generator):
    labels = torch.randint(0, 120, (1, 1, *SHAPE), generator=generator).to(dtype)
    where = voxel_coordinates(SHAPE) + 0.3
    moved = sample(labels, where, "nearest", "fill", 0)
    assert moved.dtype == dtype
    torch.testing.assert_close(moved, labels)


def test_large_labels_are_exact():
    labels = torch.tensor([2**40 + 1, 7]).view(1, 1, 2, 1, 1)
    assert sample(labels, voxel_coordinates((2, 1, 1)), "nearest").flatten().tolist() == [
        2**40 + 1,
        7,
    ]


def test_one_slice_is_sampled_like_any_other(generator):
    image = torch.randn(1, 1, 1, 6, 7, generator=generator)
    for name in ("linear", "nearest", "bspline"):
        got = sample(image, voxel_coordinates((1, 6, 7)), name, "fill", 9.0)
        torch.testing.assert_close(got, image, atol=1e-5, rtol=0)


def test_resizing_a_ramp_follows_the_grid(grid):
    """Half-voxel test: a linear function of RAS stays that function on the resized grid."""
    function = np.array([0.3, -0.7, 0.2])
    ramp = torch.from_numpy(_evaluate(grid, function))[None, None]
    for shape in [(26, 34, 22), (39, 51, 33)]:
        resized = sampling.resize_image(ramp, shape)[0, 0].numpy()
        expected = _evaluate(grid.resized(shape), function)
        inner = (slice(3, -3),) * 3
        np.testing.assert_allclose(resized[inner], expected[inner], atol=1e-4)


def test_smoothing_keeps_the_mean_and_widens_to_the_sigma():
    image = torch.zeros(1, 1, 1, 41, 1)
    image[0, 0, 0, 20] = 1.0
    smooth = sampling.gaussian_smooth(image, [0.0, 3.0, 0.0]).flatten()
    x = torch.arange(41.0) - 20
    assert smooth.sum() == pytest.approx(1.0, abs=1e-6)
    assert float((smooth * x**2).sum()) == pytest.approx(9.0, rel=0.05)


def test_smoothing_is_differentiable():
    image = torch.randn(1, 1, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sampling.gaussian_smooth(x, [1.0, 0.5, 2.0]), image)


def test_sampling_is_differentiable_in_image_and_place(image, inner_points):
    inputs = (image.requires_grad_(), (inner_points * 0.98 + 0.013).requires_grad_())
    assert torch.autograd.gradcheck(lambda i, w: sample(i, w), inputs)


def test_wrong_shapes_and_names_are_refused(image):
    with pytest.raises(GeometryError, match="Sampling takes"):
        sample(image[0], voxel_coordinates(SHAPE))
    with pytest.raises(GeometryError, match="not linear"):
        sample(image, voxel_coordinates(SHAPE), "cubic")  # type: ignore[arg-type]


def _evaluate(grid, function):
    where = voxel_coordinates(grid.shape, dtype=torch.float64)[0].numpy()
    return np.moveaxis(grid.to_ras(np.moveaxis(where, 0, -1)) @ function, 0, 0)


def test_the_slope_of_samples_is_that_of_autograd():
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(1, 2, 5, 7, 4, generator=generator)
    where = torch.rand(1, 3, 11, 1, 1, generator=generator) * 6.0 - 1.0
    weight = torch.rand(1, 2, 11, 1, 1, generator=generator)
    grid = sampling.sampling_grid(where, image.shape[2:]).requires_grad_(True)
    (sampling.sample_grid(image, grid) * weight).sum().backward()
    found = sampling.slope_at(image, grid.detach(), weight)
    torch.testing.assert_close(found, grid.grad)


def test_a_matrix_takes_points_straight_to_the_grid():
    shape, matrix = (5, 7, 4), np.array(
        [[0.9, 0.1, 0, 1], [-0.1, 1.1, 0.2, -2], [0, 0.1, 0.8, 0.5], [0, 0, 0, 1.0]]
    )  # fmt: skip
    points = torch.rand(1, 3, 6, 1, 1, generator=torch.Generator().manual_seed(1)) * 5
    slow = sampling.sampling_grid(sampling.apply_matrix(matrix, points), shape)
    onto = torch.from_numpy(sampling.sampling_matrix(matrix, shape)).float()
    fast = points[0, :, :, 0, 0].T @ onto[:3, :3].T + onto[:3, 3]
    torch.testing.assert_close(fast, slow[0, :, 0, 0])


def test_voxels_of_a_mask_in_the_order_of_the_memory(generator):
    inside = torch.rand(SHAPE, generator=generator) > 0.4
    found = sampling.mask_voxels(inside)
    assert torch.equal(found, inside.nonzero())
    assert torch.equal(sampling.mask_voxels(inside, len(found) // 3), inside.nonzero()[::3])
    assert len(sampling.mask_voxels(torch.zeros(SHAPE), 5)) == 0
