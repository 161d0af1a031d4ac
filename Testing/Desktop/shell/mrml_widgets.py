"""Stand-ins for qMRMLWidget, qSlicerWidget, and the segment selector."""

from __future__ import annotations

from PySide6 import QtCore, QtWidgets

from .node_combo import qMRMLNodeComboBox
from .plain import attribute
from .scene_follower import SceneFollower
from .widgets_ctk import ctkDoubleSpinBox
from .widgets_values import ctkSliderWidget


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that hands the scene on to its children."""

    _cplusplus = True
    _signatures = {"mrmlSceneChanged": {"vtkMRMLScene*": ""}}
    mrmlSceneChanged = QtCore.Signal(object)
    _scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)

    def pixmapFromIcon(self, icon):
        return icon.pixmap(16, 16)

    def preInitializeApplication(self) -> None:
        """Needs nothing here."""

    def postInitializeApplication(self) -> None:
        """Needs nothing here."""


class qSlicerWidget(qMRMLWidget):
    _cplusplus = True


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The widget that holds the panel of a scripted module; ``self()`` is the Python object."""

    _cplusplus = True

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._python = None
        self._module = None
        self._entered = False

    isEntered = property(lambda self: self._entered)
    moduleName = property(lambda self: self._module.name)

    def module(self):
        return self._module

    def self(self):
        return self._python

    def reload(self) -> None:
        self._module.make_panel(self)

    def enter(self) -> None:
        self._entered = True
        if hasattr(self._python, "enter"):
            self._python.enter()

    def exit(self) -> None:
        self._entered = False
        if hasattr(self._python, "exit"):
            self._python.exit()


class qMRMLSliderWidget(ctkSliderWidget):
    _cplusplus = True


class qMRMLSpinBox(ctkDoubleSpinBox):
    _cplusplus = True


class qMRMLSegmentSelectorWidget(qMRMLWidget, SceneFollower):
    """Two combo boxes: a segmentation and one of its segments."""

    _cplusplus = True
    _signatures = {
        "mrmlSceneChanged": {"vtkMRMLScene*": ""},
        "currentNodeChanged": {"vtkMRMLNode*": "", "bool": "_currentNodeValid"},
        "currentSegmentChanged": {"QString": ""},
        "segmentSelectionChanged": {"QStringList": ""},
        "nodeAboutToBeEdited": {"vtkMRMLNode*": ""},
    }
    currentNodeChanged = QtCore.Signal(object)
    _currentNodeValid = QtCore.Signal(bool)
    currentSegmentChanged = QtCore.Signal(str)
    segmentSelectionChanged = QtCore.Signal(list)
    nodeAboutToBeEdited = QtCore.Signal(object)

    noneEnabled = attribute("noneEnabled", False, bool, "_on_none_enabled")
    editEnabled = attribute("editEnabled", False, bool)
    multiSelection = attribute("multiSelection", False, bool)
    horizontalLayout = attribute("horizontalLayout", False, bool, "_arrange")
    segmentationNodeSelectorVisible = attribute(
        "segmentationNodeSelectorVisible", True, bool, "_show_parts"
    )
    selectNodeUponCreation = attribute("selectNodeUponCreation", True, bool)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._segment = ""
        self._selected: list[str] = []
        self._node_box = qMRMLNodeComboBox(self)
        self._node_box.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._node_box.addEnabled = self._node_box.removeEnabled = False
        self._segment_box = QtWidgets.QComboBox(self)
        box = QtWidgets.QBoxLayout(QtWidgets.QBoxLayout.TopToBottom, self)
        box.setContentsMargins(0, 0, 0, 0)
        box.addWidget(self._node_box)
        box.addWidget(self._segment_box)
        self._box = box
        self._node_box.currentNodeChanged.connect(self._on_node)
        self._segment_box.activated.connect(self._on_activated)
        self._fill()

    def setMRMLScene(self, scene) -> None:
        super().setMRMLScene(scene)
        self._node_box.setMRMLScene(scene)

    def _arrange(self) -> None:
        boxes = QtWidgets.QBoxLayout
        self._box.setDirection(boxes.LeftToRight if self.horizontalLayout else boxes.TopToBottom)

    def _show_parts(self) -> None:
        self._node_box.setVisible(self.segmentationNodeSelectorVisible)

    def _on_none_enabled(self) -> None:
        self._node_box.noneEnabled = self.noneEnabled
        self._fill()

    def _on_node(self, node) -> None:
        self._watch_segments(node)
        self._fill()
        self.currentNodeChanged.emit(node)
        self._currentNodeValid.emit(node is not None)

    def _watch_segments(self, node) -> None:
        for object_, tag in getattr(self, "_segment_tags", []):
            object_.RemoveObserver(tag)
        self._segment_tags = []
        segmentation = node.GetSegmentation() if node is not None else None
        if segmentation is not None:
            for event in (
                segmentation.SegmentAdded,
                segmentation.SegmentRemoved,
                segmentation.SegmentModified,
                segmentation.SegmentsOrderModified,
            ):
                tag = segmentation.AddObserver(event, lambda *_: self._fill())
                self._segment_tags.append((segmentation, tag))

    def _fill(self) -> None:
        box, node = self._segment_box, self.currentNode()
        box.blockSignals(True)
        box.clear()
        if self.noneEnabled:
            box.addItem("None", "")
        for id_ in self.segmentIDs():
            box.addItem(node.GetSegmentation().GetSegment(id_).GetName(), id_)
        box.setEnabled(node is not None)
        index = box.findData(self._segment)
        if index < 0:
            index = 0 if box.count else -1
        box.setCurrentIndex(index)
        box.blockSignals(False)
        self._announce(box.itemData(index) or "" if index >= 0 else "")

    def _announce(self, segment: str) -> None:
        if segment != self._segment:
            self._segment = segment
            self.currentSegmentChanged.emit(segment)

    def _on_activated(self, index: int) -> None:
        self._announce(self._segment_box.itemData(index) or "")

    def currentNode(self):
        return self._node_box.currentNode()

    def currentNodeID(self) -> str:
        return self._node_box.currentNodeID

    def setCurrentNode(self, node) -> None:
        self._node_box.setCurrentNode(node)

    def setCurrentNodeID(self, nodeID: str) -> None:
        self._node_box.setCurrentNodeID(nodeID)

    def segmentIDs(self) -> list[str]:
        node = self.currentNode()
        return list(node.GetSegmentation().GetSegmentIDs()) if node is not None else []

    def currentSegmentID(self) -> str:
        return self._segment

    def setCurrentSegmentID(self, segmentID: str) -> None:
        index = self._segment_box.findData(segmentID or "")
        self._segment_box.setCurrentIndex(index)
        self._announce(segmentID if index >= 0 else "")

    def selectedSegmentIDs(self) -> list[str]:
        if self.multiSelection:
            return [id_ for id_ in self._selected if id_ in self.segmentIDs()]
        return [self._segment] if self._segment else []

    def setSelectedSegmentIDs(self, segmentIDList) -> None:
        self._selected = list(segmentIDList)
        self.segmentSelectionChanged.emit(self._selected)
