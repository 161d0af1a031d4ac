"""A similarity of two modalities that is learned from aligned pairs, and a registration by it.

A network sees a patch of 17 x 17 x 17 voxels of either image and tells whether they show the same
place. It learns from a few aligned pairs (two images of each person): patches at one place count
as aligned, those whose second patch is shifted by 2 to 16 voxels do not. The hinge loss of both
makes it a dissimilarity, about -1 for aligned patches and +1 for others. What is minimized then is
its mean over patches around every fourth voxel, by back-propagation through the network and the
moved image to the control points of cubic B-splines, plus their bending energy.

The metric serves other algorithms as well: `similarity` deep_metric in rigid, affine, greedy,
bspline and more. A map of the dissimilarity of the registered images comes with every result.

Without a model the network learns from the very pair as it stands after the linear stages, taken
as aligned. That finds only what differs from place to place; a model does far better.

Differences from the publication: the layers are valid convolutions (3, 3 by 2, 3, 3 by 2, 2, 1)
whose field of view is exactly the patch, so that one pass over an image gives the numbers of all
its patches; Adam takes the place of stochastic gradient descent, and L-BFGS that of gradient
descent in the registration; patches are drawn at two resolutions, so that the metric holds for the
coarse levels of a registration; the numbers N of the patches are averaged as N / (1 + |N|), so that
a few that are like nothing in training do not outweigh the others; the second patch of a pair that
is apart comes from the same image as that of the aligned pair at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.sampling import resize_image, sample, voxel_coordinates
from ..losses.base import Similarity
from ..networks.blocks import channels_last, warped
from ..networks.patch_metric import PatchMetric, bounded, squared_weights
from ..networks.patch_sampling import draw_patches, near_object
from ..registration.base import ImagePair, Progress, Result
from ..registration.free_form import FreeFormEngine, FreeFormSettings
from ..registration.metric_registration import MetricRegistration
from ..registration.metric_similarity import PatchSimilarity
from ..registration.model_frame import ModelFrame
from ..registration.trainable import Batch, Prediction, Stage
from ..spec import AlgorithmSpec, Needs, Parameter, Reference

if TYPE_CHECKING:
    from pathlib import Path

    from ..registration.source import BatchSource

SPEC = AlgorithmSpec(
    key="deep_metric",
    title="Deep metric",
    family="learned similarity",
    summary="Bends by control points until a network, trained on aligned pairs of two modalities, "
    "finds the images alike.",
    transform="bspline",
    needs=Needs(training=True),
    modalities=("same", "different"),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Simonovsky, Gutiérrez-Becker, Mateus, Navab, Komodakis",
            title="A deep metric for multimodal registration",
            venue="MICCAI 2016, LNCS 9902:10-18",
            year=2016,
            doi="10.1007/978-3-319-46726-9_2",
        ),
        Reference(
            authors="Rueckert, Sonoda, Hayes, Hill, Leach, Hawkes",
            title="Nonrigid registration using free-form deformations: application to breast MR "
            "images",
            venue="IEEE Transactions on Medical Imaging 18(8):712-721",
            year=1999,
            doi="10.1109/42.796284",
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
            help="Steps that the metric is fitted to this very pair, taken as aligned, before it "
            "is registered.",
        ),
        Parameter(
            name="spacing_mm",
            default=15.0,
            minimum=1.0,
            maximum=1000.0,
            unit="mm",
            presets={"accurate": 10.0},
            help="Distance of the finest control points.",
        ),
        Parameter(
            name="factors",
            default=(4, 2, 1),
            minimum=1,
            maximum=64,
            presets={"fast": (4, 2)},
            help="Voxel size of each level in units of that of the model.",
            advanced=True,
        ),
        Parameter(
            name="iterations",
            default=(40, 30, 20),
            minimum=0,
            maximum=10000,
            presets={"fast": (30, 20), "accurate": (80, 60, 40)},
            help="Most iterations at each level.",
            advanced=True,
        ),
        Parameter(
            name="bending",
            default=0.1,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the bending energy; larger values give smoother deformations.",
            advanced=True,
        ),
        Parameter(
            name="volume",
            default=0.5,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared logarithm of the volume change.",
            advanced=True,
        ),
        Parameter(
            name="tolerance",
            default=0.001,
            minimum=0.0,
            maximum=0.1,
            presets={"accurate": 0.0001},
            help="A level ends when an iteration gains less than this share of the gain so far.",
            advanced=True,
        ),
        Parameter(
            name="patches",
            default=64,
            minimum=1,
            maximum=4096,
            help="Places of an image pair at which patches are drawn in each step.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="shifts",
            default=(2, 16),
            minimum=1,
            maximum=256,
            unit="voxel",
            help="Least and largest shift of patches that are not aligned.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="scales",
            default=(1, 2),
            minimum=1,
            maximum=8,
            help="Voxel sizes that patches are drawn at, in turn, in units of that of the images.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="decay",
            default=5e-5,
            minimum=0.0,
            maximum=10.0,
            help="Weight of the squared weights of the network.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=(32, 64, 64, 128, 128),
            minimum=1,
            maximum=1024,
            help="Channels of the five layers of the network.",
            advanced=True,
            training=True,
        ),
    ),
)


class Algorithm(MetricRegistration):
    """Registration by a learned metric."""

    multiple = 4
    scratch_rate = 5e-4

    def __init__(self, **values: object) -> None:
        super().__init__(**values)
        if len(self.values["channels"]) != 5:
            raise ParameterError("Parameter 'channels' takes five numbers, one for each layer.")
        if len(self.values["shifts"]) != 2 or self.values["shifts"][0] > self.values["shifts"][1]:
            raise ParameterError(
                "Parameter 'shifts' takes the least and the largest shift, such as 2,16, not "
                f"{self.values['shifts']}."
            )

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        return channels_last(PatchMetric(tuple(self.values["channels"])))

    def stages(self) -> tuple[Stage, ...]:
        """Returns the only stage, which learns by half of the usual step size."""
        return (Stage("train", rate=0.5),)

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns pairs that are aligned; see `registration.trainable.Trainable`."""
        from ..training.metric_pairs import aligned_pairs  # registering needs no training

        return aligned_pairs(pairs, progress)

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`.

        Where the displacement between the images is known, the moving one is brought back first.
        """
        v = self.values
        fixed, moving = batch.fixed, batch.moving
        if batch.truth is not None:
            moving = warped(moving, batch.truth)
        scale = int(v["scales"][batch.step % len(v["scales"])])
        shape = [max(2, n // scale) for n in batch.shape]
        fixed, moving = resize_image(fixed, shape), resize_image(moving, shape)
        least, most = (int(n) for n in v["shifts"])
        drawn = draw_patches(fixed, moving, int(v["patches"]), least, most)
        scores = network(
            torch.cat([drawn.fixed, drawn.fixed]), torch.cat([drawn.aligned, drawn.apart])
        )
        aligned, apart = scores.flatten().chunk(2)
        return {
            "aligned": 0.5 * (1.0 + aligned).clamp(min=0.0).mean(),
            "apart": 0.5 * (1.0 - apart).clamp(min=0.0).mean(),
            "decay": float(v["decay"]) * squared_weights(network),
        }

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Returns the map of the dissimilarity; nothing moves.

        Its values are those of the patches around the voxels, -1 to 1; 0 where there is no object.
        """
        assert isinstance(network, PatchMetric)
        every_other = bounded(network.everywhere(fixed, moving, 2))
        scores = sample(every_other, voxel_coordinates(fixed.shape[2:], fixed.device) / 2.0)
        return Prediction(maps={"dissimilarity": scores * near_object(fixed)})

    def measure(
        self, network: nn.Module, spacing_mm: Sequence[float], model_mm: float
    ) -> Similarity:
        """Returns the similarity; see `registration.metric_registration.MetricRegistration`."""
        return PatchSimilarity(network, spacing_mm, model_mm)

    def optimized(
        self, network: nn.Module, frame: ModelFrame, pair: ImagePair, progress: Progress
    ) -> Result:
        """Registers by the free-form engine, down to the voxel size of the model."""
        v = self.values
        settings = FreeFormSettings(
            modality="different",
            similarity=SPEC.key,
            radius=1,
            spacing_mm=float(v["spacing_mm"]),
            factors=tuple(v["factors"]),
            iterations=tuple(v["iterations"]),
            bending=float(v["bending"]),
            volume=float(v["volume"]),
            voxels=max(1, round(float(v["spacing_mm"]) / frame.spacing_mm)),
            tolerance=float(v["tolerance"]),
        )
        engine = FreeFormEngine(
            settings, lambda grid: self.measure(network, grid.spacing_mm, frame.spacing_mm)
        )
        return engine.register(pair, progress)
