"""Puts the panel together from its parts."""

from __future__ import annotations

from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from DeepRegLib import registry

from .AlgorithmPart import AlgorithmPart
from .CheckTool import CheckTool
from .DiagnosisPart import DiagnosisPart
from .InputsPart import InputsPart
from .InputWatch import InputWatch, ToolWatch
from .LandmarkWatch import LandmarkWatch
from .ModelPart import ModelPart
from .OutputsPart import OutputsPart
from .PopulationTool import PopulationTool
from .ResultsPart import ResultsPart
from .RunPart import RunPart
from .TrainingPart import TrainingPart
from .TransportTool import TransportTool

MODULE_NAME = "DeepReg"
#: The tools, in the order of the section Tools.
TOOLS = (CheckTool, TransportTool, PopulationTool)


@dataclass
class Parts:
    """The sections of the panel, and what lies between them."""

    inputs: InputsPart
    algorithm: AlgorithmPart
    outputs: OutputsPart
    run: RunPart
    results: ResultsPart
    diagnosis: DiagnosisPart
    landmarks: LandmarkWatch
    nodes: InputWatch
    model: ModelPart
    training: TrainingPart
    check: CheckTool
    transport: TransportTool
    population: PopulationTool
    toolNodes: ToolWatch

    def all(self) -> list:
        """Returns the parts that follow the parameter node."""
        return [
            self.inputs, self.algorithm, self.model, self.outputs, self.run, self.results,
            self.landmarks, self.nodes, self.training, *self.tools(), self.toolNodes,
        ]  # fmt: skip

    def tools(self) -> list:
        """Returns the tools of the section Tools."""
        return [self.check, self.transport, self.population]

    def close(self) -> None:
        """Ends what goes on by itself: runs, timers, observers."""
        self.landmarks.setParameterNode(None)
        self.nodes.setParameterNode(None)
        self.run.close()
        self.model.close()
        self.training.close()
        self.toolNodes.close()
        for tool in self.tools():
            tool.close()
        self.results.close()
        self.diagnosis.close()


def addTools(panel, resourcePath) -> None:
    """Puts the forms of the tools into their section.

    Args:
        panel: The panel, as its `.ui` file has it.
        resourcePath: Function that returns the path of a file in the module's resources.
    """
    layout = slicer.util.childWidgetVariables(panel).toolsButton.layout()
    for tool in TOOLS:
        layout.addWidget(slicer.util.loadUI(resourcePath(f"UI/{tool.FORM}.ui")))


def buildParts(ui, logic) -> Parts:
    """Ties the widgets of the panel together."""
    inputs, outputs, results = InputsPart(ui), OutputsPart(ui), ResultsPart(ui)
    algorithm = AlgorithmPart(ui, lambda: run.update())

    def onOutcome(outcome, request, startLinear):
        results.takeOutcome(outcome, request, startLinear)
        landmarks.remember()

    def problems():
        return [*algorithm.form.problems(), *model.problems()]

    def occupied():
        """Tells what keeps the one worker from doing something else."""
        runs = ((run, _("A registration is running")), (training, _("A training is running")),
                (check, _("A check is running")),
                (transport, _("A deformation is being carried over")),
                (population, _("A population is being examined")))  # fmt: skip
        return next((text for part, text in runs if part.running), "")

    def onBusy():
        run.update()
        training.check()
        updateTools()  # What ran may have changed what was checked, and added transforms.

    def updateTools():
        for tool in (check, transport, population):
            tool.update()

    def onModel(key, name):
        if key in registry.specs():
            model.choose(key, name)
        else:
            check.chooseModel(name)

    run = RunPart(ui, logic, problems, occupied, onBusy, onOutcome)
    training = TrainingPart(ui, logic, occupied, onBusy, onModel)
    check = CheckTool(ui, logic, occupied, onBusy, training.open, results.leaveViews)
    transport = TransportTool(ui, logic, occupied, onBusy, training.open, results.leaveViews)
    population = PopulationTool(ui, logic, occupied, onBusy, results.leaveViews)
    model = ModelPart(ui, training.open, run.update)
    landmarks = LandmarkWatch(run.showRerun, run.update)
    nodes = InputWatch(inputs.update, run.update)
    return Parts(
        inputs, algorithm, outputs, run, results, DiagnosisPart(ui), landmarks, nodes, model,
        training, check, transport, population, ToolWatch(updateTools),
    )  # fmt: skip


def prepareSelectors(ui) -> None:
    """Sets what a `.ui` file cannot say of node selectors."""
    selector = ui.parameterSetSelector
    selector.addAttribute("vtkMRMLScriptedModuleNode", "ModuleName", MODULE_NAME)
    selector.setNodeTypeLabel("DeepReg", "vtkMRMLScriptedModuleNode")
    selector.setMRMLScene(slicer.mrmlScene)
