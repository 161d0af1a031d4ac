"""Where the trainer gets its pairs from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from .. import registry
from ..errors import InputError
from .model_frame import ModelFrame
from .trainable import Batch, Trainable


class BatchSource(Protocol):
    """Draws pairs for training, and holds pairs for validation.

    All randomness comes from the generator that is passed in, so that a training that was
    interrupted goes on with the very same pairs.
    """

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        ...

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs for one training step, on the CPU."""
        ...

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch; the same at each call."""
        ...

    def structures(self) -> list[int]:
        """Returns the labels that occur in training, without the background."""
        ...

    def labeled(self) -> BatchSource:
        """Returns the source with those pairs only whose images both have a label map.

        Raises:
            InputError: If there are too few.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data: text, subjects, terms."""
        ...


def informed(key: str, values: Mapping[str, Any], source: BatchSource) -> Trainable:
    """Makes a system that knows the structures of the images that it is trained with.

    A system with classes has the parameter ``structures``, a list of labels; 0, which is none,
    stands for all that occur in training.

    Args:
        key: Key of the algorithm.
        values: Its parameter values, as far as they are given.
        source: The pairs.

    Raises:
        InputError: If it needs structures and there are none.
    """
    names = [p.name for p in registry.spec(key).parameters]
    system: Trainable = registry.create(key, **values)
    if "structures" not in names or any(system.values["structures"]):
        return system
    found = source.structures()
    if not found:
        raise InputError(f"'{key}' learns from label maps; give label maps of the images.")
    informed_one: Trainable = registry.create(key, **{**values, "structures": tuple(found)})
    return informed_one
