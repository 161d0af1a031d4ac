"""Pairs from several sources, such as real and generated ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InputError
from ..registration.model_frame import ModelFrame
from ..registration.source import BatchSource
from ..registration.trainable import Batch


class MixedPairs:
    """Draws each batch from one of several sources; a `BatchSource`.

    Args:
        sources: The sources, with the same frame. Validation is that of the first one that has
            pairs for it: put the one that is most like the later use first.
        shares: How often each is drawn from; alike if omitted.

    Raises:
        InputError: If there is no source, or frames or shares do not fit.
    """

    def __init__(self, sources: Sequence[BatchSource], shares: Sequence[float] = ()) -> None:
        self._sources = tuple(sources)
        weights = torch.tensor(list(shares) or [1.0] * len(self._sources), dtype=torch.float64)
        if not self._sources or len(weights) != len(self._sources):
            raise InputError("Mixed pairs need at least one source, and one share for each.")
        if not bool((weights >= 0).all()) or float(weights.sum()) <= 0.0:
            raise InputError("The shares of the sources are positive numbers.")
        if any(source.frame != self._sources[0].frame for source in self._sources):
            raise InputError("All sources must have the same voxel size and shape.")
        self._weights = weights / weights.sum()

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._sources[0].frame

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs of one source for one training step, on the CPU."""
        chosen = int(torch.multinomial(self._weights, 1, generator=generator))
        return self._sources[chosen].draw(count, generator)

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch; the same at each call."""
        return next((held for s in self._sources if (held := s.validation())), [])

    def structures(self) -> list[int]:
        """Returns the labels that occur in any source, without the background."""
        return sorted({label for source in self._sources for label in source.structures()})

    def labeled(self) -> MixedPairs:
        """Returns the mixture with labeled pairs only; see `registration.source.BatchSource`."""
        return MixedPairs([source.labeled() for source in self._sources], self._weights.tolist())

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        parts = [source.describe() for source in self._sources]
        joined = {
            key: "; ".join(dict.fromkeys(str(part[key]) for part in parts if part.get(key)))
            for key in ("text", "terms")
        }
        subjects = sum(int(part.get("subjects", 0)) for part in parts)
        return {**joined, "subjects": subjects, "shares": self._weights.tolist(), "sources": parts}
