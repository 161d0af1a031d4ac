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
        from DeepRegWidgets.Panel import buildParts, prepareSelectors

        panel = slicer.util.loadUI(self.resourcePath("UI/DeepReg.ui"))
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


class DeepRegLogic(ScriptedLoadableModuleLogic):
    """Registers nodes, from the panel or the Python console; needs no panel.

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
        self._runs = []

    def getParameterNode(self):
        """Returns the parameter set in use, or makes the first one."""
        return DeepRegParameterNode(ScriptedLoadableModuleLogic.getParameterNode(self))

    def algorithms(self):
        """Returns what is known of all algorithms (`DeepRegLib.spec.AlgorithmSpec`), by key."""
        from DeepRegLib import registry

        return registry.specs()

    def register(
        self, fixedNode, movingNode, algorithm="greedy", *, preset="balanced", settings=None,
        device="auto", fixedMask=None, fixedSegment="", movingMask=None, movingSegment="",
        fixedPoints=None, movingPoints=None, fixedLabels=None, movingLabels=None,
        initialTransform=None, startFromScene=True, followLandmarks=False,
        interpolation="auto", fillValue=None, gridSpacing=0.0, maps=(),
        outputVolume=None, outputTransform=None, outputInverse=None,
        wantVolume=True, wantInverse=False, companions=(), hardenCompanions=False,
        applyToMoving=False, wait=True, onEvent=None, onDone=None, onError=None,
    ):  # fmt: skip
        """Registers two volumes.

        Args:
            fixedNode: Volume that stays where it is.
            movingNode: Volume that is brought onto it.
            algorithm: Key, or keys joined by ``+``; a deformable algorithm alone runs its linear
                stages first. See `algorithms`.
            preset: ``fast``, ``balanced`` or ``accurate``.
            settings: Values by parameter name, or ``algorithm.parameter``.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            fixedMask: Label map or segmentation where the fixed image counts.
            fixedSegment: Id or name of one segment of it.
            movingMask: The same for the moving image.
            movingSegment: The same for the moving image.
            fixedPoints: Point list on the fixed image.
            movingPoints: The same points on the moving image, in the same order.
            fixedLabels: Structures on the fixed image, to measure their overlap (Dice).
            movingLabels: The same structures on the moving image.
            initialTransform: Transform of any kind to start from.
            startFromScene: Start where both volumes lie on screen.
            followLandmarks: Bend the start so that the landmark pairs agree.
            interpolation: ``auto``, ``linear`` or ``nearest``.
            fillValue: Value where the moving image has no voxel.
            gridSpacing: Spacing in mm of the deformation in the transform; 0: the fixed image's.
            maps: Maps to add: ``jacobian``.
            outputVolume: Volume to overwrite with the moved one; a new one if None.
            outputTransform: Transform to overwrite; a new one if None.
            outputInverse: Transform to overwrite with the inverse; a new one if None.
            wantVolume: Whether to add the moved volume.
            wantInverse: Whether to add the inverse.
            companions: Nodes that go along with the moving volume.
            hardenCompanions: Copy and harden them instead of putting them under the transform.
            applyToMoving: Put the moving volume itself under the transform.
            wait: Return when it is done; otherwise at once, with the run.
            onEvent: Called with each `DeepRegLib.job.JobEvent`.
            onDone: Called with the `DeepRegLib.bridge.outcome.Outcome`.
            onError: Called with the exception.

        Returns:
            The `Outcome` (`transform`, `moved`, `inverse`, `maps`, `quality`, …) or, without
            waiting, a `RegistrationRun` with `cancel()`, `stopAndKeep()`, `finished`, `outcome`.

        Raises:
            ValueError: If a node or a setting does not fit; the scene is as it was.
            DeepRegLib.errors.DeepRegError: If the run failed; the scene is as it was.
        """
        from DeepRegLib.bridge.outcome import Wanted
        from DeepRegLib.bridge.request import RegistrationRequest

        for node, name in ((fixedNode, _("fixed")), (movingNode, _("moving"))):
            _checkVolume(node, name)
        request = RegistrationRequest(
            fixedNode, movingNode, algorithm, preset, settings or {}, device,
            fixedMask, fixedSegment, movingMask, movingSegment, fixedPoints, movingPoints,
            fixedLabels, movingLabels, initialTransform, startFromScene, followLandmarks,
            interpolation, fillValue, gridSpacing, tuple(maps),
        )  # fmt: skip
        wanted = Wanted(wantVolume, wantInverse, True, outputVolume, outputTransform, outputInverse)
        run = self.startRun(
            request, wanted, companions, hardenCompanions, applyToMoving, byTimer=not wait,
            onEvent=onEvent, onDone=onDone, onError=onError,
        )  # fmt: skip
        return run.wait() if wait else run

    def startRun(self, request, wanted, companions=(), harden=False, applyToMoving=False,
                 byTimer=True, **callbacks):  # fmt: skip
        """Starts a run and returns it; see `DeepRegWidgets.RegistrationRun`."""
        from DeepRegWidgets.RegistrationRun import RegistrationRun
        from DeepRegWidgets.Worker import sharedWorker

        run = RegistrationRun(
            sharedWorker(), request, wanted, companions, harden, applyToMoving, **callbacks
        )
        run.start(byTimer)
        self._runs = [r for r in self._runs if not r.finished] + [run]
        return run

    def train(self, volumes=(), algorithm="vxm", *, data="", wait=True, onEvent=None, onDone=None,
              onError=None, **options):  # fmt: skip
        """Trains a model of a system that learns, which `register` then finds by itself.

        Args:
            volumes: Volumes to learn from, two at least; a pair (volume, segmentation or label
                map) where the structures are known.
            algorithm: Key; see `algorithms` for those that need a training.
            data: In place of volumes: folder of images, CSV table, or BIDS data set.
            wait: Return when it is done; otherwise at once, with the run.
            onEvent: Called with each `DeepRegLib.job.JobEvent`.
            onDone: Called with what is returned.
            onError: Called with the exception.
            **options: Options of `DeepRegLib.training.options.TrainingOptions`, such as ``name``,
                ``spacing``, ``settings={"steps": 1000}``, ``parameters={...}``.

        Returns:
            A dictionary (``model``, ``path``, ``card``, ``figures``, ``history`` …) or, without
            waiting, a `TrainingRun`.

        Raises:
            DeepRegLib.errors.DeepRegError: If the training failed; the scene is as it was.
        """
        from DeepRegLib.bridge.training import TrainingRequest

        pairs = [v if isinstance(v, (tuple, list)) else (v, None) for v in volumes]
        for node, _labels in pairs:
            _checkVolume(node, _("training"))
        request = TrainingRequest(algorithm, pairs, str(data), options)
        run = self.startTraining(
            request, byTimer=not wait, onEvent=onEvent, onDone=onDone, onError=onError
        )
        return run.wait() if wait else run

    def startTraining(self, request, byTimer=True, **callbacks):
        """Starts a training and returns it; see `DeepRegWidgets.TrainingRun`."""
        from DeepRegWidgets.TrainingRun import TrainingRun
        from DeepRegWidgets.Worker import sharedWorker

        run = TrainingRun(sharedWorker(), request, **callbacks)
        run.start(byTimer)
        self._runs = [r for r in self._runs if not r.finished] + [run]
        return run

    def workerLog(self):
        """Returns the last lines that the worker process wrote."""
        from DeepRegWidgets.Worker import workerLog

        return workerLog()

    def workerIsWarm(self):
        """Tells whether the worker process runs already and need not start."""
        from DeepRegWidgets.Worker import isWarm

        return isWarm()

    def close(self):
        """Cancels what runs and ends the worker process."""
        from DeepRegWidgets.Worker import closeWorker

        for run in self._runs:
            run.cancel()
        self._runs = []
        closeWorker()


def _checkVolume(node, name):
    """Refuses what is no scalar volume.

    Raises:
        ValueError: With a sentence that says what came.
    """
    if node is None:
        raise ValueError(_("The {name} volume is missing.").format(name=name))
    if not hasattr(node, "IsA") or not node.IsA("vtkMRMLScalarVolumeNode"):
        what = node.GetClassName() if hasattr(node, "GetClassName") else type(node).__name__
        text = _("The {name} volume must be a scalar volume node, but is a {what}.")
        raise ValueError(text.format(name=name, what=what))


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
