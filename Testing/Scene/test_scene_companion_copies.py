"""Surfaces, volumes, transforms and boxes that go along, and what is never lost."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from companion_support import (
    CENTER,
    POINTS,
    TOLERANCE_MM,
    add_curve,
    add_model,
    add_segmentation,
    ball,
    dice,
    exact_back,
    expected_world,
    fingerprint,
    world_of,
)
from vtk.util.numpy_support import vtk_to_numpy

from DeepRegLib.bridge import copies, mrml
from DeepRegLib.bridge.vtk_arrays import map_points
from DeepRegLib.errors import InputError


def test_surfaces_and_shown_surfaces_are_moved(scene, tools, run):
    fixed, moving, result = run("chain")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surface")
    node.SetSourceRepresentationToClosedSurface()
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(9)
    sphere.SetCenter(*CENTER)
    sphere.SetPhiResolution(20)
    sphere.SetThetaResolution(20)
    sphere.Update()
    before = vtk_to_numpy(sphere.GetOutput().GetPoints().GetData()).astype(float)
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "ball", [0, 1, 0], "ball")
    (copy,) = mrml.carry_along(scene, result, moving, [node], harden=True)
    made = copy.GetSegmentation().GetSegment("ball").GetRepresentation("Closed surface")
    got = vtk_to_numpy(made.GetPoints().GetData())
    assert np.abs(got - exact_back(result, fixed, before)).max() < TOLERANCE_MM
    old = node.GetSegmentation().GetSegment("ball").GetRepresentation("Closed surface")
    np.testing.assert_allclose(vtk_to_numpy(old.GetPoints().GetData()), before, atol=1e-5)


def test_copies_of_volumes_lie_on_the_fixed_grid(scene, tools, run):
    fixed, moving, result = run("grid", "linear", "linear")
    grid = tools.make_grid("oblique", (30, 34, 40), (1.5, 1.5, 1.5))
    nodes = [
        mrml.add_volume(scene, "dose", tools.smooth_array(grid), grid),
        mrml.add_volume(scene, "labels", 7 * ball(grid).astype(np.int16), grid, label=True),
        mrml.add_volume(scene, "rgb", np.stack([ball(grid) * v for v in (50, 100, 200)], -1), grid),
    ]
    nodes[0].GetDisplayNode().SetAutoWindowLevel(False)
    nodes[0].GetDisplayNode().SetWindowLevel(77, 33)
    mrml.apply_transform(moving.GetParentTransformNode(), *nodes)
    held = [mrml.volume_channels(n) for n in nodes]
    made = mrml.carry_along(scene, result, moving, nodes, harden=True)
    fixed_grid = mrml.grid_of(fixed)
    assert [n.GetClassName() for n in made] == [n.GetClassName() for n in nodes]
    assert [n.GetName() for n in made] == [f"{n.GetName()} registered" for n in nodes]
    forward = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        fixed.GetParentTransformNode(), result, forward
    )
    at = map_points(
        forward, fixed_grid.to_ras(np.moveaxis(np.indices(fixed_grid.shape), 0, -1).reshape(-1, 3))
    )
    shape = (np.linalg.norm(at - CENTER, axis=1) < 9).reshape(fixed_grid.shape)
    for node in made:
        assert mrml.grid_of(node).matches(fixed_grid)
        assert node.GetParentTransformNode() is fixed.GetParentTransformNode()
    labels = mrml.volume_array(made[1])
    assert labels.dtype == np.int16 and set(np.unique(labels)) == {0, 7}
    nearest = np.rint(grid.to_voxel(at)).astype(int)
    within = ((nearest >= 0) & (nearest < grid.shape)).all(axis=1)
    wanted_labels = np.zeros(len(at), np.int16)
    wanted_labels[within] = held[1][0][tuple(nearest[within].T)]
    assert (labels.reshape(-1) == wanted_labels).mean() > 0.9995
    assert dice((labels > 0).astype(np.uint8), shape.astype(np.uint8)) > 0.93
    assert mrml.volume_channels(made[2]).shape == (3, *fixed_grid.shape)
    inner = np.linalg.norm(at - CENTER, axis=1).reshape(fixed_grid.shape) < 7
    w = 2 * np.pi / 17.0
    wanted = (100 + 50 * np.sin(w * at[:, 0] + 0.5) * np.cos(w * at[:, 1])
              + 30 * np.sin(w * at[:, 2] * 0.8)).reshape(fixed_grid.shape)  # fmt: skip
    assert np.abs(mrml.volume_array(made[0]) - wanted)[inner].max() < 6
    assert made[0].GetDisplayNode().GetWindow() == 77
    assert made[0].GetDisplayNode() is not nodes[0].GetDisplayNode()
    for node, array in zip(nodes, held):
        np.testing.assert_array_equal(mrml.volume_channels(node), array)
        assert node.GetParentTransformNode() is moving.GetParentTransformNode()


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("harden", [False, True])
def test_transforms_go_along(scene, tools, run, linear_parent, linear, harden):
    fixed, moving, result = run("chain", "linear", "none")
    if linear:
        result = mrml.add_linear_transform(scene, "line", tools.example_matrix(), fixed, moving)
    own = tools.rotation(0, 10, 0)
    pose = linear_parent(own)
    (made,) = mrml.carry_along(scene, result, moving, [pose], harden=harden)
    curve = add_curve(scene, POINTS)
    curve.SetAndObserveTransformNodeID(made.GetID())
    moved = POINTS @ own[:3, :3].T
    expected = expected_world(result, fixed, moved)
    assert np.linalg.norm(world_of(curve) - expected, axis=1).max() < TOLERANCE_MM
    assert (made is pose) != harden
    assert made.IsLinear() == linear or not harden


@pytest.mark.parametrize("name", ["ROI", "Plane"])
@pytest.mark.parametrize("harden", [False, True])
def test_boxes_and_planes_go_along(scene, run, name, harden):
    fixed, moving, result = run("chain", "linear", "none")
    node = scene.AddNewNodeByClass(f"vtkMRMLMarkups{name}Node", "box")
    if name == "ROI":
        node.SetCenter(*CENTER)
        node.SetSize(10, 12, 14)
    else:
        node.SetOrigin(*CENTER)
        node.SetNormal(0, 0.6, 0.8)
    (made,) = mrml.carry_along(scene, result, moving, [node], harden=harden)
    got = [0.0] * 3
    (made.GetCenterWorld if name == "ROI" else made.GetOriginWorld)(got)
    expected = expected_world(result, fixed, CENTER[None])[0]
    assert np.linalg.norm(np.array(got) - expected) < TOLERANCE_MM


def test_originals_look_the_same_and_copies_like_them(scene, tools, run):
    _, moving, result = run("grid", "linear", "linear")
    drawn = tools.make_grid("oblique", (40, 44, 50), (1.0, 1.0, 1.0))
    nodes = [
        add_curve(scene, POINTS), add_model(scene, POINTS),
        add_segmentation(scene, drawn, {"ball": ball(drawn)}),
    ]  # fmt: skip
    mrml.apply_transform(moving.GetParentTransformNode(), *nodes)
    nodes[2].GetDisplayNode().SetOpacity2DFill(0.37)
    held = [(xml(n), content(n)) for n in nodes]
    made = mrml.carry_along(scene, result, moving, nodes, harden=True, copy_name="{name} (new)")
    assert [(xml(n), content(n)) for n in nodes] == held
    assert [n.GetName() for n in made] == ["curve (new)", "model (new)", "organs (new)"]
    assert made[0].GetDisplayNode().GetSelectedColor() == (0.1, 0.9, 0.2)
    assert made[0].GetNthControlPointLabel(0) == "a point"
    assert made[1].GetDisplayNode().GetColor() == (0.3, 0.2, 0.1)
    assert made[2].GetDisplayNode().GetOpacity2DFill() == 0.37
    assert made[2].GetSegmentation().GetNthSegment(0).GetColor() == (0.2, 0.4, 0.6)
    for node, copy in zip(nodes, made):
        assert content(copy) != content(node)
        assert copy.GetDisplayNode() is not node.GetDisplayNode()


def test_copies_lie_in_the_folder_of_the_original(scene, run):
    _, moving, result = run()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    curve = add_curve(scene, POINTS)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "case 1")
    hierarchy.CreateItem(folder, curve)
    (copy,) = mrml.carry_along(scene, result, moving, [curve], harden=True)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(copy)) == folder


def xml(node):
    """References, parent and display of a node."""
    display = node.GetDisplayNode()
    return (
        node.GetTransformNodeID(),
        node.GetDisplayNodeID(),
        display.GetID(),
        display.GetVisibility(),
    )


def content(node):
    """The bytes of a node's data."""
    if node.IsA("vtkMRMLMarkupsNode"):
        return mrml.markup_points(node, frame=node)[0].round(6).tobytes()
    if node.IsA("vtkMRMLModelNode"):
        return vtk_to_numpy(node.GetMesh().GetPoints().GetData()).tobytes()
    image = node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
    return vtk_to_numpy(image.GetPointData().GetScalars()).tobytes(), image.GetExtent()


@pytest.mark.parametrize("harden", [False, True])
def test_a_failure_changes_nothing(scene, tools, run, linear_parent, monkeypatch, harden):
    _, moving, result = run("grid", "linear", "linear")
    nodes = [add_curve(scene, POINTS, f"curve {n}") for n in range(3)]
    other = linear_parent(tools.rotation(0, 0, 30))
    mrml.apply_transform(other, nodes[1])
    before = fingerprint(scene)
    calls = []

    def failing(scene_, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("injected")
        return original(scene_, *arguments)

    if harden:
        original = copies.add_node
        monkeypatch.setattr(copies, "add_node", failing)
    else:
        original = mrml.add_node
        monkeypatch.setattr("DeepRegLib.bridge.companions.add_node", failing)
    with pytest.raises(RuntimeError, match="injected"):
        mrml.carry_along(scene, result, moving, nodes, harden=harden)
    assert len(calls) == 2
    assert fingerprint(scene) == before


def test_what_cannot_be_carried_is_said_politely(scene, run, linear_parent):
    fixed, moving, result = run("grid", "linear", "none")
    curve, blank = add_curve(scene, POINTS), add_curve(scene, [], "blank")
    tensor = scene.AddNode(slicer.vtkMRMLDiffusionTensorVolumeNode())
    tensor.SetName("dti")
    tensor.SetAndObserveImageData(fixed.GetImageData())
    text = scene.AddNewNodeByClass("vtkMRMLTextNode", "text")
    above = fixed.GetParentTransformNode()
    for nodes, harden, message in (
        ([moving], False, "'moving' is the moving volume itself"),
        ([fixed], False, "'fixed' is the fixed volume"),
        ([result], False, "'result' is the result"),
        ([curve, curve], False, "'curve' is chosen twice"),
        ([blank], True, "'blank' is empty"),
        ([text], False, "'text' has no place in space"),
        ([None], False, "A companion is missing"),
        ([above], False, "is above the fixed volume"),
        ([tensor], True, "'dti' holds directions"),
    ):
        before = fingerprint(scene)
        with pytest.raises(InputError, match=message):
            mrml.carry_along(scene, result, moving, nodes, harden=harden)
        assert fingerprint(scene) == before
        said = mrml.check_companions(nodes, moving, fixed, harden=harden, transform=result)
        assert len(said) == 1 and message in said[0]
    assert mrml.check_companions([curve], moving, fixed) == []
    for kind in ("Volume", "Segmentation", "Model"):
        empty = getattr(slicer, f"vtkMRML{'Scalar' if kind == 'Volume' else ''}{kind}Node")()
        assert "is empty" in mrml.check_companions([scene.AddNode(empty)], moving)[0]
    scene.RemoveNode(curve)
    with pytest.raises(InputError, match="no longer in the scene"):
        mrml.carry_along(scene, result, moving, [curve])
