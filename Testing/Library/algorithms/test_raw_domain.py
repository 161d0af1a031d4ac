"""Registration to raw data: its direction, its objective, what it finds, and what it reconstructs."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from support import make_grid, smooth_displacement

from DeepRegLib.algorithms.raw_domain import SPEC, Algorithm
from DeepRegLib.errors import InputError, ParameterError
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.geometry.velocity import exponential
from DeepRegLib.registration.base import Image, ImagePair, Progress
from DeepRegLib.registration.kspace import cartesian_mask, to_kspace
from DeepRegLib.registration.raw_data import RawData, write_raw
from DeepRegLib.registration.raw_engine import RawLevel, best_factor, joined
from DeepRegLib.registration.raw_scan import simulated_scan

MATRIX = pairs.known_matrix()
QUICK = {"factors": (4, 2), "iterations": (40, 25)}


def bend(points):
    """RAS of the scan to RAS of the fixed image: the known matrix back, then a wave."""
    back = np.linalg.inv(MATRIX)
    points = points @ back[:3, :3].T + back[:3, 3]
    return points + 3.0 * np.sin(points[..., [1, 2, 0]] / 9.0)


def scene(**extra):
    """Images of one object on oblique, anisotropic grids; the scan is bent, and on its own scale."""
    fixed, moving = (g.resized([n * 5 // 4 for n in g.shape])
                     for g in (pairs.fixed_grid(), pairs.moving_grid()))  # fmt: skip
    values = 7.0 * pairs.phantom(bend(pairs.voxel_points(moving))).astype(np.float32)
    start = Transform(MATRIX)
    return ImagePair(
        pairs.make_image(fixed), Image.from_array(values, moving), initial=start, **extra
    )


def error_mm(transform):
    """Distance of bend(T(p)) from p inside the body: 0 for the right direction alone."""
    points = pairs.body_points()
    return float(np.linalg.norm(bend(transform.map_points_ras(points)) - points, axis=1).mean())


def run(pair, **values):
    return Algorithm(**SPEC.values(**{**QUICK, **values})).register(pair, Progress())


def psnr(image, truth):
    return 10 * float(torch.log10(truth.max() ** 2 / (image - truth).square().mean()))


@pytest.fixture(scope="module")
def found():
    return run(scene(), acceleration=6.0)


def test_it_finds_the_deformation_in_the_direction_of_the_library(found):
    before = error_mm(Transform(MATRIX))
    assert error_mm(found.transform) < 0.45 * before
    field = found.transform.field
    assert field.grid.matches(scene().fixed.grid)
    assert (jacobian_determinant(field.displacement) > 0).all()
    # The transform of the wrong direction makes it worse.
    wrong = Transform(MATRIX, Field(-field.displacement, field.grid))
    assert error_mm(wrong) > before


def test_the_reconstruction_is_far_better_than_zeros(found):
    truth = scene().moving.data
    images = {name: image.data for name, image in found.extras.items()}
    gain = psnr(images["moving_reconstruction"], truth) - psnr(images["moving_zero_filled"], truth)
    assert gain > 3.0
    told = found.provenance
    assert told["unexplained"] < 0.5 * told["unexplained_before"]
    assert told["acceleration"] == pytest.approx(6.0, rel=0.05) and told["raw_data"] == "simulated"


def test_the_history_falls(found):
    levels = {entry["level"] for entry in found.history}
    assert levels == {0, 1} and len(found.history) == sum(QUICK["iterations"])
    for level in levels:
        data = [entry["data"] for entry in found.history if entry["level"] == level]
        assert data[-1] < data[0]


def test_raw_data_with_a_phase_gives_the_same(tmp_path, found):
    pair = scene()
    grid = pair.moving.grid
    ramp = torch.from_numpy(pairs.voxel_points(grid) @ [0.02, -0.03, 0.01]).float()[None, None]
    # So small a volume has few low frequencies.
    mask = cartesian_mask(grid.shape, 6.0, 0.2)
    samples = to_kspace(pair.moving.data * torch.exp(1j * ramp)) * mask
    write_raw(RawData(samples, mask, grid), tmp_path / "scan.npz")
    # Of the moving volume, the grid alone counts.
    empty = replace(pair, moving=Image(torch.zeros_like(pair.moving.data), grid))
    measured = run(empty, raw=str(tmp_path / "scan.npz"))
    assert error_mm(measured.transform) < 0.6 * error_mm(Transform(MATRIX))
    assert measured.provenance["raw_data"] == "scan.npz"
    truth = pair.moving.data
    found_image = measured.extras["moving_reconstruction"].data
    assert psnr(found_image, truth) > psnr(measured.extras["moving_zero_filled"].data, truth) + 2.0


def test_raw_data_of_another_shape_is_refused(tmp_path):
    grid = make_grid("RAS", (10, 12, 14))
    raw = RawData.simulated(Image(torch.rand(1, 1, 10, 12, 14), grid), cartesian_mask(grid.shape))
    write_raw(raw, tmp_path / "scan.npz")
    with pytest.raises(InputError, match="samples"):
        run(scene(), raw=str(tmp_path / "scan.npz"))


@pytest.mark.parametrize("start", ["none", "linear", "bent"])
def test_the_transform_is_the_inverse_of_what_bends_the_fixed_image(start):
    """exp(-v) after the start: exp(v) leads back to where the start alone leads."""
    fixed, moving = pairs.fixed_grid(), pairs.moving_grid()
    before = Transform()
    if start != "none":
        before = Transform(MATRIX)
    if start == "bent":
        own = make_grid("SAR", (20, 22, 24), (4.0, 4.0, 4.0), (0, 0, 0))
        matrix = own.voxel_to_ras.copy()
        matrix[:3, 3] -= own.center_ras
        own = type(own)(own.shape, matrix)
        before = Transform(MATRIX, Field(smooth_displacement(own.shape, 1.0), own))
    velocity = Field(smooth_displacement(moving.shape, 2.0, seed=3), moving)
    whole = joined(before, velocity, fixed)
    points = pairs.body_points()
    there = whole.map_points_ras(points)
    back = Field(exponential(velocity.displacement), moving).map_points_ras(there)
    expected = before.map_points_ras(points)
    motion = np.linalg.norm(there - expected, axis=1)
    missed = np.linalg.norm(back - expected, axis=1)
    assert motion.mean() > 1.0 and missed.mean() < 0.12 * motion.mean()
    assert joined(before, None, fixed) is before


def level_of(pair, acceleration=4.0, emphasis=0.5, shape=None):
    grid = pair.moving.grid
    scan = simulated_scan(pair, cartesian_mask(grid.shape, acceleration))
    return RawLevel(scan, shape or grid.shape, emphasis)


def test_the_data_term_is_that_of_the_formula():
    pair = replace(scene(), initial=None)
    pair = replace(pair, moving=Image(pair.moving.data, pair.moving.grid))
    level = level_of(pair, emphasis=0.0)
    grid = pair.moving.grid
    mask = cartesian_mask(grid.shape, 4.0)
    zero = tuple(n // 2 for n in grid.shape)
    mask[(0, 0, *zero)] = False
    y, p = to_kspace(pair.moving.data) * mask, to_kspace(level.reference) * mask
    factor = (p.conj() * y).real.sum() / p.abs().square().sum()
    expected = (factor.clamp(min=0) * p - y).abs().square().sum() / y.abs().square().sum()
    assert level(torch.zeros(1, 3, *grid.shape)).item() == pytest.approx(expected.item(), rel=1e-3)


def test_scale_and_offset_do_not_matter():
    pair = scene()
    still = torch.zeros(1, 3, *pair.moving.grid.shape)
    values = []
    for data in (pair.moving.data, 3.0 * pair.moving.data, pair.moving.data + 50.0):
        own = replace(pair, moving=Image(data, pair.moving.grid))
        values.append(level_of(own)(still).item())
    assert values == pytest.approx([values[0]] * 3, rel=1e-3)


def test_the_best_factor_is_best_and_never_negative():
    y, p = (to_kspace(torch.rand(1, 1, 6, 7, 8)) for _ in range(2))
    factor = best_factor(p, y).item()
    errors = [
        (f * p - y).abs().square().sum().item() for f in (factor, factor - 0.01, factor + 0.01)
    ]
    assert errors[0] == min(errors)
    assert best_factor(p, -y).item() == 0.0


@pytest.mark.parametrize("small", [None, (15, 13, 17)])
def test_the_gradient_is_that_of_the_objective(small):
    level = level_of(scene(), shape=small)
    generator = torch.Generator().manual_seed(0)
    shape = level.grid.shape
    u = 0.3 * gaussian_smooth(torch.randn(1, 3, *shape, generator=generator), 2.0)
    direction = gaussian_smooth(torch.randn(1, 3, *shape, generator=generator), 2.0)
    u.requires_grad_(True)
    value = level(u)
    value.backward()
    slope = (u.grad * direction).sum().item()
    step = 5e-3
    with torch.no_grad():
        ends = [level(u + sign * step * direction).item() for sign in (1, -1)]
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.1, abs=1e-5)


def test_the_truth_explains_the_samples_best():
    """The displacement that bends the fixed image onto the scan, on the grid of the scan."""
    pair = scene()
    level = level_of(pair)
    grid = pair.moving.grid
    points = pairs.voxel_points(grid)
    # start^-1 (x + u) = bend(x), so x + u = start(bend(x)).
    there = bend(points) @ MATRIX[:3, :3].T + MATRIX[:3, 3]
    u = torch.from_numpy(np.moveaxis(grid.to_voxel(there) - grid.to_voxel(points), -1, 0)[None])
    u = u.float()
    right, still, wrong = (level(x).item() for x in (u, 0 * u, -u))
    assert right < 0.3 * still and wrong > still


def test_a_start_that_bends_is_seen_through():
    """With the whole truth as the start, there is nothing left to find."""
    done = run(scene(), acceleration=2.0)
    again = run(replace(scene(), initial=done.transform), acceleration=2.0)
    assert error_mm(again.transform) < 1.1 * error_mm(done.transform) + 0.1
    assert again.history[0]["data"] < 0.7 * done.history[0]["data"]


@pytest.mark.parametrize("which", ["fixed_mask", "moving_mask"])
def test_what_a_mask_leaves_out_has_no_say(which):
    pair = scene()
    image = pair.fixed if which == "fixed_mask" else pair.moving
    points = pairs.voxel_points(image.grid)
    away = points if which == "fixed_mask" else bend(points)
    inside = np.linalg.norm(away / [34.0, 40.0, 37.0], axis=-1) < 1.0
    mask = Image.from_array(inside.astype(np.uint8), image.grid)
    spoiled = image.data.clone()
    spoiled[0, 0][torch.from_numpy(~inside)] = 5000.0
    part = {which[:-5]: Image(spoiled, image.grid), which: mask}
    result = run(replace(pair, **part))
    assert error_mm(result.transform) < 0.6 * error_mm(Transform(MATRIX))


def test_levels_and_iterations_belong_together():
    with pytest.raises(InputError, match="3 levels but 2"):
        run(scene(), factors=(4, 2, 1))
    with pytest.raises(ParameterError, match="smaller center"):
        run(scene(), acceleration=50.0, center=0.5)


def test_slices_stay_in_their_plane():
    grid = make_grid("RAS", (1, 40, 44), (5.0, 1.5, 1.5), (0, -30, -30))
    points = pairs.voxel_points(grid)
    fixed = Image.from_array(pairs.phantom(points).astype(np.float32), grid)
    bent = points.copy()
    bent[..., 1] += 2.0 * np.sin(points[..., 2] / 9.0)
    moving = Image.from_array(pairs.phantom(bent).astype(np.float32), grid)
    result = run(ImagePair(fixed, moving), acceleration=2.0, center=0.2)
    u = result.transform.field.displacement
    assert (u[:, 0] == 0).all() and u[:, 1].abs().max() > 0.3
