"""The quality card and the provenance of a run, kept in the scene."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import slicer
import vtk

from ..errors import FileFormatError
from .scene import add_node

QUALITY_ATTRIBUTE = "DeepReg.Quality"
PROVENANCE_ATTRIBUTE = "DeepReg.Provenance"


def attach_card(
    node: slicer.vtkMRMLNode, quality: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Writes both as JSON into attributes of a node, usually the transform; saved with the scene.

    Numbers that JSON does not have (not a number, infinity) become null.
    """
    node.SetAttribute(QUALITY_ATTRIBUTE, _json(quality))
    node.SetAttribute(PROVENANCE_ATTRIBUTE, _json(provenance))


def card_of(node: slicer.vtkMRMLNode) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Reads the quality card and the provenance back from a node; None if it has none.

    Raises:
        FileFormatError: If an attribute is not JSON.
    """
    texts = [node.GetAttribute(name) for name in (QUALITY_ATTRIBUTE, PROVENANCE_ATTRIBUTE)]
    if texts[0] is None:
        return None
    try:
        quality, provenance = (json.loads(text or "{}") for text in texts)
    except json.JSONDecodeError as error:
        raise FileFormatError(
            f"The quality card of '{node.GetName()}' is damaged ({error}); run the registration "
            "again to get a new one."
        ) from error
    return quality, provenance


def add_quality_table(
    scene: slicer.vtkMRMLScene, name: str, quality: Mapping[str, Any]
) -> slicer.vtkMRMLTableNode:
    """Adds the quality card as a table with the columns Measure and Value.

    Args:
        scene: Scene to add to.
        name: Wished name; a number is added if it is taken.
        quality: The card; nested entries become rows named ``outer.inner``.
    """
    node = slicer.vtkMRMLTableNode()
    fill_quality_table(node, quality)
    node.SetUseColumnTitleAsColumnHeader(True)
    return add_node(scene, node, name)


def fill_quality_table(node: slicer.vtkMRMLTableNode, quality: Mapping[str, Any]) -> None:
    """Replaces the rows of a table made by `add_quality_table`."""
    columns = []
    for title in ("Measure", "Value"):
        column = vtk.vtkStringArray()
        column.SetName(title)
        columns.append(column)
    for measure, value in _rows(quality):
        columns[0].InsertNextValue(measure)
        columns[1].InsertNextValue(value)
    table = vtk.vtkTable()
    for column in columns:
        table.AddColumn(column)
    node.SetAndObserveTable(table)


def _rows(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _rows(value, f"{name}.")
        else:
            value = _plain(value)
            text = f"{value:.6g}" if isinstance(value, float) else value
            yield name, "" if text is None else str(text)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(_plain(values), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """Turns numpy values into Python's, and numbers that are not finite into None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
