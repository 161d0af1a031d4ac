"""Greedy diffeomorphic registration: compositive, multi-resolution, on the fixed image's grid.

At each iteration the gradient of the similarity with respect to the deformation is smoothed
("fluid" regularity), scaled so that its longest vector has a set length, and composed with the
deformation so far, which is smoothed slightly itself ("elastic" regularity). Differences from the
first reference: the similarity's gradient is analytic, the update is scaled by its maximum, and
level borders fade to zero, so that the result continues as the linear map outside the image.
"""

from __future__ import annotations

from typing import Any

from ..registration.base import ImagePair, Progress, Result
from ..registration.dense import DenseEngine, dense_settings
from ..spec import AlgorithmSpec, Parameter, Reference

SPEC = AlgorithmSpec(
    key="greedy",
    title="Greedy diffeomorphic",
    family="optimisation",
    summary="Bends the moving image smoothly and invertibly onto the fixed one; needs no training.",
    transform="dense",
    modalities=("same", "different"),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Joshi, Davis, Jomier, Gerig",
            title="Unbiased diffeomorphic atlas construction for computational anatomy",
            venue="NeuroImage 23:S151-S160",
            year=2004,
            doi="10.1016/j.neuroimage.2004.07.068",
        ),
        Reference(
            authors="Avants, Epstein, Grossman, Gee",
            title="Symmetric diffeomorphic image registration with cross-correlation",
            venue="Medical Image Analysis 12(1):26-41",
            year=2008,
            doi="10.1016/j.media.2007.06.004",
        ),
        Reference(
            authors="Heinrich, Jenkinson, Papiez, Brady, Schnabel",
            title="Towards realtime multimodal fusion for image-guided interventions",
            venue="MICCAI 2013, LNCS 8149:187-194",
            year=2013,
            doi="10.1007/978-3-642-40811-3_24",
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
            name="landmark_weight",
            default=0.0,
            minimum=0.0,
            maximum=1.0,
            help="Share of the distance between landmarks that each iteration takes back.",
            advanced=True,
        ),
        Parameter(
            name="landmark_holdout",
            default=0.0,
            minimum=0.0,
            maximum=0.9,
            help="Share of the landmarks that are left out to judge the result by.",
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
    """Greedy diffeomorphic registration."""

    def __init__(self, **values: Any) -> None:
        self._engine = DenseEngine(dense_settings(values))

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair; see `registration.base.Registration`."""
        return self._engine.register(pair, progress)
