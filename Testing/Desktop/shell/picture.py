"""Pixels of a VTK render window as a QImage."""

from __future__ import annotations

import vtk
from PySide6 import QtGui
from vtk.util.numpy_support import vtk_to_numpy


def image_of(window: vtk.vtkRenderWindow) -> QtGui.QImage:
    """The picture that the window rendered last; rows from the top."""
    width, height = window.GetSize()
    pixels = vtk.vtkUnsignedCharArray()
    window.GetPixelData(0, 0, width - 1, height - 1, 0, pixels, 0)
    rows = vtk_to_numpy(pixels).reshape(height, width, 3)[::-1]
    data = rows.tobytes()
    return QtGui.QImage(data, width, height, width * 3, QtGui.QImage.Format_RGB888).copy()
