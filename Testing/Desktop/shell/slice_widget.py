"""A slice view with its bar, as the layout shows it."""

from __future__ import annotations

import slicer
from PySide6 import QtCore, QtGui, QtWidgets
from shiboken6 import Shiboken

from .slice_view import qMRMLSliceView


class qMRMLSliceControllerWidget(QtWidgets.QFrame):
    """The colored bar above a slice: its letter, a slider, and the offset."""

    _cplusplus = True

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self.setFixedHeight(24)
        self._logic = None
        self._letter = QtWidgets.QLabel(self)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Horizontal, self)
        self._slider.setRange(0, 1000)
        self._text = QtWidgets.QLabel(self)
        self._text.setMinimumWidth(96)
        self._text.setAlignment(QtCore.Qt.AlignRight | QtCore.Qt.AlignVCenter)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(8, 0, 8, 0)
        row.addWidget(self._letter)
        row.addWidget(self._slider, 1)
        row.addWidget(self._text)
        self._bounds = [0.0, 1.0]
        self._slider.valueChanged.connect(self._on_slider)

    def _follow(self, logic, color: QtGui.QColor, label: str) -> None:
        self._logic = logic
        self._letter.setText(label)
        self.setStyleSheet(
            f"qMRMLSliceControllerWidget {{ background: {color.name()}; }}"
            "QLabel { font-weight: bold; color: #202020; }"
        )
        logic.AddObserver("ModifiedEvent", self._refresh)
        logic.GetSliceNode().AddObserver("ModifiedEvent", self._refresh)
        self._refresh()

    def sliceLogic(self):
        return self._logic

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    def sliceOffsetSlider(self):
        return self._slider

    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()

    def setSliceOffsetValue(self, offset: float) -> None:
        self._logic.SetSliceOffset(offset)

    def setSliceLink(self, linked: bool) -> None:
        self._logic.GetSliceCompositeNode().SetLinkedControl(linked)

    def _on_slider(self, position: int) -> None:
        low, high = self._bounds
        self._logic.SetSliceOffset(low + (high - low) * position / 1000)

    def _refresh(self, *_) -> None:
        if not Shiboken.isValid(self):
            return
        bounds = [0.0] * 6
        self._logic.GetLowestVolumeSliceBounds(bounds)
        if bounds[5] > bounds[4]:
            self._bounds = bounds[4:6]
        offset = self._logic.GetSliceOffset()
        low, high = self._bounds
        self._slider.blockSignals(True)
        self._slider.setValue(round(1000 * (offset - low) / max(high - low, 1e-9)))
        self._slider.blockSignals(False)
        normal = [self._logic.GetSliceNode().GetSliceToRAS().GetElement(i, 2) for i in range(3)]
        axis = max(range(3), key=lambda i: abs(normal[i]))
        self._text.setText(f"{'RAS'[axis]}: {offset:.2f}mm")


class qMRMLSliceWidget(QtWidgets.QWidget):
    """A slice view with its bar."""

    _cplusplus = True
    _signatures = {
        "mrmlSceneChanged": {"vtkMRMLScene*": ""},
        "nodeAboutToBeEdited": {"vtkMRMLNode*": ""},
    }
    mrmlSceneChanged = QtCore.Signal(object)
    nodeAboutToBeEdited = QtCore.Signal(object)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._view = qMRMLSliceView(self)
        self._controller = qMRMLSliceControllerWidget(self)
        box = QtWidgets.QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.setSpacing(0)
        box.addWidget(self._controller)
        box.addWidget(self._view, 1)
        self._logic = None

    def _create(self, scene, name: str, label: str, orientation: str, color) -> None:
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        logic.SetMRMLScene(scene)
        node = logic.AddSliceNode(name)
        node.SetLayoutLabel(label)
        node.SetLayoutColor(*color)
        node.SetOrientation(orientation)
        self._logic = logic
        self._name, self._label = name, label
        self._color = QtGui.QColor.fromRgbF(*color)
        # Color legends look for the logic of their view once, when the view gets its node.
        slicer.app.applicationLogic().GetSliceLogics().AddItem(logic)
        self._view._follow(logic)
        self._controller._follow(logic, self._color, label)

    def sliceLogic(self):
        return self._logic

    logic = sliceLogic

    def mrmlScene(self):
        return slicer.mrmlScene

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    mrmlAbstractViewNode = mrmlSliceNode

    def mrmlSliceCompositeNode(self):
        return self._logic.GetSliceCompositeNode()

    def sliceView(self):
        return self._view

    viewWidget = sliceView

    def sliceController(self):
        return self._controller

    controllerWidget = sliceController

    def interactorStyle(self):
        return self._view.sliceViewInteractorStyle()

    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()

    def setSliceOrientation(self, orientation: str) -> None:
        self.mrmlSliceNode().SetOrientation(orientation)

    sliceOrientation = property(
        lambda self: self.mrmlSliceNode().GetOrientationString(), setSliceOrientation
    )
    sliceViewName = property(lambda self: self._name)
    sliceViewLabel = viewLabel = property(lambda self: self._label)
    sliceViewColor = viewColor = property(lambda self: self._color)
