"""Volumes, a result and companions for the tests of what goes along with a registration."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.vtk_arrays import ijk_to_ras_of, map_points, to_vtk_image

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
