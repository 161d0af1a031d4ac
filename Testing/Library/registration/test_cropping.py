"""Empty space around an object is left out, and the result does not show it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import make_grid

from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.registration.base import Image, ImagePair, Progress
from DeepRegLib.registration.cropping import cropped_to_object
from DeepRegLib.registration.dense import DenseEngine, DenseSettings

GRID = make_grid("oblique", (56, 72, 40), (2.0, 1.5, 3.0))
SETTINGS = DenseSettings(
    similarity="lncc", radius=2, factors=(2, 1), iterations=(30, 15), step=1.0, update_sigma=1.7,
    field_sigma=0.7, volume_weight=0.07, lattice=2, tolerance=0.0, finest_mm=0.0,
)  # fmt: skip
#: Where the object lies, away from the middle, in RAS mm.
CENTER = GRID.to_ras([24.0, 40.0, 18.0])


def _image(bend):
    """Two nested balls with a texture, the inner one bent aside."""
    points = GRID.to_ras(np.moveaxis(np.indices(GRID.shape), 0, -1)) - CENTER
    points = points + bend * np.sin(points[..., [1, 2, 0]] / 7.0)
    radius = np.linalg.norm(points, axis=-1)
    texture = 0.08 * np.cos(points / (3.0, 4.0, 5.0)).sum(-1) * (radius < 22)
    return Image.from_array(
        ((radius < 22) * 0.5 + (radius < 12) * 0.4 + texture).astype("f4"), GRID
    )


@pytest.fixture(scope="module")
def pair():
    return ImagePair(_image(0.0), _image(2.0))


def test_the_crop_holds_the_object_and_its_place(pair):
    cropped = cropped_to_object(pair)
    small, large = cropped.fixed, pair.fixed
    assert small.grid.size < 0.75 * large.grid.size
    assert cropped.moving is pair.moving
    assert small.data.sum() == pytest.approx(float(large.data.sum()), rel=1e-5)
    back = Transform().warp(small.data, small.grid, large.grid)
    inside = large.data != 0
    torch.testing.assert_close(back[inside], large.data[inside], atol=2e-4, rtol=0)


def test_the_margin_is_in_mm(pair):
    cropped = cropped_to_object(pair)
    for axis, spacing in enumerate(GRID.spacing_mm):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero((cropped.fixed.numpy() > 0.3).any(axis=others))
        low, high = hits[0], cropped.fixed.grid.shape[axis] - 1 - hits[-1]
        assert (
            min(low, high) * spacing >= 12.0 or cropped.fixed.grid.shape[axis] == GRID.shape[axis]
        )


def test_a_mask_decides_where_there_is_one(pair):
    mask = np.zeros(GRID.shape, "u1")
    mask[20:36, 4:20, 10:28] = 1
    cropped = cropped_to_object(replace(pair, fixed_mask=Image.from_array(mask, GRID)))
    corners = GRID.to_voxel(cropped.fixed.grid.corners_ras())
    assert (corners.min(0) <= [20, 4, 10]).all() and (corners.max(0) >= [35, 19, 27]).all()
    assert corners.max(0)[1] < 40


@pytest.mark.parametrize("why", ["full", "bent", "landmarks"])
def test_what_stays_whole(pair, why):
    if why == "full":
        noise = torch.rand(pair.fixed.data.shape, generator=torch.Generator().manual_seed(1))
        kept = replace(pair, fixed=Image(noise, GRID))
    elif why == "bent":
        kept = replace(pair, initial=Transform(field=Field.identity(GRID)))
    else:
        kept = replace(pair, fixed_landmarks_ras=np.zeros((1, 3)))
    assert cropped_to_object(kept) is kept


def _error_mm(transform):
    """Mean distance from the true position, inside the object."""
    inside = _image(0.0).numpy() > 0.3
    points = GRID.to_ras(np.argwhere(inside)) - CENTER
    truth = points.copy()
    for _ in range(100):
        truth = points - 2.0 * np.sin(truth[:, [1, 2, 0]] / 7.0)
    return float(np.linalg.norm(transform.map_points_ras(points + CENTER) - CENTER - truth,
                                axis=1).mean())  # fmt: skip


def test_the_result_is_as_good_as_that_of_the_whole_image(pair, monkeypatch):
    found = DenseEngine(SETTINGS).register(pair, Progress()).transform
    monkeypatch.setattr("DeepRegLib.registration.dense.cropped_to_object", lambda pair: pair)
    whole = DenseEngine(SETTINGS).register(pair, Progress()).transform
    assert found.field.grid.matches(GRID)
    # Where a ball shows little, the two differ, as they do when the grid shifts by a voxel.
    assert _error_mm(found) < 1.1 * _error_mm(whole) < 0.6 * _error_mm(Transform())
    # What was left out rests.
    assert float(found.field.displacement[0, :, 0].abs().max()) == 0.0
