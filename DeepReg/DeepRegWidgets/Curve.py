"""The course of the objective as a chart of VTK."""

from __future__ import annotations

import itertools

import ctk
import vtk
from slicer.i18n import tr as _

from DeepRegLib import registry

#: Colors of the stages, told apart by color-blind people, too (Okabe and Ito).
_COLORS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0))
_HEIGHT = 180


class Curve:
    """Draws one line for each stage; made when its box is first opened.

    Args:
        box: Collapsible group box with a layout.
    """

    def __init__(self, box):
        self._box = box
        self._view = None
        self._history = []
        box.connect("toggled(bool)", self._onToggled)

    def show(self, history) -> None:
        """Shows objective values: entries with ``stage``, ``level``, ``iteration``, ``value``."""
        self._history = [entry for entry in history if entry.get("value") is not None]
        if not self._box.collapsed:
            self._draw()

    def _onToggled(self, _open) -> None:
        if not self._box.collapsed and self._history:
            self._draw()

    def _draw(self) -> None:
        if self._view is None:
            self._view = ctk.ctkVTKChartView()
            self._view.setMinimumHeight(_HEIGHT)
            self._box.layout().addWidget(self._view)
        self._view.removeAllPlots()
        chart = self._view.chart()
        chart.GetAxis(1).SetTitle(_("Iteration"))
        chart.GetAxis(0).SetTitle(_("Left to gain (%)"))
        chart.SetShowLegend(True)
        start = 0
        for number, (stage, values) in enumerate(_stages(self._history)):
            plot = chart.AddPlot(vtk.vtkChart.LINE)
            plot.SetInputData(_table(_title(stage), start, values), 0, 1)
            plot.SetColor(*_COLORS[number % len(_COLORS)], 255)
            plot.SetWidth(2.0)
            start += len(values)
        chart.RecalculateBounds()
        self._view.scene().SetDirty(True)
        self._view.update()


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


def _table(title: str, start: int, values):
    table = vtk.vtkTable()
    for name in (_("Iteration"), title):
        column = vtk.vtkFloatArray()
        column.SetName(name)
        table.AddColumn(column)
    table.SetNumberOfRows(len(values))
    for row, value in enumerate(values):
        table.SetValue(row, 0, start + row)
        table.SetValue(row, 1, value)
    return table


def _title(stage: str) -> str:
    specs = registry.specs()
    return specs[stage].title if stage in specs else stage
