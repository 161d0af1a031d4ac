"""Start from what is on screen, and put the result where both volumes agree on screen."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.frames import MAX_START_POINTS
from DeepRegLib.geometry.grid import Grid, transform_points


def put_under(scene, tools, linear_parent, node, parent, grid) -> None:
    """Puts a node under a parent transform of a kind."""
    if parent == "none":
        return
    turn = tools.rotation(4, 8, -6)
    turn[:3, 3] = (6, -2, 3)
    if parent == "linear":
        above = linear_parent(turn, above=linear_parent(np.diag([1.1, 1.0, 0.9, 1.0])))
    elif parent == "grid":
        vectors = tools.smooth_deformation_mm(grid, 1.5)
        above = mrml.add_grid_transform(scene, "warp", vectors, grid)
    elif parent == "bspline":
        above = bspline(scene, grid)
    elif parent == "thin_plate":
        above = thin_plate(scene, grid)
    else:
        vectors = tools.smooth_deformation_mm(grid, 1.5)
        outer = mrml.add_grid_transform(scene, "warp", vectors, grid)
        outer.SetAndObserveTransformNodeID(linear_parent(turn).GetID())
        above = linear_parent(tools.rotation(-5, 0, 9), above=outer)
    node.SetAndObserveTransformNodeID(above.GetID())


def bspline(scene, grid) -> slicer.vtkMRMLBSplineTransformNode:
    """A B-spline transform from parent over a grid."""
    import vtk

    from DeepRegLib.bridge.vtk_arrays import to_vtk_image

    coarse = grid.resized((5, 6, 7)).padded(1)
    random = np.random.default_rng(1).normal(0, 1.0, (*coarse.shape, 3))
    image = to_vtk_image(random)
    image.SetSpacing(*coarse.spacing_mm[::-1])
    image.SetOrigin(*coarse.voxel_to_ras[:3, 3])
    transform = slicer.vtkOrientedBSplineTransform()
    directions = vtk.vtkMatrix4x4()
    matrix = coarse.voxel_to_ras[:3, [2, 1, 0]] / coarse.spacing_mm[::-1]
    for r in range(3):
        for c in range(3):
            directions.SetElement(r, c, matrix[r, c])
    transform.SetGridDirectionMatrix(directions)
    transform.SetCoefficientData(image)
    node = slicer.vtkMRMLBSplineTransformNode()
    node.SetAndObserveTransformFromParent(transform)
    return scene.AddNode(node)


def thin_plate(scene, grid) -> slicer.vtkMRMLTransformNode:
    """A thin-plate spline to parent from points of a grid."""
    import vtk

    random = np.random.default_rng(2)
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for point in grid.to_ras(random.uniform(0, np.array(grid.shape) - 1, (12, 3))):
        source.InsertNextPoint(point)
        target.InsertNextPoint(point + random.normal(0, 1.0, 3))
    transform = vtk.vtkThinPlateSplineTransform()
    transform.SetBasisToR()
    transform.SetSourceLandmarks(source)
    transform.SetTargetLandmarks(target)
    node = slicer.vtkMRMLTransformNode()
    node.SetAndObserveTransformToParent(transform)
    return scene.AddNode(node)


PARENTS = [
    ("none", "linear"), ("linear", "none"), ("linear", "linear"), ("none", "grid"),
    ("grid", "none"), ("chain", "linear"), ("linear", "chain"), ("bspline", "none"),
    ("none", "bspline"), ("thin_plate", "grid"),
]  # fmt: skip


@pytest.fixture
def volumes(scene, tools):
    """Two volumes on different grids."""
    fixed_grid, moving_grid = tools.make_grid("oblique"), tools.make_grid("left", (16, 20, 24))
    fixed = mrml.add_volume(scene, "fixed", tools.smooth_array(fixed_grid), fixed_grid)
    moving = mrml.add_volume(scene, "moving", tools.smooth_array(moving_grid), moving_grid)
    return fixed, moving


@pytest.mark.parametrize(("fixed_parent", "moving_parent"), PARENTS)
def test_start_is_what_is_on_screen(
    scene, tools, linear_parent, volumes, fixed_parent, moving_parent
):
    fixed, moving = volumes
    for node, parent in ((fixed, fixed_parent), (moving, moving_parent)):
        put_under(scene, tools, linear_parent, node, parent, mrml.grid_of(node))
    start = mrml.initial_transform(fixed, moving)
    grid = mrml.grid_of(fixed)
    index = np.stack(np.meshgrid(*[range(0, n, 3) for n in grid.shape], indexing="ij"), -1)
    points = grid.to_ras(index.reshape(-1, 3))
    mapped = points
    if {fixed_parent, moving_parent} <= {"none", "linear"}:
        assert start.displacement_ras_mm is None
        assert start.grid is None
    else:
        assert start.grid.matches(grid)
        at = tuple(index.reshape(-1, 3).T)
        mapped = points + start.displacement_ras_mm[(slice(None), *at)].T
    mapped = transform_points(start.linear, mapped)
    # Both go to the world by their own parents, and must meet there.
    world_fixed = mrml.points_between(points, fixed, None)
    world_moving = mrml.points_between(mapped, moving, None)
    assert np.linalg.norm(world_fixed - world_moving, axis=1).max() < 0.02


@pytest.mark.parametrize(("fixed_parent", "moving_parent"), PARENTS)
@pytest.mark.parametrize("layout", ["grid", "chain"])
def test_result_aligns_on_screen(
    scene, tools, linear_parent, volumes, fixed_parent, moving_parent, layout
):
    """A result in local terms, applied, shows at each fixed point what it maps to."""
    fixed, moving = volumes
    for node, parent in ((fixed, fixed_parent), (moving, moving_parent)):
        put_under(scene, tools, linear_parent, node, parent, mrml.grid_of(node))
    grid = mrml.grid_of(fixed)
    u = tools.smooth_deformation_mm(grid, 1.5)
    node = mrml.add_warp(scene, "result", tools.example_matrix(), u, grid, layout, fixed, moving)
    mrml.apply_transform(node, moving)
    voxels = np.array([[4, 5, 6], [7, 9, 11], [8, 12, 15]])
    points = grid.to_ras(voxels)
    expected = transform_points(
        tools.example_matrix(), points + np.array([u[(slice(None), *v)] for v in voxels])
    )
    world = mrml.points_between(points, fixed, None)
    got = mrml.points_between(world, None, moving)
    assert np.linalg.norm(got - expected, axis=1).max() < 0.05
    # And the moved volume, on the fixed grid in the fixed frame, lies there too.
    moved = mrml.add_moved_volume(scene, "moved", tools.smooth_array(grid), grid, moving, fixed)
    assert moved.GetParentTransformNode() is fixed.GetParentTransformNode()


@pytest.mark.parametrize("layout", ["grid", "chain"])
def test_result_used_again_as_start_gives_its_own_parts(scene, tools, volumes, layout):
    fixed, moving = volumes
    grid = mrml.grid_of(fixed)
    matrix = tools.example_matrix()
    u = tools.smooth_deformation_mm(grid, 1.5)
    node = mrml.add_warp(scene, "result", matrix, u, grid, layout, fixed, moving)
    chosen = mrml.initial_transform(fixed, moving, node)
    mrml.apply_transform(node, moving)
    start = mrml.initial_transform(fixed, moving)
    np.testing.assert_allclose(start.linear, matrix, atol=1e-4)
    np.testing.assert_allclose(chosen.linear, start.linear, atol=1e-9)
    np.testing.assert_allclose(start.displacement_ras_mm[:, 7, 9, 11], u[:, 7, 9, 11], atol=1e-3)
    assert np.abs(start.displacement_ras_mm[:, 0]).max() < 1e-3


def test_a_large_non_linear_start_is_thinned_out(scene, tools, volumes, monkeypatch):
    fixed, moving = volumes
    put_under(scene, tools, None, moving, "grid", mrml.grid_of(moving))
    monkeypatch.setattr("DeepRegLib.bridge.frames.MAX_START_POINTS", 1000)
    start = mrml.initial_transform(fixed, moving)
    assert start.grid.size <= 1000 < MAX_START_POINTS
    extent = Grid(start.grid.shape, start.grid.voxel_to_ras).corners_ras()
    np.testing.assert_allclose(extent, mrml.grid_of(fixed).corners_ras(), atol=1e-9)


def test_landmarks_come_in_the_volume_frame(scene, tools, linear_parent, volumes):
    fixed, _ = volumes
    put_under(scene, tools, linear_parent, fixed, "linear", mrml.grid_of(fixed))
    local = np.array([[1.0, 2.0, 3.0], [4.0, -5.0, 6.0]])
    world = mrml.points_between(local, fixed, None)
    markups = mrml.add_points(scene, "F", world)
    np.testing.assert_allclose(mrml.markup_points(markups, frame=fixed)[0], local, atol=1e-4)
    shown = mrml.add_points(scene, "G", local, frame=fixed)
    np.testing.assert_allclose(mrml.markup_points(shown)[0], world, atol=1e-4)
