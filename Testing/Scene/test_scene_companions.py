"""What belongs to the moving volume goes along with it, under the result or as hardened copies."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from companion_support import (
    CASES,
    CENTER,
    POINTS,
    TOLERANCE_MM,
    add_curve,
    add_model,
    add_segmentation,
    ball,
    dice,
    expected_world,
    fingerprint,
    world_of,
)
from vtk.util.numpy_support import numpy_to_vtk

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.vtk_arrays import map_points
from DeepRegLib.errors import InputError


@pytest.mark.parametrize(("layout", "fixed_parent", "moving_parent"), CASES)
@pytest.mark.parametrize("harden", [False, True])
@pytest.mark.parametrize("applied", [False, True])
def test_points_go_where_the_moving_image_goes(
    scene, run, layout, fixed_parent, moving_parent, harden, applied
):
    fixed, moving, result = run(layout, fixed_parent, moving_parent)
    former = moving.GetParentTransformNode()
    nodes = [add_curve(scene, POINTS), add_model(scene, POINTS)]
    mrml.apply_transform(former, *nodes)
    if applied:
        mrml.apply_transform(result, moving)
    count = scene.GetNumberOfNodesByClass("vtkMRMLTransformNode")
    made = mrml.carry_along(
        scene, result, moving, nodes, harden=harden, former_parent=former if applied else "current"
    )
    expected = expected_world(result, fixed, POINTS)
    for node in made:
        assert np.linalg.norm(world_of(node) - expected, axis=1).max() < TOLERANCE_MM
        below = fixed.GetParentTransformNode() if harden else result
        assert node.GetParentTransformNode() is below
    assert scene.GetNumberOfNodesByClass("vtkMRMLTransformNode") == count
    if harden:
        assert [n.GetParentTransformNode() for n in nodes] == [former, former]
    else:
        assert made == nodes


@pytest.mark.parametrize("moving_parent", ["none", "linear"])
@pytest.mark.parametrize("harden", [False, True])
def test_companions_of_another_linear_parent(
    scene, tools, run, linear_parent, moving_parent, harden
):
    fixed, moving, result = run("grid", "linear", moving_parent)
    other = linear_parent(tools.rotation(-8, 5, 20), above=linear_parent(np.diag([1, 1.1, 1, 1.0])))
    other.SetName("other")
    nodes = [add_curve(scene, POINTS), add_model(scene, POINTS), add_curve(scene, POINTS, "plain")]
    mrml.apply_transform(other, *nodes[:2])
    # Local points that show, in the world, where the points of the moving image show.
    world = mrml.points_between(POINTS, moving, None)
    for node in nodes[:2]:
        back = mrml.points_between(world, None, node)
        if node.IsA("vtkMRMLMarkupsNode"):
            for n, point in enumerate(back):
                node.SetNthControlPointPosition(n, *point)
        else:
            node.GetMesh().GetPoints().SetData(numpy_to_vtk(back, deep=True))
    for n, point in enumerate(world):
        nodes[2].SetNthControlPointPosition(n, *point)
    made = mrml.carry_along(scene, result, moving, nodes, harden=harden)
    expected = expected_world(result, fixed, POINTS)
    for node in made:
        assert np.linalg.norm(world_of(node) - expected, axis=1).max() < TOLERANCE_MM
    if not harden:
        between = made[0].GetParentTransformNode()
        assert between is made[1].GetParentTransformNode()
        assert between.GetName() == "other to moving"
        assert between.GetParentTransformNode() is result
        last = made[2].GetParentTransformNode()
        assert (last is result) == (moving_parent == "none")


def test_difference_below_a_common_warp_is_linear(scene, tools, run, linear_parent):
    fixed, moving, result = run("grid", "none", "warp")
    curve = add_curve(scene, POINTS)
    shift = np.eye(4)
    shift[:3, 3] = (2, 1, -3)
    below = linear_parent(shift, above=moving.GetParentTransformNode())
    curve.SetAndObserveTransformNodeID(below.GetID())
    mrml.carry_along(scene, result, moving, [curve])
    expected = expected_world(result, fixed, POINTS + (2, 1, -3))
    assert np.linalg.norm(world_of(curve) - expected, axis=1).max() < TOLERANCE_MM


def test_non_linear_difference_is_refused_below_but_copied(scene, run):
    fixed, moving, result = run("grid", "none", "warp")
    curve = add_curve(scene, mrml.points_between(POINTS, moving, None))
    before = fingerprint(scene)
    with pytest.raises(InputError, match="non-linear transform; put both under the same one"):
        mrml.carry_along(scene, result, moving, [curve])
    assert fingerprint(scene) == before
    (copy,) = mrml.carry_along(scene, result, moving, [curve], harden=True)
    expected = expected_world(result, fixed, POINTS)
    assert np.linalg.norm(world_of(copy) - expected, axis=1).max() < TOLERANCE_MM
    assert scene.GetFirstNodeByName("DeepReg companion frame") is None


def test_companions_under_the_result_already_stay(scene, run):
    fixed, moving, result = run()
    curve = add_curve(scene, POINTS)
    mrml.apply_transform(result, moving, curve)
    assert mrml.carry_along(scene, result, moving, [curve]) == [curve]
    assert curve.GetParentTransformNode() is result
    (copy,) = mrml.carry_along(scene, result, moving, [curve], harden=True)
    expected = expected_world(result, fixed, POINTS)
    assert np.linalg.norm(world_of(copy) - expected, axis=1).max() < TOLERANCE_MM
    other = add_curve(scene, POINTS, "other")
    with pytest.raises(InputError, match="give former_parent"):
        mrml.carry_along(scene, result, moving, [other])


@pytest.mark.parametrize(("layout", "fixed_parent", "moving_parent"), CASES)
@pytest.mark.parametrize("kind", ["oblique_left", "shear"])
def test_hardened_segments_cover_the_warped_shape(
    scene, tools, run, layout, fixed_parent, moving_parent, kind
):
    fixed, moving, result = run(layout, fixed_parent, moving_parent, kind)
    drawn = tools.make_grid("oblique", (56, 60, 64), (0.8, 0.8, 0.8))
    masks = {"big": ball(drawn), "small": ball(drawn, CENTER + (7, 0, 0), 5.0)}
    organs = add_segmentation(scene, drawn, masks)
    organs.SetAndObserveTransformNodeID(moving.GetTransformNodeID())
    (copy,) = mrml.carry_along(scene, result, moving, [organs], harden=True)
    assert copy.GetParentTransformNode() is fixed.GetParentTransformNode()
    grid = mrml.grid_of(fixed)
    voxels = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
    forward = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        fixed.GetParentTransformNode(), result, forward
    )
    at = map_points(forward, voxels)
    for name, center, radius in (("big", CENTER, 9.0), ("small", CENTER + (7, 0, 0), 5.0)):
        shape = (np.linalg.norm(at - center, axis=1) < radius).reshape(grid.shape).astype(np.uint8)
        got = mrml.segmentation_mask(copy, grid, fixed, name)
        assert dice(shape, got) > (0.97 if name == "big" else 0.93)
    assert list(mrml.segment_names(copy)) == list(mrml.segment_names(organs))
    geometry = copy.GetSegmentation().GetConversionParameter("Reference image geometry")
    assert geometry.endswith("0;43;0;37;0;33;")


def test_segments_that_leave_the_fixed_image_are_kept(scene, tools, run):
    fixed, moving, _ = run(kind="ras")
    matrix = np.eye(4)
    matrix[0, 3] = -30.0  # fixed to moving: the moving image goes 30 mm to the right
    result = mrml.add_linear_transform(scene, "shift", matrix, fixed, moving)
    drawn = tools.make_grid("oblique", (56, 60, 64), (0.8, 0.8, 0.8))
    organs = add_segmentation(scene, drawn, {"ball": ball(drawn)})
    (copy,) = mrml.carry_along(scene, result, moving, [organs], harden=True)
    wide = mrml.grid_of(fixed).padded((0, 0, 30))
    got = mrml.segmentation_mask(copy, wide, fixed, "ball")
    assert dice(got, ball(wide, CENTER + (30, 0, 0))) > 0.95
