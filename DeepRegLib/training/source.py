"""Where the trainer gets its pairs from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..registration.model_frame import ModelFrame
from ..registration.trainable import Batch


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

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data: text, subjects, terms."""
        ...
