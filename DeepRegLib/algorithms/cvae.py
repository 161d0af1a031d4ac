"""Latent diffeomorphic registration: a few numbers, the code, stand for a whole deformation.

An encoder sees both images and gives the mean and the variance of a code z of 32 numbers. A decoder
turns z into a stationary velocity, conditioned on the moving image, which it sees at each of its
resolutions. Velocities are bounded by tanh, smoothed by a Gaussian layer, and integrated by scaling
and squaring with few steps, so that every code, also a drawn one, decodes to a map that can be
inverted. The objective is the bound of a conditional variational autoencoder: the likelihood
exp(-w D), with D one minus the local correlation, both of (F, M o phi) and of (M, F o phi^-1),
averaged over the resolutions of the decoder, and the divergence of the code's distribution from
N(0, 1). In use z is the mean.

As the decoder sees the moving image alone, the code of one pair can be decoded for another image:
deformations are transported from subject to subject (`encode`, `decode`, and
`population_latent.transport`). Codes of normal numbers give deformations that were never seen.
When the weights are fitted to a pair, the encoder alone learns, so that a code keeps its meaning.

Differences from the publications: the bound is divided by the weight w of the likelihood; local
correlation is the squared one of cubes, without smooth windows; the multi-scale terms have one
weight; the Gaussian is 1.5 voxels wide, not 3, because voxels of 2 or 3 mm take the place of finer
ones; the finest velocity has half the resolution of the images, as its Gaussian leaves little that
would need more (`coarsening` 1 is the publication); the dense layers read and write a lattice of
cells, so that a model takes images larger than those of its training (the codes of such images
compare less well); the bound of the velocity is in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.sampling import resize_image
from ..geometry.velocity import exponential
from ..losses import similarity
from ..networks.blocks import channels_last, resized_vectors, warped
from ..networks.latent_net import LatentNetwork
from ..registration.learned import LearnedRegistration
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Outputs, Parameter, Reference

SPEC = AlgorithmSpec(
    key="cvae",
    title="Latent diffeomorphic registration (CVAE)",
    family="probabilistic",
    summary="Describes a deformation by a short code, which can be applied to other subjects.",
    transform="dense",
    needs=Needs(training=True),
    outputs=Outputs(latent_code=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Krebs, Delingette, Mailhé, Ayache, Mansi",
            title="Learning a probabilistic model for diffeomorphic registration",
            venue="IEEE Transactions on Medical Imaging 38(9):2165-2176",
            year=2019,
            doi="10.1109/TMI.2019.2897112",
        ),
        Reference(
            authors="Krebs, Mansi, Mailhé, Ayache, Delingette",
            title="Unsupervised probabilistic deformation modeling for robust diffeomorphic "
            "registration",
            venue="DLMIA 2018, LNCS 11045",
            year=2018,
            url="https://arxiv.org/abs/1804.07172",
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
            help="Steps that the encoder is fitted to this very pair before it is registered.",
        ),
        Parameter(
            name="latent",
            default=32,
            minimum=1,
            maximum=4096,
            help="Numbers of the code.",
            advanced=True,
            training=True,
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
            help="Half width of the window of local correlation, at each resolution.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="likelihood",
            default=5000.0,
            minimum=1.0,
            maximum=1e8,
            help="Weight of the dissimilarity in the exponent of the likelihood; more follows the "
            "images more closely, less keeps the code closer to normal numbers.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="bound",
            default=4.0,
            minimum=0.1,
            maximum=100.0,
            unit="voxel",
            help="Largest velocity along each axis.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="smoothing",
            default=1.5,
            minimum=0.5,
            maximum=20.0,
            unit="voxel",
            help="Standard deviation of the Gaussian that smooths the velocity.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="coarsening",
            default=2,
            minimum=1,
            maximum=4,
            help="Voxels of the images for each voxel of the velocity along an axis; 1 is the "
            "publication and takes four times as long.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="squarings",
            default=4,
            minimum=1,
            maximum=12,
            help="Steps of scaling and squaring that integrate the velocity.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="encoder",
            default=(16, 32, 32, 4),
            minimum=1,
            maximum=512,
            help="Channels of the encoder; all convolutions but the last halve the resolution.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="decoder",
            default=(32, 32, 32),
            minimum=1,
            maximum=512,
            help="Channels of the decoder, from its coarsest resolution to that of the velocity.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="final",
            default=16,
            minimum=1,
            maximum=512,
            help="Channels of the last convolution before the velocity.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="cells",
            default=(6, 8, 6),
            minimum=1,
            maximum=64,
            help="Lattice between convolutions and code, along right, front and top.",
            advanced=True,
            training=True,
        ),
    ),
)


class Algorithm(LearnedRegistration):
    """Registration by a conditional variational autoencoder."""

    in_tiles = False
    pair_modules = ("encoder",)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if len(values["cells"]) != 3:
            raise ParameterError(
                "Parameter 'cells' takes three numbers, separated by commas, such as 6,8,6."
            )

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        v = self.values
        network = LatentNetwork(
            int(v["latent"]), tuple(v["encoder"]), tuple(v["decoder"]), int(v["final"]),
            tuple(v["cells"]), float(v["bound"]), float(v["smoothing"]), int(v["coarsening"]),
        )  # fmt: skip
        return channels_last(network)

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        mean, log_variance, velocities = network(batch.fixed, batch.moving)
        options = {"radius": self.values["radius"]} if self.values["similarity"] == "lncc" else {}
        measure = similarity(self.values["similarity"], **options)
        unlike = []
        for velocity in velocities:
            shape = batch.shape if velocity is velocities[-1] else velocity.shape[2:]
            fixed, moving = (resize_image(image, shape) for image in (batch.fixed, batch.moving))
            there, back = self._integrated(velocity, shape)
            unlike += [measure(fixed, warped(moving, there)), measure(moving, warped(fixed, back))]
        return {
            "similarity": torch.stack(unlike).mean(),
            "divergence": divergence(mean, log_variance) / self.values["likelihood"],
        }

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; the values hold the code and its standard deviation."""
        code, deviation = self.encode(network, fixed, moving)
        displacement, inverse = self.decode(network, code, moving)
        return Prediction(
            displacement=displacement,
            inverse=inverse,
            values={
                "latent_code": code[0].tolist(),
                "latent_deviation": deviation[0].tolist(),
            },
        )

    def encode(self, network: nn.Module, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the code of a pair and its standard deviation.

        Args:
            network: A network of this system.
            fixed: (B, 1, *shape), 0 to 1.
            moving: (B, 1, *shape), linearly aligned.

        Returns:
            Mean and standard deviation of each number, (B, latent).
        """
        mean, log_variance = network.get_submodule("encoder")(fixed, moving)
        return mean.detach(), torch.exp(0.5 * log_variance.detach())

    def decode(self, network: nn.Module, code: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the deformation that a code stands for, for any moving image.

        Args:
            network: A network of this system.
            code: (B, latent).
            moving: The image that is to be deformed, (B, 1, *shape), 0 to 1.

        Returns:
            The displacement u with moved(x) = moving(x + u(x)) and that of the inverse map,
            (B, 3, *shape) in voxels.
        """
        velocity = network.get_submodule("decoder")(code, moving)[-1]
        return self._integrated(velocity, moving.shape[2:])

    def _integrated(self, velocity: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns the exponentials of a velocity and of its negative, on a grid of a shape."""
        steps = int(self.values["squarings"])
        found = (exponential(v, steps) for v in (velocity, -velocity))
        there, back = (resized_vectors(u, shape) for u in found)
        return there, back


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence KL(q || N(0, 1)) of independent normal numbers, mean over the batch.

    Kingma & Welling 2014, arXiv:1312.6114, appendix B.

    Args:
        mean: Means of the numbers, (B, latent).
        log_variance: Logarithms of their variances, (B, latent).

    Returns:
        A scalar; differentiable.
    """
    each = mean.square() + log_variance.exp() - 1.0 - log_variance
    return 0.5 * each.sum(dim=1).mean()
