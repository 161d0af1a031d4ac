"""Subject-hierarchy plugins written in Python: registered, and asked for their actions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import slicer
import vtk
from PySide6 import QtCore, QtGui


class qSlicerSubjectHierarchyAbstractPlugin(QtCore.QObject):
    """What every plugin answers unless it knows better."""

    _owned = ""

    def __init__(self, parent=None) -> None:
        super().__init__()
        self._plugin_name = ""

    def canOwnSubjectHierarchyItem(self, itemID) -> float:
        node = qSlicerSubjectHierarchyPluginHandler.instance().subjectHierarchyNode()
        data = node.GetItemDataNode(itemID) if node is not None else None
        return 0.5 if data is not None and self._owned and data.IsA(self._owned) else 0.0

    def roleForPlugin(self) -> str:
        return "N/A"

    def helpText(self) -> str:
        return ""

    def icon(self, itemID):
        return QtGui.QIcon()

    def visibilityIcon(self, visible):
        return QtGui.QIcon()

    def tooltip(self, itemID) -> str:
        return ""

    def editProperties(self, itemID) -> None:
        """Opens nothing."""

    def itemContextMenuActions(self) -> list:
        return []

    def sceneContextMenuActions(self) -> list:
        return []

    def viewContextMenuActions(self) -> list:
        return []

    def showContextMenuActionsForItem(self, itemID) -> None:
        """Shows nothing."""

    def setDisplayVisibility(self, itemID, visible) -> None:
        node = qSlicerSubjectHierarchyPluginHandler.instance().subjectHierarchyNode()
        node.SetItemDisplayVisibility(itemID, visible)

    def getDisplayVisibility(self, itemID) -> int:
        node = qSlicerSubjectHierarchyPluginHandler.instance().subjectHierarchyNode()
        return node.GetItemDisplayVisibility(itemID)

    def switchToModule(self, name: str):
        slicer.util.selectModule(name)
        return slicer.util.getModule(name).widgetRepresentation()

    def hideAllContextMenuActions(self) -> None:
        for action in self.itemContextMenuActions() + self.sceneContextMenuActions():
            action.visible = False


class qSlicerSubjectHierarchyScriptedPlugin(qSlicerSubjectHierarchyAbstractPlugin):
    """A plugin whose methods are those of a Python class in a file."""

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self.name = "UnnamedScriptedPlugin"
        self._python = None
        self._path = ""

    def setPythonSource(self, filePath: str) -> bool:
        path = Path(filePath)
        if path.suffix not in (".py", ".pyc"):
            return False
        ending = "SubjectHierarchyPlugin"
        name = path.stem if path.stem.endswith(ending) else path.stem + ending
        spec = importlib.util.spec_from_file_location(path.stem, path)
        source = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(source)
        self._path = str(path)
        python = getattr(source, name)(self)
        self._python = python
        setattr(slicer, name, python)
        return True

    def pythonSource(self) -> str:
        return self._path

    def self(self):
        return self._python


def _delegate(name: str):
    default = getattr(qSlicerSubjectHierarchyAbstractPlugin, name)

    def method(self, *arguments):
        own = getattr(self._python, name, None)
        return own(*arguments) if own is not None else default(self, *arguments)

    return method


for _name in (
    "canOwnSubjectHierarchyItem",
    "roleForPlugin",
    "helpText",
    "icon",
    "visibilityIcon",
    "tooltip",
    "editProperties",
    "itemContextMenuActions",
    "sceneContextMenuActions",
    "viewContextMenuActions",
    "showContextMenuActionsForItem",
    "setDisplayVisibility",
    "getDisplayVisibility",
):
    setattr(qSlicerSubjectHierarchyScriptedPlugin, _name, _delegate(_name))

_CORE = {
    "Default": "",
    "Volumes": "vtkMRMLScalarVolumeNode",
    "LabelMaps": "vtkMRMLLabelMapVolumeNode",
    "Segmentations": "vtkMRMLSegmentationNode",
    "Markups": "vtkMRMLMarkupsNode",
    "Transforms": "vtkMRMLTransformNode",
    "Models": "vtkMRMLModelNode",
    "Folder": "",
}


class qSlicerSubjectHierarchyPluginHandler(QtCore.QObject):
    """The one object that knows the plugins and the selected items."""

    _instance = None

    def __init__(self) -> None:
        super().__init__()
        self._plugins: list = []
        self._items: list[int] = []
        for name, owned in _CORE.items():
            plugin = qSlicerSubjectHierarchyAbstractPlugin()
            plugin.name, plugin._owned = name, owned
            self._plugins.append(plugin)

    @staticmethod
    def instance():
        cls = qSlicerSubjectHierarchyPluginHandler
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def mrmlScene(self):
        return slicer.mrmlScene

    def subjectHierarchyNode(self):
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)

    def registerPlugin(self, plugin) -> bool:
        if any(known.name == plugin.name for known in self._plugins):
            return False
        self._plugins.append(plugin)
        return True

    def registeredPlugins(self) -> list:
        return list(self._plugins)

    allPlugins = registeredPlugins

    def pluginByName(self, name: str):
        return next((plugin for plugin in self._plugins if plugin.name == name), None)

    def defaultPlugin(self):
        return self.pluginByName("Default")

    def setCurrentItem(self, itemID: int) -> None:
        self._items = [itemID]

    def setCurrentItems(self, items) -> None:
        self._items = list(items)

    def currentItem(self) -> int:
        return self._items[0] if len(self._items) == 1 else 0

    def currentItems(self, selected=None):
        if selected is None:
            return list(self._items)
        for item in self._items:
            selected.InsertNextId(item)
        return None

    def getOwnerPluginForSubjectHierarchyItem(self, itemID):
        plugins = self._plugins
        return max(plugins, key=lambda plugin: plugin.canOwnSubjectHierarchyItem(itemID))

    def _actions_of(self, itemID: int) -> list:
        """The context menu of an item, as a right click in the Data module makes it."""
        self.setCurrentItem(itemID)
        actions = []
        for plugin in self._plugins:
            plugin.hideAllContextMenuActions()
            plugin.showContextMenuActionsForItem(itemID)
            actions += [a for a in plugin.itemContextMenuActions() if a.visible]
        return actions


_SHOWN = (
    "vtkMRMLVolumeNode",
    "vtkMRMLSegmentationNode",
    "vtkMRMLMarkupsNode",
    "vtkMRMLTransformNode",
    "vtkMRMLModelNode",
    "vtkMRMLTableNode",
    "vtkMRMLTextNode",
    "vtkMRMLPlotChartNode",
)


class SceneItems:
    """Gives each node of the usual kinds an item in the hierarchy, and takes it away again."""

    def __init__(self, scene) -> None:
        self._scene = scene
        scene.AddObserver(scene.NodeAddedEvent, self._on_added)
        scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._on_removed)
        scene.AddObserver(scene.EndImportEvent, self._on_imported)

    def _node(self):
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_added(self, caller, event, node) -> None:
        if not (self._scene.IsImporting() or self._scene.IsRestoring()):
            self._add(node)

    def _add(self, node) -> None:
        if node.GetHideFromEditors() or not any(node.IsA(kind) for kind in _SHOWN):
            return
        hierarchy = self._node()
        if hierarchy is not None and not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_removed(self, caller, event, node) -> None:
        if self._scene.IsClosing() or not any(node.IsA(kind) for kind in _SHOWN):
            return
        hierarchy = self._node()
        item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
        if item:
            hierarchy.RemoveItem(item, False, False)

    def _on_imported(self, caller, event) -> None:
        for number in range(self._scene.GetNumberOfNodes()):
            self._add(self._scene.GetNthNode(number))


class AbstractScriptedSubjectHierarchyPlugin:
    """Base of the Python classes; registers its plugin."""

    def __init__(self, scriptedPlugin) -> None:
        self.scriptedPlugin = scriptedPlugin
        self.register()

    def register(self) -> None:
        handler = slicer.qSlicerSubjectHierarchyPluginHandler.instance()
        handler.registerPlugin(self.scriptedPlugin)
