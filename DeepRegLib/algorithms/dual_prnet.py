"""Dual-stream pyramid network: both images pass one network, fields are found coarse to fine.

Each image goes by itself through the same encoder and decoder, whose features at five resolutions
form a pyramid. From coarse to fine, a pyramid registration (PR) module compares the features of the
fixed image with those of the moving image, warped by the field found so far, and estimates what is
left; that flow is composed with the field, which is then doubled in size and in its vectors. The
objective is local correlation plus the squared gradients of the flows of all levels. With
`correlation` the modules also see the correlation of the features at neighboring voxels, as in the
second reference. As in the publications no gradient passes through the warped positions of the
features.

Differences from the publications: features are halved by averaging and not by strides, which would
shift them by half a voxel at each level; a module has a hidden convolution before the one that
gives the flow; local correlations take direct neighbors, and leave out the full resolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.field import compose_displacements, vector_lengths
from ..losses import similarity
from ..losses.kl_velocity import neighbor_energy
from ..networks.blocks import Convolution, Head, resized_vectors, warped
from ..networks.correlation import local_correlation
from ..networks.dual_stream import Stream
from ..registration.learned import LearnedRegistration
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Parameter, Reference

SPEC = AlgorithmSpec(
    key="dual_prnet",
    title="Dual-stream pyramid network",
    family="unsupervised",
    summary="Finds large deformations by a pyramid of learned features, from coarse to fine.",
    transform="dense",
    needs=Needs(training=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Hu, Kang, Huang, Scott, Wiest, Reyes",
            title="Dual-stream pyramid registration network",
            venue="MICCAI 2019, LNCS 11765:382-390",
            year=2019,
            doi="10.1007/978-3-030-32245-8_43",
        ),
        Reference(
            authors="Kang, Hu, Huang, Scott, Reyes",
            title="Dual-stream pyramid registration network",
            venue="Medical Image Analysis 78:102379",
            year=2022,
            doi="10.1016/j.media.2022.102379",
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
            name="correlation",
            default=False,
            help="Whether the correlation of neighboring features is given to the modules.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="similarity",
            default="lncc",
            choices=("lncc", "ncc", "mse", "mi", "mind"),
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
            default=0.2,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared differences of neighbors in the flows of all levels.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=(8, 16, 16, 32, 32),
            minimum=1,
            maximum=512,
            help="Channels of the features, from the full resolution to the coarsest.",
            advanced=True,
            training=True,
        ),
    ),
)


class Algorithm(LearnedRegistration):
    """Registration by a dual-stream pyramid network."""

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
        return PyramidNetwork(tuple(self.values["channels"]), bool(self.values["correlation"]))

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        field, flows = network(batch.fixed, batch.moving)
        moved = warped(batch.moving, field)
        options = {"radius": self.values["radius"]} if self.values["similarity"] == "lncc" else {}
        measure = similarity(self.values["similarity"], **options)
        rough = torch.stack([neighbor_energy(flow) for flow in flows]).sum()
        return {
            "similarity": measure(batch.fixed, moved),
            "smoothness": self.values["smoothness"] * rough,
        }

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; the values hold how far each level moved, from coarse to fine."""
        field, flows = network(fixed, moving)
        size = fixed.shape[2]
        lengths = [
            float(vector_lengths(flow.detach()).mean()) * (size / flow.shape[2]) * spacing_mm
            for flow in flows
        ]
        return Prediction(displacement=field, values={"level_motion_mm": lengths})


class PyramidNetwork(nn.Module):
    """Two streams and their pyramid registration modules.

    Args:
        channels: Channels of the features, from the full resolution to the coarsest.
        correlation: Whether the modules get local correlations.
    """

    def __init__(self, channels: tuple[int, ...], correlation: bool = False) -> None:
        super().__init__()
        self.stream = Stream(channels, channels[:-1])
        finest = len(self.stream.channels) - 1
        self.steps = nn.ModuleList(
            _Step(c, 2.0 ** (finest - level), correlation and level < finest)
            for level, c in enumerate(self.stream.channels)
        )

    def forward(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Finds the field that brings the moving onto the fixed images.

        Returns:
            The displacement (B, 3, *shape), and the flow of each level in voxels of that level,
            from coarse to fine.
        """
        field, flows = None, []
        for step, features in zip(self.steps, self.stream(torch.cat([fixed, moving]))):
            ours, theirs = features.chunk(2)
            shape = ours.shape[2:]
            if field is None:
                field = flow = step(ours, theirs)
            else:
                field = resized_vectors(field, shape)
                flow = step(ours, warped(theirs, field.detach()))
                # moving(field(x)) is matched by the flow, so that the flow is applied first.
                field = compose_displacements(field, flow)
            flows.append(flow)
        assert field is not None
        return field, flows


class _Step(nn.Module):
    """A pyramid registration module: features of both images in, a flow out.

    The flow is divided by the root of the voxel size: a step of an optimizer would make the
    coarsest levels leap if they gave voxels of their own, and creep if they gave those of the full
    resolution.

    Args:
        channels: Features of each image.
        voxel: Size of a voxel of this level in those of the full resolution.
        correlation: Whether local correlations are appended.
    """

    def __init__(self, channels: int, voxel: float, correlation: bool) -> None:
        super().__init__()
        self.correlation, self._divisor = correlation, voxel**0.5
        inputs = 2 * channels + (27 if correlation else 0)
        self.hidden = Convolution(inputs, channels)
        self.flow = Head(channels)

    def forward(self, fixed: Tensor, moved: Tensor) -> Tensor:
        """Returns the flow (B, 3, *shape) in voxels of this level."""
        inputs = [fixed, moved]
        if self.correlation:
            inputs.append(local_correlation(fixed, moved))
        joined = torch.cat(inputs, dim=1).contiguous(memory_format=torch.channels_last_3d)
        found: Tensor = self.flow(self.hidden(joined)) / self._divisor
        return found
