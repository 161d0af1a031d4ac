"""VoxelMorph: a U-Net gives the displacement of every voxel in one pass.

The network sees both images and is trained on pairs, without any truth, by what a registration
minimizes: the dissimilarity of the fixed and the moved image plus a weight times the squared
differences of neighboring displacements. The displacement has the full resolution and no bound,
and nothing but the weight keeps it from folding.

Differences from the publication: the weight applies to sums, not means, over the components and
axes (the publication's 1 for local correlation is 1/9 here); windows of local correlation are 5
voxels wide, not 9, because voxels of 2 or 3 mm take the place of 1 mm; the channels default to
those that the authors published as code.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..losses import similarity
from ..losses.kl_velocity import neighbor_energy
from ..networks.blocks import Head, channels_last, pair_input, warped
from ..networks.unet import voxelmorph_unet
from ..registration.learned import LearnedRegistration
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Parameter, Reference

SPEC = AlgorithmSpec(
    key="vxm",
    title="VoxelMorph",
    family="unsupervised",
    summary="Gives the displacement of every voxel by one pass through a trained network.",
    transform="dense",
    needs=Needs(training=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Balakrishnan, Zhao, Sabuncu, Guttag, Dalca",
            title="VoxelMorph: a learning framework for deformable medical image registration",
            venue="IEEE Transactions on Medical Imaging 38(8):1788-1800",
            year=2019,
            doi="10.1109/TMI.2019.2897538",
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
        Parameter(
            name="final",
            default=(16, 16),
            minimum=1,
            maximum=512,
            help="Channels at the full resolution.",
            advanced=True,
            training=True,
        ),
    ),
)


class Algorithm(LearnedRegistration):
    """Registration by VoxelMorph."""

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        names = ("encoder", "decoder", "final")
        return channels_last(DisplacementNetwork(*(tuple(self.values[n]) for n in names)))

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        displacement = network(batch.fixed, batch.moving)
        options = {"radius": self.values["radius"]} if self.values["similarity"] == "lncc" else {}
        measure = similarity(self.values["similarity"], **options)
        return {
            "similarity": measure(batch.fixed, warped(batch.moving, displacement)),
            "smoothness": self.values["smoothness"] * neighbor_energy(displacement),
        }

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; see `registration.trainable.Trainable`."""
        return Prediction(displacement=network(fixed, moving))


class DisplacementNetwork(nn.Module):
    """U-Net to the full resolution and the convolution that gives the displacement.

    Args:
        encoder: Channels at 1/2, 1/4, ... of the resolution.
        decoder: Channels from the coarsest resolution up to half.
        final: Channels at the full resolution.
    """

    def __init__(
        self, encoder: tuple[int, ...], decoder: tuple[int, ...], final: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.unet = voxelmorph_unet(encoder, decoder, final)
        self.head = Head(self.unet.outputs)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns the displacement, (B, 3, *shape) in voxels; images are (B, 1, *shape)."""
        displacement: Tensor = self.head(self.unet(pair_input(fixed, moving)))
        return displacement
