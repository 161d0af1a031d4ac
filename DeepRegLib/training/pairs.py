"""Pairs of real images that were prepared, for the trainer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InputError
from ..registration.model_frame import ModelFrame
from ..registration.trainable import Batch
from .augment import Augmentation
from .prepared import PreparedSet

#: Which images make a pair.
MODES = ("all", "atlas", "within")


class PreparedPairs:
    """Pairs of prepared subjects; a `BatchSource`.

    Args:
        train: Subjects to train with.
        validation: Subjects of other people.
        mode: ``all`` pairs two different images; ``atlas`` keeps one image fixed; ``within`` pairs
            two images of one person.
        atlas: Name of the fixed image in the mode ``atlas``, among either subjects.
        augmentation: Random changes of the pairs for training.
        most_validation: Most pairs for validation; they are spread evenly over all.
        text: What the images are, for the card of a model.
        terms: On what terms what was trained with them may be used.

    Raises:
        InputError: If there are too few images for such pairs.
    """

    def __init__(
        self,
        train: PreparedSet,
        validation: PreparedSet | None = None,
        mode: str = "all",
        atlas: str = "",
        augmentation: Augmentation | None = None,
        most_validation: int = 12,
        text: str = "",
        terms: str = "",
    ) -> None:
        if mode not in MODES:
            raise InputError(f"Pairs are made from {', '.join(MODES)}, not '{mode}'.")
        if validation is not None and not train.grid.matches(validation.grid):
            raise InputError(
                "The subjects for training and validation lie on different grids; prepare them "
                "together, then split them."
            )
        self._mode, self._augmentation = mode, augmentation
        self._text, self._terms = text, terms
        self._train, self._validation = train, validation
        self._atlas = _find(atlas, [train, validation]) if mode == "atlas" else None
        self._pairs = self._list(train)
        if not self._pairs:
            raise InputError(_TOO_FEW[mode])
        held = [] if validation is None else self._list(validation)
        count = min(most_validation, len(held))
        self._held = [held[i * len(held) // count] for i in range(count)]

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._train.frame

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs for one training step, on the CPU.

        Label maps come along if any image that was drawn has one; those of the others are -1.
        """
        chosen = torch.randint(len(self._pairs), (count,), generator=generator).tolist()
        batch = self._batch(self._train, [self._pairs[i] for i in chosen], partly=True)
        return batch if self._augmentation is None else self._augmentation(batch, generator)

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch; the same at each call."""
        if self._validation is None:
            return []
        return [self._batch(self._validation, [pair]) for pair in self._held]

    def structures(self) -> list[int]:
        """Returns the labels that occur in the subjects for training, without the background."""
        return self._train.structures()

    def labeled(self) -> PreparedPairs:
        """Returns the pairs of those subjects for training that have a label map.

        Raises:
            InputError: If there are too few of them.
        """
        with_labels = [s for s in self._train.subjects if s.labels is not None]
        if len(with_labels) == len(self._train):
            return self
        if self._atlas is not None and self._atlas[0].labels(self._atlas[1]) is None:
            raise InputError("The atlas has no label map; give it one, or take another atlas.")
        fewer = copy.copy(self)
        fewer._train = self._train.only(with_labels)
        if self._atlas is not None and self._atlas[0] is self._train:
            name = self._train.subjects[self._atlas[1]].name
            fewer._atlas = _find(name, [fewer._train])
        fewer._pairs = fewer._list(fewer._train)
        if not fewer._pairs:
            raise InputError(
                "This algorithm learns from label maps, and too few images have one; give label "
                "maps of at least two images."
            )
        return fewer

    def partly_labeled(self) -> PreparedPairs:
        """Returns the pairs for training that hold at least one image with a label map.

        Raises:
            InputError: If there are none.
        """
        known = [subject.labels is not None for subject in self._train.subjects]
        of_atlas = self._atlas is not None and self._atlas[0].labels(self._atlas[1]) is not None
        fewer = copy.copy(self)
        fewer._pairs = [
            (fixed, moving)
            for fixed, moving in self._pairs
            if known[moving] or (known[fixed] if fixed >= 0 else of_atlas)
        ]
        if not fewer._pairs:
            raise InputError(
                "This algorithm learns from label maps; give label maps of one image at least."
            )
        return fewer

    def still(self) -> PreparedPairs:
        """Returns the same pairs as they lie: only their intensities are changed at random."""
        same = copy.copy(self)
        same._augmentation = None if self._augmentation is None else self._augmentation.still()
        return same

    def prepared(self) -> tuple[PreparedSet, PreparedSet | None]:
        """Returns the subjects for training, and those for validation."""
        return self._train, self._validation

    def members(self) -> list[tuple[int, int]]:
        """Returns the pairs for training, positions of fixed and moving subject; -1: the atlas."""
        return list(self._pairs)

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        held = 0 if self._validation is None else len(self._validation)
        words = {"all": "any two images", "atlas": "an atlas and an image",
                 "within": "two images of one person"}  # fmt: skip
        return {
            "text": self._text or f"{len(self._train)} images; pairs of {words[self._mode]}",
            "terms": self._terms,
            "subjects": len(self._train),
            "validation_subjects": held,
            "validation_pairs": len(self._held),
            "pairs": self._mode,
            "augmentation": None if self._augmentation is None else self._augmentation.told(),
        }

    def _list(self, prepared: PreparedSet) -> list[tuple[int, int]]:
        """Lists the pairs (fixed, moving) of a set; the atlas is -1."""
        subjects = list(enumerate(prepared.subjects))
        if self._atlas is not None:
            own, index = self._atlas
            name = own.subjects[index].name
            return [(-1, i) for i, s in subjects if s.name != name]
        return [
            (i, j)
            for i, one in subjects
            for j, other in subjects
            if i != j and (self._mode != "within" or one.group == other.group)
        ]

    def _batch(
        self, prepared: PreparedSet, pairs: Sequence[tuple[int, int]], partly: bool = False
    ) -> Batch:
        """Returns pairs; label maps if all have one, or `partly` those that there are."""
        where = [
            self._atlas if self._atlas is not None and i < 0 else (prepared, i) for i, _ in pairs
        ]
        fixed = [own.image(i) for own, i in where]
        moving = [prepared.image(j) for _, j in pairs]
        labels = [[own.labels(i) for own, i in where], [prepared.labels(j) for _, j in pairs]]
        known = [item is not None for side in labels for item in side]
        sides: list[torch.Tensor | None] = [None, None]
        if all(known) or (partly and any(known)):
            unknown = torch.full((1, 1, *prepared.frame.shape), -1)
            sides = [torch.cat([unknown if t is None else t for t in side]) for side in labels]
        return Batch(torch.cat(fixed), torch.cat(moving), prepared.frame.spacing_mm,
                     fixed_labels=sides[0], moving_labels=sides[1])  # fmt: skip


_TOO_FEW = {
    "all": "Pairs need at least two images for training; add images.",
    "atlas": "There is no image for training beside the atlas; add images.",
    "within": "No person has two images for training; name the persons in the column 'group', or "
    "choose pairs of all images.",
}


def _find(name: str, sets: Sequence[PreparedSet | None]) -> tuple[PreparedSet, int]:
    for prepared in sets:
        for index, subject in enumerate(prepared.subjects if prepared is not None else ()):
            if subject.name == name:
                return prepared, index  # type: ignore[return-value]
    raise InputError(f"The atlas '{name}' is none of the subjects; give the name of one.")
