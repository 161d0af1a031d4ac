"""FlowNet trained on a statistical model of anatomy: supervised learning from a few images.

From a handful of images a model of shape and appearance is made (`training/shape_model.py`): their
template, stationary velocities with a covariance that is damped with distance at several scales
(so that eight images give far more than seven modes), and textures. Two samples are a pair of
images whose displacement is known exactly. FlowNetS, in 3D, learns it by the end-point error at all
its resolutions. The model serves people as well: `python -m DeepRegLib
anatomies` makes one, samples anatomies, and writes training pairs.

`augmentation` takes the two alternatives of the publication in its place: random smooth
deformations of the images (as large as those of the model), and fields that a registration finds
between the images (`teacher`).

Where no displacement is known, as when the weights are fitted to a pair, the objective is local
correlation and the squared differences of neighboring displacements.

Differences from the publication: three dimensions, with fewer channels (16 to 128 instead of 64 to
1024) and flows down to half the resolution; training from scratch instead of from a network that
knows flying chairs; shapes are velocities and not displacements, so that every sample can be
inverted; the damping is exact for each scale and the scales are added, whereas the publication
merges subspaces; the textures of pairs are those of training images by default, as their mixtures
(`own_texture` 0) are less sharp than what the network is used for; voxels without tissue count less
in the error. FlowNet's weights of sums over pixels are turned into weights of means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ParameterError
from ..losses import similarity
from ..losses.end_point import level_shares, multiscale_end_point_errors
from ..losses.kl_velocity import neighbor_energy
from ..networks.blocks import channels_last, resized_vectors, warped
from ..networks.flownet import FlowNet
from ..registration.base import Progress
from ..registration.learned import LearnedRegistration
from ..registration.source import BatchSource
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Parameter, Reference
from ..training.model_source import PairSettings, supervised_pairs
from ..training.shape_model_fit import ModelSettings

SPEC = AlgorithmSpec(
    key="flownet_ssm",
    title="FlowNet from a model of anatomy",
    family="supervised",
    summary="Learns from few images: a statistical model of them makes pairs with known truth.",
    transform="dense",
    needs=Needs(training=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Uzunova, Wilms, Handels, Ehrhardt",
            title="Training CNNs for image registration from few samples with model-based data "
            "augmentation",
            venue="MICCAI 2017, LNCS 10433:223-231",
            year=2017,
            doi="10.1007/978-3-319-66182-7_26",
        ),
        Reference(
            authors="Dosovitskiy, Fischer, Ilg, Häusser, Hazırbaş, Golkov, van der Smagt, "
            "Cremers, Brox",
            title="FlowNet: learning optical flow with convolutional networks",
            venue="ICCV 2015:2758-2766",
            year=2015,
            doi="10.1109/ICCV.2015.316",
        ),
        Reference(
            authors="Wilms, Handels, Ehrhardt",
            title="Multi-resolution multi-object statistical shape models based on the locality "
            "assumption",
            venue="Medical Image Analysis 38:17-29",
            year=2017,
            doi="10.1016/j.media.2017.02.003",
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
            name="smoothness",
            default=0.1,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared differences of neighboring displacements in these steps.",
            advanced=True,
        ),
        Parameter(
            name="augmentation",
            default="model",
            choices=("model", "random", "teacher"),
            help="What training pairs are: samples of the model, random fields on the images, or "
            "images with the fields of a registration.",
            training=True,
        ),
        Parameter(
            name="images",
            default=0,
            minimum=0,
            maximum=10000,
            help="Most images that the pairs are made from; 0 takes all.",
            training=True,
        ),
        Parameter(
            name="engine",
            default="svf",
            choices=("svf", "greedy", "syn"),
            help="Algorithm that registers the training images.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="rounds",
            default=2,
            minimum=0,
            maximum=20,
            help="How often the template of the model is made anew.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="locality",
            default=(0.0, 60.0, 30.0),
            minimum=0.0,
            maximum=10000.0,
            unit="mm",
            help="Distances over which shapes vary together, one a scale; 0 is everywhere.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="texture_locality",
            default=(0.0, 30.0),
            minimum=0.0,
            maximum=10000.0,
            unit="mm",
            help="Distances over which intensities vary together, one a scale; 0 is everywhere.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="shared_texture",
            default=0.5,
            minimum=0.0,
            maximum=1.0,
            help="Probability that both images of a pair have the same texture.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="own_texture",
            default=1.0,
            minimum=0.0,
            maximum=1.0,
            help="Probability that textures are those of training images and not mixtures.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="spread",
            default=1.0,
            minimum=0.0,
            maximum=10.0,
            help="Size of the sampled shapes; 1 varies as the training images do.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="bend",
            default=0.0,
            minimum=0.0,
            maximum=100.0,
            unit="mm",
            help="Size of random fields; 0 takes that of the model's shapes.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="widths",
            default=(16.0, 32.0, 64.0),
            minimum=1.0,
            maximum=1000.0,
            unit="mm",
            help="Distances over which random fields change.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="teacher_pairs",
            default=64,
            minimum=1,
            maximum=100000,
            help="Most pairs that the teacher registers.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="level_weights",
            default=(0.32, 0.08, 0.02, 0.01, 0.005),
            minimum=0.0,
            maximum=1000.0,
            help="FlowNet's weights of the resolutions, from coarse to fine.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="background",
            default=0.1,
            minimum=0.0,
            maximum=1.0,
            help="How much voxels without tissue count in the error.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=(16, 32, 64, 128, 128),
            minimum=1,
            maximum=1024,
            help="Channels at 1/2, 1/4, ... of the resolution.",
            advanced=True,
            training=True,
        ),
    ),
)

#: Brightness above which a voxel shows tissue, and the rim around it that counts too, in voxels.
_TISSUE, _RIM = 0.02, 2
#: Half width of the window of local correlation where no displacement is known, in voxels.
_RADIUS = 2


class Algorithm(LearnedRegistration):
    """Registration by a FlowNet that a model of anatomy has taught."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        weights, channels = self._levels()
        if len(weights) != len(channels) or sum(weights) <= 0.0:
            raise ParameterError(
                f"Parameter 'level_weights' takes one weight for each of the {len(channels)} "
                f"resolutions of 'channels', not all zero, but {weights} was given."
            )

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        return channels_last(FlowNet(self._levels()[1]))

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns pairs with known displacements; see `registration.trainable.Trainable`.

        The first call for given images registers them, which takes three (with two rounds)
        registrations for each; `folder` keeps these.
        """
        v = self.values
        model = ModelSettings(
            engine=str(v["engine"]), rounds=int(v["rounds"]), locality_mm=tuple(v["locality"]),
            texture_locality_mm=tuple(v["texture_locality"]),
        )  # fmt: skip
        settings = PairSettings(
            kind=str(v["augmentation"]), images=int(v["images"]), model=model,
            shared_texture=float(v["shared_texture"]), spread=float(v["spread"]),
            own_texture=float(v["own_texture"]),
            size_mm=float(v["bend"]), widths_mm=tuple(v["widths"]),
            teacher_pairs=int(v["teacher_pairs"]),
        )  # fmt: skip
        return supervised_pairs(pairs, settings, folder, progress)

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        flows: list[Tensor] = network(batch.fixed, batch.moving)
        if batch.truth is None:
            displacement = resized_vectors(flows[-1], batch.shape)
            measure = similarity("lncc", radius=_RADIUS)
            return {
                "similarity": measure(batch.fixed, warped(batch.moving, displacement)),
                "smoothness": self.values["smoothness"] * neighbor_energy(displacement),
            }
        region = tissue(batch.fixed, float(self.values["background"]))
        shares = level_shares(self._levels()[0])
        errors = multiscale_end_point_errors(flows, batch.truth, shares, region)
        names = [f"end_point_{2 ** (len(flows) - level)}" for level in range(len(flows))]
        return dict(zip(names, errors))

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; see `registration.trainable.Trainable`."""
        flows: list[Tensor] = network(fixed, moving)
        return Prediction(displacement=resized_vectors(flows[-1], fixed.shape[2:]))

    def _levels(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Returns weights and channels of the resolutions."""
        return tuple(self.values["level_weights"]), tuple(self.values["channels"])


def tissue(image: Tensor, background: float) -> Tensor:
    """Returns weights (B, 1, *shape): 1 where an image shows something and around, else less.

    Args:
        image: (B, 1, *shape), 0 to 1, with a background of zero.
        background: Weight of the rest.
    """
    shown = (image > _TISSUE).to(image.dtype)
    near = shown
    for axis in range(3):  # one axis after the other, which is far less work than a cube
        width, padding = [1, 1, 1], [0, 0, 0]
        width[axis], padding[axis] = 2 * _RIM + 1, _RIM
        near = F.max_pool3d(near, width, stride=1, padding=padding)
    return near + background * (1.0 - near)
