"""Fixtures for the tests on real MRML: scenes, grids of all kinds, and a smooth transform."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs the package slicer-core (the MRML library)")

from companion_support import run  # noqa: F401  (a fixture)

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.vtk_arrays import to_vtk_matrix
from DeepRegLib.geometry.grid import Grid


@pytest.fixture(scope="session")
def _surface_rule():
    """Makes surfaces convertible to voxels, by the rule that Slicer registers when it starts."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    factory.RegisterConverterRule(slicer.vtkClosedSurfaceToBinaryLabelmapConversionRule())


@pytest.fixture
def scene(_surface_rule):
    """An empty scene, which is also the global one as in Slicer."""
    scene = mrml.new_scene()
    slicer.mrmlScene = scene
    yield scene
    slicer.mrmlScene = None
    scene.Clear(True)


def rotation(x_deg: float, y_deg: float, z_deg: float) -> np.ndarray:
    """Rotation matrix about three axes, 4 x 4."""
    result = np.eye(4)
    for axis, angle in enumerate((x_deg, y_deg, z_deg)):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(4)
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
        result = result @ turn
    return result


def make_grid(kind: str, shape=(14, 18, 23), spacing=(2.5, 1.5, 1.0)) -> Grid:
    """A grid in tensor order (k, j, i), anisotropic and not cubic.

    Args:
        kind: ``ras``, ``lps``, ``left`` (left-handed), ``oblique``, ``oblique_left``, ``shear``.
        shape: Voxels along k, j, i.
        spacing: Spacing along k, j, i.
    """
    axes = {"ras": (1, 1, 1), "lps": (-1, -1, 1), "left": (-1, 1, 1)}.get(kind, (1, 1, 1))
    directions = np.diag([*axes, 1.0])
    if kind.startswith("oblique") or kind == "shear":
        directions = rotation(15, -20, 35)
    if kind == "oblique_left":
        directions = directions @ np.diag([1.0, -1.0, 1.0, 1.0])
    if kind == "shear":
        directions[:3, 0] += 0.3 * directions[:3, 1]
        directions[:3, 0] /= np.linalg.norm(directions[:3, 0])
    ijk_to_ras = directions @ np.diag([*spacing[::-1], 1.0])
    matrix = ijk_to_ras[:, [2, 1, 0, 3]]
    center = np.array([4.0, -7.0, 11.0])
    matrix[:3, 3] = center - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, matrix)


def smooth_array(grid: Grid, period_mm: float = 17.0) -> np.ndarray:
    """A smooth image that is a function of RAS, so that any two grids show the same object."""
    p = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    w = 2 * np.pi / period_mm
    return (100 + 50 * np.sin(w * p[..., 0] + 0.5) * np.cos(w * p[..., 1]) + 30 * np.sin(
        w * p[..., 2] * 0.8
    )).astype(np.float32)  # fmt: skip


def smooth_deformation_mm(grid: Grid, size_mm: float = 3.0) -> np.ndarray:
    """A smooth deformation (3, *shape) in RAS mm that does not vanish at the rim."""
    p = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1)) / 14.0
    parts = [np.sin(p[..., 1] + 0.3), np.cos(p[..., 2] - 0.7), np.sin(p[..., 0] + p[..., 1])]
    return (size_mm * np.stack(parts)).astype(np.float32)


def example_matrix() -> np.ndarray:
    """A linear map with rotation, scale and shift."""
    matrix = rotation(6, -9, 12) @ np.diag([1.05, 0.95, 1.1, 1.0])
    matrix[:3, 3] = (3.0, -4.0, 2.0)
    return matrix


@pytest.fixture
def tools():
    """The helpers above, as tests have no package to import them from."""
    return SimpleNamespace(
        rotation=rotation,
        make_grid=make_grid,
        smooth_array=smooth_array,
        smooth_deformation_mm=smooth_deformation_mm,
        example_matrix=example_matrix,
    )


@pytest.fixture
def linear_parent(scene):
    """Adds a linear transform node from a matrix to parent; another transform may be its parent."""

    def add(matrix, above=None):
        node = slicer.vtkMRMLLinearTransformNode()
        node.SetMatrixTransformToParent(to_vtk_matrix(matrix))
        scene.AddNode(node)
        if above is not None:
            node.SetAndObserveTransformNodeID(above.GetID())
        return node

    return add
