"""Slice views: MRML's slice logic and displayable managers, drawn off screen."""

from __future__ import annotations

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from shiboken6 import Shiboken

from .picture import image_of
from .plain import attribute
from .render_queue import queue

_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLTransformsDisplayableManager2D",
    "vtkMRMLLinearTransformsDisplayableManager",
)

_MOUSE = {
    (QtCore.QEvent.MouseButtonPress, QtCore.Qt.LeftButton): "LeftButtonPressEvent",
    (QtCore.QEvent.MouseButtonRelease, QtCore.Qt.LeftButton): "LeftButtonReleaseEvent",
    (QtCore.QEvent.MouseButtonPress, QtCore.Qt.MiddleButton): "MiddleButtonPressEvent",
    (QtCore.QEvent.MouseButtonRelease, QtCore.Qt.MiddleButton): "MiddleButtonReleaseEvent",
    (QtCore.QEvent.MouseButtonPress, QtCore.Qt.RightButton): "RightButtonPressEvent",
    (QtCore.QEvent.MouseButtonRelease, QtCore.Qt.RightButton): "RightButtonReleaseEvent",
}


class qMRMLSliceView(QtWidgets.QWidget):
    """The picture of a slice; rendered by a timer, and only when something was modified."""

    _cplusplus = True
    resized = QtCore.Signal(QtCore.QSize)
    _signatures = {"resized": {"QSize": ""}}
    renderEnabled = attribute("renderEnabled", True, bool, "scheduleRender")
    fpsVisible = attribute("fpsVisible", False, bool)
    maximumUpdateRate = attribute("maximumUpdateRate", 60.0, float)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self.setMinimumSize(40, 40)
        self.setMouseTracking(True)
        self._renderer = vtk.vtkRenderer()
        self._renderer.GetActiveCamera().ParallelProjectionOn()
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)
        self._window.SetSize(64, 64)
        self._window.AddRenderer(self._renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._interactor.Initialize()
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        self._actor.VisibilityOff()
        self._renderer.AddViewProp(self._actor)
        self._corner = vtk.vtkCornerAnnotation()
        self._corner.SetMaximumFontSize(14)
        self._renderer.AddViewProp(self._corner)
        self._style = slicer.vtkMRMLSliceViewInteractorStyle()
        self._node = None
        self._image: QtGui.QImage | None = None
        self._paused = 0
        self._renders = 0
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        for name in _MANAGERS:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self._group = slicer.vtkMRMLDisplayableManagerGroup()
        self._group.Initialize(factory, self._renderer)
        self._group.AddObserver("UpdateEvent", self._on_update)
        self._style.SetDisplayableManagers(self._group)

    def _follow(self, logic) -> None:
        """Shows what a slice logic makes."""
        self._logic = logic
        self._node = logic.GetSliceNode()
        logic.SetDisplayableManagerGroup(self._group)
        self._group.SetMRMLDisplayableNode(self._node)
        self._style.SetSliceLogic(logic)
        self._style.SetInteractor(self._interactor)
        logic.AddObserver("ModifiedEvent", self._on_logic)
        self._on_logic()

    def _on_logic(self, *_) -> None:
        if Shiboken.isValid(self):
            self._connect_image()
            self.scheduleRender()

    def _connect_image(self) -> None:
        connection = self._logic.GetImageDataConnection()
        self._actor.SetVisibility(connection is not None)
        if (connection is not None and self._mapper.GetNumberOfInputConnections(0) == 0) or (
            connection is not None and self._mapper.GetInputConnection(0, 0) is not connection
        ):
            self._mapper.SetInputConnection(connection)

    def _on_update(self, *_) -> None:
        self.scheduleRender()

    # Rendering

    def scheduleRender(self) -> None:
        if Shiboken.isValid(self):
            queue.add(self)

    def _may_render(self) -> bool:
        scene = slicer.mrmlScene
        paused = self._paused or slicer.app._paused or scene.IsBatchProcessing()
        return not paused and self.renderEnabled

    def _render_when_shown(self) -> None:
        if not self._may_render():
            if slicer.mrmlScene.IsBatchProcessing():
                queue.add(self)
            return
        if self.isVisible():
            self.forceRender()
        else:
            self._image = None

    def forceRender(self) -> None:
        queue.remove(self)
        self._fit()
        self._window.Render()
        self._renders += 1
        self._image = image_of(self._window)
        self.update()

    def pauseRender(self) -> None:
        self._paused += 1

    def resumeRender(self) -> None:
        self._paused = max(self._paused - 1, 0)
        if not self._paused:
            self.scheduleRender()

    def setRenderPaused(self, pause: bool) -> None:
        if pause:
            self.pauseRender()
        else:
            self.resumeRender()

    def _fit(self) -> None:
        size = (max(self.width, 16), max(self.height, 16))
        if tuple(self._window.GetSize()) != size:
            self._window.SetSize(*size)
            self._interactor.SetSize(*size)
            if self._node is not None:
                self._logic.ResizeSliceNode(*size)

    def resizeEvent(self, event) -> None:
        super().resizeEvent(event)
        self._fit()
        self.scheduleRender()
        self.resized.emit(self.size)

    def showEvent(self, event) -> None:
        super().showEvent(event)
        self.scheduleRender()

    def paintEvent(self, event) -> None:
        if self._image is None and self._may_render():
            self.forceRender()
        painter = QtGui.QPainter(self)
        if self._image is None:
            painter.fillRect(self.rect, QtGui.QColor("black"))
        else:
            painter.drawImage(self.rect, self._image)
        self._paint_layers(painter)
        painter.end()

    def _paint_layers(self, painter: QtGui.QPainter) -> None:
        """Names of the layers in the lower left corner, as Slicer's data probe writes them."""
        composite = self._logic.GetSliceCompositeNode() if self._node is not None else None
        if composite is None:
            return
        lines = []
        for letter, id_ in (
            ("L", composite.GetLabelVolumeID()),
            ("F", composite.GetForegroundVolumeID()),
            ("B", composite.GetBackgroundVolumeID()),
        ):
            node = slicer.mrmlScene.GetNodeByID(id_) if id_ else None
            if node is not None:
                share = ""
                if letter == "F":
                    share = f" ({round(composite.GetForegroundOpacity() * 100)}%)"
                lines.append(f"{letter}: {node.GetName()}{share}")
        painter.setPen(QtGui.QColor(255, 255, 210))
        font = painter.font()
        font.setPointSizeF(8.5)
        painter.setFont(font)
        for row, line in enumerate(reversed(lines)):
            painter.drawText(8, self.height - 8 - 15 * row, line)

    # Mouse

    def event(self, event) -> bool:
        kind = event.type()
        if kind == QtCore.QEvent.Wheel:
            self._place(event)
            up = event.angleDelta().y() > 0
            self._interactor.InvokeEvent(
                "MouseWheelForwardEvent" if up else "MouseWheelBackwardEvent"
            )
            return True
        if kind == QtCore.QEvent.MouseMove:
            self._place(event)
            self._interactor.InvokeEvent("MouseMoveEvent")
            return True
        if kind in (QtCore.QEvent.MouseButtonPress, QtCore.QEvent.MouseButtonRelease):
            self._place(event)
            self._interactor.InvokeEvent(_MOUSE[kind, event.button()])
            return True
        return super().event(event)

    def _place(self, event) -> None:
        place = event.position()
        keys = event.modifiers()
        self._interactor.SetEventInformation(
            int(place.x()),
            int(self.height - 1 - place.y()),
            int(bool(keys & QtCore.Qt.ControlModifier)),
            int(bool(keys & QtCore.Qt.ShiftModifier)),
        )

    # What Slicer offers

    def mrmlSliceNode(self):
        return self._node

    def renderWindow(self):
        return self._window

    def interactor(self):
        return self._interactor

    def interactorStyle(self):
        return self._interactor.GetInteractorStyle()

    def sliceViewInteractorStyle(self):
        return self._style

    interactorObserver = sliceViewInteractorStyle

    def cornerAnnotation(self):
        return self._corner

    def _write_corner(self, text: str) -> None:
        self._corner.SetText(2, text)
        self.scheduleRender()

    setCornerAnnotationText = _write_corner
    cornerAnnotationText = property(lambda self: self._corner.GetText(2) or "", _write_corner)

    def getDisplayableManagers(self, collection) -> None:
        for number in range(self._group.GetDisplayableManagerCount()):
            collection.AddItem(self._group.GetNthDisplayableManager(number))

    def displayableManagerByClassName(self, name: str):
        return self._group.GetDisplayableManagerByClassName(name)

    def _matrix(self, inverse: bool):
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(self._node.GetXYToRAS())
        if inverse:
            matrix.Invert()
        return matrix

    def convertDeviceToXYZ(self, xy) -> list[float]:
        return [float(xy[0]), float(xy[1]), 0.0]

    def convertXYZToRAS(self, xyz) -> list[float]:
        return list(self._matrix(False).MultiplyPoint([*xyz, 1.0])[:3])

    def convertRASToXYZ(self, ras) -> list[float]:
        return list(self._matrix(True).MultiplyPoint([*ras, 1.0])[:3])
