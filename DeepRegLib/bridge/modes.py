"""Deformations along the modes of a population: moved in the views, kept in the scene.

The mean and the modes are hidden grid transforms, to which the transform that moves refers. Slicer
saves them with the scene, so that a population can be played with when it is opened again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from ..errors import GeometryError
from ..geometry.grid import Grid
from .scene import add_node
from .transforms import displacement_of, warp_content

#: Role by which a transform refers to the mean and then to the modes, in their order.
MODES_ROLE = "DeepReg.Population.Modes"
#: Role by which they refer back to it.
_OWNER_ROLE = "DeepReg.Population.Transform"
#: Attribute that tells how many they are: references to deleted nodes go without a trace.
_COUNT_ATTRIBUTE = "DeepReg.Population.ModeCount"
#: Attribute of the mean and the modes: their number.
_NUMBER_ATTRIBUTE = "DeepReg.Population.Mode"


class Modes:
    """A deformation that is the mean of a population and so much of each mode.

    The deformation takes the fixed image to the subjects (moving space), so it is set "to parent":
    what is put under its node is made to look like the subjects.

    Convention:
        Vectors are (3, *grid.shape), RAS mm, components R, A, S.

    Args:
        mean: Mean deformation.
        modes: One standard deviation along each mode.
        grid: Their grid, in the fixed volume's own RAS.
    """

    def __init__(self, mean: NDArray, modes: Sequence[NDArray], grid: Grid) -> None:
        self.count, self.grid = len(modes), grid
        # In the order of VTK, so that a step along the modes is one product into its memory.
        self._basis = np.stack(
            [np.moveaxis(v, 0, -1).astype(np.float32).reshape(-1) for v in (mean, *modes)]
        )
        self._content = warp_content(np.eye(4), np.asarray(mean, np.float32), grid, 0)
        self._image: vtk.vtkImageData = self._content.GetDisplacementGrid()
        scalars = self._image.GetPointData().GetScalars()
        self._vectors = vtk_to_numpy(scalars).reshape(-1)

    def move(
        self, node: slicer.vtkMRMLTransformNode, coefficients: Sequence[float]
    ) -> slicer.vtkMRMLTransformNode:
        """Gives a transform node the deformation at a place along the modes.

        Args:
            node: A grid transform node.
            coefficients: Of the first modes, in standard deviations; the rest are 0.
        """
        weights = np.zeros(self.count + 1, np.float32)
        weights[0] = 1.0
        weights[1 : len(coefficients) + 1] = coefficients[: self.count]
        np.dot(weights, self._basis, out=self._vectors)
        self._image.GetPointData().GetScalars().Modified()
        self._image.Modified()
        self._content.Modified()
        if node.GetTransformToParent() is not self._content:
            node.SetAndObserveTransformToParent(self._content)
        return node

    def place(self, node: slicer.vtkMRMLTransformNode) -> list[float]:
        """Returns where along the modes the deformation of a node lies, in standard deviations.

        Zeros, the mean, if it holds no deformation on the grid of the modes.
        """
        content = node.GetTransformToParentAs("vtkOrientedGridTransform", False, True)
        image = None if content is None else content.GetDisplacementGrid()
        vectors = np.zeros(0) if image is None else _scalars(image)
        if vectors.size != self._basis.shape[1]:
            return [0.0] * self.count
        # A scene keeps the vectors, and not the numbers that they were made of.
        along, offset = self._basis[1:], vectors - self._basis[0]
        found, *_ = np.linalg.lstsq(along @ along.T, along @ offset, rcond=None)
        return [float(value) for value in found]

    def fields(self) -> list[NDArray[np.float32]]:
        """Returns the mean and the modes, (3, *grid.shape) each, RAS mm."""
        return [np.moveaxis(row.reshape(*self.grid.shape, 3), -1, 0) for row in self._basis]


def keep_modes(
    scene: slicer.vtkMRMLScene,
    modes: Modes,
    node: slicer.vtkMRMLTransformNode,
    fixed: slicer.vtkMRMLVolumeNode,
) -> None:
    """Adds the mean and the modes as hidden nodes, to which the transform then refers.

    Nodes that it referred to before stay in the scene (`mode_nodes`).
    """
    node.RemoveNodeReferenceIDs(MODES_ROLE)
    for number, field in enumerate(modes.fields()):
        kept = slicer.vtkMRMLGridTransformNode()
        kept.SetHideFromEditors(True)
        kept.SetAndObserveTransformFromParent(warp_content(np.eye(4), field, modes.grid, 0))
        kind = f"mode {number}" if number else "mean"
        kept.SetAttribute(_NUMBER_ATTRIBUTE, str(number))
        add_node(scene, kept, f"{fixed.GetName()} {kind} (kept)")
        kept.SetNodeReferenceID(_OWNER_ROLE, node.GetID())
        node.AddNodeReferenceID(MODES_ROLE, kept.GetID())
    node.SetAttribute(_COUNT_ATTRIBUTE, str(modes.count + 1))


def kept_modes(node: slicer.vtkMRMLTransformNode | None) -> Modes | None:
    """Returns the modes that a transform refers to; None if one is missing or damaged."""
    kept = [] if node is None else mode_nodes(node)
    if node is None or node.GetAttribute(_COUNT_ATTRIBUTE) != str(len(kept)):
        return None
    try:
        (mean, grid), *rest = [displacement_of(one) for one in kept]
    except GeometryError:
        return None
    if any(field.shape != mean.shape for field, _ in rest):
        return None
    return Modes(mean, [field for field, _ in rest], grid)


def mode_nodes(node: slicer.vtkMRMLTransformNode) -> list[slicer.vtkMRMLTransformNode]:
    """Returns the nodes of the mean and of the modes, as far as they were not deleted."""
    count = node.GetNumberOfNodeReferences(MODES_ROLE)
    found = [node.GetNthNodeReference(MODES_ROLE, n) for n in range(count)]
    return [one for one in found if one is not None]


def remove_orphans(scene: slicer.vtkMRMLScene) -> None:
    """Removes modes whose transform was deleted; not to be called while a scene is read."""
    name = "vtkMRMLGridTransformNode"
    nodes = [scene.GetNthNodeByClass(n, name) for n in range(scene.GetNumberOfNodesByClass(name))]
    for node in nodes:
        if node.GetAttribute(_NUMBER_ATTRIBUTE) and node.GetNodeReference(_OWNER_ROLE) is None:
            scene.RemoveNode(node)


def undo_of_modes(node: slicer.vtkMRMLTransformNode) -> Callable[[], None]:
    """Returns what gives a transform the references to its modes back."""
    kept, count = [one.GetID() for one in mode_nodes(node)], node.GetAttribute(_COUNT_ATTRIBUTE)

    def restore() -> None:
        node.SetAttribute(_COUNT_ATTRIBUTE, count)
        node.RemoveNodeReferenceIDs(MODES_ROLE)
        for id_ in kept:
            node.AddNodeReferenceID(MODES_ROLE, id_)

    return restore


def _scalars(image: vtk.vtkImageData) -> NDArray:
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(-1)
