"""Scalar maps of a result as colored volumes: local volume change, uncertainty, error."""

from __future__ import annotations

import numpy as np
import slicer
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from ..geometry.grid import Grid
from ..pictures.color_maps import KINDS, ColorMap, color_map
from ..pictures.jacobian import jacobian_of
from .scene import add_node, place_beside
from .volumes import add_volume

__all__ = [
    "COLOR_ATTRIBUTE",
    "KIND_ATTRIBUTE",
    "add_map_volume",
    "color_node",
    "colored_as",
    "jacobian_of",
    "refresh_legends",
]

#: Attribute of a color node: the kind of map that it colors.
COLOR_ATTRIBUTE = "DeepReg.ColorMap"
#: Attribute of a volume: the kind of map that it holds.
KIND_ATTRIBUTE = "DeepReg.Map"

#: Figures beside a legend: 0, half and the highest in mm; determinants from -1 to 3.
_LABELS, _JACOBIAN_LABELS = 3, 5
#: Width and height of a legend as shares of the view. Its letters fill that width with the longest
#: figure, so that figures without decimals would have huge ones.
_LEGEND_SIZE = (0.08, 0.35)


def colored_as(kind: str) -> str | None:
    """Returns the kind whose colors a map has: its own, or those of errors for others in mm.

    Returns:
        None for maps without a unit, which have no colors.
    """
    if kind in KINDS:
        return kind
    return "error_mm" if kind.endswith("_mm") else None


def add_map_volume(
    scene: slicer.vtkMRMLScene,
    name: str,
    array: NDArray,
    grid: Grid,
    kind: str,
    fixed: slicer.vtkMRMLVolumeNode | None = None,
) -> slicer.vtkMRMLScalarVolumeNode:
    """Adds a map as a scalar volume with colors, made to lie over the fixed volume.

    What is of no interest (volume kept, next to no uncertainty or error) is transparent. A color
    legend stands at the right of the slice views in which the map is shown.

    Args:
        scene: Scene to add to.
        name: Wished name; a number is added if it is taken.
        array: Values, shape grid.shape.
        grid: Grid of the values, in the fixed volume's own RAS.
        kind: ``jacobian`` (determinants), ``uncertainty_mm``, ``error_mm``, or any other map in mm
            by a name that ends so.
        fixed: Volume whose parent transform and folder the map gets.

    Raises:
        GeometryError: If the array does not fit the grid.
        InputError: If there is no such kind.
    """
    colored = colored_as(kind) or kind
    colors = color_map(colored, array)
    node = add_volume(scene, name, array, grid)
    node.SetAttribute(KIND_ATTRIBUTE, kind)
    if kind.endswith("_mm"):
        node.SetVoxelValueUnits(_millimeters())
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(color_node(scene, colored).GetID())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(colors.window, colors.level)
    # What is transparent is so by the table: a threshold has no middle to leave out, and opened
    # scenes do not apply it at once.
    display.SetApplyThreshold(False)
    _add_legend(scene, node, kind)
    if fixed is not None:
        parent = fixed.GetParentTransformNode()
        node.SetAndObserveTransformNodeID(None if parent is None else parent.GetID())
        place_beside(scene, node, fixed)
    return node


def color_node(scene: slicer.vtkMRMLScene, kind: str) -> slicer.vtkMRMLColorTableNode:
    """Returns the color table of a kind of map; adds it to the scene if it is not there yet.

    Raises:
        InputError: If there is no such kind.
    """
    colors = color_map(kind)
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLColorTableNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLColorTableNode")
        if node.GetAttribute(COLOR_ATTRIBUTE) == kind and _holds(node, colors):
            return node
    return _add_color_node(scene, colors)


def refresh_legends(scene: slicer.vtkMRMLScene) -> None:
    """Shows color legends where their volumes are shown, and hides the others.

    Views find out by themselves when a person changes the layers, but not when a program does.
    """
    name = "vtkMRMLColorLegendDisplayNode"
    for number in range(scene.GetNumberOfNodesByClass(name)):
        scene.GetNthNodeByClass(number, name).Modified()


def _add_legend(
    scene: slicer.vtkMRMLScene, volume: slicer.vtkMRMLScalarVolumeNode, kind: str
) -> None:
    """Adds a color legend, as the module Colors does: one more display node of the volume."""
    legend, display = slicer.vtkMRMLColorLegendDisplayNode(), volume.GetDisplayNode()
    legend.SetTitleText(color_map(kind).title if kind in KINDS else _title_of(kind))
    legend.SetLabelFormat("%.1f" if display.GetWindow() >= 1.0 else "%.2f")
    legend.SetNumberOfLabels(_JACOBIAN_LABELS if kind == "jacobian" else _LABELS)
    legend.SetSize(*_LEGEND_SIZE)
    legend.GetLabelTextProperty().SetFontFamilyToArial()
    add_node(scene, legend, f"{volume.GetName()} color legend")
    legend.SetAndObservePrimaryDisplayNode(display)
    volume.AddAndObserveDisplayNodeID(legend.GetID())
    # Views do not hear that a volume got one more display node.
    legend.Modified()


def _title_of(kind: str) -> str:
    """Returns the title of a map in mm that has no colors of its own."""
    return f"{kind.removesuffix('_mm').replace('_', ' ').capitalize()} (mm)"


def _millimeters() -> slicer.vtkCodedEntry:
    """Returns the unit that the data probe and a color legend show."""
    unit = slicer.vtkCodedEntry()
    unit.SetValueSchemeMeaning("mm", "UCUM", "millimeter")
    return unit


def _holds(node: slicer.vtkMRMLColorTableNode, colors: ColorMap) -> bool:
    """Tells whether a table has these colors; one of an older scene may lie differently."""
    if node.GetNumberOfColors() != len(colors.table):
        return False
    held = vtk_to_numpy(node.GetLookupTable().GetTable()).astype(int)
    # A scene file keeps few digits.
    return bool(np.abs(held - colors.table).max() <= 1)


def _add_color_node(scene: slicer.vtkMRMLScene, colors: ColorMap) -> slicer.vtkMRMLColorTableNode:
    node = slicer.vtkMRMLColorTableNode()
    node.SetTypeToUser()
    node.SetAttribute(COLOR_ATTRIBUTE, colors.kind)
    node.SetAttribute("Category", "DeepReg")
    node.SetDescription(f"{colors.title}, as DeepReg shows it")
    node.SetHideFromEditors(False)
    node.SetNumberOfColors(len(colors.table))
    for index, color in enumerate(colors.table / 255.0):
        node.SetColor(index, str(index), *(float(c) for c in color))
    return add_node(scene, node, f"DeepReg {colors.title}")
