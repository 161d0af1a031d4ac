"""Pairs of which a given share holds an image with a label map, where few images have one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InputError
from ..registration.model_frame import ModelFrame
from ..registration.source import BatchSource
from ..registration.trainable import Batch
from .augment import uniform
from .pairs import PreparedPairs


class LabelFirst:
    """Draws a share of the batches from the pairs with at least one label map; a `BatchSource`.

    With two label maps among fifteen images, three of four pairs that are drawn evenly have none
    at all. The other batches are drawn from all pairs.

    Args:
        pairs: The pairs.
        share: Share of the batches all of whose pairs hold an image with a label map.

    Raises:
        InputError: If no image has a label map, or the share is no share.
    """

    def __init__(self, pairs: PreparedPairs, share: float = 1.0) -> None:
        if not 0.0 <= share <= 1.0:
            raise InputError(f"The share of pairs with a label map is 0 to 1, not {share:g}.")
        self._all, self._share = pairs, share
        self._some = pairs.partly_labeled()

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._all.frame

    @property
    def some_without(self) -> bool:
        """Whether there are pairs without any label map."""
        return len(self._some.members()) < len(self._all.members())

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs for one training step, on the CPU."""
        labeled = uniform(generator) < self._share
        return (self._some if labeled else self._all).draw(count, generator)

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch; the same at each call."""
        return self._all.validation()

    def structures(self) -> list[int]:
        """Returns the labels that occur in the subjects for training, without the background."""
        return self._all.structures()

    def labeled(self) -> PreparedPairs:
        """Returns the pairs whose images both have a label map; see `BatchSource`."""
        return self._all.labeled()

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        train, _ = self._all.prepared()
        known = sum(subject.labels is not None for subject in train.subjects)
        return {**self._all.describe(), "labeled_subjects": known, "labeled_share": self._share}


def label_first(pairs: BatchSource, share: float = 1.0) -> BatchSource:
    """Returns pairs of which a share holds a label map; see `LabelFirst`.

    Generated pairs, and mixtures with them, have their labels and are returned as they are; so are
    prepared ones if every pair has a label map.

    Raises:
        InputError: If no image has a label map.
    """
    if not isinstance(pairs, PreparedPairs):
        return pairs
    first = LabelFirst(pairs, share)
    return first if first.some_without else pairs
