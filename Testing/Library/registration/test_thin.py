"""Slices stay in their plane and slabs keep their thickness, whatever their orientation."""

import numpy as np
import pytest
import torch
from support import make_grid

from DeepRegLib.geometry.affine import linear_matrix, rotation_from_vector
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.registration.base import Image, ImagePair
from DeepRegLib.registration.thin import are_slices, frame_of, slice_candidates

PIVOT = np.array([4.0, -3.0, 7.0])


def _turned(grid, vector, shift):
    motion = np.eye(4)
    motion[:3, :3] = rotation_from_vector(torch.tensor(vector, dtype=torch.float64)).numpy()
    motion[:3, 3] = shift
    return Grid(grid.shape, motion @ grid.voxel_to_ras)


def _image(grid):
    index = np.indices(grid.shape).reshape(3, -1).T
    blob = np.exp(-0.5 * (((index - np.array(grid.shape) * 0.45) / 6.0) ** 2).sum(1))
    return Image.from_array(blob.reshape(grid.shape).astype("f4"), grid)


SLICE = make_grid("oblique", (1, 40, 48), (5.0, 1.2, 1.0))
OTHER = _turned(make_grid("LPS", (44, 40, 1), (1.1, 1.0, 4.0)), (0.4, -0.7, 0.2), (30, -20, 15))


def _normal(grid, axis):
    direction = grid.voxel_to_ras[:3, axis]
    return direction / np.linalg.norm(direction)


@pytest.mark.parametrize("method", ["auto", "stored", "geometry", "mass", "search"])
def test_starts_lay_one_slice_into_the_plane_of_the_other(method):
    pair = ImagePair(_image(SLICE), _image(OTHER))
    assert are_slices(pair)
    for start in slice_candidates(pair, method):
        normal = start[:3, :3] @ _normal(SLICE, 0)
        assert abs(normal @ _normal(OTHER, 2)) == pytest.approx(1.0, abs=1e-9)
        center = start[:3, :3] @ SLICE.center_ras + start[:3, 3]
        assert _normal(OTHER, 2) @ (center - OTHER.center_ras) == pytest.approx(0.0, abs=1e-9)
        assert np.linalg.det(start[:3, :3]) == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "count"), [("rigid", 3), ("similarity", 4), ("affine", 6)])
def test_slices_move_within_their_plane(kind, count):
    pair = ImagePair(_image(SLICE), _image(OTHER))
    frame = frame_of(pair, kind, np.eye(4), PIVOT)
    assert len(frame.free) == count
    matrix = _moved(frame, kind)
    normal = _normal(OTHER, 2)
    inside = frame.basis[:3, :2].T
    np.testing.assert_allclose(inside @ normal, 0.0, atol=1e-9)
    for direction in inside:
        assert (matrix[:3, :3] @ direction) @ normal == pytest.approx(0.0, abs=1e-9)
    assert (matrix[:3, :3] @ PIVOT + matrix[:3, 3] - PIVOT) @ normal == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("fixed_is_thin", [True, False])
def test_a_slab_keeps_its_thickness_but_may_turn(fixed_is_thin):
    slab = make_grid("oblique", (40, 44, 6), (2.0, 2.0, 2.0))
    whole = make_grid("RAS", (40, 42, 38), (2.0, 2.0, 2.0))
    grids = (slab, whole) if fixed_is_thin else (whole, slab)
    pair = ImagePair(*(_image(grid) for grid in grids))
    start = np.eye(4)
    start[:3, :3] = rotation_from_vector(torch.tensor([0.3, 0.1, -0.5]).double()).numpy()
    frame = frame_of(pair, "affine", start, PIVOT)
    assert len(frame.free) == 9
    across = (start[:3, :3] if fixed_is_thin else np.eye(3)) @ _normal(slab, 2)
    np.testing.assert_allclose(frame.basis[:3, 2], across, atol=1e-9)
    matrix = _moved(frame, "affine")
    assert np.linalg.norm(matrix[:3, :3] @ across) == pytest.approx(1.0, abs=1e-9)
    assert len(frame_of(pair, "rigid", start, PIVOT).free) == 6


def test_whole_volumes_are_free():
    grids = (make_grid("RAS", (30, 34, 28), (2.0, 2.0, 2.5)), SLICE)
    pair = ImagePair(*(_image(grids[0]) for _ in range(2)))
    frame = frame_of(pair, "affine", np.eye(4), PIVOT)
    assert len(frame.free) == 12
    np.testing.assert_allclose(frame.basis[:3, :3], np.eye(3))
    # A slice in a volume may lie anywhere in it.
    mixed = ImagePair(_image(grids[1]), _image(grids[0]))
    assert not are_slices(mixed) and len(frame_of(mixed, "rigid", np.eye(4), PIVOT).free) == 6


def _moved(frame, kind):
    """The map of the free parameters all at once."""
    full = torch.zeros(12 if kind == "affine" else 6 + (kind == "similarity")).double()
    full[list(frame.free)] = torch.linspace(-6.0, 7.0, len(frame.free)).double()
    turn = linear_matrix(full, kind, np.zeros(3), 40.0).numpy()
    return frame.basis @ turn @ np.linalg.inv(frame.basis)
