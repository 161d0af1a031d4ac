"""Stand-in for ctkVTKChartView: a chart of VTK, drawn off screen and shown as a picture."""

from __future__ import annotations

import vtk
from PySide6 import QtCore, QtWidgets

from .picture import image_of


class ctkVTKChartView(QtWidgets.QWidget):
    _cplusplus = True
    plotAdded = QtCore.Signal(object)
    plotRemoved = QtCore.Signal(object)
    boundsChanged = QtCore.Signal()
    extentChanged = QtCore.Signal()
    _signatures = {
        "plotAdded": {"vtkPlot*": ""},
        "plotRemoved": {"vtkPlot*": ""},
        "boundsChanged": {"": ""},
        "extentChanged": {"": ""},
    }

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._chart = vtk.vtkChartXY()
        self._view = vtk.vtkContextView()
        self._view.GetScene().AddItem(self._chart)
        self._window = self._view.GetRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)
        self._image = None
        self._stamp = None
        self.setMinimumHeight(60)
        self._chart.AddObserver("ModifiedEvent", lambda *_: self.update())

    def chart(self):
        return self._chart

    def scene(self):
        return self._view.GetScene()

    def renderWindow(self):
        return self._window

    def addPlot(self, plot) -> None:
        self._chart.AddPlot(plot)
        self._image = None
        self.plotAdded.emit(plot)
        self.update()

    def removePlot(self, plot) -> None:
        self._chart.RemovePlotInstance(plot)
        self._image = None
        self.plotRemoved.emit(plot)
        self.update()

    def removeAllPlots(self) -> None:
        self._chart.ClearPlots()
        self._image = None
        self.update()

    def plotIndex(self, plot) -> int:
        return self._chart.GetPlotIndex(plot)

    def _write_title(self, title: str) -> None:
        self._chart.SetTitle(title)
        self.update()

    title = property(lambda self: self._chart.GetTitle() or "", _write_title)

    def boundAxesToChartBounds(self) -> None:
        self._chart.RecalculateBounds()

    def setAxesToChartBounds(self) -> None:
        self._chart.RecalculateBounds()
        self._image = None
        self.update()

    def sizeHint(self):
        return QtCore.QSize(200, 150)

    def paintEvent(self, event) -> None:
        size = (max(self.width, 16), max(self.height, 16))
        self._window.SetSize(*size)
        self._chart.RecalculateBounds()
        self._window.Render()
        painter = QtWidgets.QStylePainter(self)
        painter.drawImage(self.rect, image_of(self._window))
        painter.end()
