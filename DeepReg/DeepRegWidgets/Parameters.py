"""What the panel remembers: one parameter node per parameter set, saved with the scene."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Union

import slicer
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTransformNode,
)
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

#: Role under which the parameter node refers to the companions, in order.
COMPANION_ROLE = "DeepReg.Companion"

#: Role under which it refers to the transforms of a population, in order.
MEMBER_ROLE = "DeepReg.Member"

#: Roles of a volume to learn from and of its structures, by number: others keep theirs when a node
#: is removed.
TRAINING_ROLE = "DeepReg.Training."
TRAINING_LABELS_ROLE = "DeepReg.TrainingLabels."

#: Attribute of the parameter node that the panel shows.
SHOWN_ATTRIBUTE = "DeepReg.Shown"

Mask = Union[vtkMRMLLabelMapVolumeNode, vtkMRMLSegmentationNode, None]


class Preset(Enum):
    """How long a run may take."""

    FAST = "fast"
    BALANCED = "balanced"
    ACCURATE = "accurate"

    def label(self) -> str:
        """Returns the name for people."""
        return {"FAST": _("Fast"), "BALANCED": _("Balanced"), "ACCURATE": _("Accurate")}[self.name]


class Device(Enum):
    """Where a run computes."""

    AUTOMATIC = "auto"
    GPU = "cuda"
    CPU = "cpu"

    def label(self) -> str:
        """Returns the name for people."""
        names = {
            "AUTOMATIC": _("Automatic"),
            "GPU": _("Graphics card (CUDA)"),
            "CPU": _("Processor (CPU)"),
        }
        return names[self.name]


class Interpolation(Enum):
    """How the moved volume is sampled."""

    AUTOMATIC = "auto"
    LINEAR = "linear"
    NEAREST = "nearest"

    def label(self) -> str:
        """Returns the name for people."""
        names = {
            "AUTOMATIC": _("Automatic"),
            "LINEAR": _("Linear"),
            "NEAREST": _("Nearest voxel"),
        }
        return names[self.name]


class CompanionMode(Enum):
    """How companions go along."""

    UNDER_TRANSFORM = "under"
    HARDENED_COPY = "copy"

    def label(self) -> str:
        """Returns the name for people."""
        names = {
            "UNDER_TRANSFORM": _("Placed under the transform"),
            "HARDENED_COPY": _("Copied and hardened"),
        }
        return names[self.name]


class TrainingSource(Enum):
    """Where a training has its images from."""

    SCENE = "scene"
    FILES = "files"
    LABEL_MAPS = "labelMaps"

    def label(self) -> str:
        """Returns the name for people."""
        names = {
            "SCENE": _("Volumes of the scene"),
            "FILES": _("A folder, a table or a BIDS data set"),
            "LABEL_MAPS": _("Label maps, for images of any contrast"),
        }
        return names[self.name]


class TrainingLength(Enum):
    """How long a training may take; the values are those of the presets of its parameters."""

    SHORT = "fast"
    MEDIUM = "balanced"
    LONG = "accurate"

    def label(self) -> str:
        """Returns the name for people."""
        names = {
            "SHORT": _("Short: {steps} steps, for a first look"),
            "MEDIUM": _("Medium: {steps} steps"),
            "LONG": _("Long: {steps} steps, for a model to keep"),
        }
        return names[self.name].format(steps=TRAINING_STEPS[self.value])


class Alignment(Enum):
    """How volumes are aligned before a deformation is carried to another subject."""

    AFFINE = "affine"
    RIGID = "rigid"
    ON_SCREEN = "screen"

    def label(self) -> str:
        """Returns the name for people."""
        names = {
            "AFFINE": _("Affine, found now"),
            "RIGID": _("Rigid, found now"),
            "ON_SCREEN": _("None: as they lie on screen"),
        }
        return names[self.name]


class PopulationSource(Enum):
    """Where the registrations of a population are."""

    SCENE = "scene"
    FOLDER = "folder"

    def label(self) -> str:
        """Returns the name for people."""
        names = {"SCENE": _("Transforms of the scene"), "FOLDER": _("A folder of transform files")}
        return names[self.name]


#: Steps of a training by its length.
TRAINING_STEPS = {"fast": 200, "balanced": 1000, "accurate": 5000}


@parameterNodeWrapper
class DeepRegParameterNode:
    """All choices of the panel.

    `settings` holds as JSON what differs from the preset, by ``algorithm.parameter``; `stages` the
    keys of all algorithms that run, joined by ``+``. Companions are node references of the role
    `COMPANION_ROLE`, volumes to learn from those of `TRAINING_ROLE`, transforms of a population
    those of `MEMBER_ROLE`. `trainingSettings` holds what differs from the usual in the form of the
    training, as `settings` does.
    """

    fixedVolume: vtkMRMLScalarVolumeNode
    movingVolume: vtkMRMLScalarVolumeNode
    fixedMask: Mask
    movingMask: Mask
    fixedSegment: str
    movingSegment: str
    fixedPoints: vtkMRMLMarkupsFiducialNode
    movingPoints: vtkMRMLMarkupsFiducialNode
    fixedLabels: Mask
    movingLabels: Mask
    initialTransform: vtkMRMLTransformNode
    startFromScene: bool = True
    algorithm: str = "greedy"
    stages: str = "rigid+affine+greedy"
    preset: Preset = Preset.BALANCED
    device: Device = Device.AUTOMATIC
    settings: str = "{}"
    wantMoved: bool = True
    movedVolume: vtkMRMLScalarVolumeNode
    resultTransform: vtkMRMLTransformNode
    wantInverse: bool = False
    inverseTransform: vtkMRMLTransformNode
    wantJacobian: bool = False
    companionMode: CompanionMode = CompanionMode.UNDER_TRANSFORM
    applyToMoving: bool = False
    gridSpacing: Annotated[float, WithinRange(0, 50)] = 0.0
    interpolation: Interpolation = Interpolation.AUTOMATIC
    livePreview: bool = True
    trainingAlgorithm: str = "vxm"
    trainingSource: TrainingSource = TrainingSource.SCENE
    trainingPath: str
    trainingSpacing: Annotated[float, WithinRange(0.5, 20)] = 3.0
    trainingLength: TrainingLength = TrainingLength.MEDIUM
    trainingName: str
    trainingResume: bool = True
    trainingSettings: str = "{}"
    checkFixed: vtkMRMLScalarVolumeNode
    checkMoving: vtkMRMLScalarVolumeNode
    checkTransform: vtkMRMLTransformNode
    checkMask: Mask
    checkSegment: str
    checkModel: str
    checkThreshold: Annotated[float, WithinRange(0.1, 100)] = 2.0
    checkResult: vtkMRMLScalarVolumeNode
    transportFixed: vtkMRMLScalarVolumeNode
    transportMoving: vtkMRMLScalarVolumeNode
    transportSubject: vtkMRMLScalarVolumeNode
    transportModel: str
    transportStrength: Annotated[float, WithinRange(0, 3)] = 1.0
    transportAlignment: Alignment = Alignment.AFFINE
    transportResult: vtkMRMLTransformNode
    populationFixed: vtkMRMLScalarVolumeNode
    populationSource: PopulationSource = PopulationSource.SCENE
    populationFolder: str
    populationModes: Annotated[int, WithinRange(1, 10)] = 3
    populationLinear: bool = False
    #: Model that judges the deformations; empty for none.
    populationModel: str
    populationResult: vtkMRMLTransformNode
    #: How the result was last looked at; restored with the scene.
    view: str = ""
    overlay: str = ""


#: Parameters that are nodes.
NODE_PARAMETERS = (
    "fixedVolume", "movingVolume", "fixedMask", "movingMask", "fixedPoints", "movingPoints",
    "fixedLabels", "movingLabels", "initialTransform", "movedVolume", "resultTransform",
    "inverseTransform", "checkFixed", "checkMoving", "checkTransform", "checkMask",
    "checkResult", "transportFixed", "transportMoving", "transportSubject", "transportResult",
    "populationFixed", "populationResult",
)  # fmt: skip


def isUntouched(parameterNode) -> bool:
    """Tells whether nothing has been chosen in a parameter set yet."""
    return parameterNode.fixedVolume is None and parameterNode.movingVolume is None


def settingsOf(parameterNode) -> dict:
    """Returns what differs from the preset, by ``algorithm.parameter``."""
    return _values(parameterNode.settings)


def trainingSettingsOf(parameterNode) -> dict:
    """Returns what differs from the usual in the form of the training."""
    return _values(parameterNode.trainingSettings)


def _values(text: str) -> dict:
    try:
        values = json.loads(text or "{}")
    except json.JSONDecodeError:
        # Written by hand or by another version: the presets are a safe place to start.
        return {}
    return values if isinstance(values, dict) else {}


def companionsOf(parameterNode) -> list:
    """Returns the nodes that go along."""
    return _listed(parameterNode, COMPANION_ROLE)


def setCompanions(parameterNode, companions) -> None:
    """Replaces the nodes that go along."""
    _setListed(parameterNode, COMPANION_ROLE, companions)


def membersOf(parameterNode) -> list:
    """Returns the transforms of the population."""
    return _listed(parameterNode, MEMBER_ROLE)


def setMembers(parameterNode, transforms) -> None:
    """Replaces the transforms of the population."""
    _setListed(parameterNode, MEMBER_ROLE, transforms)


def _listed(parameterNode, role: str) -> list:
    node = parameterNode.parameterNode
    count = node.GetNumberOfNodeReferences(role)
    found = [node.GetNthNodeReference(role, number) for number in range(count)]
    return [one for one in found if one is not None]


def _setListed(parameterNode, role: str, nodes) -> None:
    node = parameterNode.parameterNode
    if [one.GetID() for one in _listed(parameterNode, role)] == [one.GetID() for one in nodes]:
        return
    with slicer.util.NodeModify(node):
        node.RemoveNodeReferenceIDs(role)
        for one in nodes:
            node.AddNodeReferenceID(role, one.GetID())


def trainingVolumesOf(parameterNode) -> list:
    """Returns the volumes to learn from, each with its structures or None."""
    node = parameterNode.parameterNode
    found = []
    for number in _trainingNumbers(node):
        volume = node.GetNodeReference(f"{TRAINING_ROLE}{number}")
        if volume is not None:
            found.append((volume, node.GetNodeReference(f"{TRAINING_LABELS_ROLE}{number}")))
    return found


def setTrainingVolumes(parameterNode, volumes) -> None:
    """Replaces the volumes to learn from; pairs of a volume and its structures or None."""
    node = parameterNode.parameterNode
    with slicer.util.NodeModify(node):
        for number in _trainingNumbers(node):
            node.RemoveNodeReferenceIDs(f"{TRAINING_ROLE}{number}")
            node.RemoveNodeReferenceIDs(f"{TRAINING_LABELS_ROLE}{number}")
        for number, (volume, labels) in enumerate(volumes):
            node.SetNodeReferenceID(f"{TRAINING_ROLE}{number}", volume.GetID())
            if labels is not None:
                node.SetNodeReferenceID(f"{TRAINING_LABELS_ROLE}{number}", labels.GetID())


def _trainingNumbers(node) -> list:
    count = node.GetNumberOfNodeReferenceRoles()
    roles = [node.GetNthNodeReferenceRole(number) or "" for number in range(count)]
    return sorted(int(r.removeprefix(TRAINING_ROLE)) for r in roles if r.startswith(TRAINING_ROLE))
