"""One picture that shows what a registration did: three planes, six columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rendering import (
    Canvas,
    Color,
    View,
    checkerboard,
    gray,
    grid_lines,
    jacobian_colors,
    over,
    to_rgb,
    view_of,
)

from DeepRegLib.bridge import mrml

if TYPE_CHECKING:
    import slicer

PLANES = ("axial", "coronal", "sagittal")
VERDICT_COLORS: dict[str, Color] = {
    "green": (0.30, 0.78, 0.45),
    "amber": (0.95, 0.70, 0.20),
    "red": (0.92, 0.32, 0.30),
}
_DIM: Color = (0.60, 0.64, 0.70)
_LETTER: Color = (0.98, 0.86, 0.45)
_LINE: Color = (0.30, 0.85, 0.95)
#: Where the top of the first row and the left of the first column lie, and the gaps, pixels.
_TOP, _LEFT, _GAP = 182, 66, 14
_RIGHT, _BOTTOM = 128, 64
#: Space around the fixed image, for the letters.
_MARGIN_MM = 6.0


@dataclass(frozen=True)
class Subject:
    """The nodes that a picture is made of.

    Args:
        fixed: Fixed volume.
        moving: Moving volume; its parent is as it was before the registration.
        transform: Node that aligns the moving volume when put above it.
        deformation: Node that holds the deformation without the linear part; may be `transform`.
        jacobian: Volume of the Jacobian determinant on the fixed grid.
        fixed_name: Who or what the fixed image shows.
        moving_name: Who or what the moving image shows.
    """

    fixed: slicer.vtkMRMLScalarVolumeNode
    moving: slicer.vtkMRMLScalarVolumeNode
    transform: slicer.vtkMRMLTransformNode
    deformation: slicer.vtkMRMLTransformNode
    jacobian: slicer.vtkMRMLScalarVolumeNode
    fixed_name: str
    moving_name: str


def registration_sheet(
    subject: Subject,
    title: str,
    facts: Sequence[str],
    verdict: str = "green",
    pixels_per_mm: float = 1.9,
) -> Canvas:
    """Draws the picture.

    Args:
        subject: What to show.
        title: First line.
        facts: Short figures for the second line.
        verdict: ``green``, ``amber`` or ``red``.
        pixels_per_mm: Resolution; all panels have the same.
    """
    grid = mrml.grid_in(subject.fixed)
    corners = grid.corners_ras()
    extent = corners.max(0) - corners.min(0) + 2 * _MARGIN_MM
    sizes = {"axial": (extent[0], extent[1]), "coronal": (extent[0], extent[2]),
             "sagittal": (extent[1], extent[2])}  # fmt: skip
    views = {p: view_of(p, _center(subject, p), sizes[p], pixels_per_mm) for p in PLANES}
    cell = max(view.grid.shape[2] for view in views.values())
    heights = [views[p].grid.shape[1] for p in PLANES]
    columns = _columns(subject)
    width = _LEFT + len(columns) * (cell + _GAP) + _RIGHT
    canvas = Canvas(width, _TOP + sum(heights) + _GAP * (len(PLANES) - 1) + _BOTTOM)
    _header(canvas, title, facts, verdict)
    for number, (heading, subheading, draw) in enumerate(columns):
        left = _LEFT + number * (cell + _GAP)
        canvas.text(heading, left + cell / 2, _TOP - 56, 25, align="center")
        canvas.text(subheading, left + cell / 2, _TOP - 26, 18, _DIM, align="center")
        top = _TOP
        for plane, height in zip(PLANES, heights):
            view = views[plane]
            canvas.fill((0, 0, 0), left, top, cell, height)
            picture = draw(view)
            canvas.paste(picture, left + (cell - view.grid.shape[2]) / 2, top)
            _letters(canvas, view.letters, left, top, cell, height)
            top += height + _GAP
    _plane_names(canvas, heights)
    bottom = canvas.height - _BOTTOM
    _ruler(canvas, _LEFT, bottom + 26, pixels_per_mm)
    right = _LEFT + len(columns) * (cell + _GAP)
    _color_bar(canvas, right + 8, _TOP, bottom - _TOP)
    return canvas


def _columns(
    subject: Subject,
) -> list[tuple[str, str, Callable[[View], NDArray[np.float64]]]]:
    """Returns heading, subheading and drawing of each column."""

    def before(view: View) -> NDArray[np.float64]:
        return to_rgb(gray(subject.moving, view))

    def after(view: View) -> NDArray[np.float64]:
        with _applied(subject):
            return gray(subject.moving, view)

    def checked(view: View) -> NDArray[np.float64]:
        return checkerboard(gray(subject.fixed, view), after(view), view)

    def bent(view: View) -> NDArray[np.float64]:
        lines = grid_lines(subject.deformation, view)
        return over(to_rgb(after(view)) * 0.75, _LINE, 0.75 * lines)

    def jacobian(view: View) -> NDArray[np.float64]:
        fixed = gray(subject.fixed, view)
        values = mrml.resampled_array(subject.jacobian, view.grid, None, 1.0)[0]
        inside = np.clip(fixed * 12, 0, 1)
        shaded = jacobian_colors(values) * (0.55 + 0.45 * fixed[..., None])
        return over(np.zeros((*fixed.shape, 3)), shaded, inside)

    return [
        ("Fixed", subject.fixed_name, lambda view: to_rgb(gray(subject.fixed, view))),
        ("Moving, before", f"{subject.moving_name}, as stored", before),
        ("Moved, after", f"{subject.moving_name}, registered", lambda view: to_rgb(after(view))),
        ("Checkerboard", "fixed (cool) and moved (warm)", checked),
        ("Deformed grid", "10 mm, without the linear part", bent),
        ("Jacobian", "local volume, moving : fixed", jacobian),
    ]


@contextmanager
def _applied(subject: Subject) -> Iterator[None]:
    """Puts the moving volume under the transform for the time being."""
    parent = subject.moving.GetParentTransformNode()
    mrml.apply_transform(subject.transform, subject.moving)
    try:
        yield
    finally:
        mrml.apply_transform(parent, subject.moving)


def _center(subject: Subject, plane: str) -> NDArray[np.float64]:
    """Returns where to cut: in the middle of the grid, beside the midline in sagittal views."""
    center = mrml.grid_in(subject.fixed).center_ras.copy()
    if plane == "sagittal":
        center[0] += 14.0
    return center


def _header(canvas: Canvas, title: str, facts: Sequence[str], verdict: str) -> None:
    canvas.text(title, _LEFT, 38, 34, bold=True)
    color = VERDICT_COLORS.get(verdict, _DIM)
    canvas.disk(_LEFT + 9, 84, 9, color)
    x = _LEFT + 28.0
    x += canvas.text(verdict.capitalize(), x, 84, 22, color, bold=True)
    for fact in facts:
        x += 20
        x += canvas.text(fact, x, 84, 21, (0.80, 0.83, 0.87))


def _letters(
    canvas: Canvas, letters: str, left: float, top: float, width: float, height: float
) -> None:
    """Writes the four directions at the edges of a panel."""
    middle_x, middle_y = left + width / 2, top + height / 2
    places = [(left + 12, middle_y), (left + width - 12, middle_y),
              (middle_x, top + 14), (middle_x, top + height - 14)]  # fmt: skip
    for letter, (x, y) in zip(letters, places):
        canvas.text(letter, x, y, 20, _LETTER, align="center", shadow=True)


def _plane_names(canvas: Canvas, heights: Sequence[int]) -> None:
    """Writes the names of the planes upwards, left of their rows."""
    top = _TOP
    for plane, height in zip(PLANES, heights):
        side = Canvas(height, 36, canvas.background)
        side.text(plane.capitalize(), height / 2, 18, 25, align="center")
        canvas.paste(np.rot90(side.pixels), 18, top)
        top += height + _GAP


def _ruler(canvas: Canvas, left: float, y: float, pixels_per_mm: float) -> None:
    length = 50 * pixels_per_mm
    canvas.fill(_DIM, left, y - 1, length, 3)
    for x in (left, left + length - 3):
        canvas.fill(_DIM, x, y - 7, 3, 15)
    canvas.text("50 mm", left + length + 12, y, 19, _DIM)
    canvas.text(
        "Patient's right is on the left. Slices are cut through the MRML transform nodes.",
        left + length + 110, y, 19, _DIM,
    )  # fmt: skip


def _color_bar(canvas: Canvas, left: float, top: float, height: float) -> None:
    """Draws the scale of the Jacobian beside its column."""
    bar = round(height * 0.6)
    start = top + (height - bar) / 2
    values = np.exp(np.linspace(np.log(2.0), -np.log(2.0), bar))
    canvas.paste(np.repeat(jacobian_colors(values)[:, None], 22, axis=1), left, start)
    for value, label in ((2.0, "2 : 1"), (1.5, "1.5"), (1.0, "1 : 1"), (1 / 1.5, "0.67"),
                         (0.5, "1 : 2")):  # fmt: skip
        y = start + bar * (0.5 - np.log(value) / np.log(2.0) / 2)
        canvas.fill(_DIM, left + 22, y - 1, 7, 2)
        canvas.text(label, left + 36, y, 19)
    canvas.text("moved part", left, start - 66, 17, _DIM)
    canvas.text("was larger", left, start - 42, 17, _DIM)
    canvas.text("moved part", left, start + bar + 42, 17, _DIM)
    canvas.text("was smaller", left, start + bar + 66, 17, _DIM)
