"""Registration by the features of an autoencoder and back-propagation; for serial sections, too.

A convolutional autoencoder learns to show images again, one by one; no pairs and no labels are
needed. Then it is at rest, and its encoder f describes the surroundings of every voxel. A
transform phi of an affine map theta and a coarse grid of vectors v is changed by back-propagation
through the encoder and the moved image, so that

    E = |f(moving o phi) - f(fixed)|² + alpha |theta|² + beta |v|² + gamma |grad v|²

falls. Regions where an image is empty (a missing tile, a hole in a section) are left out. The
features serve other algorithms as well: `similarity` features in rigid, affine, greedy, bspline
and more. Stacks of sections, each matched with its neighbors, are aligned by
`registration.section_stack` and the command ``sections``.

Without a model the autoencoder learns from the two images alone.

Differences from the publication: volumes as well as sections; the features are those of each
resolution before it is halved, divided by their variance, with weights (those of half the
resolution alone, unless `layer_weights` says otherwise); theta, there the weights of a network that
gives the vectors, is an affine map; the vectors are joined by cubic B-splines in
place of thin-plate splines; the images may be shown to the autoencoder with tiles that are black
or inverted, while it has to show them as they were, so that its features mind them less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.grid import Grid
from ..geometry.transform import Transform
from ..losses.base import Similarity
from ..losses.feature_distance import ScaledMSE, feature_difference_map
from ..networks.blocks import channels_last
from ..networks.feature_autoencoder import FeatureAutoencoder, corrupted
from ..networks.patch_metric import squared_weights
from ..registration.base import ImagePair, Progress, Result
from ..registration.feature_warp import Reference as Target
from ..registration.feature_warp import Warp, WarpSettings, align
from ..registration.learned import see
from ..registration.metric_registration import MetricRegistration
from ..registration.metric_similarity import FeatureSimilarity
from ..registration.model_frame import ModelFrame
from ..registration.placement import placed
from ..registration.section_regions import counted, masks_on
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Parameter, Reference

SPEC = AlgorithmSpec(
    key="ssemnet",
    title="Autoencoder features (ssEMnet)",
    family="unsupervised",
    summary="Compares images by what an autoencoder learned to see, and bends one onto the other; "
    "for noise, artifacts and serial sections.",
    transform="dense",
    needs=Needs(training=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Yoo, Hildebrand, Tobin, Lee, Jeong",
            title="ssEMnet: Serial-section electron microscopy image registration using a spatial "
            "transformer network with learned features",
            venue="DLMIA 2017, LNCS 10553:249-257",
            year=2017,
            doi="10.48550/arXiv.1707.07833",
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
            help="Steps that the autoencoder is fitted to this very pair before it is registered.",
        ),
        Parameter(
            name="spacing",
            default=6.0,
            minimum=1.0,
            maximum=1000.0,
            unit="voxel",
            help="Distance of the vectors, in voxels of the model.",
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
            default=(40, 40, 30),
            minimum=0,
            maximum=10000,
            presets={"fast": (40, 30), "accurate": (80, 80, 60)},
            help="Iterations at each level.",
            advanced=True,
        ),
        Parameter(
            name="step",
            default=0.2,
            minimum=0.001,
            maximum=10.0,
            unit="voxel",
            help="Largest change of a vector in an iteration.",
            advanced=True,
        ),
        Parameter(
            name="alpha",
            default=0.001,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the affine map.",
            advanced=True,
        ),
        Parameter(
            name="beta",
            default=0.01,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared vectors.",
            advanced=True,
        ),
        Parameter(
            name="gamma",
            default=0.3,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared differences of neighboring vectors.",
            advanced=True,
        ),
        Parameter(
            name="upsampling",
            default="spline",
            choices=("spline", "linear"),
            help="How the displacement goes on between the vectors.",
            advanced=True,
        ),
        Parameter(
            name="affine",
            default=False,
            help="Whether an affine map is found beside the vectors; stacks of sections need it.",
            advanced=True,
        ),
        Parameter(
            name="compare",
            default="features",
            choices=("features", "mse"),
            help="Features of the autoencoder, or intensities, for comparison.",
            advanced=True,
        ),
        Parameter(
            name="ignore_empty",
            default=True,
            help="Whether empty regions inside the object, such as missing tiles, are left out.",
            advanced=True,
        ),
        Parameter(
            name="layer_weights",
            default=(0.0, 1.0, 0.0),
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the features at 1, 1/2, 1/4, ... of the resolution.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="corruption",
            default=0.1,
            minimum=0.0,
            maximum=0.9,
            help="Share of the images that is black or inverted in training.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="decay",
            default=1e-6,
            minimum=0.0,
            maximum=10.0,
            help="Weight of the squared weights of the network.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=(32, 64, 128),
            minimum=1,
            maximum=1024,
            help="Channels at 1, 1/2, 1/4, ... of the resolution.",
            advanced=True,
            training=True,
        ),
    ),
)


class Algorithm(MetricRegistration):
    """Registration by the features of an autoencoder."""

    multiple = 8

    def __init__(self, **values: object) -> None:
        super().__init__(**values)
        channels, weights = self.values["channels"], self.values["layer_weights"]
        if len(weights) != len(channels) or sum(weights) <= 0.0:
            raise ParameterError(
                f"Parameter 'layer_weights' takes one weight for each of the {len(channels)} "
                f"resolutions of 'channels', not all zero, but {weights} was given."
            )

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        return channels_last(FeatureAutoencoder(tuple(self.values["channels"])))

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the objective; see `registration.trainable.Trainable`."""
        images = torch.cat([batch.fixed, batch.moving])
        again = network(corrupted(images, float(self.values["corruption"])))
        return {
            "reconstruction": (again - images).square().mean(),
            "decay": float(self.values["decay"]) * squared_weights(network),
        }

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Returns the map of the difference of the features; nothing moves."""
        assert isinstance(network, FeatureAutoencoder)
        one, other = network.features(fixed), network.features(moving)
        # The first layer has the resolution of the image, filled up to what the network takes.
        difference = feature_difference_map(one, other, self._layers(), one[0].shape[2:])
        a, b, c = fixed.shape[2:]
        return Prediction(maps={"feature_difference": difference[:, :, :a, :b, :c]})

    def measure(
        self, network: nn.Module, spacing_mm: Sequence[float], model_mm: float
    ) -> Similarity:
        """Returns the similarity; see `registration.metric_registration.MetricRegistration`."""
        if self.values["compare"] == "mse":
            return ScaledMSE()
        return FeatureSimilarity(network, spacing_mm, model_mm, self._layers())

    def optimized(
        self, network: nn.Module, frame: ModelFrame, pair: ImagePair, progress: Progress
    ) -> Result:
        """Registers by back-propagation on the grid of the model."""
        view = see(pair, frame, self.multiple)
        ignore, settings = bool(self.values["ignore_empty"]), self.settings()
        masks = masks_on(pair, view.grid)
        images = [view.batch.fixed, view.batch.moving]
        fixed, moving = (
            Target(image, counted(image, view.grid, mask, ignore))
            for image, mask in zip(images, masks)
        )
        total = max(1, sum(settings.iterations))
        done = 0

        def report(level: int, iteration: int, value: float, warp: Warp) -> bool:
            nonlocal done
            done += 1
            progress.update(done / total, value)
            if progress.wants_preview():
                progress.preview(self._placed(warp, view.grid, pair))
            return progress.stop_requested

        spacing = frame.spacing_mm
        warp = align(
            [fixed], moving,
            lambda ratio: self.measure(network, [spacing * r for r in ratio], spacing),
            settings, report=report,
        )  # fmt: skip
        return Result(self._placed(warp, view.grid, pair), history=warp.history)

    def settings(self) -> WarpSettings:
        """Returns the settings of the search for the transform."""
        v = self.values
        return WarpSettings(
            spacing=float(v["spacing"]), factors=tuple(v["factors"]),
            iterations=tuple(v["iterations"]), step=float(v["step"]), alpha=float(v["alpha"]),
            beta=float(v["beta"]), gamma=float(v["gamma"]), upsampling=str(v["upsampling"]),
            affine=bool(v["affine"]),
        )  # fmt: skip

    def _placed(self, warp: Warp, grid: Grid, pair: ImagePair) -> Transform:
        with torch.no_grad():
            said = Prediction(warp.settled(), linear=warp.matrix(warp.shape)[0].double())
            return placed(said, grid, pair).transform

    def _layers(self) -> tuple[float, ...]:
        return tuple(float(w) for w in self.values["layer_weights"])
