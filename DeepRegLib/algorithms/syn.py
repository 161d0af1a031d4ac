"""Symmetric diffeomorphic registration: both images are deformed until they meet half way.

Neither image is preferred: each is pulled to a common middle by a deformation of its own, and the
whole is one after the inverse of the other, so that forward and inverse come from the same two
deformations. Differences from the reference: analytic gradient of the similarity, deformations on
a lattice coarser than the images, changes of volume are taken back a little at every step, and the
inverses are found once at the end. The linear map belongs to the moving image alone.
"""

from __future__ import annotations

from typing import Any

from ..registration.base import ImagePair, Progress, Result
from ..registration.dense import DenseEngine, dense_settings
from ..spec import AlgorithmSpec, Parameter, Reference

SPEC = AlgorithmSpec(
    key="syn",
    title="Symmetric diffeomorphic (SyN)",
    family="optimisation",
    summary="Bends both images until they meet half way; forward and inverse agree.",
    transform="dense",
    modalities=("same", "different"),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Avants, Epstein, Grossman, Gee",
            title="Symmetric diffeomorphic image registration with cross-correlation",
            venue="Medical Image Analysis 12(1):26-41",
            year=2008,
            doi="10.1016/j.media.2007.06.004",
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
    """Symmetric diffeomorphic registration."""

    def __init__(self, **values: Any) -> None:
        self._engine = DenseEngine(dense_settings(values), "symmetric")

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair; see `registration.base.Registration`."""
        return self._engine.register(pair, progress)
