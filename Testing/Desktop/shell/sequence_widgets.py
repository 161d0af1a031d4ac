"""Stand-in for the slider of the module Sequences, and what lets sequences play.

After Modules/Loadable/Sequences in Slicer: Widgets/qMRMLSequenceBrowserSeekWidget.cxx and
qSlicerSequencesModule.cxx.
"""

from __future__ import annotations

import slicer
from PySide6 import QtCore, QtWidgets
from shiboken6 import Shiboken

from .modules import Module
from .mrml_widgets import qMRMLWidget

#: UPDATE_VIRTUAL_OUTPUT_NODES_PERIOD_SEC of the original.
_PERIOD_MS = 20


class qMRMLSequenceBrowserSeekWidget(qMRMLWidget):
    """The name of the index, a slider, and the selected item."""

    _cplusplus = True

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._browser = None
        self._tags: list[tuple[object, int]] = []
        self._name, self._value, self._unit = (QtWidgets.QLabel(self) for _ in range(3))
        self._slider = QtWidgets.QSlider(QtCore.Qt.Horizontal, self)
        self._value.setMinimumWidth(30)
        self._value.setAlignment(QtCore.Qt.AlignRight | QtCore.Qt.AlignVCenter)
        layout = QtWidgets.QHBoxLayout(self)
        for part in (self._name, self._slider, self._value, self._unit):
            layout.addWidget(part)
        self._slider.valueChanged.connect(self.setSelectedItemNumber)
        self._update()

    def slider(self):
        return self._slider

    def setMRMLSequenceBrowserNode(self, browserNode) -> None:
        for node, tag in self._tags:
            node.RemoveObserver(tag)
        self._tags, self._browser = [], browserNode
        if browserNode is not None:
            for event in ("ModifiedEvent", browserNode.SequenceNodeModifiedEvent):
                self._tags.append((browserNode, browserNode.AddObserver(event, self._on_event)))
        self._update()

    def setSelectedItemNumber(self, itemNumber: int) -> None:
        if self._browser is None:
            return
        sequence = self._browser.GetMasterSequenceNode()
        count = 0 if sequence is None else sequence.GetNumberOfDataNodes()
        self._browser.SetSelectedItemNumber(itemNumber if 0 <= itemNumber < count else -1)

    def _on_event(self, caller, event) -> None:
        if Shiboken.isValid(self):
            self._update()
        else:
            caller.RemoveAllObservers()

    def _update(self) -> None:
        sequence = None if self._browser is None else self._browser.GetMasterSequenceNode()
        self.setEnabled(sequence is not None)
        if sequence is None:
            for label in (self._name, self._value, self._unit):
                label.setText("")
            return
        self._name.setText(sequence.GetIndexName())
        count, number = sequence.GetNumberOfDataNodes(), self._browser.GetSelectedItemNumber()
        self._slider.blockSignals(True)
        isUsable = count > 0 and not self._browser.GetRecordingActive()
        self._slider.setEnabled(isUsable)
        if isUsable:
            self._slider.setRange(0, count - 1)
        self._slider.blockSignals(False)
        isIndex = self._browser.GetIndexDisplayMode() == self._browser.IndexDisplayAsIndex
        if 0 <= number < count:
            value = f"{number + 1}/{count}" if isIndex else (
                self._browser.GetFormattedIndexValue(number))  # fmt: skip
            self._value.setText(value)
            self._unit.setText("" if isIndex else sequence.GetIndexUnit())
            self._slider.setValue(number)
        else:
            self._value.setText("")
            self._unit.setText("")
            self._slider.setValue(0)


class SequencesModule(Module):
    """Plays the sequences of all browsers that are active, as long as there is a browser."""

    def __init__(self, name: str, logic=None) -> None:
        super().__init__(name, logic)
        self._timer = QtCore.QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._play)
        scene = slicer.mrmlScene
        scene.AddObserver(scene.NodeAddedEvent, self._on_nodes)
        scene.AddObserver(scene.NodeRemovedEvent, self._on_nodes)

    def _on_nodes(self, caller, event) -> None:
        has_browser = caller.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode") is not None
        if has_browser and not self._timer.isActive():
            self._timer.start(_PERIOD_MS)
        elif not has_browser:
            self._timer.stop()

    def _play(self) -> None:
        self.logic().UpdateAllProxyNodes()
        self._timer.start(_PERIOD_MS)
