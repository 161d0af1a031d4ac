"""Maps as colored volumes: what a slice view shows of them, one color table a kind, saved scenes."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs the package slicer-core (the MRML library)")

from vtk.util.numpy_support import vtk_to_numpy

from DeepRegLib.bridge import mrml, overlays
from DeepRegLib.bridge.extras import replace_map
from DeepRegLib.bridge.volumes import replace_volume
from DeepRegLib.errors import GeometryError, InputError
from DeepRegLib.pictures.color_maps import KINDS, color_map


def our_tables(scene):
    count = scene.GetNumberOfNodesByClass("vtkMRMLColorTableNode")
    nodes = [scene.GetNthNodeByClass(n, "vtkMRMLColorTableNode") for n in range(count)]
    return [node for node in nodes if node.GetAttribute(overlays.COLOR_ATTRIBUTE)]


def shown(volume):
    """Colors that the display of a volume gives to its voxels, (k, j, i, 4)."""
    producer = volume.GetDisplayNode().GetImageDataConnection().GetProducer()
    producer.Update()
    image = producer.GetOutput()
    i, j, k = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(k, j, i, -1)


def spread(grid, low, high):
    return np.linspace(low, high, grid.size, dtype=np.float32).reshape(grid.shape)


@pytest.fixture
def fixed(scene, tools):
    grid = tools.make_grid("oblique")
    return mrml.add_volume(scene, "Fixed", tools.smooth_array(grid), grid)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", ["lps", "oblique_left"])
def test_slicer_shows_the_colors_of_the_table(scene, tools, fixed, kind, orientation):
    grid = tools.make_grid(orientation)
    values = spread(grid, -0.5, 3.5)
    node = overlays.add_map_volume(scene, "Map", values, grid, kind, fixed)
    assert node.GetAttribute(overlays.KIND_ATTRIBUTE) == kind
    assert mrml.grid_of(node).matches(grid)
    np.testing.assert_array_equal(mrml.volume_array(node), values)
    expected = color_map(kind, values).colors(values)
    found = shown(node)
    visible = expected[..., 3] > 0
    np.testing.assert_array_equal(found[..., 3] > 0, visible)
    differs = (found[visible] != expected[visible]).any(-1)
    # A value on the edge of two entries may fall to either side.
    assert differs.mean() < 0.002


def test_folds_and_kept_volume(scene, tools, fixed):
    grid = tools.make_grid("ras")
    values = np.ones(grid.shape, np.float32)
    values[0, 0, :4] = (-3.0, 0.0, 0.5, 2.0)
    rgba = shown(overlays.add_map_volume(scene, "J", values, grid, "jacobian", fixed))
    assert (rgba[0, 0, :2] == (255, 0, 255, 255)).all()
    assert rgba[0, 0, 2, 2] > rgba[0, 0, 2, 0] and rgba[0, 0, 3, 0] > rgba[0, 0, 3, 2]
    assert (rgba[1:, ..., 3] == 0).all()


def test_millimetres_have_a_round_scale_and_hide_next_to_nothing(scene, tools, fixed):
    grid = tools.make_grid("ras")
    node = overlays.add_map_volume(scene, "U", spread(grid, 0, 1.8), grid, "uncertainty_mm", fixed)
    display = node.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel()) == (2.0, 1.0)
    assert not display.GetAutoWindowLevel() and not display.GetApplyThreshold()
    visible = shown(node)[..., 3] > 0
    assert not visible[mrml.volume_array(node) < 0.039].any()
    assert visible[mrml.volume_array(node) > 0.041].all()


def test_twenty_runs_add_one_table_a_kind(scene, tools, fixed):
    grid = tools.make_grid("ras", (3, 4, 5))
    volumes = [
        overlays.add_map_volume(scene, "Map", spread(grid, 0, n + 1), grid, kind, fixed)
        for n in range(20)
        for kind in KINDS
    ]
    assert len({node.GetName() for node in volumes}) == 60
    tables = our_tables(scene)
    assert sorted(t.GetAttribute(overlays.COLOR_ATTRIBUTE) for t in tables) == sorted(KINDS)
    assert {v.GetDisplayNode().GetColorNodeID() for v in volumes} == {t.GetID() for t in tables}


def test_under_the_parent_of_the_fixed_volume_and_in_its_folder(scene, tools, fixed, linear_parent):
    parent = linear_parent(tools.example_matrix())
    fixed.SetAndObserveTransformNodeID(parent.GetID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.CreateItem(folder, fixed)
    grid = mrml.grid_of(fixed)
    node = overlays.add_map_volume(scene, "J", spread(grid, 0, 2), grid, "jacobian", fixed)
    assert node.GetParentTransformNode() is parent
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == folder
    assert mrml.grid_in(node).matches(mrml.grid_in(fixed))
    alone = overlays.add_map_volume(scene, "J", spread(grid, 0, 2), grid, "jacobian")
    assert alone.GetParentTransformNode() is None


def test_a_saved_scene_shows_the_same(scene, tools, fixed, tmp_path):
    grid = tools.make_grid("oblique")
    values = spread(grid, -0.2, 3.2)
    for kind in KINDS:
        overlays.add_map_volume(scene, kind, values, grid, kind, fixed)
    before = {kind: shown(scene.GetFirstNodeByName(kind)) for kind in KINDS}
    opened = mrml.open_scene(mrml.save_scene(scene, tmp_path))
    for kind in KINDS:
        node = opened.GetFirstNodeByName(kind)
        assert node.GetAttribute(overlays.KIND_ATTRIBUTE) == kind
        after = shown(node)
        visible = before[kind][..., 3] > 0
        np.testing.assert_array_equal(after[..., 3] > 0, visible)
        assert np.abs(after[visible].astype(int) - before[kind][visible]).max() <= 1
    # And the next run takes the table that was saved.
    overlays.add_map_volume(opened, "again", values, grid, "jacobian")
    assert len(our_tables(opened)) == len(KINDS)
    opened.Clear(True)


def test_a_table_of_an_older_scene_is_not_taken(scene, tools, fixed):
    """Its colors lie differently along the values: kept volume would look like growth."""
    grid = tools.make_grid("ras")
    old = overlays.color_node(scene, "jacobian")
    for index in range(1, 63):
        old.SetColor(index, str(index), 0.0, 0.2, 0.5, 1.0)
    values = np.ones(grid.shape, np.float32)
    values[0] = 0.5
    before = overlays.add_map_volume(scene, "J", values, grid, "jacobian", fixed)
    new = before.GetDisplayNode().GetColorNode()
    assert new is not old and overlays.color_node(scene, "jacobian") is new
    before.GetDisplayNode().SetAndObserveColorNodeID(old.GetID())
    made = overlays.add_map_volume(scene, "J", values, grid, "jacobian", fixed)
    kept = replace_map(scene, made, before, "jacobian")
    assert kept is before and kept.GetDisplayNode().GetColorNode() is new
    gray = slicer.vtkMRMLColorTableNode()
    gray.SetTypeToGrey()
    scene.AddNode(gray)
    kept.GetDisplayNode().SetAndObserveColorNodeID(gray.GetID())
    made = overlays.add_map_volume(scene, "J", values, grid, "jacobian", fixed)
    replace_map(scene, made, kept, "jacobian")
    assert kept.GetDisplayNode().GetColorNode() is gray, "the user's choice stays"


def legend_of(node):
    (legend,) = [
        node.GetNthDisplayNode(n)
        for n in range(node.GetNumberOfDisplayNodes())
        if node.GetNthDisplayNode(n).IsA("vtkMRMLColorLegendDisplayNode")
    ]
    return legend


@pytest.mark.parametrize("kind, title, labels", [
    ("jacobian", "Jacobian determinant", 5), ("error_mm", "Estimated error (mm)", 3),
    ("level_motion_mm", "Level motion (mm)", 3),
])  # fmt: skip
def test_a_map_has_a_color_legend(scene, tools, fixed, kind, title, labels, tmp_path):
    """As the module Colors would add it; it goes with the map, and a replaced map has one still."""
    grid = tools.make_grid("oblique")
    node = overlays.add_map_volume(scene, "Map", spread(grid, 0, 3), grid, kind, fixed)
    legend = legend_of(node)
    assert (legend.GetTitleText(), legend.GetNumberOfLabels()) == (title, labels)
    assert legend.GetPrimaryDisplayNode() is node.GetDisplayNode()
    assert not node.GetDisplayNode().IsA("vtkMRMLColorLegendDisplayNode")
    count = scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode")
    made = overlays.add_map_volume(scene, "Map", spread(grid, 0, 9), grid, kind, fixed)
    kept = replace_volume(scene, made, node)
    assert kept is node and legend_of(node) is legend
    assert scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode") == count
    opened = mrml.open_scene(mrml.save_scene(scene, tmp_path))
    again = legend_of(opened.GetFirstNodeByName("Map"))
    assert again.GetTitleText() == title
    assert again.GetPrimaryDisplayNode() is opened.GetFirstNodeByName("Map").GetDisplayNode()
    opened.Clear(True)


def test_a_failed_transaction_takes_the_table_along(scene, tools):
    grid = tools.make_grid("ras", (3, 4, 5))
    with pytest.raises(RuntimeError, match="on purpose"), mrml.scene_transaction(scene):
        overlays.add_map_volume(scene, "J", spread(grid, 0, 2), grid, "jacobian")
        raise RuntimeError("on purpose")
    assert not our_tables(scene)
    assert scene.GetFirstNodeByName("J") is None


def test_wrong_kinds_and_shapes_leave_the_scene_alone(scene, tools, fixed):
    grid = tools.make_grid("ras")
    count = scene.GetNumberOfNodes()
    with pytest.raises(InputError, match="heat"):
        overlays.add_map_volume(scene, "x", spread(grid, 0, 1), grid, "heat", fixed)
    with pytest.raises(GeometryError, match="shape"):
        overlays.add_map_volume(scene, "x", spread(grid, 0, 1)[1:], grid, "error_mm", fixed)
    assert scene.GetNumberOfNodes() == count


@pytest.mark.parametrize("orientation", ["lps", "left", "oblique", "shear"])
def test_jacobian_of_a_transform_node(scene, tools, fixed, orientation):
    """The displacement that the bridge reads from a node gives the right volume change."""
    grid = tools.make_grid(orientation)
    matrix = np.diag([1.2, 0.9, 1.1])
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1)) - grid.center_ras
    displacement = np.moveaxis(points @ (matrix - np.eye(3)).T, -1, 0).astype(np.float32)
    linear = tools.example_matrix()
    found = overlays.jacobian_of(displacement, linear, grid)
    expected = np.linalg.det(matrix) * np.linalg.det(linear[:3, :3])
    np.testing.assert_allclose(found, expected, rtol=1e-3)
