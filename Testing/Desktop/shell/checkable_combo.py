"""Stand-in for qMRMLCheckableNodeComboBox."""

from __future__ import annotations

from PySide6 import QtCore, QtWidgets

from .node_combo import NODE_ROLE, qMRMLNodeComboBox


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """A combo box whose nodes have check marks."""

    _cplusplus = True
    _signatures = qMRMLNodeComboBox._signatures | {"checkedNodesChanged": {"": ""}}
    checkedNodesChanged = QtCore.Signal()

    def __init__(self, parent=None) -> None:
        self._checked: set[str] = set()
        super().__init__(parent)
        self.addEnabled = self.removeEnabled = False
        self.noneEnabled = False

    def _make_combo(self) -> QtWidgets.QComboBox:
        combo = super()._make_combo()
        combo.view().pressed.connect(self._on_pressed)
        return combo

    def _on_pressed(self, index) -> None:
        id_ = index.data(NODE_ROLE)
        node = self._scene.GetNodeByID(id_) if id_ else None
        if node is not None:
            self.setCheckState(node, 0 if id_ in self._checked else 2)

    def _on_scene_changed(self) -> None:
        super()._on_scene_changed()
        if hasattr(self, "_combo"):
            self._mark()
            gone = self._checked - {node.GetID() for node in self._nodes}
            if gone:
                self._checked -= gone
                self.checkedNodesChanged.emit()

    def _on_imported(self) -> None:
        self._checked = set()
        self.checkedNodesChanged.emit()

    def _mark(self) -> None:
        self._combo.blockSignals(True)
        for row in range(self._combo.count):
            id_ = self._combo.itemData(row, NODE_ROLE)
            item = self._combo.model().item(row)
            if id_ and item is not None:
                item.setCheckable(True)
                state = QtCore.Qt.Checked if id_ in self._checked else QtCore.Qt.Unchecked
                item.setCheckState(state)
        names = [n.GetName() for n in self._nodes if n.GetID() in self._checked]
        self._combo.setPlaceholderText(", ".join(names) or self.noneDisplay)
        self._combo.setCurrentIndex(-1)
        self._combo.blockSignals(False)

    def _show_current(self) -> None:
        self._mark()

    def checkedNodes(self) -> list:
        return [node for node in self._nodes if node.GetID() in self._checked]

    def uncheckedNodes(self) -> list:
        return [node for node in self._nodes if node.GetID() not in self._checked]

    def allChecked(self) -> bool:
        return not self.uncheckedNodes()

    def noneChecked(self) -> bool:
        return not self.checkedNodes()

    def checkState(self, node):
        return QtCore.Qt.Checked if node.GetID() in self._checked else QtCore.Qt.Unchecked

    def setCheckState(self, node, state) -> None:
        if node is None or (node.GetID() in self._checked) == (getattr(state, "value", state) == 2):
            return
        self._checked ^= {node.GetID()}
        self._mark()
        self.checkedNodesChanged.emit()

    def check(self, node) -> None:
        self.setCheckState(node, 2)

    def uncheck(self, node) -> None:
        self.setCheckState(node, 0)

    def setUserCheckable(self, node, userCheckable: bool) -> None:
        """Kept for completeness; every node can be checked."""
