"""Puts the panel together from its parts."""

from __future__ import annotations

from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from .AlgorithmPart import AlgorithmPart
from .DiagnosisPart import DiagnosisPart
from .InputsPart import InputsPart
from .InputWatch import InputWatch
from .LandmarkWatch import LandmarkWatch
from .ModelPart import ModelPart
from .OutputsPart import OutputsPart
from .ResultsPart import ResultsPart
from .RunPart import RunPart
from .TrainingPart import TrainingPart

MODULE_NAME = "DeepReg"


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

    def all(self) -> list:
        """Returns the parts that follow the parameter node."""
        return [
            self.inputs, self.algorithm, self.model, self.outputs, self.run, self.results,
            self.landmarks, self.nodes, self.training,
        ]  # fmt: skip

    def close(self) -> None:
        """Ends what goes on by itself: runs, timers, observers."""
        self.landmarks.setParameterNode(None)
        self.nodes.setParameterNode(None)
        self.run.close()
        self.model.close()
        self.training.close()
        self.results.close()
        self.diagnosis.close()


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
        return _("A training is running") if training.running else ""

    run = RunPart(ui, logic, problems, occupied, lambda: training.check(), onOutcome)
    training = TrainingPart(
        ui, logic, lambda: run.running, run.update, lambda key, name: model.choose(key, name)
    )
    model = ModelPart(ui, training.open, run.update)
    landmarks = LandmarkWatch(run.showRerun, run.update)
    nodes = InputWatch(inputs.update, run.update)
    return Parts(
        inputs, algorithm, outputs, run, results, DiagnosisPart(ui), landmarks, nodes, model,
        training,
    )  # fmt: skip


def prepareSelectors(ui) -> None:
    """Sets what a `.ui` file cannot say of node selectors."""
    selector = ui.parameterSetSelector
    selector.addAttribute("vtkMRMLScriptedModuleNode", "ModuleName", MODULE_NAME)
    selector.setNodeTypeLabel("DeepReg", "vtkMRMLScriptedModuleNode")
    selector.setMRMLScene(slicer.mrmlScene)
