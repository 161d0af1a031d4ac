"""Puts the panel together from its parts."""

from __future__ import annotations

from dataclasses import dataclass

import slicer

from .AlgorithmPart import AlgorithmPart
from .DiagnosisPart import DiagnosisPart
from .InputsPart import InputsPart
from .InputWatch import InputWatch
from .LandmarkWatch import LandmarkWatch
from .OutputsPart import OutputsPart
from .ResultsPart import ResultsPart
from .RunPart import RunPart

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

    def all(self) -> list:
        """Returns the parts that follow the parameter node."""
        return [
            self.inputs, self.algorithm, self.outputs, self.run, self.results, self.landmarks,
            self.nodes,
        ]  # fmt: skip

    def close(self) -> None:
        """Ends what goes on by itself: runs, timers, observers."""
        self.landmarks.setParameterNode(None)
        self.nodes.setParameterNode(None)
        self.run.close()
        self.results.close()
        self.diagnosis.close()


def buildParts(ui, logic) -> Parts:
    """Ties the widgets of the panel together."""
    inputs, outputs, results = InputsPart(ui), OutputsPart(ui), ResultsPart(ui)
    algorithm = AlgorithmPart(ui, lambda: run.update())

    def onOutcome(outcome, request, startLinear):
        results.takeOutcome(outcome, request, startLinear)
        landmarks.remember()

    run = RunPart(ui, logic, algorithm.form.problems, onOutcome)
    landmarks = LandmarkWatch(run.showRerun, run.update)
    nodes = InputWatch(inputs.update, run.update)
    return Parts(inputs, algorithm, outputs, run, results, DiagnosisPart(ui), landmarks, nodes)


def prepareSelectors(ui) -> None:
    """Sets what a `.ui` file cannot say of node selectors."""
    selector = ui.parameterSetSelector
    selector.addAttribute("vtkMRMLScriptedModuleNode", "ModuleName", MODULE_NAME)
    selector.setNodeTypeLabel("DeepReg", "vtkMRMLScriptedModuleNode")
    selector.setMRMLScene(slicer.mrmlScene)
