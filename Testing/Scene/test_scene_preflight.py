"""What is said before a run: each finding when it should be, and silence when all is well."""

from __future__ import annotations

import time

import numpy as np
import pytest
import slicer
import vtk

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.vtk_arrays import ijk_to_ras_of, to_vtk_image
from DeepRegLib.geometry.grid import Grid


@pytest.fixture
def pair(scene, tools):
    """Two volumes that can be registered."""
    grids = tools.make_grid("oblique"), tools.make_grid("left", (16, 20, 24))
    return [
        mrml.add_volume(scene, n, tools.smooth_array(g), g)
        for n, g in zip(("fixed", "moving"), grids)
    ]


def codes(*args, level=None, **kwargs):
    return {f.code for f in mrml.check(*args, **kwargs) if level in (None, f.level)}


def volume(scene, tools, spacing=(2.5, 1.5, 1.0), shape=(14, 18, 23), name="other"):
    grid = tools.make_grid("ras", shape, spacing)
    random = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return mrml.add_volume(scene, name, random, grid)


def test_a_normal_pair_is_met_with_silence(scene, pair):
    assert mrml.check(*pair) == []
    mask = mrml.add_volume(
        scene, "mask", np.ones((14, 18, 23), np.uint8), mrml.grid_of(pair[0]), True
    )
    points = [mrml.add_points(scene, n, np.eye(3) + (4, -7, 11)) for n in ("F", "M")]
    assert mrml.check(*pair, fixed_mask=mask, fixed_points=points[0], moving_points=points[1]) == []


def test_missing_same_and_empty_volumes(scene, pair):
    fixed, moving = pair
    (finding,) = mrml.check(None, moving)
    assert (finding.level, finding.text) == ("error", "Select a fixed and a moving volume.")
    assert codes(fixed, fixed, level="error") == {"volume-same"}
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert codes(fixed, empty, level="error") == {"volume-empty"}
    copy = mrml.add_volume(scene, "copy", mrml.volume_array(fixed), mrml.grid_of(fixed))
    assert codes(fixed, copy, level="error") == {"image-same"}
    rgb = mrml.add_volume(scene, "rgb", np.ones((9, 9, 9, 3), np.uint8), Grid((9, 9, 9), np.eye(4)))
    assert codes(fixed, rgb, level="error") == {"volume-vector"}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values(scene, tools, pair, bad):
    fixed, moving = pair
    array = mrml.volume_array(fixed)
    array[7, 8, 9] = bad
    assert codes(mrml.add_volume(scene, "bad", array, mrml.grid_of(fixed)), moving) == {
        "values-nan"
    }
    array[:] = 3
    flat = mrml.add_volume(scene, "flat", array, mrml.grid_of(fixed))
    assert codes(flat, moving, level="error") == {"values-constant"}
    array[3:6] = 1
    labels = mrml.add_volume(scene, "labels", array.astype(np.int16), mrml.grid_of(fixed), True)
    assert codes(labels, moving, level="warning") == {"volume-labels"}


def test_shape_spacing_and_units(scene, tools, pair):
    fixed = volume(scene, tools, name="fixed 2")
    cases = [
        ((1, 18, 23), (2.5, 1.5, 1.0), "slices-single", "warning"),
        ((6, 18, 23), (2.5, 1.5, 1.0), "slices-few", "warning"),
        ((14, 18, 23), (6.0, 1.5, 1.0), "spacing-anisotropic", "note"),
        ((14, 18, 23), (7.0, 7.0, 7.0), "extent-ratio", "note"),
        ((14, 18, 23), (0.0025, 0.0015, 0.001), "unit-small", "error"),
        ((14, 18, 23), (2500.0, 1500.0, 1000.0), "unit-large", "error"),
        ((14, 18, 23), (180.0, 180.0, 180.0), "unit-ratio", "error"),
    ]
    for shape, spacing, code, level in cases:
        other = volume(scene, tools, spacing, shape)
        assert code in codes(fixed, other, level=level), code
    text = next(f.text for f in mrml.check(fixed, other) if f.code == "unit-ratio")
    assert "by 1000" in text
    plain = Grid((8, 8, 310), np.eye(4))
    lost = mrml.add_volume(scene, "lost", np.random.default_rng(0).random(plain.shape), plain)
    assert "unit-default" in codes(lost, fixed, level="warning")
    kept = Grid((8, 8, 290), np.eye(4))
    kept = mrml.add_volume(scene, "kept", np.random.default_rng(0).random(kept.shape), kept)
    assert "unit-default" not in codes(kept, fixed)


def test_overlap_counts_parents_and_start(scene, tools, linear_parent, pair):
    fixed, moving = pair
    shift = np.eye(4)
    shift[0, 3] = 500
    moving.SetAndObserveTransformNodeID(linear_parent(shift).GetID())
    assert codes(fixed, moving, level="warning") == {"overlap-none"}
    assert "where the registration would start" in mrml.check(fixed, moving)[0].text
    assert codes(fixed, moving, start_from_scene=False) == {"moving-parent-ignored"}
    shift[0, 3] = 20
    moving.SetAndObserveTransformNodeID(linear_parent(shift).GetID())
    assert codes(fixed, moving) == {"overlap-small", "moving-parent-start"}
    away = mrml.grid_of(moving).voxel_to_ras.copy()
    away[1, 3] += 400
    grid = Grid((16, 20, 24), away)
    far = mrml.add_volume(scene, "far", tools.smooth_array(grid), grid)
    (finding,) = mrml.check(fixed, far)
    assert finding.code == "overlap-none" and "from their centers" in finding.text
    back = np.eye(4)
    back[1, 3] = -400
    assert mrml.check(fixed, far, initial=linear_parent(back)) == []


def test_transforms_of_the_start(scene, tools, linear_parent, pair):
    fixed, moving = pair
    moving.SetAndObserveTransformNodeID(linear_parent(tools.rotation(0, 0, 3)).GetID())
    assert codes(fixed, moving, level="note") == {"moving-parent-start"}
    turn = linear_parent(tools.rotation(0, 3, 0))
    assert codes(fixed, moving, initial=turn) == {"moving-parent-replaced"}
    moving.SetAndObserveTransformNodeID(None)
    empty = scene.AddNewNodeByClass("vtkMRMLTransformNode", "empty")
    assert codes(fixed, moving, initial=empty, level="warning") == {"initial-empty"}
    flat = linear_parent(np.diag([1.0, 1.0, 0.0, 1.0]))
    assert "start-not-invertible" in codes(fixed, moving, initial=flat, level="error")
    grid = mrml.grid_of(fixed)
    warp = mrml.add_grid_transform(scene, "warp", tools.smooth_deformation_mm(grid, 1.0), grid)
    assert codes(fixed, moving, initial=warp) == set()
    fixed.SetAndObserveTransformNodeID(warp.GetID())
    assert codes(fixed, moving, level="warning") == {"fixed-parent-nonlinear"}


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_masks(scene, tools, linear_parent, pair, side):
    image = pair[side == "moving"]
    grid = mrml.grid_of(image)

    def said(mask, segment="", **kwargs):
        chosen = {f"{side}_mask": mask, f"{side}_segment": segment}
        return codes(*pair, **chosen, **kwargs)

    mask = mrml.add_volume(scene, "mask", np.zeros(grid.shape, np.uint8), grid, True)
    assert said(mask, level="error") == {f"{side}-mask-empty"}
    one = np.zeros(grid.shape, np.uint8)
    one[5, 6, 7] = 1
    single = mrml.add_volume(scene, "single", one, grid, True)
    assert said(single) == set()
    shift = np.eye(4)
    shift[0, 3] = 300
    single.SetAndObserveTransformNodeID(linear_parent(shift).GetID())
    assert said(single, level="error") == {f"{side}-mask-outside"}
    wide = grid.padded(12)
    other = mrml.add_volume(scene, "wide", np.ones(wide.shape, np.uint8), wide, True)
    assert said(other, level="warning") == {f"{side}-mask-partly-outside"}
    assert said(scene.AddNewNodeByClass("vtkMRMLModelNode")) == {f"{side}-mask-kind"}
    organs = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
    assert said(organs, level="error") == {f"{side}-mask-empty"}
    for name, array in (("liver", one), ("none", one * 0)):
        held = slicer.vtkOrientedImageData()
        held.DeepCopy(to_vtk_image(array))
        held.SetGeometryFromImageToWorldMatrix(ijk_to_ras_of(grid))
        organs.AddSegmentFromBinaryLabelmapRepresentation(held, name, [1, 0, 0])
    assert said(organs) == said(organs, "liver") == set()
    assert said(organs, "none", level="error") == {f"{side}-mask-empty"}
    assert said(organs, "kidney", level="error") == {f"{side}-mask-segment"}
    organs.SetAndObserveTransformNodeID(linear_parent(shift).GetID())
    assert said(organs, level="error") == {f"{side}-mask-outside"}


def test_landmarks(scene, pair):
    near = np.eye(3) + (4, -7, 11)
    lists = [mrml.add_points(scene, n, near) for n in "FM"]
    short = mrml.add_points(scene, "short", near[:2])

    def said(a, b):
        return codes(*pair, fixed_points=a, moving_points=b)

    assert said(lists[0], None) == said(None, lists[0]) == {"landmarks-one-list"}
    assert said(lists[0], short) == {"landmarks-count"}
    assert said(short, mrml.add_points(scene, "s", near[:2])) == {"landmarks-few"}
    assert said(mrml.add_points(scene, "far", near + 300), lists[1]) == {"landmarks-outside"}
    for node in lists:
        node.AddControlPoint(vtk.vtkVector3d(4, -7, 11))
    lists[0].UnsetNthControlPointPosition(3)
    assert said(*lists) == {"landmarks-unplaced", "landmarks-count"}


def test_full_pass_runs_once_and_in_portions(scene, pair, monkeypatch):
    grid = Grid((130, 130, 130), np.eye(4))
    array = np.random.default_rng(0).random(grid.shape, np.float32)
    array[77, 77, 78] = np.nan
    node = mrml.add_volume(scene, "large", array, grid)
    cache = mrml.VolumeCache()
    assert "values-nan" not in codes(node, pair[1], cache=cache)
    assert not cache.scanned(node)
    assert not cache.scan(node, 0.0)
    assert cache.scan(node) and cache.statistics(node).bad == 1
    assert "values-nan" in codes(node, pair[1], cache=cache)
    monkeypatch.setattr("DeepRegLib.bridge.volume_cache._look", None)  # not looked at again
    assert "values-nan" in codes(node, pair[1], cache=cache, level="error")
    monkeypatch.undo()
    slicer.util.arrayFromVolume(node)[77, 77, 78] = 0
    node.GetImageData().GetPointData().GetScalars().Modified()
    assert not cache.scanned(node)
    assert cache.scan(node) and "values-nan" not in codes(node, pair[1], cache=cache)


def test_repeated_checks_are_quick(scene, tools):
    grids = [Grid((256, 256, 256), np.diag([1.0, 1, 1.1 + n, 1])) for n in (0, 0.2)]
    ramp = np.arange(256**3, dtype=np.int16).reshape(256, 256, 256)
    pair = [mrml.add_volume(scene, f"v{n}", ramp, g) for n, g in enumerate(grids)]
    cache = mrml.VolumeCache()
    mrml.check(*pair, cache=cache)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        mrml.check(*pair, cache=cache)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05


def test_sentences_are_translated_before_names_are_filled_in(scene, pair):
    seen = []

    def translate(text):
        seen.append(text)
        return "{image} doppelt"

    (finding,) = mrml.check(pair[0], pair[0], translate=translate)
    assert finding.text == "fixed doppelt" and "'{image}'" in seen[0]


def test_predictions_meet_the_measured_runs():
    sample = (110, 133, 109), (1.5,) * 3, (162, 165, 198)
    person_1mm = (167, 214, 162), (1.0,) * 3, (163, 202, 151)
    person_2mm = (84, 107, 81), (2.0,) * 3, (82, 101, 76)
    for images, algorithm, preset, seconds, memory in (
        (person_2mm, "greedy", "balanced", 8.2, 506), (person_1mm, "greedy", "fast", 21.5, 1218),
        (person_1mm, "greedy", "balanced", 26.7, 1278), (person_1mm, "syn", "balanced", 38.4, 1428),
        (person_1mm, "affine", "balanced", 6.5, 718), (person_2mm, "affine", "fast", 4.1, 414),
    ):  # fmt: skip
        kind = "linear" if algorithm == "affine" else "dense"
        got = mrml.predict(*images, kind, preset, linear_stages=2, algorithm=algorithm)
        assert abs(got.seconds / seconds - 1) < 0.3, (kind, preset)
        assert abs(got.memory_mb / memory - 1) < 0.15, (kind, preset)
    for kind, preset, device in (
        ("dense", "balanced", "cuda"), ("dense", "accurate", "cpu"), ("bspline", "fast", "cpu"),
    ):  # fmt: skip
        assert mrml.predict(*sample, kind, preset, device=device).seconds is None
    assert mrml.predict(*sample, "dense", algorithm="lddmm").seconds is None
    coarse = mrml.predict(*sample, "dense", finest_mm=3.0)
    assert coarse.seconds < mrml.predict(*sample, "dense").seconds


def test_size_of_a_transform():
    grid = Grid((100, 120, 140), np.eye(4))
    own, coarse = mrml.transform_size_mb(grid), mrml.transform_size_mb(grid, 2.0)
    assert own.shape == grid.shape and coarse.shape == (50, 60, 70)
    assert own.memory_mb == pytest.approx(100 * 120 * 140 * 12 / 2**20)
    assert own.file_mb == 2 * own.memory_mb == pytest.approx(16 * coarse.memory_mb)
