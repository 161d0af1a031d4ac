"""From the section Training to what the library is asked for: its form, checks, and the request."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from slicer.i18n import tr as _

from DeepRegLib import models, registry
from DeepRegLib.bridge.training import TrainingRequest
from DeepRegLib.errors import ParameterError
from DeepRegLib.spec import AlgorithmSpec, Parameter
from DeepRegLib.training.settings import PARAMETERS

from .Parameters import (
    TRAINING_STEPS,
    TrainingSource,
    trainingSettingsOf,
    trainingVolumesOf,
)

#: Groups of the form besides that of the algorithm.
COURSE, IMAGES, CARD = "training", "images", "card"
#: Settings of the training that have another place in the panel, or none.
_ELSEWHERE = ("device", "checkpoint_every_s")
_SIMPLE = ("steps", "batch", "learning_rate", "validate_every")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
#: Part of a folder of models that keeps unfinished trainings (training/session.py).
_UNFINISHED = Path("training", "{name}", "checkpoint.safetensors")

_IMAGE_PARAMETERS = (
    Parameter("alignment", "affine", "How all images are aligned with one of them beforehand.",
              choices=("affine", "rigid", "none")),
    Parameter("augment", True, "Whether images are turned, scaled, bent and changed in contrast."),
    Parameter("share", 0.2, "Share of the people that validate and are not learned from.",
              minimum=0.0, maximum=0.9),
    Parameter("images", "", "For a folder: pattern of the images, such as *_t1.nii.gz.",
              advanced=True),
    Parameter("labels", "", "For a folder: pattern of the label maps, such as *_seg.nii.gz.",
              advanced=True),
    Parameter("person", "", "For a folder: regular expression whose first group is the person in a "
              "name, such as (.+)_visit.", advanced=True),
    Parameter("pairing", "all", "Which images are paired: any two, or those of one person.",
              choices=("all", "within"), advanced=True),
)  # fmt: skip
_CARD_PARAMETERS = (
    Parameter("anatomy", "", "What the model is for, such as: brain, skull-stripped."),
    Parameter("contrast", "", "Which contrasts it takes, such as: T1 MRI."),
    Parameter("terms", "", "On what terms the model may be used."),
)  # fmt: skip


def learningSpecs() -> dict:
    """Returns what learns, by key: algorithms, and systems that judge registrations."""
    known = {**registry.specs(), **registry.estimators()}
    return {key: spec for key, spec in known.items() if spec.needs.training}


def trainingForm(spec) -> list:
    """Returns what the form of the training shows, as descriptions of algorithms."""
    own = tuple(replace(p, advanced=False) for p in spec.parameters if p.training)
    return [
        replace(spec, parameters=own),
        _group(COURSE, _("Course"), tuple(map(_courseParameter, _course()))),
        _group(IMAGES, _("Images"), _IMAGE_PARAMETERS),
        _group(CARD, _("What the model's card says"), _CARD_PARAMETERS),
    ]


def usedTrainingSettings(parameterNode, form) -> dict:
    """Returns the values of each group of a form, by the group's key."""
    preset, given = parameterNode.trainingLength.value, trainingSettingsOf(parameterNode)
    used = {}
    for spec in form:
        values = spec.values(preset)
        for parameter in spec.parameters:
            name = f"{spec.key}.{parameter.name}"
            if name in given:
                try:
                    values[parameter.name] = parameter.parse(given[name])
                except ParameterError:
                    # A scene of another version; the form shows the usual value, too.
                    continue
        used[spec.key] = values
    return used


def modelName(parameterNode) -> str:
    """Returns the name of the model to be: the one that was entered, or a free one."""
    wanted = parameterNode.trainingName.strip()
    return wanted or freeName(parameterNode.trainingAlgorithm)


def freeName(algorithm: str) -> str:
    """Returns a name that no model has."""
    number, name = 1, algorithm
    while modelPath(name).exists():
        number += 1
        name = f"{algorithm}-{number}"
    return name


def modelPath(name: str) -> Path:
    """Returns the file that a training writes."""
    return models.user_folder() / f"{name}{models.SUFFIX}"


def isUnfinished(name: str) -> bool:
    """Tells whether a training of a name was begun and can be gone on with."""
    return (models.user_folder() / str(_UNFINISHED).format(name=name)).exists()


def missing(parameterNode) -> str:
    """Returns what keeps a training from starting; an empty text if nothing does."""
    name = modelName(parameterNode)
    if parameterNode.trainingAlgorithm not in learningSpecs():
        return _("Select an algorithm")
    if parameterNode.trainingSource is TrainingSource.SCENE:
        volumes = trainingVolumesOf(parameterNode)
        if len(volumes) < 2:
            return _("Check two volumes at least")
        needs = learningSpecs()[parameterNode.trainingAlgorithm].needs
        if needs.labels and not any(labels is not None for _volume, labels in volumes):
            return _("This algorithm learns from structures; choose some in the table")
    elif not parameterNode.trainingPath.strip():
        return _("Choose a folder or a table")
    elif not Path(parameterNode.trainingPath.strip()).expanduser().exists():
        return _("The folder or table is not there")
    if not _NAME.fullmatch(name):
        return _("Name: small letters, digits, - and _ only")
    if modelPath(name).exists():
        return _("There is a model of this name; choose another")
    return ""


def trainingRequestOf(parameterNode) -> TrainingRequest:
    """Returns what the section Training asks for."""
    node = parameterNode
    form = trainingForm(learningSpecs()[node.trainingAlgorithm])
    used = usedTrainingSettings(node, form)
    name = modelName(node)
    goesOn = isUnfinished(name) and node.trainingResume
    options = {
        **used[IMAGES], **used[CARD], "name": name, "spacing": node.trainingSpacing,
        "parameters": used[node.trainingAlgorithm],
        "settings": {**used[COURSE], "device": node.device.value},
        # What is replaced is an unfinished training only: a model of this name is refused before.
        "resume": goesOn, "overwrite": not goesOn,
    }  # fmt: skip
    path = str(Path(node.trainingPath.strip()).expanduser())
    if node.trainingSource is TrainingSource.LABEL_MAPS:
        options["generated"] = path
        return TrainingRequest(node.trainingAlgorithm, (), "", options)
    if node.trainingSource is TrainingSource.FILES:
        return TrainingRequest(node.trainingAlgorithm, (), path, options)
    for option in ("images", "labels", "person"):
        options[option] = ""
    return TrainingRequest(node.trainingAlgorithm, trainingVolumesOf(node), "", options)


def _course() -> list:
    return [p for p in PARAMETERS if p.name not in _ELSEWHERE]


def _courseParameter(parameter):
    """Gives a setting the values that go with the length of the training."""
    presets = {}
    if parameter.name == "steps":
        presets = TRAINING_STEPS
    elif parameter.name == "validate_every":
        presets = {length: max(1, steps // 10) for length, steps in TRAINING_STEPS.items()}
    return replace(parameter, presets=presets, advanced=parameter.name not in _SIMPLE)


def _group(key: str, title: str, parameters) -> AlgorithmSpec:
    return AlgorithmSpec(key, title, "", "", "", parameters)
