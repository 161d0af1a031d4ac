"""The transforms of the scene that make up a population."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib.bridge.population import REPORT_ATTRIBUTE

from .Parameters import membersOf, setMembers
from .SceneTable import SceneTable, fitTable, prepareTable


class PopulationData(SceneTable):
    """A table with a row for each transform of the scene: a check mark, and what it aligns.

    Args:
        ui: The panel's widgets.
        onChanged: Called when the scene has other transforms.
    """

    def __init__(self, ui, onChanged):
        SceneTable.__init__(self, ui, onChanged)
        prepareTable(ui.populationTable, [_("Transform"), _("Aligns")])
        ui.populationAllButton.connect("clicked(bool)", self._onAll)

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
        fitTable(table, [row[1] for row in self._rows])

    def _onChosen(self, _value=None) -> None:
        if self._listens:
            setMembers(self._node, [transform for transform, box in self._rows if box.checked])

    def _onAll(self, checked=False) -> None:
        """Checks all transforms that belong to the fixed volume."""
        if self._listens:
            fixed = self._node.populationFixed
            setMembers(self._node, [t for t, _box in self._rows if _fixedOf(t) is fixed])


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
