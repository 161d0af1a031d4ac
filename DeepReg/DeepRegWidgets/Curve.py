"""The course of an objective as a chart of VTK."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import ctk
import vtk
from slicer.i18n import tr as _

from DeepRegLib import registry

#: Colors of the stages, told apart by color-blind people, too (Okabe and Ito).
_COLORS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0))
_HEIGHT = 180
#: Rims of bars, so that light ones are seen on white.
_OUTLINE = (110, 110, 110)
#: Corner of a chart of VTK whose axes are those at the bottom and on the right.
_BOTTOM_RIGHT = 1


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        title: Name in the legend.
        points: Pairs of a place along the bottom axis and a value.
        right: Whether the axis on the right counts.
    """

    title: str
    points: list
    right: bool = False


@dataclass(frozen=True)
class Bars:
    """Bars of a chart, each with a color of its own.

    Args:
        title: What their height is.
        points: Pairs of the middle of a bar along the bottom axis and its height.
        colors: Red, green, blue of each, 0 to 255.
    """

    title: str
    points: list
    colors: list


class Chart:
    """Draws lines and bars; made when its box is first opened.

    Args:
        box: Collapsible group box with a layout.
        bottom: Title of the bottom axis.
    """

    def __init__(self, box, bottom: str):
        self._box, self._bottom = box, bottom
        self._view = None
        self._lines, self._left, self._right, self._bars = [], "", "", None
        box.connect("toggled(bool)", self._onToggled)

    def draw(self, lines, left: str, right: str = "", bars=None) -> None:
        """Shows lines, over bars if there are any.

        Args:
            lines: `Line` each; the titles of two axes have the colors of their lines, so that no
                legend is needed.
            left: Title of the axis on the left.
            right: Title of the one on the right, if a line needs it.
            bars: `Bars`, which no legend names.
        """
        # VTK complains of a line with a single point at every drawing.
        self._lines = [line for line in lines if len(line.points) > 1]
        self._left, self._right, self._bars = left, right, bars
        if not self._box.collapsed:
            self._draw()

    def _onToggled(self, _open) -> None:
        if not self._box.collapsed and self._lines:
            self._draw()

    def _draw(self) -> None:
        if self._view is None:
            self._view = ctk.ctkVTKChartView()
            self._view.setMinimumHeight(_HEIGHT)
            self._box.layout().addWidget(self._view)
        self._view.removeAllPlots()
        chart = self._view.chart()
        chart.GetAxis(vtk.vtkAxis.BOTTOM).SetTitle(self._bottom)
        chart.GetAxis(vtk.vtkAxis.LEFT).SetTitle(self._left)
        chart.GetAxis(vtk.vtkAxis.RIGHT).SetTitle(self._right)
        chart.SetShowLegend(not self._right)
        if self._bars is not None:
            _addBars(chart, self._bottom, self._bars)
        for number, line in enumerate(self._lines):
            color = _COLORS[number % len(_COLORS)] if self._right else (0, 0, 0)
            axis = chart.GetAxis(vtk.vtkAxis.RIGHT if line.right else vtk.vtkAxis.LEFT)
            axis.GetTitleProperties().SetColor(*(c / 255 for c in color))
            plot = chart.AddPlot(vtk.vtkChart.LINE)
            plot.SetInputData(_table(self._bottom, line), 0, 1)
            plot.SetColor(*_COLORS[number % len(_COLORS)], 255)
            plot.SetWidth(2.0)
            if line.right:
                chart.SetPlotCorner(plot, _BOTTOM_RIGHT)
        chart.RecalculateBounds()
        self._view.scene().SetDirty(True)
        self._view.update()


class Curve(Chart):
    """The course of the objective of a registration: one line for each stage.

    Args:
        box: Collapsible group box with a layout.
    """

    def __init__(self, box):
        Chart.__init__(self, box, _("Iteration"))

    def show(self, history) -> None:
        """Shows objective values: entries with ``stage``, ``level``, ``iteration``, ``value``."""
        lines, start = [], 0
        known = [entry for entry in history if entry.get("value") is not None]
        for stage, values in _stages(known):
            lines.append(Line(_title(stage), list(enumerate(values, start))))
            start += len(values)
        self.draw(lines, _("Left to gain (%)"))


class TrainingCurve(Chart):
    """The course of a training: its loss, and how well the images match that validate.

    Args:
        box: Collapsible group box with a layout.
    """

    def __init__(self, box):
        Chart.__init__(self, box, _("Step"))

    def show(self, rows) -> None:
        """Shows rows of a training's history: ``kind``, ``step``, ``loss``, ``dice`` or ``ncc``."""
        loss = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
        lines = [Line(_("Loss"), loss)] if loss else []
        names = {"dice": _("Dice in validation"), "ncc": _("Correlation in validation")}
        for name, title in names.items():
            points = [
                (row["step"], row[name])
                for row in rows
                if row.get("kind") == "validation" and row.get(name) is not None
            ]
            if points:
                self.draw([*lines, Line(title, points, right=True)], _("Loss"), title)
                return
        self.draw(lines, _("Loss"))


def _stages(history):
    """Yields each stage with its course: 100 at the worst of a level, 0 at the level's best.

    Each level compares images of its own, so that its values stand for themselves.
    """
    for stage, entries in itertools.groupby(history, key=lambda entry: entry.get("stage", "")):
        course = []
        for _level, group in itertools.groupby(entries, key=lambda entry: entry.get("level")):
            values = [float(entry["value"]) for entry in group]
            gain = max(values) - min(values)
            course += [100.0 * (v - min(values)) / gain if gain > 0 else 0.0 for v in values]
        yield stage, course


def _addBars(chart, bottom: str, bars: Bars) -> None:
    table = _table(bottom, bars)
    numbers = vtk.vtkFloatArray()
    numbers.SetName("color")
    colors = vtk.vtkLookupTable()
    colors.SetNumberOfTableValues(len(bars.colors))
    colors.SetRange(0, max(1, len(bars.colors) - 1))
    for number, color in enumerate(bars.colors):
        numbers.InsertNextValue(number)
        colors.SetTableValue(number, *(c / 255 for c in color), 1.0)
    table.AddColumn(numbers)
    plot = chart.AddPlot(vtk.vtkChart.BAR)
    plot.SetInputData(table, 0, 1)
    plot.SetLookupTable(colors)
    plot.SelectColorArray("color")
    plot.SetScalarVisibility(True)
    plot.SetLegendVisibility(False)
    plot.GetPen().SetColor(*_OUTLINE, 255)


def _table(bottom: str, line):
    table = vtk.vtkTable()
    for name in (bottom, line.title):
        column = vtk.vtkFloatArray()
        column.SetName(name)
        table.AddColumn(column)
    table.SetNumberOfRows(len(line.points))
    for row, (place, value) in enumerate(line.points):
        table.SetValue(row, 0, place)
        table.SetValue(row, 1, value)
    return table


def _title(stage: str) -> str:
    specs = registry.specs()
    return specs[stage].title if stage in specs else stage
