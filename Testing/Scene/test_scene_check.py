"""Checking a registration from nodes: any transform, parents, and where the error volume lies."""

import json

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs the package slicer-core (the MRML library)")

import torch
import vtk
from bridge_support import exhausted, worked
from estimator_doubles import write_judge

from DeepRegLib import models
from DeepRegLib.bridge import check as bridge
from DeepRegLib.bridge import mrml, overlays
from DeepRegLib.bridge.frames import points_between
from DeepRegLib.bridge.vtk_arrays import map_points, to_vtk_image
from DeepRegLib.errors import InputError
from DeepRegLib.estimators.error_map import Algorithm
from DeepRegLib.geometry.grid import transform_points
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.registration.free_form import spline_space
from DeepRegLib.registration.trainable import Prediction


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of models with one that says how unlike the images are, times 20 mm."""
    where = tmp_path / "models"
    where.mkdir()
    monkeypatch.setenv("DEEPREG_MODELS", str(where))
    monkeypatch.setattr(models, "SHIPPED", ())
    write_judge(where, spacing_mm=2.0)

    def predict(self, network, fixed, moving, spacing_mm):
        return Prediction(maps={"error_mm": (20.0 * (fixed - moving).abs()).clamp(max=6.0)})

    monkeypatch.setattr(Algorithm, "predict", predict)
    return where


def blobs(points):
    values = np.zeros(points.shape[:-1])
    rng = np.random.default_rng(4)
    for center in rng.uniform(-16, 16, (25, 3)) + [4.0, -7.0, 11.0]:
        values += np.exp(-((points - center) ** 2).sum(-1) / 24.0)
    return (100.0 * values).astype(np.float32)


def voxels(grid):
    return grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))


def bend(points):
    return 2.5 * np.sin(points[..., [1, 2, 0]] / 9.0)


def turn():
    matrix = np.eye(4)
    matrix[:3, :3] = [[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]]
    matrix[:3, 3] = (3.0, -4.0, 2.5)
    return matrix


def add_truth(scene, kind, grid):
    """A transform node of a kind, fixed to moving, with a grid that reaches beyond the volume."""
    around = grid.padded(6)
    u = np.moveaxis(bend(voxels(around)), -1, 0).astype(np.float32)
    if kind == "linear":
        return mrml.add_linear_transform(scene, "Truth", turn())
    if kind in ("grid", "chain"):
        return mrml.add_warp(scene, "Truth", turn(), u, around, kind, fade_voxel=0)
    if kind in ("spline", "composite"):
        space = spline_space(grid, (4, 5, 6), grid, torch.device("cpu"))
        generator = torch.Generator().manual_seed(2)
        parameters = 4.0 * torch.randn(3, *space.shape, generator=generator, dtype=torch.float64)
        curved = space.spline(parameters)
        linear = turn() if kind == "composite" else np.eye(4)
        return mrml.add_spline_transform(
            scene, "Truth", Transform(linear, curved.field(grid), curved)
        )
    # Stored the other way round, as some programs write it: Slicer inverts it at every point.
    node = mrml.add_warp(scene, "Truth", np.eye(4), u, around, fade_voxel=0)
    content = node.GetTransformFromParent()
    node.SetAndObserveTransformToParent(content)
    return node


@pytest.fixture
def grids(tools):
    """Oblique, anisotropic; left-handed, of another size."""
    return (
        tools.make_grid("oblique", (24, 22, 26), (2.0, 1.8, 1.5)),
        tools.make_grid("left", (22, 25, 28), (2.2, 1.7, 1.6)),
    )


@pytest.fixture
def made(scene, grids):
    """Function that adds a transform of a kind and the volumes that it aligns."""

    def make(kind):
        node = add_truth(scene, kind, grids[0])
        general = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, node, general)
        points = voxels(grids[0])
        moved = map_points(general, points.reshape(-1, 3)).reshape(points.shape)
        fixed = mrml.add_volume(scene, "Fixed", blobs(moved), grids[0])
        moving = mrml.add_volume(scene, "Moving", blobs(voxels(grids[1])), grids[1])
        return fixed, moving, node

    return make


def checked(scene, fixed, moving, transform=None, **more):
    """Takes a check all the way: nodes, files, the worker's job, files, the error volume."""
    request = bridge.CheckRequest(fixed, moving, transform, device="cpu", **more)
    return bridge.place_check(scene, request, worked(bridge.collecting_check(request)))


def median(found):
    return found.report["median_mm"]


@pytest.mark.parametrize("kind", ["linear", "grid", "chain", "spline", "composite", "backwards"])
def test_transforms_of_any_kind_are_applied_as_slicer_does(scene, made, kind):
    """With the true transform next to nothing is left; without it there is a difference."""
    fixed, moving, node = made(kind)
    right = checked(scene, fixed, moving, node)
    assert median(right) < 0.2, right.report
    without = checked(scene, fixed, moving)
    assert median(without) > 4 * median(right) and without.volume is not right.volume


def test_the_start_is_sampled_where_slicer_has_it(scene, made, monkeypatch):
    """Also where the grid is thinned out."""
    fixed, moving, node = made("composite")
    collected = exhausted(bridge.collecting_check(bridge.CheckRequest(fixed, moving, node)))
    assert collected.operation == "check" and collected.start.grid.matches(mrml.grid_of(fixed))
    monkeypatch.setattr(bridge, "_MOST_POINTS", 6000)
    thin = exhausted(bridge.collecting_check(bridge.CheckRequest(fixed, moving, node)))
    assert thin.start.grid.size <= 6000
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, node, general)
    for start in (collected.start, thin.start):
        points = voxels(start.grid).reshape(-1, 3)
        u = start.displacement_ras_mm.reshape(3, -1).T
        gap = transform_points(start.linear, points + u) - map_points(general, points)
        assert np.abs(gap).max() < 1e-3


def nonlinear_parent(scene, grids):
    u = np.moveaxis(bend(voxels(grids[0])), -1, 0).astype(np.float32)
    return mrml.add_warp(scene, "Above", turn(), u, grids[0])


@pytest.mark.parametrize("above", ["linear", "nonlinear"])
def test_parents_count_and_the_error_lies_where_the_fixed_volume_does(
    scene, made, grids, linear_parent, tools, above
):
    fixed, moving, node = made("grid")
    plain = checked(scene, fixed, moving, node)
    parent = (
        linear_parent(tools.example_matrix())
        if above == "linear"
        else nonlinear_parent(scene, grids)
    )
    # As a result of DeepReg lies: its transform under the fixed volume's parent.
    fixed.SetAndObserveTransformNodeID(parent.GetID())
    node.SetAndObserveTransformNodeID(parent.GetID())
    moving.SetAndObserveTransformNodeID(linear_parent(turn()).GetID())
    found = checked(scene, fixed, moving, node)
    assert found.volume is plain.volume, "the volume of the earlier check is used again"
    assert median(found) == pytest.approx(median(plain), abs=0.02)
    corners = mrml.grid_of(fixed).corners_ras()
    np.testing.assert_allclose(
        points_between(corners, found.volume, None), points_between(corners, fixed, None)
    )
    assert mrml.grid_of(found.volume).matches(mrml.grid_of(fixed))
    # On screen, without a transform: the moving volume is first off, then under the transform.
    off = checked(scene, fixed, moving)
    assert median(off) > 3 * median(found)
    moving.SetAndObserveTransformNodeID(node.GetID())
    assert median(checked(scene, fixed, moving)) == pytest.approx(median(plain), abs=0.02)


def test_errors_are_where_the_images_differ(scene, made):
    """A part of the moving image is wrong; the error volume shows it in the same place."""
    fixed, moving, node = made("linear")
    grid = mrml.grid_of(moving)
    place = np.array([10.0, -2.0, 16.0])
    spot = np.linalg.norm(voxels(grid) - transform_points(turn(), place), axis=-1) < 5.0
    array = mrml.volume_array(moving)
    array[spot] = 0.0
    other = mrml.add_volume(scene, "Other", array, grid)
    found = checked(scene, fixed, other, node)
    values = mrml.volume_array(found.volume)
    distance = np.linalg.norm(voxels(mrml.grid_of(fixed)) - place, axis=-1)
    assert values[distance < 3.0].mean() > 4 * values[(distance > 9.0) & (values > 0)].mean()


def test_the_volume_tells_of_itself(scene, made, tmp_path):
    fixed, moving, node = made("linear")
    found = checked(scene, fixed, moving, node, threshold_mm=0.7)
    volume = found.volume
    assert volume.GetName() == "Truth error"
    assert volume.GetAttribute(overlays.KIND_ATTRIBUTE) == "error_mm"
    display = volume.GetDisplayNode()
    assert display.GetColorNode().GetAttribute(overlays.COLOR_ATTRIBUTE) == "error_mm"
    assert (display.GetWindow(), display.GetLevel()) == pytest.approx((2.1, 1.05)), "3 thresholds"
    assert bridge.report_of(volume) == json.loads(json.dumps(found.report))
    assert found.report["threshold_mm"] == 0.7 and found.verdict in ("green", "amber", "red")
    assert bridge.report_of(fixed) is None and bridge.report_of(None) is None
    for role, other in ((bridge.FIXED_ROLE, fixed), (bridge.MOVING_ROLE, moving),
                        (bridge.TRANSFORM_ROLE, node)):  # fmt: skip
        assert volume.GetNodeReference(role) is other
    before = scene.GetNumberOfNodes()
    assert checked(scene, fixed, moving, node).volume is volume
    assert scene.GetNumberOfNodes() == before
    assert bridge.report_of(volume)["threshold_mm"] == 2.0 and display.GetWindow() == 6.0
    again = mrml.open_scene(mrml.save_scene(scene, tmp_path / "saved"))
    loaded = again.GetFirstNodeByName("Truth error")
    assert bridge.report_of(loaded)["verdict"] == bridge.report_of(volume)["verdict"]
    assert loaded.GetNodeReference(bridge.MOVING_ROLE).GetName() == "Moving"


def test_a_mask_tells_where_errors_count(scene, made):
    fixed, moving, node = made("linear")
    grid = mrml.grid_of(fixed)
    mask = np.zeros(grid.shape, np.uint8)
    mask[8:12, 6:12, 9:15] = 1
    labels = mrml.add_volume(scene, "Mask", mask, grid, label=True)
    found = checked(scene, fixed, moving, node, fixed_mask=labels)
    assert found.report["judged_voxels"] == mask.sum()
    assert not mrml.volume_array(found.volume)[mask == 0].any()
    assert found.volume.GetNodeReference(bridge.MASK_ROLE) is labels
    assert found.report["names"]["mask"] == "Mask" and "of the mask" in found.sentence
    # Without the mask, the same volume takes what the whole object shows.
    whole = checked(scene, fixed, moving, node)
    assert whole.volume is found.volume and "mask" not in whole.report["names"]
    assert whole.volume.GetNodeReferenceID(bridge.MASK_ROLE) is None
    empty = mrml.add_volume(scene, "Empty", 0 * mask, grid, label=True)
    with pytest.raises(InputError, match="'Empty' is empty"):
        checked(scene, fixed, moving, node, fixed_mask=empty)


def test_what_cannot_be_checked_changes_nothing(scene, made, tools):
    fixed, moving, node = made("linear")
    names = [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]
    with pytest.raises(InputError, match="choose two different"):
        checked(scene, fixed, fixed, node)
    away = np.eye(4)
    away[0, 3] = 900.0
    far = mrml.add_linear_transform(scene, "Far", away)
    said = [f.text for f in bridge.check_findings(fixed, moving, far)]
    assert len(said) == 1 and "do not overlap at all" in said[0]
    with pytest.raises(InputError, match="nothing to judge"):
        checked(scene, fixed, moving, far)
    assert [f.code for f in bridge.check_findings(fixed, moving, node)] == []
    scene.RemoveNode(far)
    assert [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())] == names


def test_a_deleted_node_or_a_failure_leaves_the_scene_as_it_was(scene, made, monkeypatch):
    fixed, moving, node = made("linear")
    first = checked(scene, fixed, moving, node)
    values = mrml.volume_array(first.volume)
    scale = first.volume.GetDisplayNode().GetWindow()
    before = [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]

    def fail(*_):
        raise RuntimeError("no room")

    other = to_vtk_image(mrml.volume_array(moving)[::-1].copy())
    monkeypatch.setattr(bridge, "_note", fail)
    moving.SetAndObserveImageData(other)
    with pytest.raises(RuntimeError, match="no room"):
        checked(scene, fixed, moving, node, step=4)
    np.testing.assert_array_equal(mrml.volume_array(first.volume), values)
    assert first.volume.GetDisplayNode().GetWindow() == scale
    assert [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())] == before


def test_a_transform_that_changes_while_it_is_read(scene, made, monkeypatch):
    from DeepRegLib.bridge import frames

    fixed, moving, node = made("grid")
    monkeypatch.setattr(frames, "_AT_ONCE", 5000)
    steps = bridge.collecting_check(bridge.CheckRequest(fixed, moving, node))
    next(steps)
    next(steps)
    node.GetTransformFromParent().SetDisplacementScale(0.5)
    with pytest.raises(InputError, match="was changed while"):
        exhausted(steps)
