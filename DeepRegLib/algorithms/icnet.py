"""ICNet: one network gives both directions, trained to undo each other and not to fold.

The same network sees the pair twice, with the images in one order and in the other, and gives a
displacement each way. The objective holds the dissimilarity in both directions, how far there and
back leads from where it began, a strong penalty where the displacement folds along an axis, and
squared differences of neighbors. Displacements are bounded by `reach` voxels. The backward field
is the inverse that is returned.

Differences from the publication: neighbors and the way back are penalized by sums over components,
not means; the squared differences are those of images with mean 0 and deviation 1, as there, but
the network sees them from 0 to 1, and their histograms are not matched.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..geometry.field import vector_lengths
from ..losses import similarity
from ..losses.folding import axis_folding
from ..losses.inverse_consistency import inverse_consistency, inverse_residual
from ..losses.kl_velocity import neighbor_energy
from ..networks.blocks import (
    Convolution,
    Doubling,
    Head,
    channels_last,
    pair_input,
    standardized,
    warped,
)
from ..registration.learned import LearnedRegistration
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Parameter, Reference

SPEC = AlgorithmSpec(
    key="icnet",
    title="Inverse-consistent network",
    family="unsupervised",
    summary="Gives both directions at once, trained so that they undo each other without folds.",
    transform="dense",
    needs=Needs(training=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Zhang",
            title="Inverse-consistent deep networks for unsupervised deformable image registration",
            venue="arXiv:1809.03443",
            year=2018,
            doi="10.48550/arXiv.1809.03443",
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
            default="mse",
            choices=("mse", "lncc", "ncc", "mi", "mind"),
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
            name="inverse_consistency",
            default=0.05,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared distance that there and back leads from the beginning.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="folding",
            default=100000.0,
            minimum=0.0,
            maximum=1e9,
            help="Weight of folds along an axis.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="smoothness",
            default=0.3,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared differences of neighboring displacements.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="reach",
            default=7.0,
            minimum=0.5,
            maximum=100.0,
            unit="voxel",
            help="Largest displacement along each axis.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=8,
            minimum=1,
            maximum=64,
            help="Channels at the full resolution; they double at each halving.",
            advanced=True,
            training=True,
        ),
    ),
)


class Algorithm(LearnedRegistration):
    """Registration by ICNet."""

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        return channels_last(BoundedNetwork(self.values["channels"], self.values["reach"]))

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        forward, backward = _both(network, batch.fixed, batch.moving)
        v, fixed, moving = self.values, batch.fixed, batch.moving
        if v["similarity"] == "mse":
            fixed, moving = standardized(fixed), standardized(moving)
        miss = inverse_consistency(forward, backward)
        options = {"radius": v["radius"]} if v["similarity"] == "lncc" else {}
        measure = similarity(v["similarity"], **options)
        # Either way an image as it is meets a warped one, so one gradient each is enough.
        there = measure(fixed, warped(moving, forward))
        back = measure(moving, warped(fixed, backward))
        return {
            "similarity": there + back,
            "inverse_consistency": v["inverse_consistency"] * miss,
            "folding": v["folding"] * (axis_folding(forward) + axis_folding(backward)),
            "smoothness": v["smoothness"] * (neighbor_energy(forward) + neighbor_energy(backward)),
        }

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; the inverse is the field of the other direction."""
        forward, backward = _both(network, fixed, moving)
        miss = vector_lengths(inverse_residual(forward, backward)) * spacing_mm
        return Prediction(
            displacement=forward,
            inverse=backward,
            maps={"inconsistency_mm": miss},
            values={"inconsistency_mean_mm": float(miss.detach().mean())},
        )


class BoundedNetwork(nn.Module):
    """U-shaped network of rectifiers without constants, whose vectors are bounded.

    Args:
        channels: Channels at the full resolution.
        reach: Largest displacement along each axis, in voxels.
    """

    def __init__(self, channels: int, reach: float) -> None:
        super().__init__()
        n = channels
        widths = [n, 2 * n, 4 * n, 8 * n]
        self.first = nn.Sequential(_layer(2, n), _layer(n, n))
        self.down = nn.ModuleList(
            nn.Sequential(_layer(c, 2 * c, stride=2), _layer(2 * c, after))
            for c, after in zip(widths, [2 * n, 4 * n, 8 * n, 8 * n])
        )
        self.doubling = nn.ModuleList(Doubling(c, c, bias=False) for c in reversed(widths))
        self.up = nn.ModuleList(
            nn.Sequential(_layer(2 * c, c), _layer(c, max(n, c // 2))) for c in reversed(widths)
        )
        self.head = Head(n, width=1, bias=False)
        self.reach = reach

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns the displacement, (B, 3, *shape) in voxels; images are (B, 1, *shape)."""
        passed = [self.first(pair_input(fixed, moving))]
        for layers in self.down:
            passed.append(layers(passed[-1]))
        features = passed.pop()
        for double, layers in zip(self.doubling, self.up):
            skip = passed.pop()
            features = torch.relu(double(features, skip.shape[2:]))
            features = layers(torch.cat([features, skip], dim=1))
        vectors: Tensor = self.head(features)
        return self.reach * torch.tanh(vectors)


def _both(network: nn.Module, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the displacements of both directions; they pass the network as one batch."""
    both = network(torch.cat([fixed, moving]), torch.cat([moving, fixed]))
    forward, backward = both.chunk(2)
    return forward, backward


def _layer(inputs: int, outputs: int, stride: int = 1) -> Convolution:
    return Convolution(inputs, outputs, stride, activation="relu", bias=False)
