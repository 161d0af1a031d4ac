"""The transforms of the scene that make up a population."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from DeepRegLib.bridge.population import REPORT_ATTRIBUTE

from .Parameters import membersOf, setMembers
from .Section import Section

_SOON_MS = 150
_ROW_HEIGHT = 26
_MOST_ROWS = 6


class PopulationData(Section, VTKObservationMixin):
    """A table with a row for each transform of the scene: a check mark, and what it aligns.

    Args:
        ui: The panel's widgets.
        onChanged: Called when the scene has other transforms.
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
        table = ui.populationTable
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Transform"), _("Aligns")])
        table.verticalHeader().setVisible(False)
        table.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        table.horizontalHeader().setStretchLastSection(True)
        ui.populationAllButton.connect("clicked(bool)", self._onAll)

    def setParameterNode(self, parameterNode) -> None:
        """Shows the transforms of another parameter node; None shows nothing."""
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

    def check(self, transform, isChecked=True) -> None:
        """Checks the row of a transform."""
        for row, box in self._rows:
            if row is transform:
                box.checked = isChecked

    def _show(self) -> None:
        transforms = _transforms()
        state = [(node.GetID(), node.GetName(), _aligned(node)) for node in transforms]
        if state != self._shown:
            self._shown = state
            self._build(transforms)
        chosen = {node.GetID() for node in membersOf(self._node)}
        for transform, box in self._rows:
            box.checked = transform.GetID() in chosen
        fixed = self._node.populationFixed
        self._ui.populationAllButton.enabled = any(_fixedOf(t) is fixed for t, _box in self._rows)

    def _build(self, transforms) -> None:
        table = self._ui.populationTable
        table.clearContents()
        table.setRowCount(len(transforms))
        self._rows = []
        for number, transform in enumerate(transforms):
            box = qt.QCheckBox(transform.GetName())
            table.setCellWidget(number, 0, box)
            table.setCellWidget(number, 1, qt.QLabel(_aligned(transform)))
            box.connect("toggled(bool)", self._onChosen)
            self._rows.append((transform, box))
        widest = max([180, *(box.sizeHint.width() + 12 for _transform, box in self._rows)])
        table.setColumnWidth(0, min(widest, 280))
        height = _ROW_HEIGHT * (min(max(len(transforms), 2), _MOST_ROWS) + 1) + 6
        table.setMinimumHeight(height)
        table.setMaximumHeight(height)

    def _onChosen(self, _value=None) -> None:
        if self._listens:
            setMembers(self._node, [transform for transform, box in self._rows if box.checked])

    def _onAll(self, checked=False) -> None:
        """Checks all transforms that belong to the fixed volume."""
        if self._listens:
            fixed = self._node.populationFixed
            setMembers(self._node, [t for t, _box in self._rows if _fixedOf(t) is fixed])

    def _soon(self, caller=None, event=None) -> None:
        self._timer.start()

    def _onScene(self) -> None:
        if self._node is not None and not slicer.mrmlScene.IsClosing():
            self.update()
            self._onChanged()


def _transforms() -> list:
    """Returns the transforms of the scene, but those along the modes of a population."""
    return [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLTransformNode")
        if not node.GetHideFromEditors() and not node.GetAttribute(REPORT_ATTRIBUTE)
    ]


def _fixedOf(transform):
    return transform.GetNodeReference(transform.GetFixedNodeReferenceRole())


def _aligned(transform) -> str:
    """Returns what a transform aligns with what, if it is known."""
    moving = transform.GetNodeReference(transform.GetMovingNodeReferenceRole())
    fixed = _fixedOf(transform)
    if moving is None or fixed is None:
        return ""
    return _("{moving} with {fixed}").format(moving=moving.GetName(), fixed=fixed.GetName())
