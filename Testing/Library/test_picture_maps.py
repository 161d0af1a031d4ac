"""Maps over the fixed image: their colors, and the Jacobian determinant without torch."""

import numpy as np
import pytest
import torch
from support import ORIENTATIONS, make_grid, smooth_displacement

from DeepRegLib.errors import GeometryError, InputError
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.pictures import compose
from DeepRegLib.pictures.color_maps import KINDS, color_map
from DeepRegLib.pictures.jacobian import jacobian_of


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks also in small arrays."""
    monkeypatch.setattr(compose, "_BLOCK", 400)


# Colors of maps ----------------------------------------------------------------------------------


def luminance(rgb):
    """CIE L* of sRGB colors."""
    linear = np.asarray(rgb, float)[..., :3] / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    y = linear @ (0.2126, 0.7152, 0.0722)
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


def test_jacobian_colors():
    colors = color_map("jacobian")
    values = [-2.0, -1e-3, 0.0, 0.34, 0.6, 1.0, 1.7, 2.95, np.nan]
    shown = colors.colors(values)
    assert (shown[:3] == (255, 0, 255, 255)).all()
    assert (shown[5, 3], shown[8, 3]) == (0, 0)
    assert (shown[[3, 4, 6, 7], 3] == 255).all()
    blue, red = shown[:, 2].astype(int), shown[:, 0].astype(int)
    assert (blue[3:5] > red[3:5]).all() and (red[6:8] > blue[6:8]).all()
    # Logarithmic: a half is as far from white as the double.
    half, double = luminance(colors.colors([0.5, 2.0]))
    assert half == pytest.approx(double, abs=8)
    sides = np.exp(np.linspace(0.12, 1.05, 40))
    for side in (sides, 1 / sides):
        assert (np.diff(luminance(colors.colors(side))) <= 0.5).all()


@pytest.mark.parametrize("kind", ["uncertainty_mm", "error_mm"])
def test_mm_colors_are_perceptually_uniform(kind):
    table = color_map(kind).table
    assert table.shape == (256, 4) and table.dtype == np.uint8
    steps = np.diff(luminance(table))
    assert (steps > -0.05).all()
    assert np.abs(np.cumsum(steps) - np.linspace(0, steps.sum(), 255)).max() < 8


@pytest.mark.parametrize(
    ("top", "scale"), [(0.0, 0.5), (0.5, 0.5), (0.7, 1.0), (1.4, 2.0), (2.5, 3.0), (4.2, 5.0),
                       (7.0, 10.0), (13.0, 20.0)]
)  # fmt: skip
def test_scales_in_mm_are_round(top, scale):
    values = np.full((4, 5, 6), top)
    values[0, 0, 0] = np.nan
    colors = color_map("error_mm", values)
    assert colors.high == pytest.approx(scale)
    assert colors.window == pytest.approx(scale) and colors.level == pytest.approx(scale / 2)


def test_kinds_of_maps():
    assert {color_map(kind).kind for kind in KINDS} == set(KINDS)
    with pytest.raises(InputError, match="jacobian"):
        color_map("heat")


# Jacobian ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_jacobian_of_an_affine_map(orientation):
    grid = make_grid(orientation)
    matrix = np.array([[1.1, 0.1, 0.0], [0.05, 0.9, -0.2], [0.1, 0.0, 1.3]])
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    displacement = np.moveaxis(points @ (matrix - np.eye(3)).T, -1, 0).astype(np.float32)
    linear = np.eye(4)
    linear[:3, :3] = np.diag([2.0, 1.0, 0.7])
    found = jacobian_of(displacement, linear, grid)
    assert found.shape == grid.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, np.linalg.det(matrix) * 1.4, rtol=2e-3)
    np.testing.assert_allclose(
        jacobian_of(displacement, None, grid), np.linalg.det(matrix), rtol=2e-3
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_jacobian_of_a_curved_map(orientation):
    """p -> p + a sin(w p): the derivatives are known."""
    grid = make_grid(orientation, (26, 34, 22), (0.75, 0.4, 1.5))
    p = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    w, a = 0.08, 4.0
    displacement = np.stack([a * np.sin(w * p[..., 1]), a * np.sin(w * p[..., 2]),
                             a * np.sin(w * p[..., 0]) + p[..., 2] * 0.2])  # fmt: skip
    x, y, z = (a * w * np.cos(w * p[..., axis]) for axis in (1, 2, 0))
    # | 1 x 0 ; 0 1 y ; z 0 1.2 |
    expected = 1.2 + x * y * z
    found = jacobian_of(displacement, None, grid)
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(found[inner], expected[inner], atol=2e-3)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("shape", [(13, 17, 11), (1, 17, 11), (13, 2, 1)])
def test_jacobian_agrees_with_the_library(orientation, shape):
    grid = make_grid(orientation, shape)
    displacement = smooth_displacement(shape, 2.0, sigma=1.5) if min(shape) > 4 else torch.randn(
        1, 3, *shape, generator=torch.Generator().manual_seed(3)
    )  # fmt: skip
    in_mm = Field(displacement, grid).to_ras_mm()[0].numpy()
    expected = jacobian_determinant(displacement)[0].numpy()
    np.testing.assert_allclose(jacobian_of(in_mm, np.eye(4), grid), expected, atol=2e-4)


def test_jacobian_refuses_another_shape():
    grid = make_grid("RAS")
    with pytest.raises(GeometryError, match="shape"):
        jacobian_of(np.zeros((*grid.shape, 3)), None, grid)
