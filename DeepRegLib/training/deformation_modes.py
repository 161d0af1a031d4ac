"""Pairs for agents that act on the modes of deformations: real ones, and ones from the modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..networks.bspline_net import fitted_coefficients, unit_lattice
from ..networks.composite import moved_by
from ..networks.deformation_net import DeformationModes
from ..registration.model_frame import ModelFrame
from ..registration.trainable import Batch
from .teacher import SHADES, TaughtPairs

#: Largest coefficient that is drawn, in standard deviations.
_MOST = 3.0


def examples(taught: TaughtPairs, mesh: Sequence[int]) -> Tensor:
    """Returns the control points that fit what a teacher found of all pairs, (n, 3, *(mesh + 3)).

    Raises:
        InputError: If there are fewer than two pairs.
    """
    if len(taught) < 2:
        raise InputError(
            "A statistical model of deformations needs at least two registered pairs; let the "
            "teacher register more."
        )
    lattice = unit_lattice(taught.frame.shape, mesh)
    found = []
    for index in range(len(taught)):
        truth = taught.pair(index).truth
        assert truth is not None
        found.append(fitted_coefficients(lattice, truth))
    return torch.cat(found)


class ModeledPairs:
    """Taught pairs, a share of them with an image that the modes made; a `BatchSource`.

    For such a pair the fixed image is the moving one, moved by a deformation that is drawn from the
    statistical model, so that the truth is exact.

    Args:
        taught: Pairs with what a teacher found.
        model: The modes.
        share: Probability that a pair is made.
    """

    def __init__(self, taught: TaughtPairs, model: DeformationModes, share: float = 0.8) -> None:
        self._taught, self._model, self._share = taught, model, share

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._taught.frame

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs for one training step, on the CPU, with their truth."""
        batch = replace(
            self._taught.draw(count, generator),
            fixed_labels=None,
            moving_labels=None,
            momentum=None,
        )
        assert batch.truth is not None
        size = len(self._model.modes)
        drawn = torch.randn(count, size, generator=generator).clamp(-_MOST, _MOST)
        made = torch.rand(count, 1, 1, 1, 1, generator=generator) < self._share
        with torch.no_grad():
            bend = self._model.displacement(drawn, batch.shape)
        fixed = torch.where(made, moved_by(batch.moving, None, bend), batch.fixed)
        truth = torch.where(made, bend, batch.truth)
        shaded = SHADES(replace(batch, fixed=fixed), generator)
        return replace(shaded, truth=truth)

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs that validation uses, one pair a batch; the same at each call."""
        return self._taught.validation()

    def structures(self) -> list[int]:
        """Returns the labels that occur in training, without the background."""
        return self._taught.structures()

    def labeled(self) -> ModeledPairs:
        """Returns the same with labeled pairs only; see `registration.source.BatchSource`."""
        return ModeledPairs(self._taught.labeled(), self._model, self._share)

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data."""
        return {
            **self._taught.describe(),
            "made_share": self._share,
            "modes": int(self._model.known.sum()),
        }
