"""Quicksilver: a network says the initial momentum of the geodesic that aligns a pair.

LDDMM by shooting (`lddmm`) is the teacher: it finds the initial momenta of many pairs once. From
patches of both images a network learns the momentum in them (the mean absolute difference), and a
second one, the correction, learns what is missing from the moving patch and the target as it looks
when it is brought back to the moving space by the first answer. In use, overlapping patches are
averaged and the geodesic is shot once: it gives the deformation and its exact inverse, both without
folds. The momentum belongs to the space of the moving image. In the Bayesian version a share of the
activations is left out at random, also in use: each sample of the momentum is shot, and how far the
samples of the deformation lie from their mean is the uncertainty; the result is the geodesic of the
mean momentum. It has no correction.

Differences from the publication: the teacher is ours (local correlation, Gaussian kernels of
several widths, the momentum on a lattice of every other voxel); the voxels of each lattice voxel
enter as channels, so that a patch of 15 sees `lattice` times as far; the decoders also see what the
encoders found before each halving, as a thousand steps taught nothing without that; patches for
training are cut at random places; 16 and 32 channels by default (64 and 128 in the publication);
momenta are scaled to about one (`size`); patches cover the images from the first voxel to the last.
Without a teacher (when it is fitted to a pair) the network lowers the objective of the teacher
itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.field import vector_lengths
from ..networks.blocks import channels_last, warped
from ..networks.momentum_net import MomentumNetwork, at_least, cut, predicted, random_starts
from ..registration.base import Progress
from ..registration.learned import LearnedRegistration
from ..registration.shooting import shooting_settings
from ..registration.shooting_frame import ShootingFrame
from ..registration.source import BatchSource
from ..registration.trainable import Batch, Prediction, Stage
from ..spec import AlgorithmSpec, Needs, Outputs, Parameter, Reference
from ..training.lesson import Teacher
from ..training.teacher import TaughtPairs

SPEC = AlgorithmSpec(
    key="quicksilver",
    title="Quicksilver",
    family="supervised",
    summary="Predicts the geodesic that LDDMM would find, with an exact inverse, many times "
    "faster.",
    transform="dense",
    needs=Needs(training=True, teacher=True),
    outputs=Outputs(uncertainty=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Yang, Kwitt, Styner, Niethammer",
            title="Quicksilver: Fast predictive image registration - A deep learning approach",
            venue="NeuroImage 158:378-396",
            year=2017,
            doi="10.1016/j.neuroimage.2017.07.008",
        ),
        Reference(
            authors="Singh, Hinkle, Joshi, Fletcher",
            title="A vector momenta formulation of diffeomorphisms for improved geodesic "
            "regression and atlas construction",
            venue="ISBI 2013:1219-1222",
            year=2013,
            doi="10.1109/ISBI.2013.6556661",
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
            presets={"accurate": 20},
            help="Steps that the weights are fitted to this very pair before it is registered.",
        ),
        Parameter(
            name="draws",
            default=20,
            minimum=2,
            maximum=1000,
            presets={"fast": 8, "accurate": 50},
            help="Samples of the Bayesian version, each of which is shot.",
        ),
        Parameter(
            name="teacher",
            default="lddmm",
            choices=("lddmm",),
            help="Algorithm whose answers are learned; it has to find initial momenta.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="taught_pairs",
            default=100,
            minimum=1,
            maximum=1000000,
            help="Number of pairs that the teacher registers before the training.",
            training=True,
        ),
        Parameter(
            name="correction",
            default=True,
            help="Whether a second network corrects the first; not in the Bayesian version.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="bayesian",
            default=False,
            help="Whether activations are left out at random, for a map of uncertainty.",
            training=True,
        ),
        Parameter(
            name="dropout",
            default=0.3,
            minimum=0.0,
            maximum=0.9,
            help="Share of the activations that the Bayesian version leaves out.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=(16, 32),
            minimum=1,
            maximum=512,
            help="Channels of the network at the full and at half the resolution of a patch.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="patches",
            default=8,
            minimum=1,
            maximum=4096,
            help="Patches that are cut from each pair in a step of the training.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="size",
            default=0.3,
            minimum=1e-8,
            maximum=1e8,
            help="Usual size of the momentum for voxels of 1 mm, which the network takes as one.",
            advanced=True,
            training=True,
        ),
        Parameter("similarity", "auto", "What the teacher compares; auto takes local correlation.",
                  choices=("auto", "lncc", "mse", "ncc", "mi", "mind", "ngf"),
                  advanced=True, training=True),
        Parameter("radius", 2, "Half width of the teacher's window of local correlation.",
                  "voxel", 1, 10, advanced=True, training=True),
        Parameter("sigma", 0.15, "Assumed noise of the similarity; smaller follows the images "
                  "more closely.", "", 0.0001, 100.0, advanced=True, training=True),
        Parameter("kernel", "gaussian", "What makes velocities smooth: Gaussians of several "
                  "widths, or a fluid operator.", choices=("gaussian", "fluid"),
                  advanced=True, training=True),
        Parameter("widths", (8.0, 4.0, 2.0), "Widths of the Gaussians.",
                  "voxel", 0.3, 200.0, advanced=True, training=True),
        Parameter("weights", (9.0, 3.0, 1.0), "Weight of each Gaussian.",
                  "", 0.0001, 10000.0, advanced=True, training=True),
        Parameter("fluid", (0.01, 0.01, 0.001), "Alpha, beta and gamma of the fluid operator, in "
                  "voxels.", "", 0.0, 100.0, advanced=True, training=True),
        Parameter("time_steps", 5, "Fewest time steps of the geodesic; fast motion takes more.",
                  "", 2, 60, advanced=True, training=True),
        Parameter("iterations", (15, 20, 12), "Most iterations of the teacher at each level, from "
                  "coarse to fine.", "", 1, 10000, advanced=True, training=True),
        Parameter("lattice", 2, "Spacing of the momentum in voxels of the images.",
                  "voxel", 1, 4, advanced=True, training=True),
    ),
)  # fmt: skip

_PREDICTION, _CORRECTION = "prediction", "correction"
#: Parameters that the teacher and the shooting share.
_SHARED = ("similarity", "radius", "sigma", "kernel", "widths", "weights", "fluid", "time_steps",
           "lattice")  # fmt: skip


class Algorithm(LearnedRegistration):
    """Registration by Quicksilver."""

    #: A geodesic belongs to the whole image; patches keep the memory small as it is.
    in_tiles = False

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if len(values["channels"]) != 2:
            raise ParameterError(
                f"Parameter 'channels' takes two numbers, not {len(values['channels'])}."
            )
        if len(values["iterations"]) != 3:
            raise ParameterError(
                "Parameter 'iterations' takes three numbers, for voxels of 4, 2 and 1 times the "
                f"size, not {len(values['iterations'])}."
            )

    def stages(self) -> tuple[Stage, ...]:
        """Returns the training of the prediction and, with it frozen, that of the correction."""
        if not self._corrects:
            return (Stage(_PREDICTION, 1.0, (_PREDICTION,)),)
        return (Stage(_PREDICTION, 0.5, (_PREDICTION,)), Stage(_CORRECTION, 0.5, (_CORRECTION,)))

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        first, second = self.values["channels"]
        inputs = int(self.values["lattice"]) ** 3
        dropout = float(self.values["dropout"]) if self.values["bayesian"] else 0.0
        names = [_PREDICTION, _CORRECTION] if self._corrects else [_PREDICTION]
        parts = {name: MomentumNetwork(inputs, (first, second), dropout) for name in names}
        return channels_last(nn.ModuleDict(parts))

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns pairs with the momenta that the teacher finds."""
        count = int(self.values["taught_pairs"])
        return TaughtPairs(pairs, self.teacher(), count, folder / "taught", progress)

    def teacher(self) -> Teacher:
        """Returns the teacher: LDDMM with the kernel and the lattice of the shooting."""
        values = {name: self.values[name] for name in (*_SHARED, "iterations")}
        key = str(self.values["teacher"])
        return Teacher(key, "balanced", {**values, "factors": (4, 2, 1)}, self._margin)

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the mean absolute difference of the momentum in patches, about one at first.

        Without a teacher it is the objective of LDDMM for the momentum of the network.
        """
        if batch.momentum is None:
            return self._objective(network, batch)
        frame = self._frame(batch.fixed, batch.spacing_mm)
        part = _CORRECTION if batch.stage == _CORRECTION else _PREDICTION
        parts: list[list[Tensor]] = [[], [], []]
        for index in range(len(batch.fixed)):
            one = slice(index, index + 1)
            fixed, moving = batch.fixed[one], batch.moving[one]
            target = batch.momentum[one] / self._unit(batch.spacing_mm)
            if part == _CORRECTION:
                with torch.no_grad():
                    found = self._predicted(network, frame, fixed, moving)
                    fixed = self._brought_back(frame, fixed, found)
                    target = target - found
            features = [at_least(frame.features(image)) for image in (fixed, moving)]
            starts = random_starts(features[0], features[1], int(self.values["patches"]))
            for group, values in zip(parts, (*features, at_least(target))):
                group.append(cut(values, starts))
        fixed, moving, target = (torch.cat(group) for group in parts)
        said = network.get_submodule(part)(fixed, moving)
        return {"momentum": (said - target).abs().mean()}

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; the momentum is a map of three channels in mm along R, A and S."""
        frame = self._frame(fixed, spacing_mm)
        maps: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        if self.values["bayesian"]:
            momentum, spread = self._sampled(network, frame, fixed, moving)
            maps["uncertainty_mm"] = spread
            values["uncertainty_mean_mm"] = float(spread.mean())
        else:
            momentum = self._momentum(network, frame, fixed, moving)
        momentum, end = frame.sound(momentum)
        maps["moving_momentum"] = frame.on_images(momentum)
        values |= {
            "momentum_energy": end.energies[0],
            "momentum_largest": float(vector_lengths(momentum).max()),
            "lattice": list(frame.lattice.shape),
            "lattice_spacing_mm": frame.lattice.grid.spacing_mm[0],
        }
        return Prediction(
            displacement=frame.displacement(end.inverse),
            inverse=frame.displacement(end.forward),
            maps=maps,
            values=values,
        )

    @property
    def _corrects(self) -> bool:
        return bool(self.values["correction"]) and not self.values["bayesian"]

    @property
    def _margin(self) -> int:
        """Voxels around the images, so that what moves at their rim is not held by the lattice."""
        return 2 * int(self.values["lattice"])

    def _unit(self, spacing_mm: float) -> float:
        """Size of the momentum that the network takes as one; it grows with the voxels."""
        return float(self.values["size"]) * spacing_mm

    def _frame(self, image: Tensor, spacing_mm: float) -> ShootingFrame:
        values = {name: self.values[name] for name in (*_SHARED, "iterations")}
        settings = shooting_settings(
            {**values, "modality": "same", "factors": (4, 2, 1), "tolerance": 0.0,
             "finest_mm": 0.0}
        )  # fmt: skip
        a, b, c = image.shape[2:]
        return ShootingFrame((a, b, c), spacing_mm, settings, self._margin, image.device)

    def _predicted(
        self, network: nn.Module, frame: ShootingFrame, fixed: Tensor, moving: Tensor
    ) -> Tensor:
        """Returns what the first network says, in its unit."""
        part = network.get_submodule(_PREDICTION)
        return predicted(part, frame.features(fixed), frame.features(moving))

    def _brought_back(self, frame: ShootingFrame, fixed: Tensor, momentum: Tensor) -> Tensor:
        """Returns the fixed image as it looks in the moving space by a momentum (in its unit)."""
        _, end = frame.sound(momentum.detach() * self._unit(frame.spacing_mm))
        return warped(fixed, frame.displacement(end.forward))

    def _momentum(
        self, network: nn.Module, frame: ShootingFrame, fixed: Tensor, moving: Tensor,
        corrected: bool = True,
    ) -> Tensor:  # fmt: skip
        """Returns the momentum of both networks together."""
        momentum = self._predicted(network, frame, fixed, moving)
        if corrected and self._corrects:
            back = self._brought_back(frame, fixed, momentum)
            part = network.get_submodule(_CORRECTION)
            rest = predicted(part, frame.features(back), frame.features(moving))
            momentum = momentum + rest
        return momentum * self._unit(frame.spacing_mm)

    def _sampled(
        self, network: nn.Module, frame: ShootingFrame, fixed: Tensor, moving: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the mean of the sampled momenta, and the spread of their maps in mm.

        The spread is that about the mean of the sampled maps, which is not the map that the mean
        momentum is shot to.
        """
        momenta, maps = [], []
        devices = [fixed.device] if fixed.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            # Numbers of its own, so that the same pair gives the same map.
            torch.manual_seed(0)
            for _ in range(int(self.values["draws"])):
                momentum = self._momentum(network, frame, fixed, moving).detach()
                end = frame.shoot(momentum)
                if not bool(torch.isfinite(end).all()):
                    momentum, sound = frame.sound(momentum)
                    end = sound.inverse
                momenta.append(momentum)
                maps.append(end)
        variance = torch.cat(maps).var(dim=0, keepdim=True).sum(dim=1, keepdim=True)
        spread = frame.on_images(variance).clamp(min=0.0).sqrt()
        mean = torch.cat(momenta).mean(dim=0, keepdim=True)
        return mean, spread * frame.lattice.grid.spacing_mm[0]

    def _objective(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of LDDMM's objective for the momentum that the network says."""
        frame = self._frame(batch.fixed, batch.spacing_mm)
        measure = frame.settings.similarity_on(frame.grid)
        energies, differences = [], []
        for index in range(len(batch.fixed)):
            one = slice(index, index + 1)
            fixed, moving = batch.fixed[one], batch.moving[one]
            corrected = batch.stage != _PREDICTION
            momentum = self._momentum(network, frame, fixed, moving, corrected)
            energies.append(frame.energy(momentum))
            moved = warped(moving, frame.displacement(frame.shoot(momentum)))
            differences.append(measure(fixed, moved))
        return {
            "energy": torch.stack(energies).mean(),
            "similarity": torch.stack(differences).mean() / (2.0 * self.values["sigma"] ** 2),
        }
