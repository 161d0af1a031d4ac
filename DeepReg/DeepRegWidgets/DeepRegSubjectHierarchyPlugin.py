"""The entry "Register this with DeepReg…" in the context menu of volumes in the Data module."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _
from SubjectHierarchyPlugins import AbstractScriptedSubjectHierarchyPlugin


class DeepRegSubjectHierarchyPlugin(AbstractScriptedSubjectHierarchyPlugin):
    """Opens DeepReg with the volume as the moving one, or as the fixed one.

    Slicer finds the class by the name of this file.
    """

    filePath = __file__

    def __init__(self, scriptedPlugin):
        scriptedPlugin.name = "DeepReg"
        AbstractScriptedSubjectHierarchyPlugin.__init__(self, scriptedPlugin)
        self.movingAction = qt.QAction(_("Register this with DeepReg..."), scriptedPlugin)
        self.movingAction.connect("triggered()", self.onRegister)
        self.fixedAction = qt.QAction(_("Register to this with DeepReg..."), scriptedPlugin)
        self.fixedAction.connect("triggered()", self.onRegisterTo)

    def canOwnSubjectHierarchyItem(self, itemID):
        """Owns nothing: it only adds entries to a menu."""
        return 0.0

    def canAddNodeToSubjectHierarchy(self, node, parentItemID):
        """Owns nothing: it only adds entries to a menu."""
        return 0.0

    def roleForPlugin(self):
        """Returns the name of a role that no item has."""
        return "N/A"

    def itemContextMenuActions(self):
        """Returns all entries that the plugin may show."""
        return [self.movingAction, self.fixedAction]

    def showContextMenuActionsForItem(self, itemID):
        """Shows the entries for scalar volumes that are no label maps."""
        volume = _volumeOf(itemID)
        for action in self.itemContextMenuActions():
            action.visible = volume is not None

    def onRegister(self):
        """Opens the panel with the current volume as the moving one."""
        self._open("movingVolume")

    def onRegisterTo(self):
        """Opens the panel with the current volume as the fixed one."""
        self._open("fixedVolume")

    def _open(self, name):
        handler = slicer.qSlicerSubjectHierarchyPluginHandler.instance()
        volume = _volumeOf(handler.currentItem())
        if volume is None:
            return
        slicer.util.selectModule("DeepReg")
        slicer.util.getModuleWidget("DeepReg").choose(name, volume)


def _volumeOf(itemID):
    if not itemID:
        return None
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    node = hierarchy.GetItemDataNode(itemID)
    isScalar = node is not None and node.GetClassName() == "vtkMRMLScalarVolumeNode"
    return node if isScalar else None
