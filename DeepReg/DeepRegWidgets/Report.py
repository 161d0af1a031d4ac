"""Saves a result as one web page with pictures, figures and settings."""

from __future__ import annotations

import json

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.resample import array_through
from DeepRegLib.card import card_rows
from DeepRegLib.errors import InputError
from DeepRegLib.pictures.panels import comparison_pictures
from DeepRegLib.report_page import write_report

HISTORY_ATTRIBUTE = "DeepReg.History"
START_ATTRIBUTE = "DeepReg.Start"


def saveReport(path, transform, moved=None) -> None:
    """Writes the report of a result transform.

    Args:
        path: File to write, ``.html``.
        transform: Node with the quality card of a run.
        moved: Moved volume on the fixed grid; made for the pictures if None.

    Raises:
        InputError: If the node has no card, or its volumes are gone.
        FileFormatError: If the file cannot be written.
    """
    card = mrml.card_of(transform)
    fixed = transform.GetNodeReference(transform.GetFixedNodeReferenceRole())
    moving = transform.GetNodeReference(transform.GetMovingNodeReferenceRole())
    if card is None or fixed is None or moving is None:
        raise InputError(
            _("'{name}' has no quality card, or its volumes are gone; run the registration again.")
            .format(name=transform.GetName())
        )  # fmt: skip
    quality, provenance = card
    start = json.loads(transform.GetAttribute(START_ATTRIBUTE) or "null")
    array = _onFixedGrid(transform, fixed, moving, moved)
    write_report(
        path,
        title=_("Registration report"),
        fixed_name=fixed.GetName(),
        moving_name=moving.GetName(),
        pictures=comparison_pictures(
            mrml.volume_array(fixed), mrml.grid_of(fixed),
            mrml.volume_array(moving), mrml.grid_of(moving), array,
            start=np.eye(4) if start is None else np.array(start),
            fixed_window=_window(fixed), moving_window=_window(moving),
        ),
        card_rows=card_rows(quality),
        verdict=quality,
        history=json.loads(transform.GetAttribute(HISTORY_ATTRIBUTE) or "[]"),
        provenance=provenance,
        versions={**provenance.get("versions", {}), "3D Slicer": slicer.app.applicationVersion},
        seconds=quality.get("seconds"),
        python_call=provenance.get("console") or provenance.get("python", ""),
        linear=_linear(transform, fixed),
        translate=_,
    )  # fmt: skip


def _onFixedGrid(transform, fixed, moving, moved):
    grid = mrml.grid_of(fixed)
    if moved is not None and moved.GetImageData() is not None and mrml.grid_of(moved).matches(grid):
        return mrml.volume_array(moved)
    path = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        fixed.GetParentTransformNode(), transform, path
    )
    return array_through(moving, path, grid, float(moving.GetImageData().GetScalarRange()[0]))


def _linear(transform, fixed):
    """Returns the linear part of the result; of a deformation, what fits its rim best."""
    matrix = vtk.vtkMatrix4x4()
    node = slicer.vtkMRMLTransformNode
    if node.GetMatrixTransformBetweenNodes(fixed.GetParentTransformNode(), transform, matrix):
        return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])
    return mrml.initial_transform(fixed, fixed, transform).linear


def _window(volume):
    display = volume.GetDisplayNode()
    if display is None or not display.IsA("vtkMRMLScalarVolumeDisplayNode"):
        return None
    return display.GetWindow(), display.GetLevel()
