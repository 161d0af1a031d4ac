"""Transforms of the library, of VTK through MRML nodes, and of ITK through Slicer's files agree."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import torch
import vtk

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.resample import resampled_array
from DeepRegLib.bridge.transforms import faded
from DeepRegLib.bridge.vtk_arrays import map_points
from DeepRegLib.errors import GeometryError
from DeepRegLib.geometry.field import Field, fade_window
from DeepRegLib.geometry.inverse import invert
from DeepRegLib.geometry.transform import Transform

KINDS = ("ras", "lps", "left", "oblique", "oblique_left")
TOLERANCE_VOXEL = 0.02
FLIP = np.array([-1.0, -1.0, 1.0])


def make_transform(tools, fixed, matrix=None, deformable=True, size_mm=2.0) -> Transform:
    """A linear map after a smooth deformation that fades at the rim, as results have it."""
    matrix = tools.example_matrix() if matrix is None else matrix
    if not deformable:
        return Transform(matrix)
    vectors = torch.from_numpy(tools.smooth_deformation_mm(fixed, size_mm))[None]
    return Transform(matrix, Field.from_ras_mm(vectors, fixed).faded())


def points_in(grid, count=400, margin=0.0) -> np.ndarray:
    """Random points between the outermost centers of a grid, or beyond by a margin in voxels."""
    random = np.random.default_rng(3)
    low, high = -margin, np.array(grid.shape) - 1.0 + margin
    return grid.to_ras(random.uniform(low, high, (count, 3)))


def from_parent(node) -> vtk.vtkGeneralTransform:
    """World to local through the node and all its parents."""
    general = vtk.vtkGeneralTransform()
    node.GetTransformFromWorld(general)
    return general


def itk_points(node, folder, points_ras) -> np.ndarray:
    """Maps points by the files that Slicer writes of a node and its parents, read by SimpleITK."""
    points = np.asarray(points_ras)
    chain = []
    while node is not None:
        chain.append(node)
        node = node.GetParentTransformNode()
    for position, member in enumerate(reversed(chain)):
        path = str(folder / f"{position}.h5")
        assert member.AddDefaultStorageNode()
        member.GetStorageNode().SetFileName(path)
        assert member.GetStorageNode().WriteData(member)
        transform = sitk.ReadTransform(path)
        points = FLIP * [transform.TransformPoint((FLIP * p).tolist()) for p in points]
    return points


def error_voxel(grid, a, b) -> float:
    """Largest distance of two point lists in voxels of a grid."""
    return float(np.linalg.norm(grid.to_voxel(a) - grid.to_voxel(b), axis=1).max())


@pytest.mark.parametrize("layout", ["linear", "grid", "chain"])
@pytest.mark.parametrize("kind", KINDS)
def test_points_agree_inside_the_fixed_image(scene, tools, tmp_path, kind, layout):
    fixed = tools.make_grid(kind)
    transform = make_transform(tools, fixed, deformable=layout != "linear")
    shape = "grid" if layout == "linear" else layout
    node = mrml.add_transform(scene, "result", transform, fixed, shape)
    points = points_in(fixed)
    library = transform.map_points_ras(points)
    assert error_voxel(fixed, map_points(from_parent(node), points), library) < TOLERANCE_VOXEL
    assert error_voxel(fixed, itk_points(node, tmp_path, points), library) < TOLERANCE_VOXEL


@pytest.mark.parametrize(("layout", "matrix"), [("chain", "affine"), ("grid", "identity")])
def test_points_agree_everywhere_also_outside(scene, tools, tmp_path, layout, matrix):
    fixed = tools.make_grid("oblique_left")
    linear = np.eye(4) if matrix == "identity" else tools.example_matrix()
    transform = make_transform(tools, fixed, linear)
    node = mrml.add_transform(scene, "result", transform, fixed, layout)
    points = points_in(fixed, 600, margin=30)
    library = transform.map_points_ras(points)
    assert error_voxel(fixed, map_points(from_parent(node), points), library) < TOLERANCE_VOXEL
    assert error_voxel(fixed, itk_points(node, tmp_path, points), library) < TOLERANCE_VOXEL


def test_grid_layout_with_a_linear_part_disagrees_outside(scene, tools, tmp_path):
    # What the layout "chain" is for: VTK repeats the edge vector, ITK applies none.
    fixed = tools.make_grid("oblique")
    transform = make_transform(tools, fixed)
    node = mrml.add_transform(scene, "result", transform, fixed, "grid")
    far = fixed.to_ras([[-20.0, 5.0, 5.0]])
    np.testing.assert_allclose(itk_points(node, tmp_path, far), far, atol=1e-6)
    edge = fixed.to_ras([[0.0, 5.0, 5.0]])
    vtk_vector = map_points(from_parent(node), far) - far
    np.testing.assert_allclose(vtk_vector, transform.map_points_ras(edge) - edge, atol=1e-4)


@pytest.mark.parametrize("layout", ["linear", "grid", "chain"])
@pytest.mark.parametrize(
    ("fixed_kind", "moving_kind"),
    [("ras", "oblique"), ("oblique_left", "lps"), ("lps", "left"), ("oblique", "oblique_left")],
)
def test_images_agree(scene, tools, tmp_path, fixed_kind, moving_kind, layout):
    """The library's warp, VTK through the node, and SimpleITK with Slicer's file give one image."""
    fixed = tools.make_grid(fixed_kind)
    moving = tools.make_grid(moving_kind, (26, 30, 34), (2.0, 2.5, 1.7))
    transform = make_transform(tools, fixed, deformable=layout != "linear")
    image = tools.smooth_array(moving, 45.0)
    volume = mrml.add_volume(scene, "moving", image, moving)
    shape = "grid" if layout == "linear" else layout
    node = mrml.add_transform(scene, "result", transform, fixed, shape, moving=volume)
    mrml.apply_transform(node, volume)

    library = transform.warp(torch.from_numpy(image)[None, None], moving, fixed, fill=-1000)
    library = library[0, 0].numpy()
    by_vtk = resampled_array(volume, fixed, fill=-1000)
    by_itk = itk_resampled(node, image, moving, fixed, tmp_path)
    # Off by 0.02 voxel an image changes by at most this much.
    steps = [np.abs(np.diff(image, axis=axis)).max() for axis in range(3)]
    tolerance = TOLERANCE_VOXEL * float(np.linalg.norm(steps))
    inside = np.ones(fixed.shape, bool)
    for other in (by_vtk, by_itk):
        inside &= (other > -999) & (library > -999)
        assert ((other > -999) != (library > -999)).mean() < 0.01
    assert inside.mean() > 0.4
    for other in (by_vtk, by_itk):
        assert np.abs(other - library)[inside].max() < tolerance


def itk_resampled(node, image, moving, fixed, folder) -> np.ndarray:
    """SimpleITK's resampling of an image through the files that Slicer writes."""

    def to_itk(array, grid):
        result = sitk.GetImageFromArray(array)
        matrix = grid.voxel_to_ras[:, [2, 1, 0, 3]]
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        result.SetSpacing(spacing.tolist())
        result.SetDirection((FLIP[:, None] * matrix[:3, :3] / spacing).reshape(-1).tolist())
        result.SetOrigin((FLIP * matrix[:3, 3]).tolist())
        return result

    itk_points(node, folder, np.zeros((1, 3)))
    composite = sitk.CompositeTransform(3)
    # SimpleITK applies the transform that was added last first: world to local is 0, 1, …
    for path in sorted(folder.glob("*.h5"), reverse=True):
        composite.AddTransform(sitk.ReadTransform(str(path)))
    reference = to_itk(np.zeros(fixed.shape, np.float32), fixed)
    moved = sitk.Resample(to_itk(image, moving), reference, composite, sitk.sitkLinear, -1000.0)
    return sitk.GetArrayFromImage(moved)


def test_sheared_grid_holds_a_displacement(scene, tools):
    fixed = tools.make_grid("shear")
    transform = make_transform(tools, fixed)
    node = mrml.add_transform(scene, "result", transform, fixed)
    points = points_in(fixed)
    library = transform.map_points_ras(points)
    assert error_voxel(fixed, map_points(from_parent(node), points), library) < TOLERANCE_VOXEL


def test_direction_a_fiducial_moves_against_the_displacement(scene, tools):
    grid = tools.make_grid("ras", (30, 30, 40), (2.0, 2.0, 2.0))
    vectors = np.zeros((3, *grid.shape), np.float32)
    vectors[0] = 4.0
    node = mrml.add_grid_transform(scene, "shift", vectors, grid)
    markups = mrml.add_points(scene, "F", [[12.0, 0.0, 5.0]])
    mrml.apply_transform(node, markups)
    np.testing.assert_allclose(mrml.markup_points(markups)[0], [[8.0, 0.0, 5.0]], atol=1e-2)
    mrml.apply_transform(None, markups)
    matrix = np.eye(4)
    matrix[0, 3] = 4.0
    mrml.apply_transform(mrml.add_linear_transform(scene, "shift", matrix), markups)
    np.testing.assert_allclose(mrml.markup_points(markups)[0], [[8.0, 0.0, 5.0]])


@pytest.mark.parametrize("layout", ["grid", "chain"])
def test_explicit_inverse_undoes_the_transform(scene, tools, layout):
    fixed = tools.make_grid("oblique")
    moving = tools.make_grid("left", (40, 44, 50), (1.5, 1.5, 1.2))
    transform = make_transform(tools, fixed)
    inverse, _ = invert(transform, moving)
    there = mrml.add_transform(scene, "result", transform, fixed, "chain")
    back = mrml.add_transform(scene, "inverse", inverse, moving, layout, fade_voxel=0)
    points = points_in(fixed, margin=-3)
    mapped = map_points(from_parent(there), points)
    inside = (moving.to_voxel(mapped) > 0).all(1)
    inside &= (moving.to_voxel(mapped) < np.array(moving.shape) - 1).all(1)
    assert inside.mean() > 0.7
    returned = map_points(from_parent(back), mapped)
    library = inverse.map_points_ras(mapped)
    assert error_voxel(moving, returned[inside], library[inside]) < TOLERANCE_VOXEL
    error_mm = np.linalg.norm(returned - points, axis=1)[inside]
    assert error_mm.mean() < 0.03
    assert np.percentile(error_mm, 90) < 0.1


def test_fading_is_that_of_the_library(tools):
    fixed = tools.make_grid("ras")
    vectors = tools.smooth_deformation_mm(fixed)
    window = fade_window(fixed.shape, 4)[0].numpy()
    np.testing.assert_allclose(faded(vectors, 4), vectors * window, atol=1e-6)
    np.testing.assert_array_equal(faded(vectors, 0), vectors)
    flat = np.ones((3, 1, 9, 9), np.float32)
    assert faded(flat, 4)[:, 0, 4, 4].min() == 1


def test_what_has_faded_already_is_not_faded_again(scene, tools):
    fixed = tools.make_grid("oblique")
    vectors = tools.smooth_deformation_mm(fixed)
    once = mrml.add_warp(scene, "once", np.eye(4), vectors, fixed)
    stored = mrml.displacement_of(once)[0]
    again = mrml.displacement_of(mrml.add_warp(scene, "again", np.eye(4), stored, fixed))[0]
    np.testing.assert_allclose(again, stored, atol=1e-6)
    as_is = mrml.add_warp(scene, "as it is", np.eye(4), vectors, fixed, fade_voxel=0)
    np.testing.assert_allclose(mrml.displacement_of(as_is)[0], vectors, atol=1e-6)


def test_displacement_reads_back(scene, tools):
    fixed = tools.make_grid("oblique_left")
    vectors = tools.smooth_deformation_mm(fixed)
    node = mrml.add_grid_transform(scene, "warp", vectors, fixed)
    back, grid = mrml.displacement_of(node)
    assert grid.matches(fixed)
    np.testing.assert_allclose(back, vectors, atol=1e-6)
    with pytest.raises(GeometryError, match="no displacement from parent"):
        mrml.displacement_of(mrml.add_linear_transform(scene, "linear", np.eye(4)))


def test_roles_and_names(scene, tools):
    grid = tools.make_grid("ras")
    zeros = np.zeros(grid.shape, np.int16)
    fixed = mrml.add_volume(scene, "fixed", zeros, grid)
    moving = mrml.add_volume(scene, "moving", zeros, grid)
    names = set()
    for layout in ("grid", "chain"):
        transform = make_transform(tools, grid)
        node = mrml.add_transform(scene, "result", transform, grid, layout, fixed, moving)
        assert node.GetNodeReference(node.GetMovingNodeReferenceRole()) is moving
        assert node.GetNodeReference(node.GetFixedNodeReferenceRole()) is fixed
        names.add(node.GetName())
    assert len(names) == 2
    assert moving.GetParentTransformNode() is None


def test_wrong_shapes_are_refused_before_the_scene_changes(scene, tools):
    grid = tools.make_grid("ras")
    before = scene.GetNumberOfNodes()
    good = tools.smooth_deformation_mm(grid)
    bad = good.copy()
    bad[0, 3, 3, 3] = np.nan
    with pytest.raises(GeometryError):
        mrml.add_grid_transform(scene, "x", good[:, 1:], grid)
    with pytest.raises(GeometryError):
        mrml.add_warp(scene, "x", np.eye(4), bad, grid, "chain")
    with pytest.raises(GeometryError):
        mrml.add_linear_transform(scene, "x", np.zeros((4, 4)))
    with pytest.raises(GeometryError, match="'grid' or 'chain'"):
        mrml.add_warp(scene, "x", np.eye(4), good, grid, "tree")  # type: ignore[arg-type]
    assert scene.GetNumberOfNodes() == before


def test_bridge_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, DeepRegLib.bridge.mrml; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert slicer.__name__ == "slicer"
