"""A small scripted module, made as Slicer's template is, for the tests of the stand-in."""

import enum
from pathlib import Path
from typing import Annotated, Optional

import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Default, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class Mode(enum.Enum):
    FAST = 1
    GOOD = 2

    def label(self):
        return {Mode.FAST: "Fast", Mode.GOOD: "Thorough"}[self]


@parameterNodeWrapper
class TinyModuleParameterNode:
    fixedVolume: vtkMRMLScalarVolumeNode
    movingVolume: Optional[vtkMRMLScalarVolumeNode] = None
    opacity: Annotated[float, WithinRange(0, 1)] = 0.5
    mode: Mode = Mode.GOOD
    preview: bool = True
    steps: Annotated[int, WithinRange(1, 500), Default(50)]
    outputName: str = "moved"
    modelPath: Path = Path("model.safetensors")
    weights: list[float]
    options: dict[str, str]


class TinyModule(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        self.parent.title = _("Tiny module")
        self.parent.categories = ["Testing"]
        slicer.app.connect("startupCompleted()", self.onStartup)
        self.started = 0

    def onStartup(self):
        self.started += 1


class TinyModuleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._tag = None

    def setup(self):
        super().setup()
        widget = slicer.util.loadUI(self.resourcePath("UI/TinyModule.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = TinyModuleLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onStartClose)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.applied = []
        self.enter()

    def enter(self):
        if self._parameterNode is None:
            self._parameterNode = self.logic.getParameterNode()
            self._tag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.check)
            self.check()

    def exit(self):
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._tag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.check)
            self._parameterNode = None

    def cleanup(self):
        self.exit()
        self.removeObservers()

    def onStartClose(self, caller, event):
        self.exit()

    def check(self, caller=None, event=None):
        self.ui.applyButton.enabled = self._parameterNode.fixedVolume is not None

    def onApply(self):
        self.applied.append(self._parameterNode.fixedVolume.GetName())


class TinyModuleLogic(ScriptedLoadableModuleLogic):
    def getParameterNode(self):
        return TinyModuleParameterNode(super().getParameterNode())


class TinyModuleTest(ScriptedLoadableModuleTest):
    def test_something(self):
        self.assertIsNotNone(slicer.mrmlScene)
