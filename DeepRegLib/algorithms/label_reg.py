"""Label-driven registration: a network learns from structures, and needs images only in use.

The network sees two images of any contrasts. What it is trained by are label maps, which it never
sees: in each step the structures that both maps hold are dealt at random to groups, those of the
moving image are moved, and both are compared by their Dice at several scales (smoothed by
Gaussians, so that structures which do not overlap yet attract), plus the bending energy of the
displacement. So the training needs no measure of how images of two contrasts are alike.

The displacement is a sum of what five resolutions say of it (`network` local). An affine map
(global) or a displacement after an affine map (composite) may take its place. `supervision` lncc or
mi trains the very same network by the images instead, for comparison. Random affine changes of both
images come from the augmentation of the training.

Without label maps (a network that is fitted to one pair) mutual information takes the place of the
Dice.

Differences from the publication: the parts of the composite network are composed, where the
published code adds them; the scales of the Dice are millimeters, whatever the voxels, and its
denominators are squared; there are 8 channels at the full resolution by default, not 32 (`channels`
32 is the published network), which trains on one core; transposed convolutions are two voxels wide;
the step size is larger than the published 1e-5, for fewer steps; a step deals all structures to
eight groups, each of which is compared as one structure, because a single one moves all the others
with it (`drawn` 1 without `dealt` is the published scheme).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..losses import similarity
from ..losses.bending import bending_energy
from ..losses.multiscale_dice import multiscale_dice
from ..networks.blocks import channels_last
from ..networks.composite import moved_by
from ..networks.local_net import Found, RegistrationNet
from ..registration.learned import LearnedRegistration
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Parameter, Reference

if TYPE_CHECKING:
    from pathlib import Path

    from ..registration.base import Progress
    from ..registration.source import BatchSource

SPEC = AlgorithmSpec(
    key="label_reg",
    title="Label-driven registration",
    family="weakly supervised",
    summary="Learns from label maps to register images of any two contrasts, in one pass.",
    transform="dense",
    needs=Needs(training=True, labels=True),
    modalities=("same", "different"),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Hu, Modat, Gibson, Li, Ghavami, Bonmati, Wang, Bandula, Moore, Emberton, "
            "Ourselin, Noble, Barratt, Vercauteren",
            title="Weakly-supervised convolutional neural networks for multimodal image "
            "registration",
            venue="Medical Image Analysis 49:1-13",
            year=2018,
            doi="10.1016/j.media.2018.07.002",
        ),
    ),
    parameters=(
        Parameter(
            name="model",
            default="",
            help="Trained model, by name or file; empty takes the newest.",
        ),
        Parameter(
            name="pair_steps",
            default=0,
            minimum=0,
            maximum=10000,
            help="Steps that the weights are fitted to this very pair, by mutual information, "
            "before it is registered.",
        ),
        Parameter(
            name="network",
            default="local",
            choices=("local", "global", "composite"),
            help="A displacement, an affine map, or a displacement after an affine map.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="supervision",
            default="labels",
            choices=("labels", "lncc", "mi"),
            help="What is compared in training: structures, or the images themselves.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="scales",
            default=(0.0, 1.0, 2.0, 4.0, 8.0, 16.0),
            minimum=0.0,
            maximum=200.0,
            unit="mm",
            help="Widths of the Gaussians that smooth the structures before they are compared.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="drawn",
            default=8,
            minimum=1,
            maximum=100,
            help="Structures, or groups of them, that are drawn for each pair in a step.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="dealt",
            default=True,
            help="Whether all structures are dealt at random to so many groups, each compared as "
            "one structure, so that a step learns from the whole image.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="bending",
            default=0.5,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the bending energy.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=8,
            minimum=1,
            maximum=512,
            help="Channels at the full resolution, twice as many at each coarser one.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="affine_channels",
            default=8,
            minimum=1,
            maximum=512,
            help="Channels of the affine network at half the resolution.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="levels",
            default=(0, 1, 2, 3, 4),
            minimum=0,
            maximum=4,
            help="Resolutions whose displacements are added up; 0 is the full one, 4 the coarsest.",
            advanced=True,
            training=True,
        ),
    ),
)

#: Half width of the window of local correlation, in voxels.
_RADIUS = 2


class Algorithm(LearnedRegistration):
    """Registration by a network that was trained with label maps."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        #: An affine map of the whole image is not put together from windows.
        self.in_tiles = values["network"] == "local"

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        kind = self.values["network"]
        return channels_last(
            RegistrationNet(
                None if kind == "global" else int(self.values["channels"]),
                tuple(self.values["levels"]),
                None if kind == "local" else int(self.values["affine_channels"]),
            )
        )

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns those of the pairs whose images both have a label map, if it takes them."""
        return pairs.labeled() if self.values["supervision"] == "labels" else pairs

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        found: Found = network(batch.fixed, batch.moving)
        terms = self._compared(found, batch)
        if found.displacement is not None:
            terms["bending"] = self.values["bending"] * bending_energy(found.displacement)
        return terms

    def _compared(self, found: Found, batch: Batch) -> dict[str, Tensor]:
        """Returns the term that compares structures, or images."""
        kind = self.values["supervision"]
        if kind == "labels" and batch.fixed_labels is not None and batch.moving_labels is not None:
            choose = dealt_structures if self.values["dealt"] else drawn_structures
            fixed, moving = choose(
                batch.fixed_labels, batch.moving_labels, int(self.values["drawn"])
            )
            sigmas = [scale / batch.spacing_mm for scale in self.values["scales"]]
            return {"dice": multiscale_dice(fixed, moved_by(moving, *found), sigmas)}
        measure = similarity("lncc", radius=_RADIUS) if kind == "lncc" else similarity("mi")
        return {"similarity": measure(batch.fixed, moved_by(batch.moving, *found))}

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair by its images alone."""
        found: Found = network(fixed, moving)
        linear = None if found.matrix is None else found.matrix[0].double()
        return Prediction(displacement=found.displacement, linear=linear)


def drawn_structures(fixed: Tensor, moving: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draws structures that both label maps of a pair hold, by torch's global generator.

    Args:
        fixed: Label maps, (B, 1, *shape), integers; 0 is the background, less is not known.
        moving: Label maps of the same shape.
        count: Structures for each pair; where a pair has fewer, all of them, and empty channels.

    Returns:
        Both structures of each pair, (B, count, *shape), float32, 0 or 1.
    """
    size = (len(fixed), count, *fixed.shape[2:])
    chosen = (torch.zeros(size, device=fixed.device), torch.zeros(size, device=fixed.device))
    for pair, (one, other) in enumerate(zip(fixed, moving)):
        labels = _shared(one, other)
        order = torch.randperm(len(labels))[:count].tolist()
        for channel, index in enumerate(order):
            for target, labels_of in zip(chosen, (one, other)):
                target[pair, channel] = labels_of[0] == labels[index]
    return chosen


def dealt_structures(fixed: Tensor, moving: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Deals all structures that both label maps of a pair hold to groups, by torch's generator.

    Two neighbors seldom share a group, and then only for a step (one time in `count`), so that the
    border between them counts in almost all steps.

    Args:
        fixed: Label maps, (B, 1, *shape), integers; 0 is the background, less is not known.
        moving: Label maps of the same shape.
        count: Groups; where a pair has fewer structures, some stay empty.

    Returns:
        The groups of both, (B, count, *shape), float32, 0 or 1.
    """
    groups = torch.arange(count, device=fixed.device).view(1, -1, 1, 1, 1)
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for one, other in zip(fixed, moving):
        labels = torch.tensor(_shared(one, other), dtype=torch.long, device=fixed.device)
        most = int(max(one.max(), other.max(), 0))
        group_of = torch.full((most + 1,), -1, device=fixed.device)
        order = labels[torch.randperm(len(labels)).to(labels.device)]
        group_of[order] = torch.arange(len(labels), device=fixed.device) % count
        for side, labels_of in zip(sides, (one, other)):
            side.append((group_of[labels_of.long().clamp(min=0)][None] == groups).float())
    return torch.cat(sides[0]), torch.cat(sides[1])


def _shared(one: Tensor, other: Tensor) -> list[int]:
    """Returns the labels above 0 that two maps hold."""
    return sorted(x for x in {*one.unique().tolist()} & {*other.unique().tolist()} if x > 0)
