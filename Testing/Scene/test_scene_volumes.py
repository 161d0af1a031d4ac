"""Volume nodes to arrays and grids, and back."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from scipy.ndimage import map_coordinates

from DeepRegLib.bridge import mrml
from DeepRegLib.errors import DeepRegError, GeometryError, InputError

KINDS = ("ras", "lps", "left", "oblique", "oblique_left", "shear")


@pytest.mark.parametrize("kind", KINDS)
def test_grid_and_voxels_survive_a_node(scene, tools, kind):
    grid = tools.make_grid(kind)
    array = tools.smooth_array(grid)
    node = mrml.add_volume(scene, "image", array, grid)
    assert mrml.grid_of(node).matches(grid, 1e-9)
    np.testing.assert_array_equal(mrml.volume_array(node), array)


def test_grid_places_voxels_where_slicer_does(scene, tools):
    grid = tools.make_grid("oblique_left")
    node = mrml.add_volume(scene, "image", np.zeros(grid.shape), grid)
    to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(to_ras)
    expected = to_ras.MultiplyPoint((5, 3, 2, 1))[:3]
    np.testing.assert_allclose(mrml.grid_of(node).to_ras((2, 3, 5)), expected, atol=1e-9)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "float64"])
def test_type_is_kept(scene, tools, dtype):
    grid = tools.make_grid("ras")
    array = (np.arange(grid.size).reshape(grid.shape) % 117).astype(dtype)
    node = mrml.add_volume(scene, "labels", array, grid, label=True)
    back = mrml.volume_array(node)
    assert back.dtype == array.dtype
    assert mrml.is_label_map(node)
    np.testing.assert_array_equal(back, array)


def test_array_is_a_copy(scene, tools):
    grid = tools.make_grid("ras")
    node = mrml.add_volume(scene, "image", np.ones(grid.shape, np.int16), grid)
    mrml.volume_array(node)[:] = 7
    assert mrml.volume_array(node).max() == 1


def test_vector_volume_is_refused_with_advice(scene, tools):
    grid = tools.make_grid("ras")
    node = mrml.add_volume(scene, "rgb", np.zeros((*grid.shape, 3), np.uint8), grid)
    with pytest.raises(InputError, match=r"3 values per voxel.*Vector to Scalar Volume"):
        mrml.volume_array(node)
    assert mrml.volume_channels(node).shape == (3, *grid.shape)


def test_empty_and_missing_volumes_are_refused(scene):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    for function in (mrml.grid_of, mrml.volume_array, mrml.volume_channels):
        with pytest.raises(InputError, match="'nothing' is empty"):
            function(node)
    with pytest.raises(InputError, match="No volume"):
        mrml.grid_of(None)


@pytest.mark.parametrize("kind", ["ras", "oblique_left"])
def test_linear_parents_fold_into_the_grid(scene, tools, linear_parent, kind):
    grid = tools.make_grid(kind)
    node = mrml.add_volume(scene, "image", np.zeros(grid.shape, np.int16), grid)
    squeeze = np.diag([1.0, 1.6, 0.7, 1.0])
    outer = linear_parent(squeeze)
    inner = linear_parent(tools.rotation(30, 10, 50), above=outer)
    node.SetAndObserveTransformNodeID(inner.GetID())
    world = mrml.grid_in(node)
    # A rotation under a squeeze is a shear: not what a volume node could hold, but a Grid can.
    axes = world.voxel_to_ras[:3, :3] / np.linalg.norm(world.voxel_to_ras[:3, :3], axis=0)
    assert np.abs(axes.T @ axes - np.eye(3)).max() > 0.1
    transform = vtk.vtkGeneralTransform()
    inner.GetTransformToWorld(transform)
    for voxel in ((0, 0, 0), (3, 5, 7), (13, 17, 22)):
        expected = transform.TransformPoint(grid.to_ras(voxel))
        np.testing.assert_allclose(world.to_ras(voxel), expected, atol=1e-6)
    assert mrml.grid_in(node, node).matches(grid)


def test_non_linear_parent_cannot_fold(scene, tools):
    grid = tools.make_grid("ras")
    node = mrml.add_volume(scene, "bent", np.zeros(grid.shape, np.int16), grid)
    warp = mrml.add_grid_transform(scene, "warp", tools.smooth_deformation_mm(grid), grid)
    node.SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(InputError, match="'bent' is under a non-linear"):
        mrml.grid_in(node)


@pytest.mark.parametrize("parent", ["none", "linear", "grid"])
def test_resampled_array_follows_the_screen(scene, tools, linear_parent, parent):
    source, target = tools.make_grid("oblique", (40, 44, 50)), tools.make_grid("left")
    node = mrml.add_volume(scene, "image", tools.smooth_array(source, 40.0), source)
    if parent == "linear":
        above = linear_parent(tools.example_matrix())
    elif parent == "grid":
        above = mrml.add_grid_transform(scene, "warp", tools.smooth_deformation_mm(target), target)
    if parent != "none":
        node.SetAndObserveTransformNodeID(above.GetID())
    got = mrml.resampled_array(node, target, fill=-1000)
    points = target.to_ras(np.moveaxis(np.indices(target.shape), 0, -1).reshape(-1, 3))
    local = mrml.points_between(points, None, node)
    where = source.to_voxel(local).T
    expected = map_coordinates(mrml.volume_array(node), where, order=1, cval=-1000, mode="nearest")
    size = np.array(source.shape)[:, None]
    inside = ((where > -0.45) & (where < size - 0.55)).all(0)
    outside = ((where < -0.55) | (where > size - 0.45)).any(0)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(got.reshape(-1)[inside], expected[inside], atol=0.05)
    assert (got.reshape(-1)[outside] == -1000).all()


def test_moved_volume_looks_like_the_moving_one(scene, tools):
    grid = tools.make_grid("oblique")
    moving = mrml.add_volume(scene, "CT", tools.smooth_array(grid).astype(np.int16), grid)
    display = moving.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(350, 40)
    display.SetThreshold(5, 900)
    display.SetApplyThreshold(True)
    color = scene.AddNode(slicer.vtkMRMLColorTableNode())
    color.SetTypeToRainbow()
    display.SetAndObserveColorNodeID(color.GetID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "patient")
    hierarchy.CreateItem(folder, moving)

    array = np.full(grid.shape, 3, np.int16)
    moved = mrml.add_moved_volume(scene, "CT", array, grid, moving)

    shown = moved.GetDisplayNode()
    assert (shown.GetWindow(), shown.GetLevel(), shown.GetAutoWindowLevel()) == (350, 40, 0)
    assert (shown.GetLowerThreshold(), shown.GetUpperThreshold()) == (5, 900)
    assert shown.GetApplyThreshold()
    assert shown.GetColorNodeID() == color.GetID()
    assert moved.GetName() != "CT"
    assert mrml.volume_array(moved).dtype == np.int16
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(moved)) == folder
    with pytest.raises(GeometryError, match="shape"):
        mrml.add_moved_volume(scene, "x", array[1:], grid, moving)


def test_moved_label_map_is_a_label_map(scene, tools):
    grid = tools.make_grid("ras")
    array = np.ones(grid.shape, np.uint8)
    moving = mrml.add_volume(scene, "labels", array, grid, label=True)
    moved = mrml.add_moved_volume(scene, "moved", array, grid, moving)
    assert mrml.is_label_map(moved)
    assert mrml.volume_array(moved).dtype == np.uint8


def test_a_failed_transaction_leaves_no_trace(scene, tools):
    grid = tools.make_grid("ras")
    before = scene.GetNumberOfNodes()

    def fail() -> None:
        with mrml.scene_transaction(scene):
            moving = mrml.add_volume(scene, "image", np.zeros(grid.shape, np.int16), grid)
            mrml.add_linear_transform(scene, "transform", np.eye(4), moving=moving)
            raise DeepRegError("The run failed.")

    with pytest.raises(DeepRegError, match="run failed"):
        fail()
    kept = [scene.GetNthNode(n).GetName() for n in range(scene.GetNumberOfNodes())]
    assert scene.GetNumberOfNodes() == before, kept
