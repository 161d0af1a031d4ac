"""B-spline nodes, the library and the files that Slicer writes of the nodes agree."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import torch
import vtk

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.splines import spline_content
from DeepRegLib.bridge.vtk_arrays import map_points
from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.itk_transform import write_transform
from DeepRegLib.registration.free_form import spline_space

TOLERANCE_VOXEL = 0.02
FLIP = np.array([-1.0, -1.0, 1.0])


def make_result(fixed, matrix=None, size_mm=1.0) -> Transform:
    """A result as the free-form engine gives it, at rest at the rim."""
    space = spline_space(fixed, (4, 5, 6), fixed, torch.device("cpu"))
    generator = torch.Generator().manual_seed(2)
    parameters = torch.randn(3, *space.shape, generator=generator, dtype=torch.float64) * size_mm
    spline = space.spline(parameters)
    return Transform(np.eye(4) if matrix is None else matrix, spline.field(fixed), spline)


def points_of(grid) -> np.ndarray:
    """Some voxel centers, and points between them."""
    centers = np.indices(grid.shape).reshape(3, -1).T[::11]
    between = np.random.default_rng(3).random((200, 3)) * (np.array(grid.shape) - 1.0)
    return grid.to_ras(np.concatenate([centers, between]))


def by_vtk(node, points) -> np.ndarray:
    general = vtk.vtkGeneralTransform()
    node.GetTransformFromWorld(general)
    return map_points(general, points)


def by_itk(path, points) -> np.ndarray:
    transform = sitk.ReadTransform(str(path))
    return np.array([transform.TransformPoint(p) for p in (points * FLIP).tolist()]) * FLIP


@pytest.mark.parametrize("linear", ["identity", "affine"])
@pytest.mark.parametrize("kind", ["ras", "lps", "left", "oblique", "oblique_left"])
def test_a_node_maps_as_the_library(scene, tools, kind, linear):
    fixed = tools.make_grid(kind)
    transform = make_result(fixed, None if linear == "identity" else tools.example_matrix())
    node = mrml.add_spline_transform(scene, "result", transform)
    held = "vtkMRMLBSplineTransformNode" if linear == "identity" else "vtkMRMLTransformNode"
    assert node.GetClassName() == held
    points = points_of(fixed)
    library = transform.map_points_ras(points)
    assert np.abs(library - Transform(transform.linear).map_points_ras(points)).max() > 0.5
    apart = np.linalg.norm(by_vtk(node, points) - library, axis=1).max()
    assert apart < TOLERANCE_VOXEL * min(fixed.spacing_mm)


@pytest.mark.parametrize("linear", ["identity", "affine"])
def test_slicer_reads_the_file_that_the_library_writes(scene, tools, tmp_path, linear):
    fixed = tools.make_grid("oblique_left")
    transform = make_result(fixed, None if linear == "identity" else tools.example_matrix())
    path = tmp_path / "warp.h5"
    write_transform(transform, path, fixed)
    node = slicer.vtkMRMLTransformNode()
    scene.AddNode(node)
    assert node.AddDefaultStorageNode()
    node.GetStorageNode().SetFileName(str(path))
    assert node.GetStorageNode().ReadData(node)
    points = points_of(fixed)
    library = transform.map_points_ras(points)
    apart = np.linalg.norm(by_vtk(node, points) - library, axis=1).max()
    assert apart < TOLERANCE_VOXEL * min(fixed.spacing_mm)


@pytest.mark.parametrize("linear", ["identity", "affine"])
def test_itk_reads_the_file_that_slicer_writes(scene, tools, tmp_path, linear):
    fixed = tools.make_grid("oblique")
    transform = make_result(fixed, None if linear == "identity" else tools.example_matrix())
    node = mrml.add_spline_transform(scene, "result", transform)
    path = tmp_path / "saved.h5"
    assert node.AddDefaultStorageNode()
    node.GetStorageNode().SetFileName(str(path))
    assert node.GetStorageNode().WriteData(node)
    points = points_of(fixed)
    apart = np.linalg.norm(by_itk(path, points) - transform.map_points_ras(points), axis=1).max()
    assert apart < TOLERANCE_VOXEL * min(fixed.spacing_mm)


def test_the_volumes_are_noted(scene, tools):
    grid = tools.make_grid("lps")
    fixed = mrml.add_volume(scene, "fixed", tools.smooth_array(grid), grid)
    moving = mrml.add_volume(scene, "moving", tools.smooth_array(grid), grid)
    node = mrml.add_spline_transform(scene, "result", make_result(grid), fixed, moving)
    assert node.GetNodeReference(node.GetFixedNodeReferenceRole()) is fixed
    assert node.GetNodeReference(node.GetMovingNodeReferenceRole()) is moving


def test_what_does_not_fit_is_refused(scene, tools):
    grid = tools.make_grid("lps")
    with pytest.raises(GeometryError, match="not held by control points"):
        mrml.add_spline_transform(scene, "linear", Transform())
    with pytest.raises(GeometryError, match="have the shape"):
        spline_content(np.eye(4), np.zeros((3, 4, 4, 4)), grid)
    sheared = make_result(tools.make_grid("shear"))
    with pytest.raises(GeometryError, match="right angles"):
        mrml.add_spline_transform(scene, "sheared", sheared)
