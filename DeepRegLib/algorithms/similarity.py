"""Similarity registration by mutual information or correlation, with a global start.

The starts (stored position, centres, principal axes, landmarks, all orientations) are compared by
mutual information at low resolution; the best are refined by BFGS on random points of the fixed
image, at finer and finer resolution.
"""

from __future__ import annotations

from typing import Any

from ..registration.base import ImagePair, Progress, Result
from ..registration.linear import LinearEngine, settings_from
from ..spec import AlgorithmSpec, Parameter, Reference

SPEC = AlgorithmSpec(
    key="similarity",
    title="Similarity",
    family="linear",
    summary="Turns, shifts and scales the moving image evenly; any two modalities.",
    transform="linear",
    modalities=("same", "different"),
    stages=("rigid",),
    references=(
        Reference(
            authors="Mattes, Haynor, Vesselle, Lewellen, Eubank",
            title="PET-CT image registration in the chest using free-form deformations",
            venue="IEEE Transactions on Medical Imaging 22(1):120-128",
            year=2003,
            doi="10.1109/TMI.2003.809072",
        ),
    ),
    parameters=(
        Parameter(
            name="similarity",
            default="mi",
            choices=("mi", "ncc", "mse", "deep_metric", "features"),
            help="What is compared: mutual information (any modalities), correlation, squares, or "
            "what a trained model compares.",
        ),
        Parameter(
            name="metric_model",
            default="",
            help="Trained model of deep_metric or features, by name or file; empty: the newest.",
            advanced=True,
        ),
        Parameter(
            name="initialization",
            default="auto",
            choices=("auto", "stored", "geometry", "mass", "axes", "search", "landmarks"),
            help="Where to start; auto compares all. A given initial transform goes before.",
        ),
        Parameter(
            name="rotations",
            default=1200,
            minimum=0,
            maximum=20000,
            presets={"fast": 600, "accurate": 4000},
            help="Orientations that the search tries.",
            advanced=True,
        ),
        Parameter(
            name="samples",
            default=100000,
            minimum=1000,
            maximum=5000000,
            presets={"fast": 40000, "accurate": 300000},
            help="Points that are compared at the finest level.",
            advanced=True,
        ),
        Parameter(
            name="iterations",
            default=50,
            minimum=0,
            maximum=1000,
            help="Most iterations at each level.",
            advanced=True,
        ),
        Parameter(
            name="sizes",
            default=(24, 48, 96),
            minimum=4,
            maximum=1024,
            presets={"fast": (24, 64), "accurate": (24, 48, 96, 192)},
            unit="voxel",
            help="Voxels along the longest side of the fixed image, level by level.",
            advanced=True,
        ),
    ),
)


class Algorithm:
    """Similarity registration (seven parameters)."""

    def __init__(self, **values: Any) -> None:
        self._engine = LinearEngine(settings_from("similarity", values))

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair; see `registration.base.Registration`."""
        return self._engine.register(pair, progress)
