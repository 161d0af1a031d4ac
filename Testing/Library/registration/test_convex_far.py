"""Whole registrations by the discrete search and its refinement: large motion, and what is left out."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from support import make_grid

from DeepRegLib import registry
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.registration.base import Image, ImagePair, Progress


def convexadam(pair, preset="balanced", progress=None, **values):
    spec = registry.spec("convexadam")
    settings = spec.values(preset, **values)
    return registry.create("convexadam", **settings).register(pair, progress or Progress())


def centred_grids():
    fixed = make_grid("oblique", (66, 58, 40), (1.5, 1.8, 2.6))
    moving = make_grid("LPS", (52, 66, 48), (1.9, 1.5, 2.0))
    return pairs._centred(fixed, (0.0, 0.0, 0.0)), pairs._centred(moving, (1.0, -2.0, 0.5))


def far_truth(points):
    """Motion of up to 27 mm, 10 to 18 voxels, that fades outwards; fixed to moving, RAS."""
    distance = (points**2).sum(-1, keepdims=True) / (2 * 26.0**2)
    return points + np.array([19.2, -14.4, 12.0]) * np.exp(-distance)


def far_inverse(points):
    x = points.copy()
    for _ in range(80):
        x = x + 0.5 * (points - far_truth(x))
    return x


def spots(points):
    """Small spots, further apart than wide and smaller than the motion, in a body."""
    rng = np.random.default_rng(3)
    value = 30.0 * (np.linalg.norm(points / [42.0, 44.0, 43.0], axis=-1) < 1)
    for _ in range(30):
        center, width = rng.uniform(-32, 32, 3), rng.uniform(2.0, 2.5)
        bright = rng.uniform(30, 60)
        value = value + bright * np.exp(-((points - center) ** 2).sum(-1) / (2 * width**2))
    return value


@pytest.fixture(scope="module")
def far():
    """A pair on unlike grids whose images are functions of RAS."""
    fixed, moving = centred_grids()
    a = spots(pairs.voxel_points(fixed)).astype(np.float32)
    b = spots(far_inverse(pairs.voxel_points(moving))).astype(np.float32)
    return ImagePair(Image.from_array(a, fixed), Image.from_array(b, moving))


def far_error_mm(transform):
    points = np.random.default_rng(1).uniform(-22, 22, (400, 3))
    missed = transform.map_points_ras(points) - far_truth(points)
    return float(np.linalg.norm(missed, axis=1).mean())


def contrast(image, kind):
    data = image.data
    if kind == "inverted":
        data = 100.0 - data
    elif kind == "nonlinear":
        data = 60.0 * torch.sin(data / 28.0) + 0.2 * data
    return replace(image, data=data)


def test_large_motion_is_found_where_greedy_loses_its_way(far):
    # From a quarter of the resolution; its usual eighth finds this motion as well.
    levels = {"factors": (4, 2, 1), "iterations": (100, 60, 15)}
    greedy = registry.create("greedy", **registry.spec("greedy").values(**levels))
    lost = far_error_mm(greedy.register(far, Progress()).transform)
    found = convexadam(far).transform
    error = far_error_mm(found)
    assert error < 0.2 * far_error_mm(Transform()) and error < 0.5 * lost
    assert (jacobian_determinant(found.field.displacement) > 0).all()
    again = convexadam(far).transform
    assert torch.equal(again.field.displacement, found.field.displacement)


@pytest.mark.parametrize("kind", ["inverted", "nonlinear"])
@pytest.mark.parametrize("consistent", [False, True])
def test_large_motion_is_found_across_contrasts(far, kind, consistent):
    pair = replace(far, moving=contrast(far.moving, kind))
    found = convexadam(pair, modality="different", inverse_consistency=consistent).transform
    assert far_error_mm(found) < 0.25 * far_error_mm(Transform())
    assert (jacobian_determinant(found.field.displacement) > 0).all()


@pytest.mark.parametrize("consistent", [False, True])
def test_the_search_alone_answers_in_the_units_of_the_fixed_image(far, consistent):
    """Without refinement the result is scaled and upsampled too, in either way of searching."""
    found = convexadam(far, adam_iterations="0", inverse_consistency=consistent).transform
    assert found.field.grid.matches(far.fixed.grid)
    middle = np.zeros((1, 3))
    moved, truth = found.map_points_ras(middle)[0], far_truth(middle)[0]
    # Smoothing over nodes shortens the peak; a forgotten unit would make it a fifth or less.
    assert 0.4 < np.dot(moved, truth) / np.dot(truth, truth) < 1.3
    assert far_error_mm(found) < 0.6 * far_error_mm(Transform())


def test_a_deformation_to_begin_with_is_kept_and_improved(far):
    moving = pairs.voxel_points(far.fixed.grid)
    vectors = torch.from_numpy(np.moveaxis(far_truth(moving) - moving, -1, 0))[None].float()
    near = Field.from_ras_mm(0.9 * vectors, far.fixed.grid).faded(8)
    start = Transform(np.eye(4), near)
    pair = replace(far, initial=start)
    kept = convexadam(pair, displacement=1, adam_iterations="0").transform
    better = convexadam(pair, displacement=1).transform
    assert far_error_mm(kept) < 1.5 * far_error_mm(start)
    assert far_error_mm(better) < 0.8 * far_error_mm(start)


@pytest.mark.parametrize("which", ["fixed_mask", "moving_mask", "cut"])
def test_what_a_mask_or_the_field_of_view_leaves_out_does_not_count(far, which):
    if which == "cut":
        whole = far.moving
        grid = whole.grid.cropped((0, 9, 0), (52, 57, 48))
        pair = replace(far, moving=Image(whole.data[:, :, :, 9:].contiguous(), grid))
    else:
        image = far.fixed if which == "fixed_mask" else far.moving
        points = pairs.voxel_points(image.grid)
        out = points[..., 1] < -30.0
        data = image.data.clone()
        noise = np.random.default_rng(5).uniform(0, 400, out.sum())
        data[0, 0][torch.from_numpy(out)] = torch.from_numpy(noise).float()
        mask = Image.from_array((~out).astype(np.uint8), image.grid)
        name = which.removesuffix("_mask")
        pair = replace(far, **{name: Image(data, image.grid), which: mask})
    assert far_error_mm(convexadam(pair).transform) < 0.25 * far_error_mm(Transform())


@pytest.mark.parametrize("axis", [0, 1])
def test_a_single_slice_moves_within_its_plane(axis):
    shape, spacing = [64, 72, 60], [1.2, 1.0, 1.4]
    shape[axis], spacing[axis] = 1, 5.0
    grid = make_grid("LPS", tuple(shape), tuple(spacing))
    middle = (torch.tensor(shape) - 1.0).view(1, 3, 1, 1, 1) / 2
    distance = (voxel_coordinates(grid.shape) - middle).norm(dim=1, keepdim=True)
    within = (1.0 - torch.eye(3)[axis]).view(1, 3, 1, 1, 1)
    truth = 9.0 * torch.exp(-((distance / 17.0) ** 2)) * within
    assert float(jacobian_determinant(truth).min()) > 0
    coarse = [n // 3 + 1 for n in shape]
    moving = torch.rand(1, 1, *coarse, generator=torch.Generator().manual_seed(9))
    moving = torch.nn.functional.interpolate(moving, shape, mode="trilinear") * 100
    fixed = sample(moving, voxel_coordinates(grid.shape) + truth)
    result = convexadam(ImagePair(Image(fixed, grid), Image(moving, grid)))
    found = result.transform.field.displacement
    inside = truth.norm(dim=1, keepdim=True) > 3.0
    error = (found - truth).norm(dim=1, keepdim=True)[inside].mean()
    assert not found[:, axis].any()
    assert error < 0.3 * truth.norm(dim=1, keepdim=True)[inside].mean()


def test_stopping_in_the_middle_keeps_what_was_found(far):
    fractions = []

    def listen(event):
        fractions.append(event.fraction)
        if event.fraction > 0.5:
            progress.stop()

    progress = Progress(listen)
    result = convexadam(far, progress=progress)
    assert 0.5 < fractions[-1] < 0.6 and fractions == sorted(fractions)
    assert far_error_mm(result.transform) < 0.6 * far_error_mm(Transform())


def test_what_does_not_fit_is_refused_with_advice(far):
    with pytest.raises(ParameterError, match="one number of iterations for each"):
        convexadam(far, adam_spacing="4,2")
    with pytest.raises(ParameterError, match="larger search_spacing or a smaller displacement"):
        convexadam(far, search_spacing=1, displacement=10)
    with pytest.raises(ParameterError, match="set features to mind or auto"):
        convexadam(far, modality="different", features="mind+intensity")
