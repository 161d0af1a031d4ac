"""Deep similarity: a network that tells the registration error in mm, and the map of the least.

A convolutional network sees the fixed and the moved image and estimates the target registration
error (TRE): how far points on the surface of the object are, on average, from where they belong. It
is trained with pairs whose alignment is known, moved by random maps whose errors are evenly spread
from 0 to `range_mm`. A registration looks for the rigid map of the least estimate: differential
evolution finds its surroundings, and BFGS (by the gradient through network and image) finds it
exactly, on the mean of several estimates at small random motions, which smooths the measure.

The estimate is worth something by itself: `Algorithm.estimate` gives it for any rigid or affine
alignment of a pair (`registration.tre_estimate` finds the model and does so in one call).

A map is taken only if it is estimated to be better than the start by half a millimeter, which is
less than the estimate can tell.

Differences from the publication, which registers MR and ultrasound of the prostate: the moving
images in training are other people as well as the same one; a share of the random maps also
stretches and shears, so that affine alignments are judged too; the global search evaluates single
estimates, and only BFGS means of several; the network is smaller, with strides in place of pooling.
Fitted to a pair without a model (or with `pair_steps`), the network learns from each image with
itself, as the truth of the pair is not known.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..geometry.transform import Transform
from ..networks.blocks import channels_last
from ..networks.composite import moved_by
from ..networks.tre_net import TreNetwork
from ..registration.base import ImagePair, Progress
from ..registration.learned import masked, see
from ..registration.model_frame import ModelFrame
from ..registration.rigid_learned import RigidLearned
from ..registration.rigid_motion import known_pairs, motions_of_error, surface_points
from ..registration.rigid_search import RigidSearch, SearchSettings
from ..registration.source import BatchSource
from ..registration.trainable import Batch, Prediction
from ..registration.tre_probe import Estimate, knows, misfit, responds
from ..spec import AlgorithmSpec, Needs, Parameter, Reference
from ..training.agreement import agreement
from ..training.dealigned import KnownAlignment

SPEC = AlgorithmSpec(
    key="deep_similarity",
    title="Deep similarity: learned registration error",
    family="learned similarity",
    summary="Finds the rigid map for which a trained network estimates the least error in mm.",
    transform="linear",
    modalities=("same", "different"),
    needs=Needs(training=True),
    references=(
        Reference(
            authors="Haskins, Kruecker, Kruger, Xu, Pinto, Wood, Yan",
            title="Learning deep similarity metric for 3D MR-TRUS image registration",
            venue="International Journal of Computer Assisted Radiology and Surgery 14(3):417-425",
            year=2019,
            doi="10.1007/s11548-018-1875-7",
        ),
        Reference(
            authors="Storn, Price",
            title="Differential evolution: a simple and efficient heuristic for global "
            "optimization over continuous spaces",
            venue="Journal of Global Optimization 11:341-359",
            year=1997,
            doi="10.1023/A:1008202821328",
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
            help="Steps that the weights are fitted to the single images before they are used.",
        ),
        Parameter(
            name="reach_mm",
            default=20.0,
            minimum=0.0,
            maximum=500.0,
            unit="mm",
            help="Largest shift along each axis that is tried.",
        ),
        Parameter(
            name="reach_deg",
            default=15.0,
            minimum=0.0,
            maximum=90.0,
            unit="degree",
            help="Largest rotation about each axis that is tried.",
        ),
        Parameter(
            name="population",
            default=24,
            minimum=4,
            maximum=1000,
            presets={"fast": 12, "accurate": 40},
            help="Maps of a generation of the global search.",
            advanced=True,
        ),
        Parameter(
            name="generations",
            default=20,
            minimum=0,
            maximum=10000,
            presets={"fast": 10, "accurate": 50},
            help="Generations of the global search; 0 leaves it out.",
            advanced=True,
        ),
        Parameter(
            name="iterations",
            default=15,
            minimum=0,
            maximum=1000,
            presets={"fast": 8, "accurate": 30},
            help="Most iterations of BFGS after the global search.",
            advanced=True,
        ),
        Parameter(
            name="passes",
            default=8,
            minimum=1,
            maximum=1000,
            presets={"fast": 4, "accurate": 16},
            help="Estimates at small random motions whose mean smooths the measure.",
            advanced=True,
        ),
        Parameter(
            name="spread",
            default=0.5,
            minimum=0.0,
            maximum=20.0,
            help="Standard deviation of these motions, in mm and degrees.",
            advanced=True,
        ),
        Parameter(
            name="range_mm",
            default=20.0,
            minimum=0.1,
            maximum=500.0,
            unit="mm",
            help="Largest error that the network learns to estimate.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="candidates",
            default=6,
            minimum=2,
            maximum=256,
            help="Maps of each pair in a step of the training.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="own_share",
            default=0.5,
            minimum=0.0,
            maximum=1.0,
            help="Share of the training pairs that show one person twice.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="affine_share",
            default=0.3,
            minimum=0.0,
            maximum=1.0,
            help="Share of the training maps that stretch and shear as well.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=(16, 32, 64, 64, 128),
            minimum=1,
            maximum=1024,
            help="Features at 1/2, 1/4, ... of the resolution.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="hidden",
            default=64,
            minimum=1,
            maximum=4096,
            help="Features of the dense layer.",
            advanced=True,
            training=True,
        ),
    ),
)

#: Least estimated gain that a found map is taken for, mm.
_LEAST_GAIN_MM = 0.5
#: Estimates from this share of the range on mean "far apart" and no number.
_BEYOND = 0.9
#: Surface points whose distances are the true error in training.
_POINTS = 256
#: Motions of each pair for validation, with errors from none to the largest, and how many at once.
_EXAMINED, _AT_ONCE = 16, 8


class Algorithm(RigidLearned):
    """Rigid registration by the least estimated error."""

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        channels = tuple(int(c) for c in self.values["channels"])
        middle = 0.5 * float(self.values["range_mm"])
        return channels_last(TreNetwork(channels, int(self.values["hidden"]), middle))

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns the pairs with their alignment known; see `training.dealigned`."""
        half = 0.5 * float(self.values["range_mm"])
        return KnownAlignment(pairs, (half, half), float(self.values["own_share"]))

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the squared error of the estimates, in units of the squared range."""
        fixed, moving, alignment = known_pairs(batch)
        several, most = int(self.values["candidates"]), float(self.values["range_mm"])
        points = surface_points(fixed, _POINTS).repeat_interleave(several, dim=0)
        wanted = most * torch.rand(len(points), device=points.device)
        motions, errors = motions_of_error(
            points, wanted, batch.spacing_mm, float(self.values["affine_share"])
        )
        matrices = alignment.repeat_interleave(several, dim=0) @ motions
        moved = moved_by(moving.repeat_interleave(several, dim=0), matrices.to(moving), None)
        found = network(fixed.repeat_interleave(several, dim=0), moved)
        return {"squared_error": ((found - errors.to(found)) / most).square().mean()}

    def examine(self, network: nn.Module, pair: Batch) -> dict[str, float]:
        """Returns how well errors of many motions are estimated; see `training.agreement`.

        A search of the best motion would take a thousand estimates for a single figure.
        """
        fixed, moving, alignment = known_pairs(pair)
        most, count = float(self.values["range_mm"]), _EXAMINED * len(fixed)
        fixed, moving, alignment = (
            t.repeat_interleave(_EXAMINED, dim=0) for t in (fixed, moving, alignment)
        )
        wanted = most * (torch.arange(count, device=fixed.device) % _EXAMINED) / (_EXAMINED - 1)
        points = surface_points(fixed, _POINTS)
        motions, errors = motions_of_error(points, wanted, pair.spacing_mm)
        moved = moved_by(moving, (alignment @ motions).to(moving), None)
        parts = zip(fixed.split(_AT_ONCE), moved.split(_AT_ONCE))
        return agreement(torch.cat([network(*part) for part in parts]), errors)

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; see `registration.trainable.Trainable`."""
        return self.search(network, fixed, moving, spacing_mm)

    def search(
        self,
        network: nn.Module,
        fixed: Tensor,
        moving: Tensor,
        spacing_mm: float,
        start: Tensor | None = None,
    ) -> Prediction:
        """Finds the map of the least estimate.

        Args:
            network: The network.
            fixed: (1, 1, *shape).
            moving: (1, 1, *shape).
            spacing_mm: Voxel size.
            start: Map to start from, (4, 4) in voxels; identity if omitted.

        Returns:
            The map, and the estimates before and after it in its values.
        """
        search = RigidSearch(network, fixed, moving, spacing_mm, self._settings(), start)
        before = search.value()
        after, matrix = search.run()
        better = after < before - _LEAST_GAIN_MM
        if not better:
            still = torch.eye(4, dtype=torch.float64) if start is None else start.double().cpu()
            after, matrix = before, still
        values = {"estimated_tre_before_mm": before, "estimated_tre_mm": after, "moved": better}
        return Prediction(linear=matrix, values=values)

    def estimate(self, pair: ImagePair, transform: Transform | None = None) -> float | None:
        """Returns the estimated TRE of a rigid or affine alignment in mm.

        Args:
            pair: The images; its masks hold. Its `initial` has no part in it.
            transform: The alignment, fixed to moving; the images as they are stored if omitted.

        Returns:
            The mean of several estimates at small random motions; None without a trained model.

        Raises:
            InputError: If the transform is not linear.
            ParameterError: If there is no such model, or it belongs to another algorithm.
            FileFormatError: If the model is damaged or does not fit.
        """
        looked = self._looked(pair, transform)
        return None if looked is None else looked[1].value()

    def trusted_estimate(self, pair: ImagePair, transform: Transform | None = None) -> Estimate:
        """Returns the same, but only if the network can be believed for these images.

        Args:
            pair: See `estimate`.
            transform: See `estimate`.

        Returns:
            The estimate, or why there is none; see `registration.tre_probe`.

        Raises:
            InputError: If the transform is not linear.
            ParameterError: If there is no such model, or it belongs to another algorithm.
            FileFormatError: If the model is damaged or does not fit.
        """
        file = self.model()
        if file is None or file.card is None:
            return Estimate(None, "there is no trained model")
        frame = ModelFrame(file.card.spacing_mm, file.card.shape)
        reason = misfit(pair, frame)
        looked = None if reason else self._looked(pair, transform)
        if looked is None:
            return Estimate(None, reason)
        (network, fixed, moving, most), search = looked
        sides = masked(pair.fixed, pair.fixed_mask), masked(pair.moving, pair.moving_mask)
        if not all(knows(network, side, frame, self.multiple, most) for side in sides):
            return Estimate(None, "the images do not look like those that it was trained on")
        found = search.value()
        if found >= _BEYOND * most:
            return Estimate(None, f"by its measure the images are {_BEYOND * most:g} mm or more "
                            "apart, which is as much as it can tell")  # fmt: skip
        if not responds(network, fixed, moving, frame.spacing_mm, most, found):
            return Estimate(None, "it does not tell how well these two images lie on each other, "
                            "which may be of kinds that it never saw together")  # fmt: skip
        return Estimate(found)

    def _looked(
        self, pair: ImagePair, transform: Transform | None
    ) -> tuple[tuple[nn.Module, Tensor, Tensor, float], RigidSearch] | None:
        """Network, images as it sees them, largest error, and the search that asks it."""
        if transform is not None and not transform.is_linear:
            raise InputError("The error of an alignment is estimated for linear transforms only.")
        file = self.model()
        if file is None or file.card is None:
            return None
        with torch.random.fork_rng(devices=[]):
            # The new network draws random weights before it gets those of the model.
            system, network = self.trained(file)
        assert isinstance(system, Algorithm)
        frame = ModelFrame(file.card.spacing_mm, file.card.shape)
        view = see(replace(pair, initial=transform or Transform()), frame, self.multiple)
        placed, images = network.to(pair.device).eval(), (view.batch.fixed, view.batch.moving)
        most_mm = float(system.values["range_mm"])
        search = RigidSearch(placed, *images, frame.spacing_mm, system._settings())
        return (placed, *images, most_mm), search

    def _settings(self) -> SearchSettings:
        names = ("population", "generations", "iterations", "passes")
        counts = {name: int(self.values[name]) for name in names}
        return SearchSettings(float(self.values["reach_mm"]), float(self.values["reach_deg"]),
                              spread=float(self.values["spread"]), **counts)  # fmt: skip
