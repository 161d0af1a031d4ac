"""The volumes of the scene that a training learns from, each with its structures if there are."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib.bridge.overlays import KIND_ATTRIBUTE

from .Parameters import setTrainingVolumes, trainingVolumesOf
from .SceneTable import SceneTable, fitTable, prepareTable


class TrainingData(SceneTable):
    """A table with a row for each volume of the scene: a check mark, and its structures.

    Args:
        ui: The panel's widgets.
        onChanged: Called when the scene has other volumes.
    """

    def __init__(self, ui, onChanged):
        SceneTable.__init__(self, ui, onChanged)
        prepareTable(ui.trainingTable, [_("Volume"), _("Structures (optional)")])

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
        fitTable(table, [row[1] for row in self._rows])

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
