"""Makes supervised pairs from the user's images: fits the model, or registers them as a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, ParameterError
from ..geometry.grid import Grid
from ..io.files import PathLike
from ..pipeline import choose_device
from ..registration.base import Event, Progress
from ..registration.source import BatchSource
from .augment import Augmentation
from .model_pairs import ModelPairs, RandomPairs, SupervisedPairs, TeacherPairs
from .shape_model import AnatomyModel
from .shape_model_fit import LEAST, FieldMaker, ModelSettings, fit_anatomies

KINDS = ("model", "random", "teacher")
#: Images that are drawn from a source that has no subjects, and the seed that draws them.
_DRAWN, _SEED = 16, 2017


@dataclass(frozen=True)
class PairSettings:
    """How supervised pairs are made.

    Args:
        kind: ``model``, ``random`` (smooth fields on the images) or ``teacher`` (fields that an
            algorithm finds between the images).
        images: Most images; 0 takes all.
        model: How the model is made; its engine is the teacher too.
        shared_texture: See `ModelPairs`.
        spread: See `ModelPairs`.
        size_mm: Size of the random fields; 0 takes that of the model's deviations, so that the two
            differ in kind alone.
        widths_mm: See `RandomPairs`.
        teacher_pairs: Most pairs that the teacher registers.
        own_texture: See `ModelPairs`.
    """

    kind: str = "model"
    images: int = 0
    model: ModelSettings = field(default_factory=ModelSettings)
    shared_texture: float = 0.5
    spread: float = 1.0
    size_mm: float = 0.0
    widths_mm: tuple[float, ...] = (16.0, 32.0, 64.0)
    teacher_pairs: int = 64
    own_texture: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ParameterError(
                f"Supervised pairs come from {', '.join(KINDS)}, not '{self.kind}'."
            )


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """Images to make a model from, on one grid.

    Args:
        images: (1, 1, *grid.shape), 0 to 1.
        labels: Their label maps; None where there is none.
        names: Who they are.
        grid: The grid.
    """

    images: list[Tensor]
    labels: list[Tensor | None]
    names: list[str]
    grid: Grid


def supervised_pairs(
    pairs: BatchSource, settings: PairSettings, folder: PathLike, progress: Progress
) -> SupervisedPairs:
    """Returns pairs with known displacements, made from the images of the user's pairs.

    Args:
        pairs: The user's pairs. Of those that have no subjects (generated ones) images are drawn.
        settings: What is made.
        folder: Keeps registrations.
        progress: Gets messages, and can cancel.

    Raises:
        InputError: If there are too few images.
        Cancelled: If the user cancelled; registrations that are done are kept.
    """
    told = pairs.describe().get("augmentation")
    augmentation = Augmentation(**told) if isinstance(told, dict) else None
    found = images_of(pairs, settings.images)
    inner = _within(progress)
    if settings.kind == "teacher":
        return _taught(pairs, found, settings, folder, inner, augmentation)
    if settings.kind == "random" and settings.size_mm > 0.0:
        size = settings.size_mm
    else:
        model = anatomies_of(found, settings.model, folder, inner)
        if settings.kind == "model":
            return ModelPairs(
                pairs, model, augmentation, settings.shared_texture, settings.spread,
                settings.own_texture,
            )  # fmt: skip
        size = model.size_mm()
    return RandomPairs(
        pairs, torch.cat(found.images), found.labels, size, settings.widths_mm, augmentation
    )


def anatomies_of(
    found: TrainingImages, settings: ModelSettings, folder: PathLike, progress: Progress
) -> AnatomyModel:
    """Makes a model of anatomies from images, on the GPU if there is one."""
    device, _ = choose_device("auto")
    return fit_anatomies(
        found.images, found.grid, settings, folder, progress,
        labels=found.labels, names=found.names, device=device,
    )  # fmt: skip


def images_of(pairs: BatchSource, most: int = 0) -> TrainingImages:
    """Returns the images that pairs are made of, or some that are drawn.

    Args:
        pairs: The pairs.
        most: Most images, taken evenly from all; 0 for all.

    Raises:
        InputError: If there are fewer than three.
    """
    prepared: Any = getattr(pairs, "prepared", None)
    if prepared is None:
        return _drawn(pairs, most or _DRAWN)
    train = prepared()[0]
    count = min(most or len(train), len(train))
    if count < LEAST:
        raise InputError(
            f"This training needs at least {LEAST} images, and eight or more to be of use, but "
            f"there are {count}; add images."
        )
    chosen = [i * len(train) // count for i in range(count)]
    return TrainingImages(
        [train.image(i) for i in chosen], [train.labels(i) for i in chosen],
        [train.subjects[i].name for i in chosen], train.grid,
    )  # fmt: skip


def _drawn(pairs: BatchSource, count: int) -> TrainingImages:
    """Returns images of a source without subjects, always the same ones."""
    generator = torch.Generator().manual_seed(_SEED)
    frame = pairs.frame
    images: list[Tensor] = []
    labels: list[Tensor | None] = []
    for _ in range(max(count, LEAST)):
        batch = pairs.draw(1, generator)
        known = batch.fixed_labels
        images.append(batch.fixed)
        labels.append(None if known is None or bool((known < 0).any()) else known)
    grid = Grid(frame.shape, np.diag([frame.spacing_mm] * 3 + [1.0]))
    return TrainingImages(images, labels, [f"drawn_{i}" for i in range(len(images))], grid)


def _taught(
    pairs: BatchSource,
    found: TrainingImages,
    settings: PairSettings,
    folder: PathLike,
    progress: Progress,
    augmentation: Augmentation | None,
) -> TeacherPairs:
    """Registers pairs of the images, evenly chosen of all."""
    device, _ = choose_device("auto")
    n = len(found.images)
    every = [(i, j) for i in range(n) for j in range(n) if i != j]
    count = min(settings.teacher_pairs, len(every))
    chosen = [every[i * len(every) // count] for i in range(count)]
    progress.message(f"The teacher registers {count} pairs of {n} images.")
    maker = FieldMaker(found.grid, settings.model, folder, progress, device)
    fields = maker.displacements([(found.images[i], found.images[j]) for i, j in chosen])
    images: Sequence[Tensor] = found.images
    return TeacherPairs(pairs, torch.cat(list(images)), found.labels, chosen, fields, augmentation)


def _within(progress: Progress) -> Progress:
    """Returns a progress that hands messages on and can be cancelled, and leaves the bar alone."""

    def forward(event: Event) -> None:
        if event.kind == "message":
            progress.message(event.text)
        progress.update(1.0)

    return Progress(forward)
