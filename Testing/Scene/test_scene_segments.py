"""Segmentations as masks and label maps; markups as points."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from scipy.ndimage import map_coordinates

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.vtk_arrays import ijk_to_ras_of, to_vtk_image
from DeepRegLib.errors import InputError


def ball(grid, center, radius) -> np.ndarray:
    """A ball as uint8 on a grid."""
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    return (np.linalg.norm(points - np.array(center), axis=-1) < radius).astype(np.uint8)


def dice(a, b) -> float:
    """Overlap of two masks."""
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def add_segment(node, array, grid, name) -> None:
    """Adds a mask on a grid as a segment."""
    image = slicer.vtkOrientedImageData()
    image.DeepCopy(to_vtk_image(array))
    image.SetGeometryFromImageToWorldMatrix(ijk_to_ras_of(grid))
    node.AddSegmentFromBinaryLabelmapRepresentation(image, name, [1, 0, 0])


@pytest.fixture
def segmentation(scene, tools):
    """Two balls, drawn on a fine oblique grid."""
    grid = tools.make_grid("oblique", (40, 44, 50), (1.0, 1.0, 1.0))
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
    add_segment(node, ball(grid, (4, -7, 11), 9), grid, "liver")
    add_segment(node, ball(grid, (14, -7, 11), 6), grid, "spleen")
    return node


@pytest.mark.parametrize("kind", ["ras", "left", "oblique_left", "shear"])
def test_segment_on_any_grid(segmentation, tools, kind):
    grid = tools.make_grid(kind, (30, 34, 40), (1.5, 1.2, 1.0))
    mask = mrml.segmentation_mask(segmentation, grid, segment="liver")
    source = tools.make_grid("oblique", (40, 44, 50), (1.0, 1.0, 1.0))
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
    drawn = ball(source, (4, -7, 11), 9)
    nearest = map_coordinates(drawn, source.to_voxel(points).T, order=0).reshape(grid.shape)
    assert mask.dtype == np.uint8
    assert dice(mask, nearest) > 0.999
    id_ = list(mrml.segment_names(segmentation))[1]
    spleen = mrml.segmentation_mask(segmentation, grid, segment=id_)
    both = mrml.segmentation_mask(segmentation, grid)
    np.testing.assert_array_equal(both, mask | spleen)


def test_label_map_of_all_segments(segmentation, tools):
    grid = tools.make_grid("ras", (30, 34, 40), (1.5, 1.2, 1.0))
    labels, names = mrml.segmentation_labels(segmentation, grid)
    assert names == {1: "liver", 2: "spleen"}
    assert set(np.unique(labels)) == {0, 1, 2}
    spleen = mrml.segmentation_mask(segmentation, grid, segment="spleen")
    np.testing.assert_array_equal(labels == 2, spleen > 0)


@pytest.mark.parametrize("parents", ["linear", "grid", "both"])
def test_parents_of_segmentation_and_volume_count(
    scene, tools, linear_parent, segmentation, parents
):
    grid = tools.make_grid("oblique_left", (30, 34, 40), (1.5, 1.2, 1.0))
    volume = mrml.add_volume(scene, "image", np.zeros(grid.shape, np.int16), grid)
    shift = np.eye(4)
    shift[:3, 3] = (5.0, 0.0, -3.0)
    segmentation.SetAndObserveTransformNodeID(linear_parent(shift).GetID())
    center = np.array([4.0, -7.0, 11.0]) + shift[:3, 3]
    if parents != "linear":
        moved = np.broadcast_to(np.array([0, 4.0, 0])[:, None, None, None], (3, *grid.shape))
        warp = mrml.add_grid_transform(scene, "warp", moved, grid)
        if parents == "both":
            volume.SetAndObserveTransformNodeID(warp.GetID())
            center = center + (0, 4, 0)  # from world (parent) to the volume
        else:
            segmentation.SetAndObserveTransformNodeID(warp.GetID())
            center = np.array([4.0, -7.0, 11.0]) - (0, 4, 0)
    mask = mrml.segmentation_mask(segmentation, grid, volume, "liver")
    assert dice(mask, ball(grid, center, 9)) > 0.94


def test_surface_becomes_voxels_and_the_node_stays_as_it_is(scene, tools):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surface")
    node.SetSourceRepresentationToClosedSurface()
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(9)
    sphere.SetCenter(4, -7, 11)
    sphere.SetThetaResolution(40)
    sphere.SetPhiResolution(40)
    sphere.Update()
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "ball", [0, 1, 0])
    grid = tools.make_grid("ras", (30, 34, 40), (1.5, 1.2, 1.0))
    mask = mrml.segmentation_mask(node, grid)
    assert dice(mask, ball(grid, (4, -7, 11), 9)) > 0.95
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_unknown_and_missing_segments_are_explained(scene, tools, segmentation):
    grid = tools.make_grid("ras")
    with pytest.raises(InputError, match="no segment called 'kidney'; it has: liver, spleen"):
        mrml.segmentation_mask(segmentation, grid, segment="kidney")
    empty = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "blank")
    with pytest.raises(InputError, match="'blank' has no segments"):
        mrml.segmentation_mask(empty, grid)


def test_points_come_in_world_coordinates_without_undefined_ones(scene, linear_parent):
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "F")
    node.AddControlPoint(vtk.vtkVector3d(1, 2, 3), "tip")
    node.AddControlPoint(vtk.vtkVector3d(9, 9, 9), "gone")
    node.AddControlPoint(vtk.vtkVector3d(4, 5, 6), "base")
    node.UnsetNthControlPointPosition(1)
    shift = np.eye(4)
    shift[:3, 3] = (10, 0, 0)
    node.SetAndObserveTransformNodeID(linear_parent(shift).GetID())
    points, labels = mrml.markup_points(node)
    np.testing.assert_allclose(points, [[11, 2, 3], [14, 5, 6]])
    assert labels == ["tip", "base"]
    local, _ = mrml.markup_points(node, frame=node)
    np.testing.assert_allclose(local, [[1, 2, 3], [4, 5, 6]])


def test_points_go_back_into_the_scene(scene):
    points = np.array([[1.0, 2, 3], [-4, 5.5, 6]])
    node = mrml.add_points(scene, "landmarks", points, ["a", "b"])
    back, labels = mrml.markup_points(node)
    np.testing.assert_allclose(back, points)
    assert labels == ["a", "b"]
    assert mrml.markup_points(mrml.add_points(scene, "none", []))[0].shape == (0, 3)
    with pytest.raises(InputError, match="2 points but 1 labels"):
        mrml.add_points(scene, "x", points, ["a"])
