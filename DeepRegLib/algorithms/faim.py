"""FAIM: a small network of strided convolutions, and a penalty of negative Jacobian determinants.

The first layer looks at both images with kernels of several widths side by side, so that near and
far correspondences are compared at once. Convolutions of stride 2 halve the features twice,
transposed convolutions bring them back, and features of the same resolution are added, not
appended. The displacement has the full resolution and no bound. The objective adds to local
correlation and squared differences of neighbors the mean of (|det J| - det J) / 2, which is zero
where nothing folds.

Differences from the publication: the widest kernels of the first layer are left out by default
(`kernels`), and even ones, which shift by half a voxel, are replaced by odd ones; the penalties are
means over the voxels and sums over components, so that their weights do not depend on the size of
the images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..losses import similarity
from ..losses.jacobian import folding
from ..losses.kl_velocity import neighbor_energy
from ..networks.blocks import Convolution, Doubling, Head, channels_last, pair_input, warped
from ..registration.learned import LearnedRegistration
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Parameter, Reference

SPEC = AlgorithmSpec(
    key="faim",
    title="FAIM",
    family="unsupervised",
    summary="Like VoxelMorph with a smaller network, and trained not to fold.",
    transform="dense",
    needs=Needs(training=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Kuang, Schmah",
            title="FAIM - a ConvNet method for unsupervised 3D medical image registration",
            venue="MLMI 2019, LNCS 11861:646-654",
            year=2019,
            doi="10.1007/978-3-030-32692-0_74",
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
            default=0.3,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared differences of neighboring displacements; mse needs less.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="folding",
            default=100.0,
            minimum=0.0,
            maximum=1e6,
            help="Weight of negative Jacobian determinants.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="kernels",
            default=(3, 5, 7),
            minimum=1,
            maximum=15,
            help="Odd widths of the kernels of the first layer, in voxels.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="width_channels",
            default=8,
            minimum=1,
            maximum=256,
            help="Channels for each width of the first layer.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=32,
            minimum=1,
            maximum=512,
            help="Channels of all other layers.",
            advanced=True,
            training=True,
        ),
    ),
)


class Algorithm(LearnedRegistration):
    """Registration by FAIM."""

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        v = self.values
        network = AdditiveNetwork(tuple(v["kernels"]), v["width_channels"], v["channels"])
        return channels_last(network)

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        displacement = network(batch.fixed, batch.moving)
        options = {"radius": self.values["radius"]} if self.values["similarity"] == "lncc" else {}
        measure = similarity(self.values["similarity"], **options)
        return {
            "similarity": measure(batch.fixed, warped(batch.moving, displacement)),
            "smoothness": self.values["smoothness"] * neighbor_energy(displacement),
            "folding": self.values["folding"] * folding(displacement),
        }

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; see `registration.trainable.Trainable`."""
        return Prediction(displacement=network(fixed, moving))


class AdditiveNetwork(nn.Module):
    """Kernels of several widths, two halvings by strides, and skips that are added.

    Args:
        kernels: Widths of the kernels of the first layer, odd.
        each: Channels for each of them.
        channels: Channels of all other layers.
    """

    def __init__(self, kernels: tuple[int, ...], each: int, channels: int) -> None:
        super().__init__()
        first = each * len(kernels)
        self.wide = nn.ModuleList(
            Convolution(2, each, activation="linear", width=width | 1) for width in kernels
        )
        self.slope = nn.PReLU(first)
        self.down = nn.ModuleList(
            [
                Convolution(first, channels, stride=2, activation="prelu"),
                nn.Sequential(
                    Convolution(channels, channels, activation="linear"),
                    Convolution(channels, channels, stride=2, activation="prelu"),
                ),
            ]
        )
        self.middle = Convolution(channels, channels, activation="linear")
        self.up = nn.ModuleList([_Enlarge(channels, channels), _Enlarge(channels, first)])
        self.head = Head(first)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns the displacement, (B, 3, *shape) in voxels; images are (B, 1, *shape)."""
        pair = pair_input(fixed, moving)
        passed = [self.slope(torch.cat([layer(pair) for layer in self.wide], dim=1))]
        for layer in self.down:
            passed.append(layer(passed[-1]))
        features = passed.pop()
        features = features + self.middle(features)
        for layer in self.up:
            skip = passed.pop()
            features = skip + layer(features, skip.shape[2:])
        displacement: Tensor = self.head(features)
        return displacement


class _Enlarge(nn.Module):
    """Transposed convolution and convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.doubling = Doubling(inputs, outputs)
        self.convolution = Convolution(outputs, outputs, activation="prelu")

    def forward(self, features: Tensor, shape: torch.Size) -> Tensor:
        """Returns features of a shape that halves to the shape of these."""
        enlarged: Tensor = self.convolution(self.doubling(features, shape))
        return enlarged
