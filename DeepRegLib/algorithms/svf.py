"""Stationary velocity field: the deformation is the exponential of one velocity.

The inverse is the exponential of the negative velocity. Both images are pulled half way at every
step and the velocity takes the difference of both forces, as in symmetric log-domain demons.
Differences from the references: any similarity with its analytic gradient in place of squared
differences, steps of a set length, velocity on a lattice coarser than the images, and its
divergence is taken back a little at every step.
"""

from __future__ import annotations

from typing import Any

from ..registration.base import ImagePair, Progress, Result
from ..registration.dense import DenseEngine, dense_settings
from ..spec import AlgorithmSpec, Parameter, Reference

SPEC = AlgorithmSpec(
    key="svf",
    title="Stationary velocity field (SVF)",
    family="optimisation",
    summary="One velocity gives the deformation and its exact inverse.",
    transform="dense",
    modalities=("same", "different"),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Arsigny, Commowick, Pennec, Ayache",
            title="A log-Euclidean framework for statistics on diffeomorphisms",
            venue="MICCAI 2006, LNCS 4190:924-931",
            year=2006,
            doi="10.1007/11866565_113",
        ),
        Reference(
            authors="Vercauteren, Pennec, Perchant, Ayache",
            title="Symmetric log-domain diffeomorphic registration: a demons-based approach",
            venue="MICCAI 2008, LNCS 5241:754-761",
            year=2008,
            doi="10.1007/978-3-540-85988-8_90",
        ),
    ),
    parameters=(
        Parameter(
            name="modality",
            default="same",
            choices=("same", "different"),
            help="Whether both images show the same contrast; different smooths more.",
        ),
        Parameter(
            name="similarity",
            default="auto",
            choices=("auto", "lncc", "mse", "ncc", "mi", "mind", "ngf", "deep_metric", "features"),
            help="Auto: local correlation, joined by mutual information across contrasts.",
            advanced=True,
        ),
        Parameter(
            name="metric_model",
            default="",
            help="Trained model of deep_metric or features, by name or file; empty: the newest.",
            advanced=True,
        ),
        Parameter(
            name="more_terms",
            default="",
            help="Further similarities with weights, such as 0.5*mi+0.2*ngf; usually empty.",
            advanced=True,
        ),
        Parameter(
            name="preparation",
            default="none",
            help="Steps before comparing: winsorize, bias and match, joined by '+'.",
            advanced=True,
        ),
        Parameter(
            name="label_weight",
            default=0.0,
            minimum=0.0,
            maximum=100.0,
            help="Weight of the overlap of the structures in both label maps.",
            advanced=True,
        ),
        Parameter(
            name="regularity",
            default="detailed",
            choices=("detailed", "smooth"),
            help="Detailed follows small structures; smooth keeps neighbouring tissue together.",
        ),
        Parameter(
            name="radius",
            default=2,
            minimum=1,
            maximum=10,
            unit="voxel",
            help="Half width of the window of local correlation.",
            advanced=True,
        ),
        Parameter(
            name="factors",
            default=(8, 4, 2, 1),
            minimum=1,
            maximum=64,
            help="Voxel size of each level in units of the finest; small images skip coarse ones.",
            advanced=True,
        ),
        Parameter(
            name="iterations",
            default=(100, 100, 60, 15),
            minimum=0,
            maximum=10000,
            presets={"fast": (40, 40, 20, 5), "accurate": (200, 200, 120, 40)},
            help="Most iterations at each level.",
            advanced=True,
        ),
        Parameter(
            name="finest_mm",
            default=0.0,
            minimum=0.0,
            maximum=100.0,
            unit="mm",
            help="Voxel size of the finest level; 0 takes that of the fixed image.",
            advanced=True,
        ),
        Parameter(
            name="lattice",
            default=2,
            minimum=1,
            maximum=4,
            unit="voxel",
            help="Spacing of the deformation in voxels of the images of a level.",
            advanced=True,
        ),
        Parameter(
            name="step",
            default=1.0,
            minimum=0.05,
            maximum=2.0,
            unit="voxel",
            help="Longest step of an iteration.",
            advanced=True,
        ),
        Parameter(
            name="tolerance",
            default=0.0005,
            minimum=0.0,
            maximum=0.1,
            presets={"accurate": 0.0001},
            help="A level ends when an iteration gains less than this share of the gain so far.",
            advanced=True,
        ),
    ),
)


class Algorithm:
    """Registration with a stationary velocity field."""

    def __init__(self, **values: Any) -> None:
        self._engine = DenseEngine(dense_settings(values), "stationary")

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair; see `registration.base.Registration`."""
        return self._engine.register(pair, progress)
