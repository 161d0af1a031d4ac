"""Sampling, composition, force, smoothing and lengths: the kernels against the library's torch."""

import numpy as np
import pytest
import torch

from DeepRegLib import kernels
from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.field import compose_displacements
from DeepRegLib.geometry.jacobian import axis_gradient
from DeepRegLib.geometry.sampling import (
    apply_matrix,
    gaussian_kernel,
    gaussian_smooth,
    inside_image,
    sample,
    voxel_coordinates,
)


def plain(function):
    """The library's function with the kernels switched off: torch is the reference."""

    def call(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DEEPREG_TRITON", "0")
            return function(*args)

    return call


sample, gaussian_smooth = plain(sample), plain(gaussian_smooth)
compose_displacements = plain(compose_displacements)
SHAPE, OTHER = (7, 10, 13), (5, 8, 11)
#: Oblique, anisotropic, and leading partly out of the image.
MATRIX = np.array([[0.9, 0.2, -0.1, -1.5], [-0.3, 1.2, 0.1, 2.0], [0.1, -0.2, 0.8, 1.0]])
MATRIX = np.vstack([MATRIX, [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def _fresh(no_switched_off_kernels):
    pass


def close(got, expected, tolerance=1e-5):
    assert got is not None
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert torch.allclose(got.float(), expected.float(), rtol=tolerance, atol=tolerance)
    assert float(expected.float().abs().max()) > 1e-3


def far_out(draw, batch=2, shape=OTHER):
    """Coordinates of which about half lie outside an image of SHAPE."""
    return draw(batch, 3, *shape, low=-6.0, high=18.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_sampling_repeats_the_edge(draw, channels):
    image, where = draw(2, channels, *SHAPE), far_out(draw)
    close(kernels.sample_linear(image, where), sample(image, where))


def test_sampling_at_voxels_edges_and_halves(draw, device):
    image = draw(1, 2, *SHAPE)
    where = voxel_coordinates(SHAPE, device)
    assert torch.equal(kernels.sample_linear(image, where), image)
    close(kernels.sample_linear(image, where - 0.5), sample(image, where - 0.5))
    close(kernels.sample_linear(image, where + 0.5), sample(image, where + 0.5))


@pytest.mark.parametrize(("images", "points"), [(1, 2), (2, 1), (1, 1)])
def test_one_item_serves_the_whole_batch(draw, images, points):
    image, where = draw(images, 2, *SHAPE), far_out(draw, points)
    close(kernels.sample_linear(image, where), sample(image, where))


def test_sampling_applies_a_matrix(draw, device):
    image, where = draw(2, 1, *SHAPE), far_out(draw)
    expected = sample(image, apply_matrix(MATRIX, where))
    for matrix in (MATRIX, MATRIX[:3], torch.tensor(MATRIX, device=device)):
        close(kernels.sample_linear(image, where, matrix), expected)


def test_points_that_are_no_numbers_stay_inside_the_image(draw):
    image, where = draw(1, 1, *SHAPE), far_out(draw, 1)
    where[:, :, 0] = float("nan")
    where[:, :, 1] = float("inf")
    got = kernels.sample_linear(image, where)
    assert float(got[:, :, 1].min()) == pytest.approx(float(image[0, 0, -1, -1, -1]))
    close(got[:, :, 2:], sample(image, where)[:, :, 2:])


def test_views_and_repeated_batches_are_read_as_they_are(draw):
    image = draw(2, 3, *SHAPE).expand(2, 3, *SHAPE).flip(1).transpose(3, 4)
    where = draw(2, 6, *OTHER, low=-3.0, high=12.0)[:, ::2]
    close(kernels.sample_linear(image, where), sample(image, where))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_sampled_in_single(draw, dtype):
    image, where = draw(1, 2, *SHAPE).to(dtype), far_out(draw, 1)
    close(kernels.sample_linear(image, where), sample(image, where), 1e-2)
    exact = sample(image.float(), where)
    # One step of the type below 1: the interpreter cuts bfloat16 off where a GPU rounds it.
    step = 2.0**-11 if dtype == torch.float16 else 2.0**-8
    got = kernels.sample_linear(image, where).float()
    assert float((got - exact).abs().max()) <= step


@pytest.mark.parametrize("channels", [1, 2])
def test_warp_by_a_displacement(draw, device, channels):
    image, shift = draw(2, channels, *SHAPE), draw(2, 3, *SHAPE, low=-4.0, high=4.0)
    expected = sample(image, voxel_coordinates(SHAPE, device) + shift)
    close(kernels.warp(image, shift), expected)


def test_warp_onto_another_grid_tells_where_the_image_is(draw, device):
    image, shift = draw(1, 1, *SHAPE), draw(2, 3, *OTHER, low=-4.0, high=4.0)
    where = apply_matrix(MATRIX, voxel_coordinates(OTHER, device) + shift)
    moved, inside = kernels.warp_with_inside(image, shift, MATRIX)
    close(moved, sample(image, where))
    close(inside, inside_image(where, SHAPE).float())
    assert 0.1 < float(inside.mean()) < 0.9
    close(kernels.warp(image, shift, MATRIX), sample(image, where))


@pytest.mark.parametrize("factor", [None, 0.3])
def test_composition(draw, device, factor):
    outer, inner = (draw(2, 3, *SHAPE, low=-3.0, high=3.0) for _ in range(2))
    scale = None if factor is None else torch.tensor(factor, device=device)
    expected = compose_displacements(outer, inner * (1.0 if factor is None else factor))
    close(kernels.compose(outer, inner, scale), expected)


def test_composition_is_not_symmetric(draw):
    outer, inner = (draw(1, 3, *SHAPE, low=-3.0, high=3.0) for _ in range(2))
    ahead, back = kernels.compose(outer, inner), kernels.compose(inner, outer)
    assert float((ahead - back).abs().max()) > 0.1


@pytest.mark.parametrize("shape", [SHAPE, (1, 4, 5), (2, 1, 3), (3, 2, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_force(draw, shape, channels):
    moved, slope = draw(2, channels, *shape), draw(2, channels, *shape, low=-1.0)
    factors = (-1.0, 0.5, 2.0)
    parts = [(axis_gradient(moved, a) * slope).sum(1) * factors[a] for a in range(3)]
    close(kernels.force(moved, slope, factors), torch.stack(parts, dim=1))


@pytest.mark.parametrize("sigmas", [(1.7, 1.7, 1.7), (0.7, 2.5, 0.0), (0.0, 0.4, 1.0), (0, 0, 3.0)])
def test_gaussian(draw, sigmas):
    image = draw(2, 3, *SHAPE)
    untouched = image.clone()
    weights = [gaussian_kernel(s) if s > 0 else None for s in sigmas]
    close(kernels.convolve(image, weights), gaussian_smooth(image, sigmas))
    assert torch.equal(image, untouched)


def test_gaussian_wider_than_the_image(draw):
    image = draw(1, 1, 3, 1, 5)
    close(kernels.convolve(image, [gaussian_kernel(4.0)] * 3), gaussian_smooth(image, 4.0))


def test_longest_vector(draw, device):
    field = draw(2, 3, *SHAPE, low=-2.0, high=2.0)
    units = torch.tensor([1.0, 2.5, 0.5], device=device).view(1, 3, 1, 1, 1)
    close(kernels.max_norm(field), field.norm(dim=1).max())
    close(kernels.max_norm(field, (1.0, 2.5, 0.5)), (field * units).norm(dim=1).max())
    field[1, :, 6, 9, 12] = 20.0
    assert float(kernels.max_norm(field)) == pytest.approx(20 * 3**0.5)
    assert float(kernels.max_norm(torch.zeros_like(field))) == 0.0


def test_wrong_shapes_are_refused_in_a_sentence(draw):
    image, field = draw(1, 1, *SHAPE), draw(1, 3, *SHAPE)
    wrong = [
        lambda: kernels.sample_linear(image[0], field),
        lambda: kernels.sample_linear(image, field[:, :2]),
        lambda: kernels.sample_linear(image.expand(3, -1, -1, -1, -1), field.repeat(2, 1, 1, 1, 1)),
        lambda: kernels.warp(image, field, np.eye(3)),
        lambda: kernels.compose(image, field),
        lambda: kernels.force(image, field),
        lambda: kernels.convolve(image, [[0.5, 0.5]] * 3),
        lambda: kernels.max_norm(image),
    ]
    for call in wrong:
        with pytest.raises(GeometryError, match=r"\."):
            call()
