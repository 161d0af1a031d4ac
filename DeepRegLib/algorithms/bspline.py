"""Free-form deformation: control points of cubic B-splines, moved until the images agree.

The deformation of Rueckert et al., a tensor product of cubic B-splines, over images and control
points that become twice as fine from level to level. The energy is a similarity plus the bending
energy, integrated exactly, plus the mean squared logarithm of the volume change; it is minimized by
L-BFGS with analytic gradients. Differences from the references: local correlation replaces
normalized mutual information between images of the same contrast; the volume change is a penalty
and folding steps are refused, where Modat et al. repair folds; the deformation is zero at the
outermost voxels, so that it continues as the linear map outside the image. The result holds its
control points, which files and transform nodes keep.
"""

from __future__ import annotations

from typing import Any

from ..registration.base import ImagePair, Progress, Result
from ..registration.free_form import FreeFormEngine, FreeFormSettings
from ..spec import AlgorithmSpec, Parameter, Reference

SPEC = AlgorithmSpec(
    key="bspline",
    title="B-spline free-form deformation",
    family="optimisation",
    summary="Bends the moving image by a lattice of control points: compact, smooth, editable.",
    transform="bspline",
    modalities=("same", "different"),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Rueckert, Sonoda, Hayes, Hill, Leach, Hawkes",
            title="Nonrigid registration using free-form deformations: application to breast MR "
            "images",
            venue="IEEE Transactions on Medical Imaging 18(8):712-721",
            year=1999,
            doi="10.1109/42.796284",
        ),
        Reference(
            authors="Modat, Ridgway, Taylor, Lehmann, Barnes, Hawkes, Fox, Ourselin",
            title="Fast free-form deformation using graphics processing units",
            venue="Computer Methods and Programs in Biomedicine 98(3):278-284",
            year=2010,
            doi="10.1016/j.cmpb.2009.09.002",
        ),
    ),
    parameters=(
        Parameter(
            name="modality",
            default="same",
            choices=("same", "different"),
            help="Whether both images show the same contrast.",
        ),
        Parameter(
            name="similarity",
            default="auto",
            choices=("auto", "lncc", "mse", "ncc", "mi", "mind", "ngf", "deep_metric", "features"),
            help="What is compared; auto takes local correlation, or mutual information across "
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
            name="spacing_mm",
            default=0.0,
            minimum=0.0,
            maximum=1000.0,
            unit="mm",
            help="Distance of the finest control points; 0 takes a share of the image's size.",
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
            default=(4, 2, 1),
            minimum=1,
            maximum=64,
            presets={"fast": (4, 2)},
            help="Voxel size of each level in units of the finest.",
            advanced=True,
        ),
        Parameter(
            name="iterations",
            default=(60, 40, 25),
            minimum=0,
            maximum=10000,
            presets={"fast": (50, 30), "accurate": (100, 80, 60)},
            help="Most iterations at each level.",
            advanced=True,
        ),
        Parameter(
            name="bending",
            default=0.03,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the bending energy; larger values give smoother deformations.",
            advanced=True,
        ),
        Parameter(
            name="volume",
            default=0.2,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared logarithm of the volume change.",
            advanced=True,
        ),
        Parameter(
            name="voxels",
            default=3,
            minimum=1,
            maximum=100,
            presets={"accurate": 6},
            help="Voxels of each level between control points, down to those of the fixed image.",
            advanced=True,
        ),
        Parameter(
            name="tolerance",
            default=0.0003,
            minimum=0.0,
            maximum=0.1,
            presets={"accurate": 0.0001},
            help="A level ends when an iteration gains less than this share of the gain so far.",
            advanced=True,
        ),
    ),
)


class Algorithm:
    """Free-form deformation by cubic B-splines."""

    def __init__(self, **values: Any) -> None:
        self._engine = FreeFormEngine(FreeFormSettings(**values))

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair; see `registration.base.Registration`."""
        return self._engine.register(pair, progress)
