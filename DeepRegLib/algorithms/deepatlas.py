"""DeepAtlas: a registration and a segmentation network that teach each other from few label maps.

Both networks are trained by themselves first, then in turns, each with the other one at rest. What
joins them is the anatomy loss, one minus the Dice of the moved structures of the moving image and
those of the fixed image: it tells the registration network where structures belong, and the
segmentation network what structures an image without a label map has. Structures that are not known
are those that the segmentation network predicts; where neither image has a label map there is no
anatomy loss, and the turn of the segmentation network falls to the registration network.

A trained model gives the displacement and the segmentations of both images. A label map of the
moving image (an atlas) goes to the fixed one by the displacement, as with any result.

Differences from the publication: local correlation is that of this library, its windows lie on
blocks of voxels where they are large, and their sizes are shares of the geometric mean of the sizes
of the image; the bending energy counts voxels and compares direct neighbors; the registration
network has one more convolution at its coarsest resolution; the segmentation network normalizes
each image by itself, as batches hold one or two; the supervised loss adds cross entropy to Dice;
plain denominators in all Dice; three turns of registration for one of segmentation, and not
twenty, because trainings are shorter; `deformation` velocity, which cannot fold, is an addition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.velocity import exponential
from ..losses.anatomy import anatomy_loss, class_map, probabilities, segmentation_loss
from ..losses.curvature import curvature_energy
from ..losses.lncc import LNCC
from ..networks.atlas_net import AtlasNetwork
from ..networks.blocks import channels_last, resized_vectors, warped
from ..registration.base import Progress
from ..registration.learned import LearnedRegistration
from ..registration.source import BatchSource
from ..registration.trainable import Batch, Prediction, Stage
from ..spec import AlgorithmSpec, Needs, Outputs, Parameter, Reference

SPEC = AlgorithmSpec(
    key="deepatlas",
    title="DeepAtlas",
    family="joint registration and segmentation",
    summary="Registers and segments both images, trained with label maps of a few images only.",
    transform="dense",
    needs=Needs(training=True, labels=True),
    outputs=Outputs(segmentation=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Xu, Niethammer",
            title="DeepAtlas: joint semi-supervised learning of image registration and "
            "segmentation",
            venue="MICCAI 2019, LNCS 11765:420-429",
            year=2019,
            doi="10.1007/978-3-030-32245-8_47",
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
            name="structures",
            default=(0,),
            minimum=0,
            help="Labels that the network learns; 0 takes all that occur in training.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="labeled_share",
            default=0.75,
            minimum=0.0,
            maximum=1.0,
            help="Share of the training pairs that hold at least one image with a label map.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="ratio",
            default=3,
            minimum=1,
            maximum=1000,
            help="Steps of the registration network for one of the segmentation network.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="anatomy",
            default=1.0,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the anatomy loss; 0 trains the two networks apart from each other.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="smoothness",
            default=0.5,
            minimum=0.0,
            maximum=10000.0,
            help="Weight of the bending energy of the displacement.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="windows",
            default=(0.0625, 0.125, 0.25),
            minimum=0.001,
            maximum=1.0,
            help="Widths of the windows of local correlation, as shares of the size of the image.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="window_weights",
            default=(0.1, 0.3, 0.6),
            minimum=0.0,
            maximum=1000.0,
            help="Weights of the correlations in these windows.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="deformation",
            default="displacement",
            choices=("displacement", "velocity"),
            help="What the network gives; a velocity is integrated and cannot fold.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="squarings",
            default=6,
            minimum=1,
            maximum=12,
            help="Steps of scaling and squaring that integrate a velocity.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="encoder",
            default=(16, 32, 32, 32, 32),
            minimum=1,
            maximum=512,
            help="Channels of the registration network at 1, 1/2, 1/4, ... of the resolution.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="decoder",
            default=(32, 32, 32, 8, 8),
            minimum=1,
            maximum=512,
            help="Channels from the coarsest resolution but one up to the full one, which takes "
            "all that are left.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="segmentation_encoder",
            default=(8, 16, 16, 32, 32, 64, 64, 64),
            minimum=1,
            maximum=512,
            help="Channels of the segmentation network from the full resolution on, two at each.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="segmentation_decoder",
            default=(64, 64, 32, 32, 16, 16),
            minimum=1,
            maximum=512,
            help="Channels from the coarsest resolution but one up to the full one, two at each.",
            advanced=True,
            training=True,
        ),
    ),
)

#: A map of classes or probabilities of one image, or None where nothing is known of it.
_Map = Tensor | None


class Algorithm(LearnedRegistration):
    """Registration and segmentation by DeepAtlas."""

    #: Without label maps of the pair nothing could be learned about its structures.
    pair_modules = ("registration",)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if len(values["windows"]) != len(values["window_weights"]):
            raise ParameterError("Parameter 'window_weights' takes as many numbers as 'windows'.")
        #: Labels of the classes from 1 on; empty before a training has told them.
        self.labels = tuple(sorted({int(n) for n in values["structures"]} - {0}))

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        names = ("encoder", "decoder", "segmentation_encoder", "segmentation_decoder")
        channels = (tuple(self.values[name]) for name in names)
        return channels_last(AtlasNetwork(len(self.labels) + 1, *channels))

    def stages(self) -> tuple[Stage, ...]:
        """Returns the stages: each network by itself, then both in turns."""
        return (
            Stage("registration", 0.35, ("registration",)),
            Stage("segmentation", 0.15, ("segmentation",)),
            Stage("joint", 0.5, rate=0.5),
        )

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns pairs of which a share holds a label map; see `registration.trainable`."""
        from ..training.label_first import label_first  # registering needs no training

        return label_first(pairs, float(self.values["labeled_share"]))

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the network whose turn it is; those of the other one are zero."""
        moving, fixed = (
            self._known(batch.moving_labels, batch),
            self._known(batch.fixed_labels, batch),
        )
        if batch.stage == "segmentation":
            return {"labels": self._supervised(network, batch, moving, fixed)[0]}
        if batch.stage != "joint":
            return self._registration(network, batch)[0]
        zero = batch.fixed.new_zeros(())
        any_known = any(map_ is not None for map_ in (*moving, *fixed))
        due = batch.step % (int(self.values["ratio"]) + 1) == int(self.values["ratio"])
        if due and any_known:
            labels, anatomy = self._supervised(network, batch, moving, fixed, joint=True)
            return {"similarity": zero, "smoothness": zero, "anatomy": anatomy, "labels": labels}
        terms, displacement = self._registration(network, batch)
        anatomy = self._agreement(network, batch, moving, fixed, displacement)
        return {**terms, "anatomy": anatomy, "labels": zero}

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers and segments one pair; the maps hold the labels of the training."""
        found = network(fixed, moving)
        inverse = None
        if self.values["deformation"] == "velocity":
            inverse = self._displacement(-found)
        maps = {}
        if self.labels:
            table = torch.tensor((0, *self.labels), device=fixed.device)
            for name, image in (("segmentation", fixed), ("moving_segmentation", moving)):
                maps[name] = table[network(image).argmax(dim=1, keepdim=True)]
        return Prediction(self._displacement(found), inverse, maps=maps)

    def _displacement(self, found: Tensor) -> Tensor:
        """Returns the displacement of what the network gives; velocities at half resolution."""
        if self.values["deformation"] == "displacement":
            return found
        shape = found.shape[2:]
        half = resized_vectors(found, [-(-n // 2) for n in shape])
        return resized_vectors(exponential(half, int(self.values["squarings"])), shape)

    def _registration(self, network: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the terms that need no structures, and the displacement."""
        displacement = self._displacement(network(batch.fixed, batch.moving))
        moved = warped(batch.moving, displacement)
        similarity = torch.stack(
            [weight * measure(batch.fixed, moved) for weight, measure in self._measures(batch)]
        ).sum()
        smoothness = self.values["smoothness"] * curvature_energy(displacement)
        return {"similarity": similarity, "smoothness": smoothness}, displacement

    def _measures(self, batch: Batch) -> list[tuple[float, LNCC]]:
        """Returns the local correlations with their weights, for the size of the images."""
        size = math.prod(batch.shape) ** (1 / 3)
        even = all(n % 2 == 0 for n in batch.shape)
        measures = []
        for share, weight in zip(self.values["windows"], self.values["window_weights"]):
            radius = max(1.0, (share * size - 1.0) / 2.0)
            if even and radius > 2.0:
                measures.append((float(weight), LNCC(round(radius / 2.0), block=(2, 2, 2))))
            else:
                measures.append((float(weight), LNCC(round(radius))))
        return measures

    def _agreement(
        self, network: nn.Module, batch: Batch, moving: Sequence[_Map], fixed: Sequence[_Map],
        displacement: Tensor,
    ) -> Tensor:  # fmt: skip
        """Returns the anatomy loss for the registration network, the other one being at rest."""
        losses = []
        for i, (here, there) in enumerate(zip(moving, fixed)):
            if (here is None and there is None) or self.values["anatomy"] == 0.0:
                continue
            here = _predicted(network, batch.moving, i) if here is None else here
            there = _predicted(network, batch.fixed, i) if there is None else there
            losses.append(anatomy_loss(here, there, displacement[i : i + 1], len(self.labels) + 1))
        return self._weighted(losses, batch)

    def _supervised(
        self, network: nn.Module, batch: Batch, moving: Sequence[_Map], fixed: Sequence[_Map],
        joint: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Returns the loss of the known structures, and the anatomy loss of the others.

        The registration network is at rest. Without any label map nothing is learned.
        """
        joint = joint and self.values["anatomy"] > 0.0
        images = [(batch.moving, moving), (batch.fixed, fixed)]
        wanted = [
            (side, i)
            for i, both in enumerate(zip(moving, fixed))
            for side in (0, 1)
            if both[side] is not None or (joint and both[1 - side] is not None)
        ]
        if not wanted:
            weights = next(network.get_submodule("segmentation").parameters())
            return 0.0 * weights.sum(), batch.fixed.new_zeros(())
        logits = network(torch.cat([images[side][0][i : i + 1] for side, i in wanted]))
        displacement = None
        labels, anatomy = [], []
        for said, (side, i) in zip(logits.split(1), wanted):
            own, partner = images[side][1][i], images[1 - side][1][i]
            if own is not None:
                labels.append(segmentation_loss(said, own))
            elif partner is not None:
                if displacement is None:
                    with torch.no_grad():
                        displacement = self._displacement(network(batch.fixed, batch.moving))
                guess = probabilities(said)
                pair = (guess, partner) if side == 0 else (partner, guess)
                anatomy.append(anatomy_loss(*pair, displacement[i : i + 1], logits.shape[1]))
        return torch.stack(labels).mean(), self._weighted(anatomy, batch)

    def _known(self, labels: Tensor | None, batch: Batch) -> list[_Map]:
        """Returns the map of classes of each image, (1, 1, *shape); None if it is not known."""
        if labels is None or not self.labels:
            return [None] * len(batch.fixed)
        known = (labels >= 0).flatten(1).any(dim=1).tolist()
        maps = class_map(labels, self.labels)
        return [maps[i : i + 1] if there else None for i, there in enumerate(known)]

    def _weighted(self, losses: Sequence[Tensor], batch: Batch) -> Tensor:
        """Returns the weighted mean of anatomy losses; zero if there are none."""
        if not losses:
            return batch.fixed.new_zeros(())
        mean: Tensor = self.values["anatomy"] * torch.stack(list(losses)).mean()
        return mean


def _predicted(network: nn.Module, images: Tensor, number: int) -> Tensor:
    """Returns the probabilities of the classes of one image, without a tape."""
    with torch.no_grad():
        return probabilities(network(images[number : number + 1]))
