"""BIRNet: learns from the fields of a teacher at first, and from the images more and more.

A teacher that needs no training registers pairs once. The network, a U-Net with convolutions in its
skips (gap filling), sees both images, their difference and their edges, and gives a field at three
resolutions. Its loss is a L_phi + (1 - a) L_M: L_phi compares the fields of all resolutions with
that of the teacher (hierarchical), L_M the fixed with the moved image. The share a of the teacher
falls during the training: it shows the way, and the images tell the rest. Nothing else keeps the
field smooth.

Differences from the publication: whole images in place of patches of 64 voxels with answers for the
24 in the middle (at 3 mm a brain is little larger than such a patch), so convolutions keep the
size; 16, 32 and 64 channels by default; edges enter as the length of the gradient; the fields of
all resolutions count voxels of the full one. The images are compared by local correlation by
default (mse is the publication's), as the default teacher does: squared differences also follow
what differs in brightness alone. Where there is no teacher (when the network is fitted to a
pair), differences of neighboring displacements (`smoothness`) take its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.jacobian import spatial_gradient
from ..geometry.sampling import resize_image
from ..losses import similarity
from ..losses.kl_velocity import neighbor_energy
from ..networks.blocks import channels_last, pair_input, warped
from ..networks.gap_unet import GapUNet
from ..registration.base import Progress
from ..registration.learned import LearnedRegistration
from ..registration.source import BatchSource
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Parameter, Reference
from ..training.lesson import Teacher
from ..training.teacher import TaughtPairs

SPEC = AlgorithmSpec(
    key="birnet",
    title="BIRNet",
    family="supervised",
    summary="Gives the displacement of every voxel in one pass; learned from a teacher's fields "
    "and from the images.",
    transform="dense",
    needs=Needs(training=True, teacher=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Fan, Cao, Yap, Shen",
            title="BIRNet: Brain image registration using dual-supervised fully convolutional "
            "networks",
            venue="Medical Image Analysis 54:193-206",
            year=2019,
            doi="10.1016/j.media.2019.03.006",
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
            presets={"accurate": 50},
            help="Steps that the weights are fitted to this very pair before it is registered.",
        ),
        Parameter(
            name="teacher",
            default="greedy",
            choices=("greedy", "syn", "svf", "bspline", "lddmm"),
            help="Algorithm whose fields are learned.",
            training=True,
        ),
        Parameter(
            name="teacher_preset",
            default="balanced",
            choices=("fast", "balanced", "accurate"),
            help="Preset of the teacher.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="taught_pairs",
            default=200,
            minimum=1,
            maximum=1000000,
            help="Number of pairs that the teacher registers before the training.",
            training=True,
        ),
        Parameter(
            name="guidance",
            default=(0.8, 0.2),
            minimum=0.0,
            maximum=1.0,
            help="Share of the teacher in the loss at the beginning and at the end; the images "
            "have the rest.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="image_weight",
            default=1.0,
            minimum=0.0,
            maximum=10000.0,
            help="Factor of the dissimilarity of the images; 0 learns from the teacher alone. Mse, "
            "whose values are small, needs about 100.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="similarity",
            default="lncc",
            choices=("lncc", "mse", "ncc", "mi", "mind"),
            help="What is compared in training.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="radius",
            default=2,
            minimum=1,
            maximum=10,
            unit="voxel",
            help="Half width of the window of local correlation.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="smoothness",
            default=0.1,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared differences of neighboring displacements where there is "
            "no teacher.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="gap_filling",
            default=True,
            help="Whether there are convolutions in the skips of the network.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=(16, 32, 64),
            minimum=1,
            maximum=512,
            help="Channels at the full, half, quarter, ... resolution.",
            advanced=True,
            training=True,
        ),
    ),
)

#: Moving and fixed image, their difference, and the edges of both.
_INPUTS = 5


class Algorithm(LearnedRegistration):
    """Registration by BIRNet."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if len(values["guidance"]) != 2:
            raise ParameterError(
                f"Parameter 'guidance' takes two numbers, not {len(values['guidance'])}."
            )
        #: The coarsest resolution has whole voxels on any grid of this multiple.
        self.multiple = max(16, 2 ** (len(values["channels"]) - 1))

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        channels, filled = tuple(self.values["channels"]), bool(self.values["gap_filling"])
        return channels_last(GapUNet(_INPUTS, channels, filled))

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns pairs with the fields that the teacher finds."""
        count = int(self.values["taught_pairs"])
        return TaughtPairs(pairs, self.teacher(), count, folder / "taught", progress)

    def teacher(self) -> Teacher:
        """Returns the teacher."""
        return Teacher(str(self.values["teacher"]), str(self.values["teacher_preset"]), margin=8)

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        fields = network(network_input(batch.fixed, batch.moving))
        if batch.truth is None:
            return {
                "similarity": (self.values["image_weight"] or 1.0)
                * self._unlike(batch, fields[-1]),
                "smoothness": self.values["smoothness"] * neighbor_energy(fields[-1]),
            }
        guidance = self.guidance(batch.fraction)
        terms = {"field": guidance * hierarchical_error(fields, batch.truth)}
        if self.values["image_weight"] > 0.0:
            weight = (1.0 - guidance) * self.values["image_weight"]
            terms["similarity"] = weight * self._unlike(batch, fields[-1])
        return terms

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; see `registration.trainable.Trainable`."""
        return Prediction(displacement=network(network_input(fixed, moving))[-1])

    def guidance(self, fraction: float) -> float:
        """Returns the share of the teacher in the loss, at a share of the training."""
        if self.values["image_weight"] == 0.0:
            return 1.0
        first, last = self.values["guidance"]
        return float(first + (last - first) * fraction)

    def _unlike(self, batch: Batch, displacement: Tensor) -> Tensor:
        """Returns the dissimilarity of the fixed and the moved images."""
        options = {"radius": self.values["radius"]} if self.values["similarity"] == "lncc" else {}
        measure = similarity(self.values["similarity"], **options)
        return measure(batch.fixed, warped(batch.moving, displacement))


def network_input(fixed: Tensor, moving: Tensor) -> Tensor:
    """Returns what the network sees: both images, their difference, and the edges of both.

    Args:
        fixed: (B, 1, *shape).
        moving: Of the same shape.

    Returns:
        (B, 5, *shape): moving, fixed, fixed - moving, and the lengths of their gradients per voxel
        in the same order.
    """
    both = pair_input(fixed, moving)
    edges = spatial_gradient(both).norm(dim=2)
    channels = torch.cat([both, fixed - moving, edges], dim=1)
    return channels.contiguous(memory_format=torch.channels_last_3d)


def hierarchical_error(fields: list[Tensor], truth: Tensor) -> Tensor:
    """Returns the sum over the resolutions of the mean squared distance of a field from the truth.

    Fan et al. 2019, doi:10.1016/j.media.2019.03.006, eq. 3: the truth is brought to each
    resolution. All count voxels of the full resolution, so that a distance weighs alike in each.

    Args:
        fields: (B, 3, *shape of the resolution).
        truth: (B, 3, *shape).
    """
    errors = [
        (field - resize_image(truth, field.shape[2:])).square().sum(dim=1).mean()
        for field in fields
    ]
    return torch.stack(errors).sum()
