"""Pairs whose two images show the same anatomy at the same place, for metrics that are learned."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.grid import invert_matrix
from ..geometry.sampling import apply_matrix, sample, voxel_coordinates
from ..registration.base import Progress
from ..registration.model_frame import ModelFrame
from ..registration.source import BatchSource
from ..registration.trainable import Batch
from .augment import Augmentation
from .generated import GeneratedPairs
from .pairs import PreparedPairs
from .prepared import PreparedSet

#: Matrices that differ by less do not move an image.
_SAME = 1e-6


class AlignedPairs:
    """Pairs of two images of one person, aligned as their files are; a `BatchSource`.

    Preparing aligns every image with the reference by itself, so that two images of a person end
    up a little apart even if their files agree. Here the second one gets the alignment of the
    first. Random changes are the same for both, but for those of the intensities.

    Args:
        pairs: Pairs within persons.

    Raises:
        InputError: If the pairs are of another kind.
    """

    def __init__(self, pairs: PreparedPairs) -> None:
        if pairs.describe()["pairs"] != "within":
            raise InputError(
                "A metric is learned from pairs that are aligned: two images of each person. Name "
                "the persons (column 'group' of a table, or --person), and choose pairs within "
                "persons (--pairing within)."
            )
        self._pairs = pairs
        self._train, self._held = pairs.prepared()
        self._members = pairs.members()
        self._augmentation = common_changes(pairs._augmentation)

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._pairs.frame

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs for one training step, on the CPU."""
        chosen = torch.randint(len(self._members), (count,), generator=generator).tolist()
        batch = self._batch(self._train, [self._members[i] for i in chosen])
        return batch if self._augmentation is None else self._augmentation(batch, generator)

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch; the same at each call."""
        if self._held is None:
            return []
        return [self._batch(self._held, [pair]) for pair in self._pairs._held]

    def structures(self) -> list[int]:
        """Returns no labels: none are needed."""
        return []

    def labeled(self) -> AlignedPairs:
        """Returns itself: no labels are needed."""
        return self

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        changes = None if self._augmentation is None else self._augmentation.told()
        return {**self._pairs.describe(), "aligned": True, "augmentation": changes}

    def _batch(self, prepared: PreparedSet, pairs: Sequence[tuple[int, int]]) -> Batch:
        fixed = torch.cat([prepared.image(i) for i, _ in pairs])
        moving = torch.cat([in_place_of(prepared, i, j) for i, j in pairs])
        return Batch(fixed, moving, prepared.frame.spacing_mm)


class _Unlabeled:
    """Generated pairs whose images are of one map, without their labels; a `BatchSource`."""

    def __init__(self, pairs: GeneratedPairs) -> None:
        own = copy.copy(pairs)
        own._recipe = replace(pairs._recipe, two_people=0.0)
        own._validation = None
        self._pairs, self.frame = own, own.frame

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs with their true displacement."""
        return _without_labels(self._pairs.draw(count, generator))

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch."""
        return [_without_labels(batch) for batch in self._pairs.validation()]

    def structures(self) -> list[int]:
        """Returns no labels: none are needed."""
        return []

    def labeled(self) -> _Unlabeled:
        """Returns itself: no labels are needed."""
        return self

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        return self._pairs.describe()


def aligned_pairs(pairs: BatchSource, progress: Progress | None = None) -> BatchSource:
    """Returns pairs that are aligned, or whose displacement is known, made of those of a user.

    Prepared images are paired within persons; images generated from label maps show one map each
    pair, and come with their displacement. Sources of other kinds are taken as they are.

    Raises:
        InputError: If prepared images are not paired within persons.
    """
    if isinstance(pairs, PreparedPairs):
        return AlignedPairs(pairs)
    generated = getattr(pairs, "_train", pairs)  # those with other images for validation
    if isinstance(generated, GeneratedPairs):
        return _Unlabeled(generated)
    if progress is not None:
        progress.message("The two images of each pair are taken to be aligned.")
    return pairs


def common_changes(augmentation: Augmentation | None) -> Augmentation | None:
    """Returns random changes that leave the two images of a pair aligned."""
    if augmentation is None:
        return None
    return replace(augmentation, misalignment=0.0, shift_voxels=0, bend_mm=0.0)


def in_place_of(prepared: PreparedSet, fixed: int, moving: int) -> Tensor:
    """Returns an image (1, 1, *shape) of a person, aligned as another one of that person is.

    Args:
        prepared: The subjects.
        fixed: Position of the image whose alignment is taken.
        moving: Position of the image.
    """
    image = prepared.image(moving)
    between = invert_matrix(prepared.linear(moving)) @ prepared.linear(fixed)
    if np.abs(between - np.eye(4)).max() < _SAME:
        return image
    matrix = prepared.grid.voxel_to_voxel(prepared.grid, between)
    where = apply_matrix(matrix, voxel_coordinates(prepared.frame.shape))
    return sample(image, where, padding="fill")


def _without_labels(batch: Batch) -> Batch:
    return replace(batch, fixed_labels=None, moving_labels=None)
