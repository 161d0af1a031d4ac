"""Probabilistic diffeomorphic VoxelMorph: a velocity with its uncertainty, and exact inverses.

A U-Net gives mean and variance of a stationary velocity at half resolution. In training a velocity
is drawn from this posterior, integrated by scaling and squaring, enlarged, and applied; the
objective is the evidence bound of Gaussian noise of the images (`image_sigma`) and a prior that
wants neighboring velocities alike (`prior`). In use the mean is integrated forwards and, for the
inverse, backwards; two steps of a fixed-point iteration take from that inverse what interpolating
on two different ways left. Velocities drawn from the posterior show how far other deformations,
about as likely, lead elsewhere: the spread of where they send a point is its uncertainty
(neighboring voxels are drawn alike for it, each with the variance of the posterior, which knows no
correlations).

Differences from the publication: the bound is multiplied by twice the variance of the noise, so
that its first term is the dissimilarity itself; its divergence is scaled by the number of voxels of
the velocity over that of the images, and each pair of neighbors enters it once, as the bound has
it (the published code takes plain means). By default images are compared by local correlation, not
by squared differences: the square in the exponent of the likelihood becomes 1 - correlation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..geometry.field import compose_displacements
from ..geometry.sampling import gaussian_kernel, gaussian_smooth, resize_image
from ..geometry.velocity import exponential
from ..losses import similarity
from ..losses.kl_velocity import kl_velocity
from ..networks.blocks import Head, channels_last, pair_input, resized_vectors, warped
from ..networks.unet import voxelmorph_unet
from ..registration.learned import LearnedRegistration
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Outputs, Parameter, Reference

SPEC = AlgorithmSpec(
    key="vxm_prob",
    title="Probabilistic diffeomorphic VoxelMorph",
    family="probabilistic",
    summary="Gives an invertible deformation and how sure it is, by one pass through a network.",
    transform="dense",
    needs=Needs(training=True),
    outputs=Outputs(uncertainty=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Dalca, Balakrishnan, Guttag, Sabuncu",
            title="Unsupervised learning of probabilistic diffeomorphic registration for images "
            "and surfaces",
            venue="Medical Image Analysis 57:226-236",
            year=2019,
            doi="10.1016/j.media.2019.07.006",
        ),
        Reference(
            authors="Dalca, Balakrishnan, Guttag, Sabuncu",
            title="Unsupervised learning for fast probabilistic diffeomorphic registration",
            venue="MICCAI 2018, LNCS 11070:729-738",
            year=2018,
            doi="10.1007/978-3-030-00928-1_82",
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
            default=16,
            minimum=0,
            maximum=1000,
            help="Deformations that are drawn for the map of uncertainty; below 2 it shows the "
            "standard deviation of the velocity.",
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
            name="image_sigma",
            default=0.1,
            minimum=1e-4,
            maximum=10.0,
            help="Standard deviation of the noise of images from 0 to 1; less follows the images "
            "more closely, and mse takes about 0.02.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="prior",
            default=30.0,
            minimum=1e-3,
            maximum=1e5,
            help="Precision of the differences of neighboring velocities; more is smoother.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="squarings",
            default=7,
            minimum=1,
            maximum=12,
            help="Steps of scaling and squaring that integrate the velocity.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="encoder",
            default=(16, 32, 32, 32),
            minimum=1,
            maximum=512,
            help="Channels at 1/2, 1/4, ... of the resolution.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="decoder",
            default=(32, 32, 32, 32, 32),
            minimum=1,
            maximum=512,
            help="Channels from the coarsest resolution up to 1/2, which takes all that are left.",
            advanced=True,
            training=True,
        ),
    ),
)

#: Logarithm of the variance of the velocity before training.
_START = -10.0
#: Standard deviation of the window in which samples are drawn alike, and of that in which their
#: variance is averaged, in voxels of the velocity.
_ALIKE, _POOLING = 1.5, 3.0
#: Corrections of the inverse; the second one changes it by less than 0.01 voxel.
_CORRECTIONS = 2


class Algorithm(LearnedRegistration):
    """Registration by the probabilistic, diffeomorphic VoxelMorph."""

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        encoder, decoder = tuple(self.values["encoder"]), tuple(self.values["decoder"])
        return channels_last(VelocityNetwork(encoder, decoder))

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        mean, log_variance = network(batch.fixed, batch.moving)
        velocity = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        moved = warped(batch.moving, self._displacement(velocity, batch.shape))
        options = {"radius": self.values["radius"]} if self.values["similarity"] == "lncc" else {}
        measure = similarity(self.values["similarity"], **options)
        share = math.prod(mean.shape[2:]) / math.prod(batch.shape)
        weight = 2.0 * self.values["image_sigma"] ** 2 * share
        return {
            "similarity": measure(batch.fixed, moved),
            "divergence": weight * kl_velocity(mean, log_variance, self.values["prior"]),
        }

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; the inverse integrates the velocity backwards, and is corrected."""
        mean, log_variance = network(fixed, moving)
        shape = fixed.shape[2:]
        displacement = self._displacement(mean, shape)
        inverse = _corrected(self._displacement(-mean, shape), displacement)
        deviation = _deviation_mm(log_variance, shape, spacing_mm)
        spread = deviation
        if self.values["draws"] >= 2:
            spread = self._spread_mm(mean, log_variance, shape, spacing_mm)
        return Prediction(
            displacement=displacement,
            inverse=inverse,
            maps={"uncertainty_mm": spread, "velocity_deviation_mm": deviation},
            values={"uncertainty_mean_mm": float(spread.detach().mean())},
        )

    def _displacement(self, velocity: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Integrates at the resolution of the velocity and enlarges the result."""
        return resized_vectors(exponential(velocity, self.values["squarings"]), shape)

    def _spread_mm(
        self, mean: Tensor, log_variance: Tensor, shape: torch.Size, spacing_mm: float
    ) -> Tensor:
        """Standard deviation of where drawn velocities send each voxel, (1, 1, *shape)."""
        # A generator of its own, so that the same pair gives the same map.
        generator = torch.Generator(mean.device).manual_seed(0)
        deviation = torch.exp(0.5 * log_variance)
        total, squares = torch.zeros_like(mean), torch.zeros_like(mean)
        center = exponential(mean, self.values["squarings"])
        count = self.values["draws"]
        for _ in range(count):
            noise = _alike_noise(mean, generator)
            # Sums of differences from the center cancel less than those of displacements.
            offset = exponential(mean + deviation * noise, self.values["squarings"]) - center
            total += offset
            squares += offset.square()
        variance = (squares - total.square() / count).clamp(min=0.0) / (count - 1)
        # A few samples tell little of one voxel; its neighbors vary alike.
        return _length_mm(gaussian_smooth(variance, _POOLING), shape, spacing_mm)


class VelocityNetwork(nn.Module):
    """U-Net to half the resolution, with one head for the mean and one for the variance.

    Args:
        encoder: Channels at 1/2, 1/4, ... of the resolution.
        decoder: Channels from the coarsest resolution up to half.
    """

    def __init__(self, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> None:
        super().__init__()
        self.unet = voxelmorph_unet(encoder, decoder)
        self.mean = Head(self.unet.outputs)
        self.log_variance = Head(self.unet.outputs, spread=1e-10, start=_START)

    def forward(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and logarithm of the variance, (B, 3, *half) in voxels of that grid."""
        features = self.unet(pair_input(fixed, moving))
        return self.mean(features), self.log_variance(features)


def _corrected(inverse: Tensor, displacement: Tensor) -> Tensor:
    """Takes from an inverse, (B, 3, *shape), where the interpolations of both integrals differ."""
    for _ in range(_CORRECTIONS):
        inverse = inverse - compose_displacements(displacement, inverse)
    return inverse


def _alike_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise of the shape of `like` and of variance one, similar in neighboring voxels.

    Independent noise would be averaged away where the integration reads between voxels, and most
    where most moves.
    """
    kernel = gaussian_kernel(_ALIKE)
    # Voxels beyond the border are drawn as well; repeating the edge would raise its variance.
    margin = len(kernel) // 2
    shape = [n + 2 * margin for n in like.shape[2:]]
    noise = torch.randn(
        *like.shape[:2], *shape, generator=generator, device=like.device, dtype=like.dtype
    )
    noise = gaussian_smooth(noise, _ALIKE).div_(sum(w * w for w in kernel) ** 1.5)
    inner = slice(margin, -margin)
    return noise[:, :, inner, inner, inner]


def _deviation_mm(log_variance: Tensor, shape: torch.Size, spacing_mm: float) -> Tensor:
    """Standard deviation of the velocity, (1, 1, *shape), in mm per unit time."""
    return _length_mm(log_variance.exp(), shape, spacing_mm)


def _length_mm(variance: Tensor, shape: torch.Size, spacing_mm: float) -> Tensor:
    """Root of the summed variances (1, 3, *half) of vectors in voxels, on the full grid, in mm."""
    scale = [spacing_mm * n / o for n, o in zip(shape, variance.shape[2:])]
    factor = torch.tensor(scale, device=variance.device, dtype=variance.dtype)
    length = (variance * factor.view(1, 3, 1, 1, 1).square()).sum(dim=1, keepdim=True).sqrt()
    return resize_image(length, shape, antialias=False)
