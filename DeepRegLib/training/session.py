"""A whole training: from the user's wishes to a model file."""

from __future__ import annotations

import datetime
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import Cancelled, FileFormatError, InputError, ParameterError
from ..models import ModelCard, user_folder
from ..networks.model_file import save_model
from ..pipeline import choose_device, versions
from ..registration.base import Event, Progress
from ..registration.model_frame import ModelFrame
from ..registration.source import BatchSource, informed
from ..registration.trainable import Trainable
from ..spec import AlgorithmSpec
from .augment import Augmentation
from .checkpoint import FILE as CHECKPOINT
from .distributed import World, joined
from .generated import GeneratedPairs, Recipe
from .label_maps import LabelMapLoader, prepare_maps
from .options import TrainingOptions, is_unfinished, model_path, recipe_values, training_folder
from .pairs import PreparedPairs
from .preparation import prepare
from .prepared import PreparedSet
from .subjects import Subject, find_subjects
from .trainer import Trainer, TrainingResult

#: Share of the whole that preparing the images is.
_PREPARED = 0.1


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Args:
        path: The model file.
        card: Its card.
        ended: How the training ended (see `trainer.TrainingResult`).
        folder: Holds the curves: ``history.json``, ``.csv``, ``.png``.
        history: Their rows (see `events.History`).
    """

    path: Path
    card: ModelCard
    ended: str
    folder: Path
    history: list[dict[str, Any]]


def train(options: TrainingOptions, progress: Progress | None = None) -> Trained | None:
    """Trains a system and writes its model; under ``torchrun`` with all processes together.

    Args:
        options: What to train.
        progress: Gets events; `stop` keeps the best so far, `cancel` keeps a checkpoint, from
            which `TrainingOptions.resume` goes on.

    Returns:
        The model; None in all processes but the first.

    Raises:
        DeepRegError: If something does not fit; the message says what.
        Cancelled: If the user cancelled.
    """
    progress = progress or Progress()
    spec = _learning(options.algorithm)
    system = registry.create(options.algorithm, **_parameters(spec, options.parameters))
    _check_system(system, options)
    device, _ = choose_device(options.settings.device)
    with joined(device.type) as world:
        progress = progress if world.leads else Progress()
        source: BatchSource | None = None
        with world.first():
            if world.leads:
                options = options.named()
                _begin(options)
                source = make_source(options, progress)
        options = replace(options, name=world.told(options.name))
        source = source or make_source(options)
        system = informed(options.algorithm, system.values, source)
        with world.first():
            source = system.source(source, _cache(options), progress)
        return _train(options, spec, system, source, progress, world)


def make_source(options: TrainingOptions, progress: Progress | None = None) -> BatchSource:
    """Returns the pairs of a training, prepared on disk.

    Raises:
        InputError: If the images cannot be used, or are too few.
        ParameterError: If the options contradict each other.
    """
    progress = progress or Progress()
    progress.stage("prepare", 0.0, _PREPARED)

    def forward(event: Event) -> None:
        # Preparing has a span of its own, within that of the whole.
        if event.kind == "message":
            progress.message(event.text)
        progress.update(event.fraction)

    inner = Progress(forward)
    if not options.generated:
        return _prepared(options, inner)
    generated = _generated(options, inner)
    if not options.data:
        return generated
    frame = generated.frame
    options = replace(options, spacing=frame.spacing_mm, shape=frame.shape)
    real = _prepared(options, inner)
    if real.frame != frame:
        raise InputError(
            f"The images for validation need {' x '.join(map(str, real.frame.shape))} voxels, the "
            f"label maps {' x '.join(map(str, frame.shape))}; give a shape that holds both."
        )
    return _ValidatedOn(generated, real)


class _ValidatedOn:
    """Pairs of one source for training, and those of another for validation."""

    def __init__(self, train: BatchSource, validation: BatchSource) -> None:
        self._train, self._validation = train, validation
        self.frame, self.draw = train.frame, train.draw
        self.structures, self.validation = train.structures, validation.validation

    def labeled(self) -> BatchSource:
        """Returns the same with labeled pairs for training; see `source.BatchSource`."""
        return _ValidatedOn(self._train.labeled(), self._validation)

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        return {**self._train.describe(), "validated_on": self._validation.describe()}


def _prepared(options: TrainingOptions, progress: Progress) -> BatchSource:
    """Returns pairs of images of a folder, table or BIDS data set."""
    subjects = find_subjects(options.data, options.images, options.labels, options.person)
    if options.generated:
        both = prepare(subjects, _frame(options), progress=progress, **_where(options))
        return PreparedPairs(both, both, options.pairing, options.atlas)
    train, validation = _split(subjects, options, progress)
    augmentation = Augmentation.usual() if options.augment else None
    return PreparedPairs(
        train, validation, options.pairing, options.atlas, augmentation, terms=options.terms
    )


def _generated(options: TrainingOptions, progress: Progress) -> BatchSource:
    """Returns pairs of images that are made from label maps."""
    pattern = "" if options.data else options.labels
    subjects = find_subjects(options.generated, pattern)
    values = recipe_values(options.recipe)
    loader = LabelMapLoader(bool(values.pop("brain_only")), bool(values.pop("freesurfer")))
    if options.data:
        # Those who validate come from the images.
        options = replace(options, share=0.0, atlas="")
    share = _told_share(subjects, replace(options, pairing="within"), progress)
    maps, frame = prepare_maps(
        subjects, _frame(options), progress=progress, loader=loader, **_where(options)
    )
    train, validation = maps.split(share, options.settings.seed)
    held = validation if len(validation) else None
    recipe = Recipe(**values)  # type: ignore[arg-type]
    return GeneratedPairs(train, held, frame, recipe, terms=options.terms)


def _split(
    subjects: Sequence[Subject], options: TrainingOptions, progress: Progress
) -> tuple[PreparedSet, PreparedSet | None]:
    """Prepares subjects, and keeps some people for validation where there are enough."""
    share = _told_share(subjects, options, progress)
    both = prepare(subjects, _frame(options), progress=progress, **_where(options))
    train, validation = both.split(share, options.settings.seed)
    return train, validation if len(validation) else None


def _cache(options: TrainingOptions) -> Path:
    """Returns the folder that keeps what was prepared."""
    return Path(options.cache) if options.cache else user_folder() / "prepared"


def _where(options: TrainingOptions) -> dict[str, Any]:
    """Returns where and how subjects are prepared."""
    device, _ = choose_device(options.settings.device)
    return {
        "folder": _cache(options), "reference": options.atlas,
        "alignment": options.alignment, "device": device,
    }  # fmt: skip


def _told_share(subjects: Sequence[Subject], options: TrainingOptions, progress: Progress) -> float:
    """Returns the share of people for validation, and says so where it cannot be what was asked."""
    share = _share(subjects, options)
    if share == 0.0 and options.share > 0.0:
        progress.message("There are too few people to keep some for validation; the weights after "
                         "the last step will be taken.")  # fmt: skip
    return share


def _share(subjects: Sequence[Subject], options: TrainingOptions) -> float:
    """Returns a share of people for validation that leaves pairs on both sides, or 0."""
    people = {subject.group for subject in subjects}
    needed = 2 if options.pairing == "all" else 1
    if options.share <= 0.0 or any(s.split for s in subjects):
        return options.share
    count = max(round(options.share * len(people)), needed)
    return count / len(people) if len(people) - count >= needed else 0.0


def _frame(options: TrainingOptions) -> ModelFrame | float:
    if not options.shape:
        return options.spacing
    a, b, c = options.shape
    return ModelFrame(options.spacing, (a, b, c))


def _train(
    options: TrainingOptions,
    spec: AlgorithmSpec,
    system: Trainable,
    source: BatchSource,
    progress: Progress,
    world: World,
) -> Trained | None:
    folder = training_folder(options.name)
    trainer = Trainer(system, source, options.settings, folder, progress,
                      span=(_PREPARED, 1.0), world=world)  # fmt: skip
    try:
        result = trainer.run()
    except Cancelled as error:
        raise Cancelled(f"{error} It can be resumed under the name '{options.name}'.") from error
    if not world.leads:
        return None
    card = _card(options, spec, system, source, result)
    path = model_path(options.name)
    save_model(path, result.network, card)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    before, after = (result.figures.get(n) for n in ("dice_before", "dice"))
    if before is not None and after is not None and after <= before:
        progress.message("In validation the model is no better than leaving the images as they "
                         "are, linearly aligned; train longer, or on more images.")  # fmt: skip
    progress.message(f"The model is '{options.name}', in '{path}'.")
    return Trained(path, card, result.ended, folder, result.history)


def _card(
    options: TrainingOptions,
    spec: AlgorithmSpec,
    system: Trainable,
    source: BatchSource,
    result: TrainingResult,
) -> ModelCard:
    told = source.describe()
    names = [p.name for p in spec.parameters if p.training]
    settings = {k: v for k, v in asdict(options.settings).items() if k != "checkpoint_every_s"}
    return ModelCard(
        name=options.name,
        algorithm=spec.key,
        parameters={name: system.values[name] for name in names},
        spacing_mm=source.frame.spacing_mm,
        shape=source.frame.shape,
        anatomy=options.anatomy,
        contrast=options.contrast,
        data=str(told.get("text", "")),
        terms=options.terms or str(told.get("terms", "")),
        figures={n: float(v) for n, v in result.figures.items() if math.isfinite(v)},
        training={
            **settings, "steps_done": result.steps, "seconds": round(result.seconds, 1),
            "ended": result.ended, "date": datetime.date.today().isoformat(),
            "data": told, "versions": versions(), "structure_names": options.structure_names,
        },
        library=versions()["DeepRegLib"],
    )  # fmt: skip


def _learning(key: str) -> AlgorithmSpec:
    spec = registry.spec(key)
    if not spec.needs.training:
        learned = [s.key for s in registry.specs().values() if s.needs.training]
        raise ParameterError(
            f"'{key}' registers without being trained; those that learn are: {', '.join(learned)}."
        )
    return spec


def _parameters(spec: AlgorithmSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    names = [p.name for p in spec.parameters if p.training]
    for name in given:
        if name not in names:
            spec.parameter(name)
            raise ParameterError(
                f"'{name}' is chosen when a pair is registered; what training decides is: "
                f"{', '.join(names)}."
            )
    return dict(given)


def _check_system(system: Any, options: TrainingOptions) -> None:
    """Refuses before images are prepared what would be refused afterwards."""
    if not isinstance(system, Trainable):
        raise ParameterError(f"'{options.algorithm}' has a training of its own.")
    if not (options.data or options.generated):
        raise ParameterError(
            "Give images to train on: a folder, a CSV table or a BIDS data set; or a folder of "
            "label maps to generate them from."
        )
    if any(n % system.multiple for n in options.shape):
        better = " ".join(str(-(-n // system.multiple) * system.multiple) for n in options.shape)
        raise ParameterError(
            f"'{options.algorithm}' needs a shape of multiples of {system.multiple}, not "
            f"{' '.join(map(str, options.shape))}; take {better}."
        )


def _begin(options: TrainingOptions) -> None:
    """Makes the folder of a training, if nothing stands in its way."""
    folder, name = training_folder(options.name), options.name
    begun = is_unfinished(name)
    if begun and not (options.resume or options.overwrite):
        raise ParameterError(
            f"A training '{name}' was begun and not finished; go on with it (--resume), choose "
            "another name, or replace it (--overwrite)."
        )
    if model_path(name).exists() and not (options.overwrite or (options.resume and begun)):
        raise ParameterError(
            f"There is a model '{name}' already; choose another name, or replace it (--overwrite)."
        )
    try:
        if begun and not options.resume:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not (begun and options.resume):
            options.keep()
    except OSError as error:
        raise FileFormatError(
            f"The folder '{folder}' cannot be written to ({error.strerror}); make room, or set "
            "DEEPREG_MODELS to another folder."
        ) from error
