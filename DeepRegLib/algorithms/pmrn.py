"""Probabilistic multilayer regularization: a posterior of the velocity at each layer of features.

Each image goes by itself through the same encoder and decoder. At each resolution a head reads mean
and variance of a stationary velocity off the features of both images: the posterior of the
transformation between them. In training a velocity is drawn from it; it has to take the features of
the moving onto those of the fixed image (`feature`), and the posterior is kept near a prior of
smooth velocities (`divergence`), so that hidden layers are regularized themselves. A small network
fuses the velocities of all resolutions into the final one, which moves the image. In use the means
take the place of the drawn velocities, and the inverse integrates backwards.

Features have zero mean and unit variance over each image where they are compared, and learn nothing
from it but through the velocities: features that say little would agree best. `multilayer` off
regularizes the finest resolution alone, and `feature` 0 compares no features: the ablations of the
publication.

What the publication leaves open is chosen here: both images pass the same weights; a head sees the
moving features as the mean of the coarser resolution moves them, and adds to that mean; the fusion
corrects the finest velocity, and the prior holds for what comes of it, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.field import vector_lengths
from ..geometry.sampling import resize_image
from ..geometry.velocity import exponential
from ..losses import similarity
from ..losses.kl_velocity import kl_velocity, neighbor_energy
from ..networks.blocks import Convolution, Head, resized_vectors, warped
from ..networks.dual_stream import Stream
from ..registration.learned import LearnedRegistration
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Outputs, Parameter, Reference

SPEC = AlgorithmSpec(
    key="pmrn",
    title="Probabilistic multilayer regularization",
    family="probabilistic",
    summary="Learned features are aligned at several resolutions, each with its uncertainty.",
    transform="dense",
    needs=Needs(training=True),
    outputs=Outputs(uncertainty=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Liu, Hu, Zhu, Heng",
            title="Probabilistic multilayer regularization network for unsupervised 3D brain image "
            "registration",
            venue="MICCAI 2019, LNCS 11765:346-354",
            year=2019,
            doi="10.1007/978-3-030-32245-8_39",
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
            name="draws",
            default=8,
            minimum=0,
            maximum=1000,
            help="Deformations that are drawn for the map of uncertainty; below 2 there is none.",
        ),
        Parameter(
            name="similarity",
            default="lncc",
            choices=("lncc", "mse"),
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
            name="feature",
            default=0.25,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the difference of the features of both images; 0 switches it off.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="divergence",
            default=0.005,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the divergence of each posterior from the prior.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="prior",
            default=20.0,
            minimum=1e-3,
            maximum=1e5,
            help="Precision of the differences of neighboring velocities; more is smoother.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="resolution",
            default="full",
            choices=("half", "full"),
            help="Finest resolution that has a velocity, in terms of that of the images.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="multilayer",
            default=True,
            help="Whether all resolutions are regularized, and not the finest alone.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="squarings",
            default=4,
            minimum=1,
            maximum=12,
            help="Steps of scaling and squaring that integrate a velocity.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=(8, 16, 32, 32, 32),
            minimum=1,
            maximum=512,
            help="Channels of the features, from the full resolution to the coarsest.",
            advanced=True,
            training=True,
        ),
    ),
)

#: Logarithm of the variance of a velocity before training.
_START = -6.0


class Algorithm(LearnedRegistration):
    """Registration by a network with probabilistic regularization of several layers."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        halvings = len(values["channels"]) - 1
        if halvings < 1:
            raise ParameterError(
                "Parameter 'channels' takes the channels of at least two resolutions, separated by "
                "commas, such as 8,16,16,32,32."
            )
        #: The coarsest features have whole voxels on any grid of this multiple.
        self.multiple = max(16, 2**halvings)

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        return MultilayerNetwork(
            tuple(self.values["channels"]),
            self.values["squarings"],
            finest=0 if self.values["resolution"] == "full" else 1,
        )

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        layers = network(batch.fixed, batch.moving)
        drawn = [layer.draw() for layer in layers]
        fused = network.fuse(drawn)  # type: ignore[operator]
        moved = warped(batch.moving, self._displacement(fused, batch.shape))
        options = {"radius": self.values["radius"]} if self.values["similarity"] == "lncc" else {}
        terms = {"similarity": similarity(self.values["similarity"], **options)(batch.fixed, moved)}
        chosen = list(zip(layers, drawn))
        if not self.values["multilayer"]:
            chosen = chosen[-1:]
        if self.values["feature"] > 0:
            apart = [self._apart(layer, velocity) for layer, velocity in chosen]
            terms["feature"] = self.values["feature"] * torch.stack(apart).sum()
        prior = self.values["prior"]
        weight = self.values["divergence"]
        far = [kl_velocity(layer.mean, layer.log_variance, prior) for layer, _ in chosen]
        terms["divergence"] = weight * torch.stack(far).sum()
        # The fusion adds what no posterior accounts for; the prior holds for it alike.
        terms["smoothness"] = weight * 0.5 * prior * neighbor_energy(fused)
        return terms

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; the values hold how far each layer moves, from coarse to fine."""
        layers = network(fixed, moving)
        shape = fixed.shape[2:]
        velocity = network.fuse([layer.mean for layer in layers])  # type: ignore[operator]
        lengths = [
            float(vector_lengths(layer.mean.detach()).mean())
            * spacing_mm
            * shape[0]
            / layer.mean.shape[2]
            for layer in layers
        ]
        maps = {}
        if self.values["draws"] >= 2:
            maps["uncertainty_mm"] = self._spread_mm(network, layers, velocity, shape, spacing_mm)
        return Prediction(
            displacement=self._displacement(velocity, shape),
            inverse=self._displacement(-velocity, shape),
            maps=maps,
            values={"layer_motion_mm": lengths},
        )

    def _displacement(self, velocity: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Integrates at the resolution of the velocity and enlarges the result."""
        return resized_vectors(exponential(velocity, self.values["squarings"]), shape)

    def _apart(self, layer: Layer, velocity: Tensor) -> Tensor:
        """Mean squared difference of the features once the moving ones are moved."""
        # No gradient reaches the features: ones that say nothing would agree best.
        ours, theirs = (_standard(f.detach()) for f in (layer.fixed, layer.moving))
        return F.mse_loss(warped(theirs, exponential(velocity, self.values["squarings"])), ours)

    def _spread_mm(
        self,
        network: nn.Module,
        layers: list[Layer],
        velocity: Tensor,
        shape: torch.Size,
        spacing_mm: float,
    ) -> Tensor:
        """Standard deviation of where drawn velocities send each voxel, (1, 1, *shape), in mm."""
        # A generator of its own, so that the same pair gives the same map.
        generator = torch.Generator(velocity.device).manual_seed(0)
        center = exponential(velocity, self.values["squarings"])
        total, squares = torch.zeros_like(center), torch.zeros_like(center)
        count = self.values["draws"]
        for _ in range(count):
            drawn = network.fuse([layer.draw(generator) for layer in layers])  # type: ignore[operator]
            # Sums of differences from the center cancel less than those of displacements.
            offset = exponential(drawn, self.values["squarings"]) - center
            total += offset
            squares += offset.square()
        variance = (squares - total.square() / count).clamp(min=0.0) / (count - 1)
        voxel = spacing_mm * shape[0] / center.shape[2]
        length = variance.sum(dim=1, keepdim=True).sqrt() * voxel
        return resize_image(length, shape, antialias=False)


@dataclass(frozen=True, eq=False)
class Layer:
    """Features of both images at one resolution, and the posterior between them.

    Convention:
        Features are (B, C, *shape), mean and log variance (B, 3, *shape), the velocity in voxels of
        this resolution.
    """

    fixed: Tensor
    moving: Tensor
    mean: Tensor
    log_variance: Tensor

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """Returns a velocity from the posterior; its gradient reaches mean and variance."""
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + torch.exp(0.5 * self.log_variance) * noise


class MultilayerNetwork(nn.Module):
    """Two streams, a posterior at each resolution, and their fusion.

    Args:
        channels: Channels of the features, from the full resolution to the coarsest.
        squarings: Steps of the integration of a velocity.
        finest: Finest level with a velocity; 0 is the full resolution.
    """

    def __init__(self, channels: tuple[int, ...], squarings: int = 6, finest: int = 1) -> None:
        super().__init__()
        self._squarings = squarings
        self.stream = Stream(channels, channels[:-1], finest)
        self.hidden = nn.ModuleList(Convolution(2 * c, c) for c in self.stream.channels)
        self.mean = nn.ModuleList(Head(c) for c in self.stream.channels)
        self.log_variance = nn.ModuleList(
            Head(c, spread=1e-10, start=_START) for c in self.stream.channels
        )
        self.fusion = nn.Sequential(
            Convolution(3 * len(self.stream.channels), channels[finest]), Head(channels[finest])
        )

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Layer]:
        """Returns the layers, from coarse to fine."""
        layers: list[Layer] = []
        pyramid = self.stream(torch.cat([fixed, moving]))
        for level, features in enumerate(pyramid):
            ours, theirs = features.chunk(2)
            known, seen = None, theirs
            if layers:
                known = resized_vectors(layers[-1].mean, ours.shape[2:])
                # Integrated where it is coarse: that takes an eighth of the time.
                moves = exponential(layers[-1].mean.detach(), self._squarings)
                seen = warped(theirs, resized_vectors(moves, ours.shape[2:]))
            joined = torch.cat([ours, seen], dim=1)
            hidden = self.hidden[level](joined.contiguous(memory_format=torch.channels_last_3d))
            # A step of an optimizer would make coarse layers leap if heads gave voxels of theirs,
            # and creep if they gave those of the full resolution.
            mean = self.mean[level](hidden) / (fixed.shape[2] / ours.shape[2]) ** 0.5
            mean = mean if known is None else known + mean
            layers.append(Layer(ours, theirs, mean, self.log_variance[level](hidden)))
        return layers

    def fuse(self, velocities: list[Tensor]) -> Tensor:
        """Returns the final velocity from those of all layers, at the finest of their grids."""
        shape = velocities[-1].shape[2:]
        joined = torch.cat([resized_vectors(v, shape) for v in velocities], dim=1)
        correction: Tensor = self.fusion(joined.contiguous(memory_format=torch.channels_last_3d))
        return velocities[-1] + correction


def _standard(features: Tensor) -> Tensor:
    """Returns features with zero mean and unit variance over each image, channel by channel."""
    return F.instance_norm(features.float(), eps=1e-8)
