"""PNG files in memory, by VTK."""

from __future__ import annotations

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..errors import InputError


def png_bytes(picture: NDArray[np.uint8]) -> bytes:
    """Returns a picture as the bytes of a PNG file.

    Args:
        picture: (height, width) gray, or (height, width, 3 or 4), uint8, the top row first.

    Raises:
        InputError: If it is anything else.
    """
    picture = np.asarray(picture)
    if picture.ndim == 2:
        picture = picture[..., None]
    shape = picture.shape
    if picture.ndim != 3 or shape[2] not in (1, 3, 4) or not picture.size:
        raise InputError(f"A picture is (height, width, 1, 3 or 4), but got {shape}.")
    if picture.dtype != np.uint8:
        raise InputError(f"A picture holds uint8, but got {picture.dtype}; use to_gray.")
    image = vtk.vtkImageData()
    image.SetDimensions(shape[1], shape[0], 1)
    # VTK counts rows from the bottom.
    rows = np.ascontiguousarray(picture[::-1]).reshape(-1, shape[2])
    image.GetPointData().SetScalars(numpy_to_vtk(rows, deep=True))
    writer = vtk.vtkPNGWriter()
    writer.WriteToMemoryOn()
    writer.SetInputData(image)
    writer.Write()
    return bytes(vtk_to_numpy(writer.GetResult()))
