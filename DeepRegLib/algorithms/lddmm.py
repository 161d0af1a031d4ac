"""Large deformation diffeomorphic metric mapping (LDDMM) by shooting of a vector momentum.

The deformation is the end of a geodesic in the space of diffeomorphisms, a flow that costs the
least energy; the whole of it is known from its initial momentum. The momentum is found by lowering
energy plus dissimilarity with an exact gradient. Differences from the references: local correlation
in place of squared differences by default, Gaussian kernels of several widths by default (Risser et
al.), limited-memory BFGS preconditioned by the kernel in place of gradient descent, several
resolutions, the momentum on a coarser lattice than the images, the solution of the momentum's
equation in closed form along the flow, and a flow that rests at the rim of the image. Geodesics
begin at the identity: where a deformation is given to start from, it is kept and the geodesic acts
on the moving image as seen through it.
"""

from __future__ import annotations

from typing import Any

from ..registration.base import ImagePair, Progress, Result
from ..registration.shooting import ShootingEngine, shooting_settings
from ..spec import AlgorithmSpec, Parameter, Reference

SPEC = AlgorithmSpec(
    key="lddmm",
    title="LDDMM shooting",
    family="optimisation",
    summary="Bends along a geodesic, the flow of least energy: slow, very smooth, and known from "
    "its initial momentum alone.",
    transform="dense",
    modalities=("same", "different"),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Miller, Trouvé, Younes",
            title="Geodesic shooting for computational anatomy",
            venue="Journal of Mathematical Imaging and Vision 24:209-228",
            year=2006,
            doi="10.1007/s10851-005-3624-0",
        ),
        Reference(
            authors="Beg, Miller, Trouvé, Younes",
            title="Computing large deformation metric mappings via geodesic flows of "
            "diffeomorphisms",
            venue="International Journal of Computer Vision 61:139-157",
            year=2005,
            doi="10.1023/B:VISI.0000043755.93987.aa",
        ),
        Reference(
            authors="Singh, Hinkle, Joshi, Fletcher",
            title="A vector momenta formulation of diffeomorphisms for improved geodesic "
            "regression and atlas construction",
            venue="ISBI 2013:1219-1222",
            year=2013,
            doi="10.1109/ISBI.2013.6556661",
        ),
        Reference(
            authors="Yang, Kwitt, Styner, Niethammer",
            title="Quicksilver: Fast predictive image registration - A deep learning approach",
            venue="NeuroImage 158:378-396",
            year=2017,
            doi="10.1016/j.neuroimage.2017.07.008",
        ),
        Reference(
            authors="Risser, Vialard, Wolz, Murgasova, Holm, Rueckert",
            title="Simultaneous multi-scale registration using large deformation diffeomorphic "
            "metric mapping",
            venue="IEEE Transactions on Medical Imaging 30(10):1746-1759",
            year=2011,
            doi="10.1109/TMI.2011.2146787",
        ),
    ),
    parameters=(
        Parameter(
            name="modality",
            default="same",
            choices=("same", "different"),
            help="Whether both images show the same contrast; different compares by statistics.",
        ),
        Parameter(
            name="similarity",
            default="auto",
            choices=("auto", "lncc", "mse", "ncc", "mi", "mind", "ngf", "deep_metric", "features"),
            help="What is compared; auto takes local correlation, mutual information across "
            "contrasts.",
            advanced=True,
        ),
        Parameter(
            name="metric_model",
            default="",
            help="Trained model of deep_metric or features, by name or file; empty: the newest.",
            advanced=True,
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
            name="sigma",
            default=0.15,
            minimum=0.0001,
            maximum=100.0,
            help="Assumed noise of the similarity; smaller follows the images more closely.",
        ),
        Parameter(
            name="kernel",
            default="gaussian",
            choices=("gaussian", "fluid"),
            help="What makes velocities smooth: Gaussians of several widths, or a fluid operator.",
            advanced=True,
        ),
        Parameter(
            name="widths",
            default=(8.0, 4.0, 2.0),
            minimum=0.3,
            maximum=200.0,
            unit="voxel",
            help="Widths of the Gaussians, in voxels of the finest level.",
            advanced=True,
        ),
        Parameter(
            name="weights",
            default=(9.0, 3.0, 1.0),
            minimum=0.0001,
            maximum=10000.0,
            help="Weight of each Gaussian.",
            advanced=True,
        ),
        Parameter(
            name="fluid",
            default=(0.01, 0.01, 0.001),
            minimum=0.0,
            maximum=100.0,
            help="Alpha, beta and gamma of the fluid operator, in voxels of the finest level.",
            advanced=True,
        ),
        Parameter(
            name="time_steps",
            default=10,
            minimum=2,
            maximum=60,
            presets={"fast": 5},
            help="Fewest time steps of the geodesic; fast motion takes more, coarse levels half.",
            advanced=True,
        ),
        Parameter(
            name="factors",
            default=(4, 2, 1),
            minimum=1,
            maximum=64,
            presets={"fast": (4, 2)},
            help="Voxel size of each level in units of the finest.",
            advanced=True,
        ),
        Parameter(
            name="iterations",
            default=(15, 20, 15),
            minimum=0,
            maximum=10000,
            presets={"fast": (12, 15), "accurate": (30, 40, 40)},
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
            help="Spacing of the momentum in voxels of the images of a level.",
            advanced=True,
        ),
        Parameter(
            name="tolerance",
            default=0.004,
            minimum=0.0,
            maximum=0.1,
            presets={"accurate": 0.001},
            help="A level ends when iterations gain less than this share of the gain so far.",
            advanced=True,
        ),
    ),
)


class Algorithm:
    """LDDMM by shooting."""

    def __init__(self, **values: Any) -> None:
        self._engine = ShootingEngine(shooting_settings(values))

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair; see `registration.base.Registration`."""
        return self._engine.register(pair, progress)
