"""Pairs whose alignment is known, for systems that learn to find or to judge rigid maps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..geometry.sampling import sample, voxel_coordinates
from ..networks.affine_net import apply_affine
from ..registration.model_frame import ModelFrame
from ..registration.rigid_motion import motion_matrix
from ..registration.source import BatchSource
from ..registration.trainable import Batch
from .augment import Augmentation
from .pairs import PreparedPairs

#: Most pairs for validation: each is registered by a search or many steps.
_MOST_VALIDATION = 4
_VALIDATION_SEED = 20161130


class KnownAlignment:
    """Pairs that are aligned, with this truth, and de-aligned ones for validation; a `BatchSource`.

    Prepared people are aligned with each other. A share of the pairs shows one of them twice, where
    the alignment is exact; the others show two, where it is as good as that of the preparation.
    Both images get the same change of pose, and each its own changes of intensities; what would
    move one of them alone (misalignment, shifts) is left out of the user's random changes. Those
    of `Augmentation.usual` are made if the user asks for none. The systems draw the de-alignments
    themselves, several for each pair.

    Pairs of other kinds (generated ones, or of two contrasts) are taken as they come; a truth that
    comes along is kept.

    Args:
        pairs: The pairs.
        reach: Largest shift in mm and rotation in degrees, along and about each axis, that the
            pairs for validation are de-aligned by.
        own_share: Probability that a pair shows one person twice.
    """

    def __init__(
        self, pairs: BatchSource, reach: tuple[float, float], own_share: float = 0.5
    ) -> None:
        self._given, self._reach, self._own_share = pairs, reach, own_share
        self._pairs, self._changes = _without_changes(pairs)

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._given.frame

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs for one training step, on the CPU, with their truth."""
        batch = self._pairs.draw(count, generator)
        batch = replace(batch, fixed_labels=None, moving_labels=None)
        if self._changes is not None:
            own = torch.rand(count, 1, 1, 1, 1, generator=generator) < self._own_share
            batch = replace(batch, moving=torch.where(own, batch.fixed, batch.moving))
            batch = self._changes(batch, generator)
        if batch.truth is not None:
            return batch
        return replace(batch, truth=torch.zeros(count, 3, *batch.shape))

    def validation(self) -> Sequence[Batch]:
        """Returns de-aligned pairs, one pair a batch; the same at each call."""
        held = self._given.validation()
        count = min(_MOST_VALIDATION, len(held))
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        chosen = [held[i * len(held) // count] for i in range(count)]
        return [self._dealigned(batch, generator) for batch in chosen]

    def structures(self) -> list[int]:
        """Returns the labels that occur in training, without the background."""
        return self._given.structures()

    def labeled(self) -> KnownAlignment:
        """Returns the same with labeled pairs only; see `registration.source.BatchSource`."""
        return KnownAlignment(self._given.labeled(), self._reach, self._own_share)

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        said = {**self._given.describe(), "own_share": self._own_share, "reach": list(self._reach)}
        if self._changes is not None:
            said["augmentation"] = vars(self._changes).copy()
        return said

    def _dealigned(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Returns a pair whose moving image is turned and shifted, with the truth."""
        shape, bounds = batch.shape, [self._reach[0]] * 3 + [self._reach[1]] * 3
        drawn = 2.0 * torch.rand(1, 6, generator=generator, dtype=torch.float64) - 1.0
        middle = [(n - 1) / 2 for n in shape]
        motion = motion_matrix(drawn * torch.tensor(bounds), batch.spacing_mm, middle)
        where = voxel_coordinates(shape)
        source = apply_affine(motion.float(), where)
        labels = batch.moving_labels
        if labels is not None:
            labels = sample(labels, source, "nearest", padding="fill")
        # Moved back by the inverse, the moving image is where it was.
        before = where if batch.truth is None else where + batch.truth
        truth = apply_affine(torch.linalg.inv(motion).float(), before) - where
        return replace(batch, moving=sample(batch.moving, source, padding="fill"), truth=truth,
                       moving_labels=labels, momentum=None)  # fmt: skip


def _without_changes(pairs: BatchSource) -> tuple[BatchSource, Augmentation | None]:
    """Returns prepared pairs without their random changes, and these; else the pairs and None."""
    if not isinstance(pairs, PreparedPairs):
        return pairs, None
    plain = copy.copy(pairs)
    plain._augmentation = None
    changes = pairs._augmentation or Augmentation.usual()
    return plain, replace(changes, misalignment=0.0, shift_voxels=0)
