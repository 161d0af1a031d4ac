"""DeepReg: image registration with PyTorch, a scripted module of 3D Slicer.

The panel and its logic. Registrations run in a process of their own (`PythonSlicer -m DeepRegLib
worker`); torch is never imported here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

_HERE = Path(__file__).resolve().parent
# Installed, DeepRegLib lies beside this file; in a source tree, beside this folder.
if (_HERE.parent / "DeepRegLib").is_dir() and str(_HERE.parent) not in sys.path:
    sys.path.append(str(_HERE.parent))

from DeepRegWidgets.ConsoleCalls import ConsoleCalls  # noqa: E402
from DeepRegWidgets.Parameters import (  # noqa: E402
    NODE_PARAMETERS,
    SHOWN_ATTRIBUTE,
    DeepRegParameterNode,
    isUntouched,
)

MODULE_NAME = "DeepReg"


class DeepReg(ScriptedLoadableModule):
    """What Slicer's module list says of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("DeepReg")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["The DeepReg developers"]
        self.parent.helpText = _(
            "Brings a moving volume onto a fixed one: rigidly, affinely or with a smooth, "
            "invertible deformation, on the graphics card or the processor, without any training. "
            "Choose two volumes and press Register. Every result comes with a quality card that "
            "says how far it can be trusted. Sample data is in the module Sample Data."
        )
        self.parent.helpText += '<p><a href="{address}">{text}</a></p>'.format(
            address="https://github.com/DeepReg/SlicerDeepReg#readme", text=_("Documentation")
        )
        self.parent.acknowledgementText = _(
            "Each algorithm names its publication in the panel. Not related to the DeepReg toolkit "
            "of DeepRegNet. Not a medical device."
        )
        slicer.app.connect("startupCompleted()", _onStartupCompleted)


def _onStartupCompleted():
    from DeepRegWidgets.ContextMenu import registerContextMenu
    from DeepRegWidgets.SampleDatasets import registerSampleData

    registerSampleData()
    registerContextMenu()


class DeepRegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: loads the `.ui` and hands its sections to their parts."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._guiTag = None
        self._parts = []
        self.parts = None

    def setup(self):
        """Builds the panel; installs, downloads and computes nothing."""
        ScriptedLoadableModuleWidget.setup(self)
        from DeepRegWidgets.Panel import addTools, buildParts, prepareSelectors

        panel = slicer.util.loadUI(self.resourcePath("UI/DeepReg.ui"))
        addTools(panel, self.resourcePath)
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = DeepRegLogic()
        self.parts = buildParts(self.ui, self.logic)
        self._parts = self.parts.all()
        prepareSelectors(self.ui)
        scene = slicer.mrmlScene
        for event, slot in (
            (scene.StartCloseEvent, self.onSceneStartClose),
            (scene.EndCloseEvent, self.onSceneEndClose),
            (scene.StartImportEvent, self.onSceneStartImport),
            (scene.EndImportEvent, self.onSceneEndImport),
            (scene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved),
            (scene.NodeRemovedEvent, self.onNodeRemoved),
        ):
            self.addObserver(scene, event, slot)
        self.ui.parameterSetSelector.connect(
            "currentNodeChanged(vtkMRMLNode*)", self.onParameterSet
        )
        self.initializeParameterNode()

    def cleanup(self):
        """Called when the module or the application ends."""
        self.setParameterNode(None)
        if self.parts is not None:
            # The old widgets live on for a while after a reload.
            self.ui.parameterSetSelector.disconnect(
                "currentNodeChanged(vtkMRMLNode*)", self.onParameterSet
            )
            self.parts.close()
        if self.logic is not None:
            self.logic.close()
        self.removeObservers()

    def enter(self):
        """Called each time the user opens the module."""
        self.initializeParameterNode()
        self._onParametersModified()
        self.parts.results.restoreComparison()

    def exit(self):
        """Called each time the user opens another module; a run goes on."""
        if self.parts is not None:
            self.parts.results.stopFlicker()

    def choose(self, name, node):
        """Chooses a node for a parameter such as ``movingVolume``; for other modules and menus."""
        other = {"movingVolume": "fixedVolume", "fixedVolume": "movingVolume"}.get(name)
        with slicer.util.NodeModify(self._parameterNode.parameterNode):
            if other is not None and getattr(self._parameterNode, other) is node:
                setattr(self._parameterNode, other, None)
            setattr(self._parameterNode, name, node)

    def onReload(self):
        """Loads the module anew, with all its parts and the library."""
        # Now, as the worker's module is among those that are loaded anew.
        self.logic.close()
        for name in [n for n in sys.modules if n.split(".")[0] in ("DeepRegWidgets", "DeepRegLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, caller, event):
        """Lets go of the nodes before they vanish."""
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        """Begins anew in the empty scene."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneStartImport(self, caller, event):
        """Lets go of the selectors: they are filled anew, and would forget what they showed."""
        if self._parameterNode is not None and self._guiTag is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self._guiTag = None
        self.parts.outputs.hold(True)

    def onSceneEndImport(self, caller, event):
        """Shows the choices and the result of a scene that was loaded."""
        if self._parameterNode is not None and self._guiTag is None:
            self._guiTag = self._parameterNode.connectGui(self.ui)
            self.ui.parameterSetSelector.setCurrentNode(self._parameterNode.parameterNode)
        self.parts.outputs.hold(False)
        self._adoptLoadedSet()
        if self.parent.isEntered:
            self.initializeParameterNode()
            self.parts.results.restoreView()

    def _adoptLoadedSet(self):
        """Shows the parameter set of a loaded scene instead of one without any choice yet."""
        shown = self._parameterNode
        loaded = [
            node
            for node in self.logic.getAllParameterNodes()
            if shown is None or node is not shown.parameterNode
        ]
        if not loaded or not (shown is None or isUntouched(shown)):
            return
        loaded.sort(key=lambda node: node.GetAttribute(SHOWN_ATTRIBUTE) != "1")
        self.setParameterNode(DeepRegParameterNode(loaded[0]))
        if shown is not None:
            slicer.mrmlScene.RemoveNode(shown.parameterNode)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node):
        """Forgets a node before its selector jumps to another one."""
        if self._parameterNode is None or slicer.mrmlScene.IsClosing():
            return
        with slicer.util.NodeModify(self._parameterNode.parameterNode):
            for name in NODE_PARAMETERS:
                if getattr(self._parameterNode, name) is node:
                    setattr(self._parameterNode, name, None)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeRemoved(self, caller, event, node):
        """Checks the inputs again; begins anew if the parameter node itself was removed."""
        if self._parameterNode is None:
            return
        if node is self._parameterNode.parameterNode:
            self.setParameterNode(None)
            if not slicer.mrmlScene.IsClosing():
                self.initializeParameterNode()
            return
        self.parts.run.update()

    def onParameterSet(self, node):
        """Shows another parameter set."""
        if node is not None and (
            self._parameterNode is None or node is not self._parameterNode.parameterNode
        ):
            node.SetAttribute("ModuleName", MODULE_NAME)
            self.setParameterNode(DeepRegParameterNode(node))

    def initializeParameterNode(self):
        """Makes sure that there is a parameter node, and that it is shown."""
        from DeepRegWidgets.InputsPart import preselect

        node = None if self._parameterNode is None else self._parameterNode.parameterNode
        if node is None or node.GetScene() is not slicer.mrmlScene:
            self.setParameterNode(self.logic.getParameterNode())
        preselect(self._parameterNode)

    def setParameterNode(self, parameterNode):
        """Shows and observes a parameter node; None shows nothing."""
        if self._parameterNode is not None:
            if self._guiTag is not None:
                self._parameterNode.disconnectGui(self._guiTag)
                self._guiTag = None
            self.removeObserver(
                self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified
            )
        if self._parameterNode is not None:
            self._parameterNode.parameterNode.RemoveAttribute(SHOWN_ATTRIBUTE)
        self._parameterNode = parameterNode
        if parameterNode is not None:
            parameterNode.parameterNode.SetAttribute(SHOWN_ATTRIBUTE, "1")
            self._guiTag = parameterNode.connectGui(self.ui)
            self.addObserver(
                parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified
            )
            self.ui.parameterSetSelector.setCurrentNode(parameterNode.parameterNode)
        for part in self._parts:
            part.setParameterNode(parameterNode)

    def _onParametersModified(self, caller=None, event=None):
        for part in self._parts:
            part.update()


class DeepRegLogic(ScriptedLoadableModuleLogic, ConsoleCalls):
    """Registers nodes, trains and checks, from the panel or the Python console; needs no panel.

    Example (Python console)::

        import DeepReg
        result = DeepReg.DeepRegLogic().register(fixedNode, movingNode, algorithm="greedy")
        print(result.quality["sentence"])
    """

    def __init__(self, parent=None):
        ScriptedLoadableModuleLogic.__init__(self, parent)
        # Outside of its own file's module, the name of the parameter nodes would be another.
        self.moduleName = MODULE_NAME
        self.isSingletonParameterNode = False

    def getParameterNode(self):
        """Returns the parameter set in use, or makes the first one."""
        return DeepRegParameterNode(ScriptedLoadableModuleLogic.getParameterNode(self))

    def algorithms(self):
        """Returns what is known of all algorithms (`DeepRegLib.spec.AlgorithmSpec`), by key."""
        from DeepRegLib import registry

        return registry.specs()


class DeepRegTest(ScriptedLoadableModuleTest):
    """Self test: registers the sample pair and checks that it is better aligned."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def test_AlgorithmsAreListed(self):
        """The registry is read without torch."""
        algorithms = DeepRegLogic().algorithms()
        self.assertIn("rigid", algorithms)
        self.assertIn("greedy", algorithms)

    def test_SamplePairIsAligned(self):
        """A rigid run brings the two brains onto each other."""
        from DeepRegWidgets.SampleDatasets import loadSamplePair

        fixed, moving = loadSamplePair()
        self.delayDisplay("Registering the sample pair")
        result = DeepRegLogic().register(fixed, moving, algorithm="rigid", preset="fast")
        self.assertGreater(result.quality["ncc_after"], result.quality["ncc_before"])
        self.assertGreater(result.quality["ncc_after"], 0.5)
        self.assertIsNotNone(result.moved.GetImageData())
        self.assertEqual(
            result.moved.GetImageData().GetDimensions(), fixed.GetImageData().GetDimensions()
        )
        self.delayDisplay("The self test has passed")
