"""What a system that learns has to offer: a network, a loss for training, and a prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pathlib import Path

    from .base import Progress
    from .source import BatchSource


@dataclass(frozen=True, eq=False)
class Batch:
    """What one training step works on: pairs of images on the grid of the model.

    Convention:
        Images are (B, 1, *shape), float32, 0 to 1; label maps (B, 1, *shape), int64, 0 is the
        background, and -1 everywhere in a map that is not known. Displacements are (B, 3, *shape)
        in voxels of this grid, component c along tensor axis c, and moved(x) = moving(x + u(x)).
        Tensor axes run to R, A and S.

    Args:
        fixed: Images that stay.
        moving: Images that are to be brought onto them, linearly aligned beforehand.
        spacing_mm: Voxel size, the same along all axes.
        fixed_labels: Structures of the fixed images, if they are known.
        moving_labels: Structures of the moving images.
        truth: Displacements that are known (from a teacher, or from the making of the images).
        momentum: Initial momenta of the geodesics that a teacher found, (B, 3, *lattice), on the
            lattice and in the units of `geometry.momentum`.
        fraction: Share of the training stage that is done, 0 to 1, for schedules.
        stage: Name of the training stage; ``pair`` while a trained model is fitted to a pair.
        step: Number of the step within the stage, from 0, for systems that alternate.
    """

    fixed: Tensor
    moving: Tensor
    spacing_mm: float
    fixed_labels: Tensor | None = None
    moving_labels: Tensor | None = None
    truth: Tensor | None = None
    momentum: Tensor | None = None
    fraction: float = 0.0
    stage: str = "train"
    step: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the grid along each tensor axis."""
        a, b, c = self.fixed.shape[2:]
        return a, b, c

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device; the same one if it is there."""
        if self.fixed.device == device:
            return self
        tensors: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True)
class Stage:
    """A part of a training, with the rest of the network frozen.

    Args:
        name: Its name, which the batches carry.
        share: Its share of all steps.
        modules: Names of the submodules that learn in it; the whole network if empty.
        rate: Its learning rate as a share of that of the training.
    """

    name: str
    share: float = 1.0
    modules: tuple[str, ...] = ()
    rate: float = 1.0


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one pair, on the grid of the model; the units are those of `Batch`.

    The transform is x -> A(x + u(x)) in voxels of that grid, with A the `linear` part.

    Args:
        displacement: u, (1, 3, *shape); none for a system that is linear.
        inverse: Displacement of the inverse of x -> x + u(x) on the same grid, where the system
            knows it better than a search would.
        linear: A, (4, 4).
        control_points: B-spline coefficients of `displacement`, (1, 3, *lattice), in voxels of the
            model's grid, on ``BSplineLattice(grid, mesh).control_grid``.
        mesh: Mesh of that lattice.
        maps: Maps (1, C, *shape) by name; the unit ends the name, ``uncertainty_mm``. Those
            of whole numbers are label maps; ``moving_`` begins those of the moving image.
        values: Numbers and lists that a system is known for, such as a latent code, for JSON.
    """

    displacement: Tensor | None = None
    inverse: Tensor | None = None
    linear: Tensor | None = None
    control_points: Tensor | None = None
    mesh: tuple[int, int, int] | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class Trainable(ABC):
    """A system that learns; its three parts are the same in training and in use.

    Subclasses hold no state but their parameters: the network comes in from outside, so that the
    trainer, the registration of a pair and a test work on networks of their own.

    Args:
        **values: Complete parameter values, as `AlgorithmSpec.values` returns them.
    """

    #: The network halves the grid so often that its shape is a multiple of this.
    multiple: int = 16
    #: Submodules that learn while a trained network is fitted to a pair; all of it if empty.
    pair_modules: tuple[str, ...] = ()

    def __init__(self, **values: Any) -> None:
        self.values: Mapping[str, Any] = values

    @abstractmethod
    def build(self) -> nn.Module:
        """Returns a new network with random weights (torch's global generator), on the CPU."""

    @abstractmethod
    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective by name, each a weighted scalar with its tape.

        Their sum is minimized. Random numbers come from torch's global generator.
        """

    @abstractmethod
    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair (1, 1, *shape); called without a tape."""

    def stages(self) -> tuple[Stage, ...]:
        """Returns the stages of a training, in order; one by default."""
        return (Stage("train"),)

    def examine(self, network: nn.Module, pair: Batch) -> dict[str, float] | None:
        """Returns what validation measures of a pair, for a system that is made to judge pairs.

        None for one that is made to register them; then it does, and the usual figures are measured
        (`training.validation`). The figure ``score``, more is better, chooses the best weights.

        Args:
            network: The network, in use and not in training.
            pair: A pair for validation, on the device of the network.
        """
        return None

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns the pairs that the system learns from, made of those that the user gave.

        The given ones, unless a system needs more: the fields of a teacher, labeled pairs only,
        or images from a model of its own.

        Args:
            pairs: The user's pairs.
            folder: Keeps what takes long to compute; its content is found again by its inputs.
            progress: Gets messages, and can cancel.

        Raises:
            InputError: If the pairs lack what the system learns from.
        """
        return pairs


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Returns the sum of the terms of an objective."""
    return torch.stack([term.reshape(()) for term in terms.values()]).sum()
