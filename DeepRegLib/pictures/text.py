"""Text in pictures, drawn by VTK's fonts; no window is needed."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

#: Resolution at which a font's size in points is its size in pixels.
_DOTS_PER_INCH = 72

Place = Literal["start", "middle", "end"]
_SHARES = {"start": 0.0, "middle": 0.5, "end": 1.0}


@cache
def text_mask(text: str, size: int = 14) -> NDArray[np.float32]:
    """Returns how much of each pixel a line of text covers, (height, width), 0 to 1.

    Args:
        text: One line.
        size: Size of the font in pixels.
    """
    style = vtk.vtkTextProperty()
    style.SetFontFamilyToArial()
    style.SetFontSize(size)
    image, used = vtk.vtkImageData(), [0, 0]
    renderer = vtk.vtkTextRenderer.GetInstance()
    drawn = renderer.RenderString(style, text, image, used, _DOTS_PER_INCH)
    if not text.strip() or not drawn or image.GetPointData().GetScalars() is None:
        return np.zeros((size, 1), np.float32)
    width, height, _ = image.GetDimensions()
    pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    # The image is larger than the text, and VTK counts rows from the bottom.
    mask = pixels[: used[1], : used[0], -1][::-1].astype(np.float32) / 255.0
    mask.setflags(write=False)
    return mask


def write_text(
    picture: NDArray[np.uint8],
    text: str,
    row: int,
    column: int,
    *,
    across: Place = "start",
    down: Place = "start",
    size: int = 14,
    color: tuple[int, int, int] = (255, 255, 255),
    backing: float = 0.0,
) -> None:
    """Writes a line into a picture, in place; it is moved to where it is seen whole.

    Args:
        picture: (height, width, 3), uint8.
        text: The line.
        row: Row of its anchor.
        column: Column of its anchor.
        across: Which end of the text the anchor is.
        down: The same from top to bottom.
        size: Size of the font in pixels.
        color: Red, green, blue.
        backing: How much the picture is darkened behind the text, 0 to 1.
    """
    mask = text_mask(text, size)
    height, width = (min(a, b) for a, b in zip(mask.shape, picture.shape[:2]))
    top = round(row - _SHARES[down] * height)
    left = round(column - _SHARES[across] * width)
    top = min(max(top, 0), picture.shape[0] - height)
    left = min(max(left, 0), picture.shape[1] - width)
    part = picture[top : top + height, left : left + width]
    weight = mask[:height, :width, None]
    dark = part * (1.0 - backing)
    part[:] = np.round(dark * (1 - weight) + np.array(color, np.float32) * weight).astype(np.uint8)
