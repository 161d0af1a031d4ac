"""Registration with a cooperative autoencoder: deformations that a population has in common.

A U-Net gives the displacement u of every voxel, as in VoxelMorph. A second network, an autoencoder
with a narrow code, learns to reconstruct these displacements. Both are trained together: the
squared difference |u - AE(u)|^2 teaches the autoencoder what the displacements of the population
are, and the registration to stay near to what the autoencoder can say. So the displacements come to
lie near a manifold of few dimensions, in place of being smooth in general. The training begins with
smoothness, as nothing is known of the population then; over the first part of the steps
(`switch`) the weight of the autoencoder rises, and that of the smoothness may fall to a `rest`.
The population is what the training shows. Random poses and bends of the pairs are deformations too
and would fill the code with what nobody wants to know, so images of people are not moved.

The code and the distance from the manifold (`atypicality_mm`, a map and its root mean square inside
the object) tell how usual the deformation of a pair is. When the weights are fitted to a pair, the
autoencoder stays as it is. Without a model it knows that pair alone, and the distance means little.

Differences from the publication: the weights switch gradually, by the share of the training that is
done; the autoencoder learns from the first step on, and it is its gradient in the displacement that
is weighted; its decoder ends at half the resolution; a linear path beside its convolutions finds
the principal modes, which they are slow to learn; dense layers read and write a lattice of
cells, so that a model takes images of other shapes; the smoothness keeps all of its weight unless
`rest` says otherwise, because nothing else keeps single voxels from folding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.field import vector_lengths
from ..losses import similarity
from ..losses.kl_velocity import neighbor_energy
from ..networks.blocks import channels_last, warped
from ..networks.cooperative_net import CooperativeNetwork, shared_gradient
from ..registration.base import Progress
from ..registration.learned import LearnedRegistration
from ..registration.source import BatchSource
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Outputs, Parameter, Reference
from ..training.pairs import PreparedPairs

SPEC = AlgorithmSpec(
    key="coop_ae",
    title="Registration with a cooperative autoencoder",
    family="unsupervised",
    summary="Learns which deformations a population has, and tells how unusual that of a pair is.",
    transform="dense",
    needs=Needs(training=True),
    outputs=Outputs(latent_code=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Bhalodia, Elhabian, Kavan, Whitaker",
            title="A cooperative autoencoder for population-based regularization of CNN image "
            "registration",
            venue="MICCAI 2019, LNCS 11765:391-400",
            year=2019,
            doi="10.1007/978-3-030-32245-8_44",
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
            name="latent",
            default=32,
            minimum=1,
            maximum=4096,
            help="Numbers of the code of a displacement.",
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
            name="cooperation",
            default=0.3,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared distance from what the autoencoder says; 0 leaves smooth "
            "displacements alone.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="smoothness",
            default=0.1,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared differences of neighboring displacements at first.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="rest",
            default=1.0,
            minimum=0.0,
            maximum=1.0,
            help="Share of that weight that is left in the end.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="switch",
            default=0.5,
            minimum=0.01,
            maximum=1.0,
            help="Share of the training after which the autoencoder has its whole weight.",
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
        Parameter(
            name="autoencoder",
            default=(16, 32, 32),
            minimum=1,
            maximum=512,
            help="Channels of the autoencoder at 1/2, 1/4, ... of the resolution.",
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
        Parameter(
            name="lattice",
            default=(24, 32, 24),
            minimum=1,
            maximum=128,
            help="Lattice of the linear path of the autoencoder, along right, front and top.",
            advanced=True,
            training=True,
        ),
    ),
)

#: Brightness above which a voxel of the fixed image belongs to its object.
_OBJECT = 0.05


class Algorithm(LearnedRegistration):
    """Registration with a cooperative autoencoder."""

    in_tiles = False
    pair_modules = ("registration",)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        for name in ("cells", "lattice"):
            if len(values[name]) != 3:
                raise ParameterError(
                    f"Parameter '{name}' takes three numbers, separated by commas, such as 6,8,6."
                )

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        v = self.values
        network = CooperativeNetwork(
            tuple(v["encoder"]), tuple(v["decoder"]), tuple(v["final"]), tuple(v["autoencoder"]),
            int(v["latent"]), tuple(v["cells"]), tuple(v["lattice"]),
        )  # fmt: skip
        return channels_last(network)

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns pairs that are not moved at random; see `registration.trainable.Trainable`."""
        return pairs.still() if isinstance(pairs, PreparedPairs) else pairs

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`.

        The term of the autoencoder always has its whole weight; what grows with the training is
        the share of its gradient that reaches the displacement.
        """
        share = self.share(batch.fraction)
        displacement, rebuilt, _ = network(batch.fixed, batch.moving, share)
        options = {"radius": self.values["radius"]} if self.values["similarity"] == "lncc" else {}
        measure = similarity(self.values["similarity"], **options)
        smoothness = self.values["smoothness"] * (1.0 - share * (1.0 - self.values["rest"]))
        terms = {
            "similarity": measure(batch.fixed, warped(batch.moving, displacement)),
            "smoothness": smoothness * neighbor_energy(displacement),
        }
        if self.values["cooperation"] > 0:
            away = shared_gradient(displacement, share) - rebuilt
            distance = away.square().sum(dim=1).mean()
            terms["autoencoder"] = self.values["cooperation"] * distance
        return terms

    def share(self, fraction: float) -> float:
        """Returns how much of its weight the autoencoder has, 0 to 1.

        Args:
            fraction: Share of the training that is done; 1 while a pair is fitted.
        """
        if self.values["cooperation"] == 0:
            return 0.0
        return min(1.0, fraction / self.values["switch"])

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; the values hold the code and how atypical the displacement is."""
        displacement, rebuilt, code = network(fixed, moving)
        away = distance_mm(displacement, rebuilt, spacing_mm)
        return Prediction(
            displacement=displacement,
            maps={"atypicality_mm": away},
            values={
                "latent_code": code[0].tolist(),
                "atypicality_mm": score_mm(away, fixed),
            },
        )

    def judge(
        self, network: nn.Module, displacement: Tensor, fixed: Tensor, spacing_mm: float
    ) -> tuple[Tensor, Tensor, float]:
        """Tells how atypical a displacement is, whatever found it.

        Args:
            network: A network of this system.
            displacement: (1, 3, *shape) in voxels of the model's grid, without its linear part.
            fixed: The fixed image on that grid, (1, 1, *shape), 0 to 1.
            spacing_mm: Voxel size.

        Returns:
            The code (1, latent), the distance from the reconstruction (1, 1, *shape) in mm, and
            its root mean square inside the object.
        """
        rebuilt, code = network.get_submodule("autoencoder")(displacement)
        away = distance_mm(displacement, rebuilt, spacing_mm).detach()
        return code.detach(), away, score_mm(away, fixed)


def distance_mm(displacement: Tensor, rebuilt: Tensor, spacing_mm: float) -> Tensor:
    """Length of the difference of two displacements in voxels, (B, 1, *shape), in mm."""
    return vector_lengths(displacement - rebuilt) * spacing_mm


def score_mm(away_mm: Tensor, fixed: Tensor) -> float:
    """Root mean square of a distance where the fixed image shows its object."""
    inside = fixed > _OBJECT
    chosen = away_mm[inside] if bool(inside.any()) else away_mm
    return float(chosen.detach().double().square().mean().sqrt())
