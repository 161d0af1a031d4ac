"""Subjects on one grid, as `preparation` made them: read from its folder and held in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.grid import Grid, Matrix
from ..registration.model_frame import ModelFrame
from .cache import Cache
from .subjects import Subject, split_subjects

#: Megabytes of prepared images that are held in memory; the others are read when needed.
_MEMORY_MB = 4000.0


class PreparedSet:
    """Subjects on one grid, aligned with each other.

    Convention:
        Images are (1, 1, *frame.shape), 0 to 1; label maps likewise; axes to R, A and S.

    Args:
        frame: Voxel size and shape.
        grid: The grid, in the space of the reference.
        subjects: Who they are.
        cache: Where they are kept.
        keys: Their keys there.
        memory_mb: How much of them is held in memory.
    """

    def __init__(
        self,
        frame: ModelFrame,
        grid: Grid,
        subjects: Sequence[Subject],
        cache: Cache,
        keys: Sequence[str],
        memory_mb: float = _MEMORY_MB,
    ) -> None:
        self.frame, self.grid = frame, grid
        self.subjects = tuple(subjects)
        self._cache, self._keys, self._memory_mb = cache, tuple(keys), memory_mb
        self._held: dict[str, dict[str, Tensor]] = {}
        self._held_mb = 0.0

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def labeled(self) -> bool:
        """Whether every subject has a label map."""
        return all(subject.labels is not None for subject in self.subjects)

    def image(self, index: int) -> Tensor:
        """Returns an image, (1, 1, *shape), float32, 0 to 1."""
        return self._entry(index)["image"].float()[None, None]

    def labels(self, index: int) -> Tensor | None:
        """Returns a label map, (1, 1, *shape), int64; None if the subject has none."""
        found = self._entry(index).get("labels")
        return None if found is None else found.to(torch.int64)[None, None]

    def linear(self, index: int) -> Matrix:
        """Returns the 4 x 4 map from RAS mm of the reference to RAS mm of the subject."""
        return np.asarray(self._entry(index)["linear"].numpy(), np.float64)

    def overlap(self, index: int) -> float:
        """Returns the Dice overlap of the subject's object with that of the reference."""
        return float(self._entry(index)["overlap"])

    def structures(self) -> list[int]:
        """Returns the labels that occur in any subject, without the background."""
        found: set[int] = set()
        for index in range(len(self)):
            labels = self._entry(index).get("labels")
            found.update([] if labels is None else labels.unique().tolist())
        return sorted(found - {0})

    def only(self, subjects: Sequence[Subject]) -> PreparedSet:
        """Returns some of the subjects, found by their names.

        Raises:
            InputError: If one was not prepared.
        """
        where = {subject.name: index for index, subject in enumerate(self.subjects)}
        missing = [s.name for s in subjects if s.name not in where]
        if missing:
            raise InputError(f"'{missing[0]}' is none of the {len(self)} prepared subjects.")
        keys = [self._keys[where[s.name]] for s in subjects]
        return PreparedSet(self.frame, self.grid, subjects, self._cache, keys, self._memory_mb)

    def split(self, share: float = 0.2, seed: int = 0) -> tuple[PreparedSet, PreparedSet]:
        """Returns the subjects for training and those for validation; see `split_subjects`."""
        train, validation = split_subjects(self.subjects, share, seed)
        return self.only(train), self.only(validation)

    def _entry(self, index: int) -> dict[str, Tensor]:
        key = self._keys[index]
        if key in self._held:
            return self._held[key]
        entry = self._cache.get(key)
        if entry is None:
            raise InputError(
                f"What was prepared of '{self.subjects[index].name}' is missing or damaged in "
                f"'{self._cache.folder}'; begin the training again, and it is made anew."
            )
        size = sum(t.numel() * t.element_size() for t in entry.values()) / 2**20
        if self._held_mb + size <= self._memory_mb:
            self._held[key] = entry
            self._held_mb += size
        return entry


def compact(labels: Tensor) -> Tensor:
    """Returns a label map in the smallest integer type that holds it."""
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high <= 255:
        return labels.to(torch.uint8)
    fits = low >= -32768 and high <= 32767
    return labels.to(torch.int16 if fits else torch.int32)
