"""What a user wants to have trained, and the trainings that were begun."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import ParameterError
from ..models import SUFFIX, ModelCard, user_folder
from ..spec import Parameter
from .checkpoint import FILE as CHECKPOINT
from .generated import Recipe
from .pairs import MODES
from .preparation import ALIGNMENTS
from .settings import TrainingSettings

_FILE = "options.json"
_NUMBERS = {
    "spacing": Parameter("spacing", 3.0, "Voxel size.", minimum=0.01, maximum=100.0),
    "share": Parameter(
        "share", 0.2, "Share of the people that validate.", minimum=0.0, maximum=0.9
    ),
    "augment": Parameter("augment", True, "Whether images are changed at random."),
}
_SHAPE = Parameter("shape", (48, 64, 56), "Voxels along R, A, S.", minimum=8, maximum=1024)


@dataclass(frozen=True)
class TrainingOptions:
    """What a user wants to have trained, and on what.

    Args:
        algorithm: Key of a system that learns.
        data: Folder of images, table (``.csv``) of them, or BIDS data set.
        images: Pattern of the images in a folder; see `subjects.from_folder`.
        labels: Pattern of the label maps in a folder.
        person: Regular expression for the person in a name.
        generated: Folder of label maps that images of random contrast are made from; `data`, if
            there is any, then serves for validation.
        recipe: How these are made: entries of `generated.Recipe`; ``brain_only`` drops what is
            outside the brain, ``freesurfer`` tells whether labels are FreeSurfer's numbers.
        pairing: ``all``, ``atlas`` or ``within``: which images are paired.
        atlas: Name of the subject that all others are paired with, and aligned with.
        alignment: ``affine``, ``rigid``, or ``none`` for images that are aligned already.
        share: Share of the people that validate.
        augment: Whether images are changed at random.
        spacing: Voxel size in mm.
        shape: Voxels along R, A and S; empty for as many as the objects need.
        name: Name of the model; one after the algorithm if empty.
        parameters: Values of the algorithm's parameters that training decides.
        settings: How to train.
        anatomy: What it is trained for, in words, for the card.
        contrast: Which contrasts it takes, in words.
        structure_names: Names of labels, by their number as a text, for the card.
        terms: On what terms the model may be used; those of the data if empty.
        cache: Folder that keeps prepared images; one beside the models if empty.
        resume: Whether to go on with the training of this name.
        overwrite: Whether an older model or unfinished training of this name may be replaced.
    """

    algorithm: str
    data: str = ""
    images: str = ""
    labels: str = ""
    person: str = ""
    generated: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    pairing: str = "all"
    atlas: str = ""
    alignment: str = "affine"
    share: float = 0.2
    augment: bool = True
    spacing: float = 3.0
    shape: tuple[int, ...] = ()
    name: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    anatomy: str = ""
    contrast: str = ""
    structure_names: dict[str, Any] = field(default_factory=dict)
    terms: str = ""
    cache: str = ""
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.shape and len(self.shape) != 3:
            raise ParameterError(f"The shape has three sizes, R, A and S, not {self.shape}.")
        for name, choices in (("pairing", MODES), ("alignment", tuple(ALIGNMENTS))):
            if getattr(self, name) not in choices:
                raise ParameterError(
                    f"The {name} is one of {', '.join(choices)}, not '{getattr(self, name)}'."
                )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainingOptions:
        """Returns options from values by name; `settings` is a dictionary or `TrainingSettings`.

        Raises:
            ParameterError: If a name is unknown, or a value does not fit.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ParameterError(
                    f"There is no option '{name}' of a training; there are: {', '.join(known)}."
                )
        given = _joined(stored_options(values), values) if values.get("resume") else dict(values)
        if not given.get("algorithm"):
            raise ParameterError("Which algorithm is to be trained? Name one that learns.")
        _check_types(given)
        if not isinstance(given.get("settings"), TrainingSettings):
            given["settings"] = TrainingSettings.of(given.get("settings", {}))
        recipe_values(given.get("recipe", {}))
        for name, kind in _NUMBERS.items():
            if name in given:
                given[name] = kind.parse(given[name])
        given["shape"] = _SHAPE.parse(given["shape"]) if given.get("shape") else ()
        return cls(**given)

    def named(self) -> TrainingOptions:
        """Returns the options with a name that is free, unless they have one.

        Raises:
            ParameterError: If the name is none for a model.
        """
        if self.name:
            # The card knows what a name may be.
            ModelCard(self.name, self.algorithm, {}, 1.0, (1, 1, 1))
            return self
        number, name = 1, self.algorithm
        while model_path(name).exists() or is_unfinished(name):
            number += 1
            name = f"{self.algorithm}-{number}"
        return replace(self, name=name)

    def keep(self) -> None:
        """Writes the options to the folder of their training.

        Raises:
            OSError: If they cannot be written.
        """
        text = json.dumps(asdict(self), indent=1) + "\n"
        (training_folder(self.name) / _FILE).write_text(text, encoding="utf-8")


def recipe_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a complete recipe for generated images, from values or texts by name.

    Raises:
        ParameterError: If a name is unknown, or a value does not fit.
    """
    usual = {**asdict(Recipe()), "brain_only": False, "freesurfer": True}
    for name in given:
        if name not in usual:
            raise ParameterError(
                f"The recipe for generated images has no '{name}'; it has: {', '.join(usual)}."
            )
    return {
        name: Parameter(name, value, "").parse(given[name]) if name in given else value
        for name, value in usual.items()
    }


def unfinished(algorithm: str = "") -> list[str]:
    """Returns the names of trainings that were begun and not finished, the latest first."""
    found = []
    for file in training_folder("").glob(f"*/{CHECKPOINT}"):
        stored = _read_options(file.parent.name)
        if stored and (not algorithm or stored.get("algorithm") == algorithm):
            found.append((file.stat().st_mtime, file.parent.name))
    return [name for _, name in sorted(found, reverse=True)]


def stored_options(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of an unfinished training, by its name or the latest of an algorithm.

    Raises:
        ParameterError: If there is none.
    """
    known = unfinished(str(wanted.get("algorithm") or ""))
    name = str(wanted.get("name") or (known[0] if known else ""))
    stored = _read_options(name) if name else None
    if stored is None:
        others = ", ".join(unfinished()) or "none"
        raise ParameterError(
            f"There is no unfinished training{f' {name!r}' if name else ''} to go on with; there "
            f"are: {others}."
        )
    return {**stored, "overwrite": False}


def is_unfinished(name: str) -> bool:
    """Tells whether a training of this name can be gone on with."""
    return (training_folder(name) / CHECKPOINT).exists()


def _check_types(given: Mapping[str, Any]) -> None:
    for entry in fields(TrainingOptions):
        value = given.get(entry.name, "")
        kinds = {"str": str, "dict[str, Any]": Mapping, "TrainingSettings": Mapping}
        wanted = None if isinstance(value, TrainingSettings) else kinds.get(str(entry.type))
        if wanted is not None and value != "" and not isinstance(value, wanted):
            what = "a text" if wanted is str else "values by name"
            raise ParameterError(f"The option '{entry.name}' is {what}, not {value!r:.60}.")


def _read_options(name: str) -> dict[str, Any] | None:
    try:
        found = json.loads((training_folder(name) / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _joined(stored: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options with some replaced; the trainer refuses those that matter."""
    nested = {name: {**stored.get(name, {}), **given.get(name, {})} for name in
              ("parameters", "settings", "recipe")}  # fmt: skip
    return {**stored, **given, **nested, "name": stored["name"]}


def model_path(name: str) -> Path:
    """Returns the file of a model that is trained under a name."""
    return user_folder() / f"{name}{SUFFIX}"


def training_folder(name: str) -> Path:
    """Returns the folder that holds checkpoint and curves of a training."""
    return user_folder() / "training" / name
