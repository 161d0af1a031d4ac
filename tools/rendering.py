"""Pictures of MRML scenes without a screen, a window or OpenGL.

Slices are cut by VTK through the transform nodes of the scene, as Slicer's slice views do it; text
is VTK's; the rest is arithmetic on pixels. So the pictures come out the same on every machine.

Convention:
    A view is a `Grid` of one slice: axis 0 goes through the slice, axis 1 down and axis 2 to the
    right on the picture. Axial and coronal views are radiological (the patient's right is on the
    left); in sagittal views anterior is on the left, as in Slicer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import vtk
from numpy.typing import ArrayLike, NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.vtk_arrays import map_points
from DeepRegLib.geometry.grid import Grid

if TYPE_CHECKING:
    import slicer

Color = tuple[float, float, float]

#: Picture directions in RAS (right, down), and the letters at left, right, top and bottom.
_PLANES = {
    "axial": (((-1, 0, 0), (0, -1, 0)), "RLAP"),
    "coronal": (((-1, 0, 0), (0, 0, -1)), "RLSI"),
    "sagittal": (((0, -1, 0), (0, 0, -1)), "APSI"),
}
#: Diverging colors from shrinking (blue) over unchanged (near white) to growing (red).
_DIVERGING = ((0.13, 0.27, 0.62), (0.42, 0.65, 0.87), (0.93, 0.93, 0.92), (0.93, 0.55, 0.40),
              (0.66, 0.10, 0.16))  # fmt: skip
_FOLD: Color = (1.0, 0.9, 0.1)


@dataclass(frozen=True)
class View:
    """A slice of the world and its pixels.

    Args:
        plane: ``axial``, ``coronal`` or ``sagittal``.
        grid: One slice of pixels in world RAS.
    """

    plane: str
    grid: Grid

    @property
    def letters(self) -> str:
        """Directions at the left, right, top and bottom."""
        return _PLANES[self.plane][1]

    @property
    def in_plane(self) -> tuple[int, int]:
        """RAS axes along the picture's right and down."""
        right, down = _PLANES[self.plane][0]
        return int(np.argmax(np.abs(right))), int(np.argmax(np.abs(down)))

    def points_ras(self) -> NDArray[np.float64]:
        """World position of each pixel, (height, width, 3)."""
        return self.grid.to_ras(np.moveaxis(np.indices(self.grid.shape), 0, -1))[0]


def view_of(
    plane: str, center_ras: ArrayLike, size_mm: tuple[float, float], pixels_per_mm: float
) -> View:
    """Returns a view.

    Args:
        plane: ``axial``, ``coronal`` or ``sagittal``.
        center_ras: World point in the middle of the picture.
        size_mm: Width and height.
        pixels_per_mm: Resolution, the same both ways.
    """
    right, down = (np.array(v, float) / pixels_per_mm for v in _PLANES[plane][0])
    width, height = (max(1, round(s * pixels_per_mm)) for s in size_mm)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.cross(right, down) * pixels_per_mm, down, right], axis=1)
    matrix[:3, 3] = np.asarray(center_ras) - down * (height - 1) / 2 - right * (width - 1) / 2
    return View(plane, Grid((1, height, width), matrix))


def gray(volume: slicer.vtkMRMLScalarVolumeNode, view: View) -> NDArray[np.float64]:
    """Returns a volume in a view, window and level of its display applied, 0 to 1."""
    display = volume.GetDisplayNode()
    low = display.GetLevel() - display.GetWindow() / 2
    array = mrml.volume_array(volume)
    fill = float(array.min())
    values = mrml.resampled_array(volume, view.grid, None, fill)[0].astype(float)
    return np.clip((values - low) / max(display.GetWindow(), 1e-9), 0, 1)


def set_window(volume: slicer.vtkMRMLScalarVolumeNode, percentile: float = 99.7) -> None:
    """Sets the window of a volume from its darkest value to a little above a percentile."""
    array = mrml.volume_array(volume)
    low = float(array.min())
    bright = array[array > low]
    high = float(np.percentile(bright, percentile)) if bright.size else low + 1
    high += 0.1 * (high - low)
    display = volume.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(high - low, (high + low) / 2)


def to_rgb(values: NDArray[np.float64], color: Color = (1, 1, 1)) -> NDArray[np.float64]:
    """Returns gray values (height, width) as RGB, tinted."""
    return values[..., None] * np.array(color)


def checkerboard(
    first: NDArray[np.float64], second: NDArray[np.float64], view: View, tile_mm: float = 25.0
) -> NDArray[np.float64]:
    """Returns two gray pictures in alternating tiles, the second a little warm, as RGB."""
    points = view.points_ras() - view.grid.center_ras
    a, b = (np.floor(points[..., axis] / tile_mm).astype(int) for axis in view.in_plane)
    mask = ((a + b) % 2 == 0)[..., None]
    return np.where(mask, to_rgb(first, (0.88, 0.97, 1.0)), to_rgb(second, (1.0, 0.93, 0.80)))


def grid_lines(
    transform: slicer.vtkMRMLTransformNode,
    view: View,
    spacing_mm: float = 10.0,
    width_pixel: float = 1.3,
) -> NDArray[np.float64]:
    """Returns how much of each pixel is covered by a grid that a transform has bent, 0 to 1.

    The grid is regular in the space that the transform leads to (the moving image's), and is drawn
    where the moved image shows it.

    Args:
        transform: Node from whose parent (world) to whose child the points go.
        view: What to draw on.
        spacing_mm: Distance of the lines.
        width_pixel: Thickness of the lines.
    """
    general = vtk.vtkGeneralTransform()
    transform.GetTransformFromWorld(general)
    points = view.points_ras()
    mapped = map_points(general, points).reshape(points.shape)
    cover = np.zeros(points.shape[:2])
    for axis in view.in_plane:
        where = mapped[..., axis]
        distance = np.abs(where - spacing_mm * np.round(where / spacing_mm))
        slope = np.maximum(np.hypot(*np.gradient(where)), 1e-6)
        cover = np.maximum(cover, np.clip(0.5 + width_pixel / 2 - distance / slope, 0, 1))
    return cover


def over(
    base: NDArray[np.float64], color: ArrayLike, alpha: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Lays a color (3) or picture (height, width, 3) over RGB with an opacity for each pixel."""
    a = alpha[..., None]
    return base * (1 - a) + np.asarray(color, float) * a


def jacobian_colors(values: NDArray[np.float64], largest: float = 2.0) -> NDArray[np.float64]:
    """Returns Jacobian determinants as RGB: white is 1, red grows, blue shrinks, yellow folds.

    Args:
        values: Determinants of any shape.
        largest: The determinant with the strongest red; its inverse has the strongest blue.
    """
    position = np.log(np.maximum(values, 1e-6)) / np.log(largest) / 2 + 0.5
    stops = np.linspace(0, 1, len(_DIVERGING))
    channels = [np.interp(position, stops, channel) for channel in np.array(_DIVERGING).T]
    return np.where((values <= 0)[..., None], _FOLD, np.stack(channels, -1))


@dataclass
class Canvas:
    """An RGB picture to paste and write on; positions are pixels from the upper left corner.

    Args:
        width: Pixels.
        height: Pixels.
        background: Color, 0 to 1.
    """

    width: int
    height: int
    background: Color = (0.07, 0.08, 0.10)
    pixels: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.pixels = np.full((self.height, self.width, 3), self.background, float)

    def paste(self, rgb: NDArray[np.float64], left: float, top: float) -> None:
        """Puts a picture (height, width, 3) at a place; what sticks out is cut off."""
        x, y = round(left), round(top)
        target = self.pixels[max(y, 0) : y + rgb.shape[0], max(x, 0) : x + rgb.shape[1]]
        source = rgb[max(-y, 0) :, max(-x, 0) :]
        target[:] = source[: target.shape[0], : target.shape[1]]

    def fill(self, color: Color, left: float, top: float, width: float, height: float) -> None:
        """Fills a rectangle."""
        self.paste(np.full((round(height), round(width), 3), color, float), left, top)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        size: int = 20,
        color: Color = (0.92, 0.93, 0.95),
        align: str = "left",
        bold: bool = False,
        shadow: bool = False,
    ) -> float:
        """Writes one line with its middle at height `y`.

        Args:
            text: What to write; VTK's font has Latin letters only.
            x: Left end, middle or right end, as `align` says.
            y: Middle of the capital letters.
            size: Font size in points of 72 dpi.
            color: Color, 0 to 1.
            align: ``left``, ``center`` or ``right``.
            bold: Heavier letters.
            shadow: Puts a dark edge around the letters, for text on images.

        Returns:
            Width of the text in pixels.
        """
        ink = _ink(text, size, bold)
        left = x - {"left": 0, "center": ink.shape[1] / 2, "right": ink.shape[1]}[align]
        top = y - ink.shape[0] / 2
        if shadow:
            for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1), (1, 1)):
                self._stamp(ink * 0.7, (0, 0, 0), left + dx, top + dy)
        self._stamp(ink, color, left, top)
        return float(ink.shape[1])

    def disk(self, x: float, y: float, radius: float, color: Color) -> None:
        """Fills a circle."""
        n = int(np.ceil(radius)) + 1
        rows, columns = np.mgrid[-n : n + 1, -n : n + 1]
        self._stamp(np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1), color, x - n, y - n)

    def save(self, path: str | Path) -> None:
        """Writes a PNG file."""
        rgb = np.ascontiguousarray(np.round(np.clip(self.pixels[::-1], 0, 1) * 255), np.uint8)
        image = vtk.vtkImageData()
        image.SetDimensions(self.width, self.height, 1)
        image.GetPointData().SetScalars(numpy_to_vtk(rgb.reshape(-1, 3), deep=True))
        writer = vtk.vtkPNGWriter()
        writer.SetFileName(str(path))
        writer.SetInputData(image)
        writer.Write()
        if not Path(path).is_file():
            raise OSError(f"The picture could not be written to '{path}'.")

    def _stamp(self, alpha: NDArray[np.float64], color: Color, left: float, top: float) -> None:
        x, y = round(left), round(top)
        x0, y0 = max(x, 0), max(y, 0)
        part = self.pixels[y0 : y + alpha.shape[0], x0 : x + alpha.shape[1]]
        alpha = alpha[y0 - y :, x0 - x :][: part.shape[0], : part.shape[1], None]
        part[:] = part * (1 - alpha) + np.array(color) * alpha


def _ink(text: str, size: int, bold: bool) -> NDArray[np.float64]:
    """Returns the ink of a line of text; the middle row is the middle of its capital letters."""
    capital = _raw_ink("H", size, bold)
    rows = np.flatnonzero(capital[:, : _ink_width(capital)].any(1))
    middle = (rows[0] + rows[-1] + 1) // 2
    ink = _raw_ink(text, size, bold)
    half = max(middle, ink.shape[0] - middle)
    return np.pad(ink, ((half - middle, half - (ink.shape[0] - middle)), (0, 0)))


def _raw_ink(text: str, size: int, bold: bool) -> NDArray[np.float64]:
    """Returns the ink of a text, 0 to 1, with the same rows for every text of a size."""
    style = vtk.vtkTextProperty()
    style.SetFontFamilyToArial()
    style.SetFontSize(size)
    style.SetBold(bold)
    style.SetColor(1, 1, 1)
    renderer, image, extent = vtk.vtkTextRenderer.GetInstance(), vtk.vtkImageData(), [0, 0]
    box = [0] * 4
    # Not the math renderer, which would take matplotlib's font where that is installed.
    plain = vtk.vtkTextRenderer.FreeType
    renderer.GetBoundingBox(style, text, box, 72, plain)
    # VTK cuts the rows to the ink; letters of full height and depth after the text even that out.
    if not renderer.RenderString(style, f"{text}    \u00c8g", image, extent, 72, plain):
        raise ValueError(f"VTK cannot write '{text}'.")
    width, height, _ = image.GetDimensions()
    ink = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, -1]
    rows = np.flatnonzero(ink.any(1))
    return ink[rows[0] : rows[-1] + 1, : box[1] - box[0] + 2] / 255.0


def _ink_width(ink: NDArray[np.float64]) -> int:
    columns = np.flatnonzero(ink.any(0))
    return int(columns[-1]) + 1 if len(columns) else 0
