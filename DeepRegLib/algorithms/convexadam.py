"""ConvexAdam: discrete search over large displacements, then refinement by Adam.

Descriptors of the local structure (MIND-SSC) make images of any contrast comparable. On a coarse
grid every node is compared with every node within reach, so that large displacements are found
without a start nearby; a point-wise search and a smoothing of the displacements alternate while
they are coupled ever more tightly. The two directions are made each other's inverse, and Adam
refines the displacement at half resolution with a penalty on its gradient. Differences from the
publication: spacings and reach hold in mm along every axis; the search begins coupled to no motion,
so that places without structure stay; masks and images that overlap in part are taken into account;
intensities may be compared beside the descriptors; the gradient is analytic, takes half of the
channels in turn, and Adam's step falls towards the end; the result rests at the rim, and folds are
smoothed away.
"""

from __future__ import annotations

from typing import Any

from ..registration.base import ImagePair, Progress, Result
from ..registration.convex import ConvexEngine, convex_settings
from ..spec import AlgorithmSpec, Parameter, Reference

SPEC = AlgorithmSpec(
    key="convexadam",
    title="ConvexAdam",
    family="optimisation",
    summary="Searches all displacements within reach, then refines; for large motion and any "
    "contrasts, needs no training.",
    transform="dense",
    modalities=("same", "different"),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Siebert, Großbröhmer, Hansen, Heinrich",
            title="ConvexAdam: Self-Configuring Dual-Optimisation-Based 3D Multitask Medical "
            "Image Registration",
            venue="IEEE Transactions on Medical Imaging",
            year=2024,
            doi="10.1109/TMI.2024.3436315",
        ),
        Reference(
            authors="Heinrich, Papiez, Schnabel, Handels",
            title="Non-parametric discrete registration with convex optimisation",
            venue="WBIR 2014, LNCS 8545:51-61",
            year=2014,
            doi="10.1007/978-3-319-08554-8_6",
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
            help="Whether both images show the same contrast; different compares structure only.",
        ),
        Parameter(
            name="search_spacing",
            default=6,
            minimum=1,
            maximum=32,
            unit="voxel",
            help="Distance of the places that are searched, in voxels of the finest axis.",
        ),
        Parameter(
            name="displacement",
            default=4,
            minimum=1,
            maximum=16,
            presets={"fast": 3},
            unit="step",
            help="Reach of the search to either side, in steps of the search spacing.",
        ),
        Parameter(
            name="coupling",
            default=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
            minimum=0.0,
            maximum=1000.0,
            help="How tightly each round of the search ties neighbouring places together.",
            advanced=True,
        ),
        Parameter(
            name="inverse_consistency",
            default=True,
            presets={"fast": False},
            help="Search in both directions and make the results each other's inverse.",
        ),
        Parameter(
            name="adam_spacing",
            default=(2,),
            minimum=1,
            maximum=16,
            presets={"accurate": (2, 1)},
            unit="voxel",
            help="Voxel size of each refinement, in voxels of the finest axis.",
            advanced=True,
        ),
        Parameter(
            name="adam_iterations",
            default=(40,),
            minimum=0,
            maximum=10000,
            presets={"fast": (25,), "accurate": (60, 30)},
            help="Iterations of each refinement.",
            advanced=True,
        ),
        Parameter(
            name="step",
            default=1.0,
            minimum=0.01,
            maximum=4.0,
            unit="voxel",
            help="Length of the first steps of Adam.",
            advanced=True,
        ),
        Parameter(
            name="diffusion",
            default=0.8,
            minimum=0.0,
            maximum=100.0,
            help="Weight of the smoothness of the deformation; larger is smoother.",
        ),
        Parameter(
            name="features",
            default="auto",
            choices=("auto", "mind", "mind+intensity"),
            help="What is compared; auto adds the intensity where both contrasts are the same.",
            advanced=True,
        ),
        Parameter(
            name="intensity_weight",
            default=40.0,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared difference of intensities beside that of the descriptors.",
            advanced=True,
        ),
        Parameter(
            name="mind_radius",
            default=1,
            minimum=1,
            maximum=5,
            unit="voxel",
            help="Half width of the patches that the descriptors compare.",
            advanced=True,
        ),
        Parameter(
            name="mind_dilation",
            default=2,
            minimum=1,
            maximum=8,
            unit="voxel",
            help="Distance of the patches that the descriptors compare.",
            advanced=True,
        ),
        Parameter(
            name="finest_mm",
            default=0.0,
            minimum=0.0,
            maximum=100.0,
            unit="mm",
            help="Voxel size at which descriptors are computed; 0 takes that of the fixed image.",
            advanced=True,
        ),
    ),
)


class Algorithm:
    """Discrete search and refinement by Adam."""

    def __init__(self, **values: Any) -> None:
        self._engine = ConvexEngine(convex_settings(values))

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair; see `registration.base.Registration`."""
        return self._engine.register(pair, progress)
