"""Stand-ins for the node selector qMRMLNodeComboBox."""

from __future__ import annotations

from PySide6 import QtCore, QtGui, QtWidgets

from .plain import attribute
from .scene_follower import SceneFollower

NODE_ROLE = QtCore.Qt.UserRole + 1
ACTION_ROLE = QtCore.Qt.UserRole + 2


class qMRMLNodeComboBox(QtWidgets.QWidget, SceneFollower):
    """A combo box of the nodes of some classes; follows the scene."""

    _cplusplus = True
    _signatures = {
        "currentNodeChanged": {"vtkMRMLNode*": "", "bool": "_currentNodeValid"},
        "currentNodeIDChanged": {"QString": ""},
        "currentNodeRenamed": {"QString": ""},
        "nodeActivated": {"vtkMRMLNode*": ""},
        "nodeAdded": {"vtkMRMLNode*": ""},
        "nodeAddedByUser": {"vtkMRMLNode*": ""},
        "nodeAddedByUserAction": {"vtkMRMLNode*": ""},
        "nodeAboutToBeRemoved": {"vtkMRMLNode*": ""},
        "nodeAboutToBeEdited": {"vtkMRMLNode*": ""},
    }
    currentNodeChanged = QtCore.Signal(object)
    _currentNodeValid = QtCore.Signal(bool)
    currentNodeIDChanged = QtCore.Signal(str)
    currentNodeRenamed = QtCore.Signal(str)
    nodeActivated = QtCore.Signal(object)
    nodeAdded = QtCore.Signal(object)
    nodeAddedByUser = QtCore.Signal(object)
    nodeAddedByUserAction = QtCore.Signal(object)
    nodeAboutToBeRemoved = QtCore.Signal(object)
    nodeAboutToBeEdited = QtCore.Signal(object)

    nodeTypes = attribute("nodeTypes", (), tuple, "_on_scene_changed")
    hideChildNodeTypes = attribute("hideChildNodeTypes", (), tuple, "_on_scene_changed")
    showHidden = attribute("showHidden", False, bool, "_on_scene_changed")
    showChildNodeTypes = attribute("showChildNodeTypes", True, bool, "_on_scene_changed")
    noneEnabled = attribute("noneEnabled", False, bool, "_on_scene_changed")
    noneDisplay = attribute("noneDisplay", "None", str, "_on_scene_changed")
    addEnabled = attribute("addEnabled", True, bool, "_on_scene_changed")
    removeEnabled = attribute("removeEnabled", True, bool, "_on_scene_changed")
    renameEnabled = attribute("renameEnabled", False, bool, "_on_scene_changed")
    editEnabled = attribute("editEnabled", False, bool, "_on_scene_changed")
    baseName = attribute("baseName", "", str)
    selectNodeUponCreation = attribute("selectNodeUponCreation", True, bool)
    interactionNodeSingletonTag = attribute("interactionNodeSingletonTag", "", str)
    sizeAdjustPolicy = attribute("sizeAdjustPolicy", 1, int)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._filters: list[tuple[str, str, str | None]] = []
        self._labels: dict[str, str] = {}
        self._menu_actions: list[QtGui.QAction] = []
        self._nodes: list = []
        self._current = None
        self._requested = None
        self._emitted: str | None = ""
        self._combo = self._make_combo()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        policy = QtWidgets.QSizePolicy(QtWidgets.QSizePolicy.Preferred, QtWidgets.QSizePolicy.Fixed)
        self.setSizePolicy(policy)
        self._combo.activated.connect(self._on_activated)
        self._on_scene_changed()

    def _make_combo(self) -> QtWidgets.QComboBox:
        combo = QtWidgets.QComboBox(self)
        combo.setSizeAdjustPolicy(QtWidgets.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        combo.setSizePolicy(QtWidgets.QSizePolicy.Expanding, QtWidgets.QSizePolicy.Fixed)
        combo.setMinimumContentsLength(12)
        return combo

    # Content

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        if scene is self._scene:
            return
        wanted = self._requested if self._current is None else None
        self._follow(scene)
        self._current, self._requested = wanted, None
        self._on_scene_changed()

    def addAttribute(self, nodeType: str, attributeName: str, attributeValue=None) -> None:
        self._filters.append((nodeType, attributeName, attributeValue))
        self._on_scene_changed()

    def removeAttribute(self, nodeType: str, attributeName: str) -> None:
        self._filters = [f for f in self._filters if f[:2] != (nodeType, attributeName)]
        self._on_scene_changed()

    def _accepts(self, node) -> bool:
        classes = [t for t in self.nodeTypes if node.IsA(t)]
        if not self.showChildNodeTypes:
            classes = [t for t in classes if node.GetClassName() == t]
        if not classes or any(node.IsA(t) for t in self.hideChildNodeTypes):
            return False
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        for type_, name, value in self._filters:
            if node.IsA(type_):
                found = node.GetAttribute(name)
                if found is None or (value is not None and found != str(value)):
                    return False
        return True

    def _candidates(self) -> list:
        if self._scene is None:
            return []
        types = self.nodeTypes
        nodes = [self._scene.GetNthNode(n) for n in range(self._scene.GetNumberOfNodes())]
        return [n for n in nodes if any(n.IsA(t) for t in types)]

    def _concerned(self, node) -> bool:
        return any(node.IsA(t) for t in self.nodeTypes)

    def _on_scene_changed(self) -> None:
        if not hasattr(self, "_combo"):
            return
        row = next((n for n, node in enumerate(self._nodes) if node is self._current), 0)
        candidates = self._candidates() if self._scene is not None else []
        if self._scene is not None:
            self._watch(candidates)
        self._nodes = [node for node in candidates if self._accepts(node)]
        if self._current is not None and self._scene is not None:
            if not any(node is self._current for node in self._nodes):
                # As in Slicer, the row that moves up is chosen when the current node is removed.
                known = self._nodes if not self._scene.IsClosing() else []
                self._current = known[min(row, len(known) - 1)] if known else None
        if self._current is None and not self.noneEnabled and self._nodes:
            self._current = self._nodes[0]
        self._fill()
        self._announce()

    def _on_imported(self) -> None:
        self._current = None
        self._announce()

    def _fill(self) -> None:
        rows = [(self.noneDisplay, None)] if self.noneEnabled and self._scene is not None else []
        rows += [(node.GetName() or node.GetID(), node) for node in self._nodes]
        actions = self._action_texts() if self._scene is not None else []
        signature = ([(t, n and n.GetID()) for t, n in rows], actions)
        combo = self._combo
        if signature != getattr(self, "_filled", None):
            self._filled = signature
            combo.blockSignals(True)
            combo.clear()
            for text, node in rows:
                combo.addItem(text)
                combo.setItemData(combo.count - 1, node.GetID() if node else "", NODE_ROLE)
            self._fill_actions(actions)
            combo.blockSignals(False)
        self._show_current()

    def _fill_actions(self, actions: list[str]) -> None:
        combo = self._combo
        if actions and combo.count:
            combo.insertSeparator(combo.count)
        for text in actions:
            combo.addItem(text)
            combo.setItemData(combo.count - 1, text, ACTION_ROLE)

    def _show_current(self) -> None:
        id_ = self._current.GetID() if self._current is not None else ""
        index = self._combo.findData(id_, NODE_ROLE)
        self._combo.blockSignals(True)
        self._combo.setCurrentIndex(index)
        self._combo.blockSignals(False)
        self._combo.update()

    def _action_texts(self) -> list[str]:
        texts = []
        named = [(type_, self.nodeTypeLabel(type_)) for type_ in self.nodeTypes]
        if self.addEnabled:
            texts += [f"Create new {label}" for _, label in named]
        if self.renameEnabled and self._current is not None:
            texts.append("Rename current " + named[0][1] + "...")
        if self.editEnabled and self._current is not None:
            texts.append("Edit current " + named[0][1] + "...")
        if self.removeEnabled and self._current is not None:
            texts.append("Delete current " + named[0][1])
        return texts + [action.text for action in self._menu_actions]

    def nodeTypeLabel(self, nodeType: str) -> str:
        if nodeType in self._labels:
            return self._labels[nodeType]
        scene = self._scene
        tag = scene.GetTypeDisplayNameByClassName(nodeType) if scene is not None else ""
        return tag or nodeType

    def setNodeTypeLabel(self, label: str, nodeType: str) -> None:
        self._labels[nodeType] = label
        self._on_scene_changed()

    def addMenuAction(self, newAction) -> None:
        self._menu_actions.append(newAction)
        self._on_scene_changed()

    # Selection

    def currentNode(self):
        return self._current

    def setCurrentNode(self, node) -> None:
        if self._scene is None:
            self._requested = node
            return
        if isinstance(node, str):
            node = self._scene.GetNodeByID(node)
        if node is not None and not any(other is node for other in self._nodes):
            node = None
        self._current = node
        self._fill()
        self._announce()

    def _id(self) -> str:
        return self._current.GetID() if self._current is not None else ""

    def setCurrentNodeID(self, nodeID: str) -> None:
        self.setCurrentNode(self._scene.GetNodeByID(nodeID) if self._scene and nodeID else None)

    def setCurrentNodeIndex(self, index: int) -> None:
        self.setCurrentNode(self._nodes[index] if 0 <= index < len(self._nodes) else None)

    currentNodeID = property(lambda self: self._id(), setCurrentNodeID)
    currentNodeId = property(lambda self: self._id(), setCurrentNodeID)

    def nodeCount(self) -> int:
        return len(self._nodes)

    def nodeFromIndex(self, index: int):
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    def _announce(self) -> None:
        id_ = self._id()
        if id_ != self._emitted:
            self._emitted = id_
            self.currentNodeChanged.emit(self._current)
            self._currentNodeValid.emit(self._current is not None)
            self.currentNodeIDChanged.emit(id_)

    def _on_activated(self, index: int) -> None:
        action = self._combo.itemData(index, ACTION_ROLE)
        if action is None:
            id_ = self._combo.itemData(index, NODE_ROLE)
            self.setCurrentNode(self._scene.GetNodeByID(id_) if id_ else None)
            self.nodeActivated.emit(self._current)
            return
        self._show_current()
        for type_ in self.nodeTypes:
            if action == f"Create new {self.nodeTypeLabel(type_)}":
                node = self.addNode(type_)
                self.nodeAddedByUser.emit(node)
                self.nodeAddedByUserAction.emit(node)
                return
        if action.startswith("Delete current"):
            self.removeCurrentNode()
        elif action.startswith("Rename current"):
            self.renameCurrentNode()
        elif action.startswith("Edit current"):
            self.editCurrentNode()
        for extra in self._menu_actions:
            if extra.text == action:
                extra.trigger()

    def addNode(self, nodeType: str = ""):
        """Creates a node of the class (the first one of `nodeTypes`) and may select it."""
        if self._scene is None or not (nodeType or self.nodeTypes):
            return None
        node = self._scene.CreateNodeByClass(nodeType or self.nodeTypes[0])
        node.UnRegister(None)
        name = self.baseName or node.GetNodeTagName()
        node.SetName(self._scene.GenerateUniqueName(name))
        for type_, attribute_name, value in self._filters:
            if node.IsA(type_):
                node.SetAttribute(attribute_name, str(value or ""))
        node = self._scene.AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAdded.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        if self._current is not None:
            self.nodeAboutToBeRemoved.emit(self._current)
            self._scene.RemoveNode(self._current)

    def renameCurrentNode(self) -> None:
        from .dialogs import dialogs

        if self._current is not None:
            name = dialogs.ask("rename", "New name:", default=self._current.GetName())
            self._current.SetName(name)
            self.currentNodeRenamed.emit(name)

    def editCurrentNode(self) -> None:
        self.nodeAboutToBeEdited.emit(self._current)

    def sortFilterProxyModel(self):
        return self._combo.model()
