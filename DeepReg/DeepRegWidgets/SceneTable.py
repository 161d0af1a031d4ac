"""A table with a row for each node of a kind: its check mark, and what belongs to it."""

from __future__ import annotations

import qt
import slicer
from slicer.util import VTKObservationMixin

from .Section import Section

_SOON_MS = 150
_ROW_HEIGHT = 26
_MOST_ROWS = 6


class SceneTable(Section, VTKObservationMixin):
    """Choices among the nodes of the scene; follows what comes and goes.

    Args:
        ui: The panel's widgets.
        onChanged: Called when the scene has other nodes.
    """

    def __init__(self, ui, onChanged):
        Section.__init__(self, ui)
        VTKObservationMixin.__init__(self)
        self._onChanged = onChanged
        self._rows = []
        self._shown = None
        # Many nodes may come and go at once.
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(_SOON_MS)
        self._timer.connect("timeout()", self._onScene)

    def setParameterNode(self, parameterNode) -> None:
        """Shows the nodes of another parameter node; None shows nothing."""
        self.removeObservers()
        if parameterNode is not None:
            scene = slicer.mrmlScene
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndImportEvent):
                self.addObserver(scene, event, self._soon)
        Section.setParameterNode(self, parameterNode)

    def close(self) -> None:
        """Stops looking at the scene."""
        self.removeObservers()
        self._timer.stop()
        self._timer.disconnect("timeout()", self._onScene)

    def _soon(self, caller=None, event=None) -> None:
        self._timer.start()

    def _onScene(self) -> None:
        if self._node is not None and not slicer.mrmlScene.IsClosing():
            self.update()
            self._onChanged()


def prepareTable(table, titles) -> None:
    """Gives a table its two columns."""
    table.setColumnCount(2)
    table.setHorizontalHeaderLabels(titles)
    table.verticalHeader().setVisible(False)
    table.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
    table.horizontalHeader().setStretchLastSection(True)


def fitTable(table, boxes) -> None:
    """Makes room for the check boxes of the first column, and for some of the rows."""
    widest = max([180, *(box.sizeHint.width() + 12 for box in boxes)])
    table.setColumnWidth(0, min(widest, 280))
    height = _ROW_HEIGHT * (min(max(len(boxes), 2), _MOST_ROWS) + 1) + 6
    table.setMinimumHeight(height)
    table.setMaximumHeight(height)
