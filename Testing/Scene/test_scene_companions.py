"""What belongs to the moving volume goes along with it, under the result or as hardened copies."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from DeepRegLib.bridge import copies, mrml
from DeepRegLib.bridge.vtk_arrays import ijk_to_ras_of, map_points, to_vtk_image
from DeepRegLib.errors import InputError

CENTER = np.array([4.0, -7.0, 11.0])
POINTS = CENTER + np.array([[0, 0, 0], [5, -3, 4], [-6, 2, -5], [3, 6, 2], [-2, -5, 6.0]])
SPACING = (1.5, 1.2, 1.0)
TOLERANCE_MM = 0.02 * min(SPACING)


@pytest.fixture
def run(scene, tools, linear_parent):
    """Makes fixed and moving volumes, their parents, and the result of a registration."""

    def make(layout="grid", fixed_parent="none", moving_parent="none", kind="oblique_left"):
        grids = tools.make_grid(kind, (34, 38, 44), SPACING), tools.make_grid("left", (30, 34, 40))
        fixed, moving = (
            mrml.add_volume(scene, n, tools.smooth_array(g), g)
            for n, g in zip(("fixed", "moving"), grids)
        )
        for node, parent in ((fixed, fixed_parent), (moving, moving_parent)):
            if parent != "none":
                node.SetAndObserveTransformNodeID(above(parent, node).GetID())
        u = tools.smooth_deformation_mm(grids[0], 1.5)
        matrix = tools.example_matrix()
        result = mrml.add_warp(scene, "result", matrix, u, grids[0], layout, fixed, moving)
        return fixed, moving, result

    def above(parent, node):
        turn = tools.rotation(4, 8, -6)
        turn[:3, 3] = (3, -2, 1)
        if parent == "linear":
            return linear_parent(turn, above=linear_parent(np.diag([1.05, 1.0, 0.95, 1.0])))
        grid = mrml.grid_of(node)
        return mrml.add_grid_transform(scene, "w", tools.smooth_deformation_mm(grid, 1.0), grid)

    return make


def exact_back(result, fixed, wanted):
    """Points of the fixed volume's frame whose image under the result is `wanted`, by Newton.

    Uses only the direction in which the result is stored (from parent).
    """
    forward = vtk.vtkGeneralTransform()
    parent = fixed.GetParentTransformNode()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(parent, result, forward)
    points = wanted.copy()
    for _ in range(40):
        steps = [(map_points(forward, points + h) - map_points(forward, points - h)) / 0.02
                 for h in 0.01 * np.eye(3)]  # fmt: skip
        jacobian = np.stack(steps, -1)
        points -= (
            0.9
            * np.linalg.solve(jacobian, (map_points(forward, points) - wanted)[..., None])[..., 0]
        )
    assert np.abs(map_points(forward, points) - wanted).max() < 1e-4
    return points


def expected_world(result, fixed, moving_local):
    return mrml.points_between(exact_back(result, fixed, moving_local), fixed, None)


def add_curve(scene, points, name="curve"):
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsCurveNode", name)
    for point in points:
        node.AddControlPoint(vtk.vtkVector3d(*point), "a point")
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetSelectedColor(0.1, 0.9, 0.2)
    return node


def add_model(scene, points, name="model"):
    mesh = vtk.vtkPolyData()
    holder = vtk.vtkPoints()
    holder.SetDataTypeToDouble()
    holder.SetData(numpy_to_vtk(np.ascontiguousarray(points), deep=True))
    mesh.SetPoints(holder)
    node = scene.AddNewNodeByClass("vtkMRMLModelNode", name)
    node.SetAndObserveMesh(mesh)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetColor(0.3, 0.2, 0.1)
    return node


def world_of(node):
    """Points of a markups or model node in world coordinates."""
    if node.IsA("vtkMRMLMarkupsNode"):
        return mrml.markup_points(node)[0]
    return mrml.points_between(vtk_to_numpy(node.GetMesh().GetPoints().GetData()), node, None)


def ball(grid, center=CENTER, radius=9.0):
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    return (np.linalg.norm(points - center, axis=-1) < radius).astype(np.uint8)


def add_segmentation(scene, grid, masks):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
    node.CreateDefaultDisplayNodes()
    for name, mask in masks.items():
        image = slicer.vtkOrientedImageData()
        image.DeepCopy(to_vtk_image(mask))
        image.SetGeometryFromImageToWorldMatrix(ijk_to_ras_of(grid))
        node.AddSegmentFromBinaryLabelmapRepresentation(image, name, [0.2, 0.4, 0.6])
    return node


def dice(a, b):
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def fingerprint(scene):
    """All nodes, and everything the scene file says of them."""
    ids = [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]
    return {
        id_: (scene.GetNodeByID(id_).GetName(), parent_id(scene.GetNodeByID(id_))) for id_ in ids
    }


def parent_id(node):
    return node.GetTransformNodeID() if node.IsA("vtkMRMLTransformableNode") else None


CASES = [
    ("grid", "none", "none"), ("chain", "linear", "linear"), ("grid", "linear", "warp"),
    ("chain", "warp", "linear"),
]  # fmt: skip


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
