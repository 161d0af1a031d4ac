"""The volumes of the scene that a training learns from, each with its structures if there are."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from DeepRegLib.bridge.overlays import KIND_ATTRIBUTE

from .Parameters import setTrainingVolumes, trainingVolumesOf
from .Section import Section

_SOON_MS = 150
_ROW_HEIGHT = 26
_MOST_ROWS = 6


class TrainingData(Section, VTKObservationMixin):
    """A table with a row for each volume of the scene: a check mark, and its structures.

    Args:
        ui: The panel's widgets.
        onChanged: Called when the scene has other volumes.
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
        table = ui.trainingTable
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Volume"), _("Structures (optional)")])
        table.verticalHeader().setVisible(False)
        table.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        table.horizontalHeader().setStretchLastSection(True)

    def setParameterNode(self, parameterNode) -> None:
        """Shows the volumes of another parameter node; None shows nothing."""
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

    def check(self, volume, labels=None) -> None:
        """Checks the row of a volume, and chooses its structures."""
        for row, box, combo in self._rows:
            if row is volume:
                box.checked = True
                combo.currentIndex = 0 if labels is None else combo.findData(labels.GetID())

    def _show(self) -> None:
        volumes, structures = _volumes(), _structures()
        state = [(node.GetID(), node.GetName()) for node in [*volumes, None, *structures] if node]
        if (state, len(volumes)) != self._shown:
            self._shown = (state, len(volumes))
            self._build(volumes, structures)
        chosen = {volume.GetID(): labels for volume, labels in trainingVolumesOf(self._node)}
        for volume, box, combo in self._rows:
            labels = chosen.get(volume.GetID())
            box.checked = volume.GetID() in chosen
            combo.currentIndex = 0 if labels is None else max(0, combo.findData(labels.GetID()))
            combo.enabled = box.checked and combo.count > 1

    def _build(self, volumes, structures) -> None:
        table = self._ui.trainingTable
        table.clearContents()
        table.setRowCount(len(volumes))
        self._rows = []
        for number, volume in enumerate(volumes):
            box, combo = qt.QCheckBox(volume.GetName()), qt.QComboBox()
            combo.addItem(_("None"), "")
            for node in structures:
                combo.addItem(node.GetName(), node.GetID())
            table.setCellWidget(number, 0, box)
            table.setCellWidget(number, 1, combo)
            box.connect("toggled(bool)", self._onChosen)
            combo.connect("currentIndexChanged(int)", self._onChosen)
            self._rows.append((volume, box, combo))
        widest = max([180, *(box.sizeHint.width() + 12 for _volume, box, _combo in self._rows)])
        table.setColumnWidth(0, min(widest, 280))
        height = _ROW_HEIGHT * (min(max(len(volumes), 2), _MOST_ROWS) + 1) + 6
        table.setMinimumHeight(height)
        table.setMaximumHeight(height)

    def _onChosen(self, _value=None) -> None:
        if not self._listens:
            return
        chosen = []
        for volume, box, combo in self._rows:
            if box.checked:
                labels = combo.itemData(combo.currentIndex)
                node = slicer.mrmlScene.GetNodeByID(labels) if labels else None
                chosen.append((volume, node))
        setTrainingVolumes(self._node, chosen)

    def _soon(self, caller=None, event=None) -> None:
        self._timer.start()

    def _onScene(self) -> None:
        if self._node is not None and not slicer.mrmlScene.IsClosing():
            self.update()
            self._onChanged()


def _volumes() -> list:
    """Returns the images of the scene; label maps and maps of results are none."""
    return [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        if node.GetClassName() == "vtkMRMLScalarVolumeNode"
        and not node.GetHideFromEditors()
        and not node.GetAttribute(KIND_ATTRIBUTE)
    ]


def _structures() -> list:
    return [
        node
        for kind in ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode")
        for node in slicer.util.getNodesByClass(kind)
        if not node.GetHideFromEditors()
    ]
