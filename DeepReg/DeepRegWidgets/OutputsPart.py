"""The section Outputs: companions, size of the transform, results of another pair."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.preflight import transform_size_mb
from DeepRegLib.errors import DeepRegError

from .Parameters import companionsOf, setCompanions
from .Section import Section


class OutputsPart(Section):
    """Companions, size of the transform, and which results may be overwritten.

    Args:
        ui: The panel's widgets.
    """

    def __init__(self, ui):
        Section.__init__(self, ui)
        ui.companionsCombo.connect("checkedNodesChanged()", self._onCompanions)

    def hold(self, held: bool) -> None:
        """Neither shows nor hears anything while the list of nodes is filled anew."""
        self._updating = held
        self.update()

    def _show(self) -> None:
        self._releaseOtherResults()
        self._showCompanions()
        self._showSize()
        self._ui.movedSelector.enabled = self._node.wantMoved
        self._ui.inverseSelector.enabled = self._node.wantInverse

    def _releaseOtherResults(self) -> None:
        """Keeps the result of another pair from being overwritten by this one."""
        transform = self._node.resultTransform
        if transform is None or None in (self._node.fixedVolume, self._node.movingVolume):
            return
        fixed = transform.GetNodeReference(transform.GetFixedNodeReferenceRole())
        moving = transform.GetNodeReference(transform.GetMovingNodeReferenceRole())
        if fixed is None or moving is None:
            return
        if fixed is not self._node.fixedVolume or moving is not self._node.movingVolume:
            with slicer.util.NodeModify(self._node.parameterNode):
                self._node.resultTransform = None
                self._node.movedVolume = None
                self._node.inverseTransform = None

    def _showCompanions(self) -> None:
        combo = self._ui.companionsCombo
        wanted = {node.GetID() for node in companionsOf(self._node)}
        shown = {node.GetID() for node in combo.checkedNodes()}
        if wanted == shown:
            return
        for index in range(combo.nodeCount()):
            node = combo.nodeFromIndex(index)
            if node is not None and (node.GetID() in wanted) != (node.GetID() in shown):
                isWanted = node.GetID() in wanted
                combo.setCheckState(node, qt.Qt.Checked if isWanted else qt.Qt.Unchecked)

    def _onCompanions(self) -> None:
        if self._listens:
            setCompanions(self._node, self._ui.companionsCombo.checkedNodes())

    def _showSize(self) -> None:
        text = ""
        if self._node.fixedVolume is not None:
            try:
                grid = mrml.grid_of(self._node.fixedVolume)
                size = transform_size_mb(grid, self._node.gridSpacing)
                text = _("about {size} MB on disk").format(size=f"{size.file_mb:.0f}")
            except DeepRegError:
                # An empty volume; the checks before the run say so.
                text = ""
        self._ui.sizeLabel.text = text
