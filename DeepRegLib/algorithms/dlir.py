"""DLIR: an affine network, then B-spline networks from coarse to fine, trained one by one.

An affine network (AIRNet) reads an affine map off both images; two networks (DIRNet) give vectors
at coarse and then at fine control points of cubic B-splines. Each stage sees the fixed image and
the moving image as the stages before it move it, and is trained with those frozen. The maps are
composed, and the image is resampled once, from the original. The objective is correlation plus the
bending energy of each spline; control points move at most 0.4 of their distance, where splines
cannot fold.

The pairs of a training are aligned beforehand, so the moving images are given random affine changes
in the affine stage, which its network has to find; `perturbation` is their size. The stages of the
B-splines get the pairs as they are: with changes, they did worse on brains they had not seen.
A registration starts from a rigid alignment only.

The result is a native transform: an affine map after one B-spline. Splines composed are no spline
of the same lattice, so the composition is replaced by its least-squares fit on the fine control
points; the values say how far the two are apart.

Differences from the publication: the B-splines follow local correlation (`similarity` ncc takes the
global one, which follows the brightness of tissue and bends brains worse); the affine network sees
images of half the resolution; feature maps are taken to the control points by a convolution of
2 x 2 x 2, so that images of any shape have exactly the lattice that files and transform nodes
expect; the bending energy is that of each stage, per voxel.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.bspline import BSplineLattice
from ..geometry.field import compose_displacements, vector_lengths
from ..geometry.sampling import sample, voxel_coordinates
from ..losses import similarity
from ..losses.bending import bending_energy
from ..networks.affine_net import (
    AffineNetwork,
    apply_affine,
    random_affine,
)
from ..networks.bspline_net import SplineNetwork, fitted_coefficients, halvings_of
from ..registration.learned import LearnedRegistration
from ..registration.trainable import Batch, Prediction, Stage
from ..spec import AlgorithmSpec, Needs, Parameter, Reference

SPEC = AlgorithmSpec(
    key="dlir",
    title="DLIR: affine and B-spline networks",
    family="unsupervised",
    summary="Networks for an affine map and for coarse and fine control points, one after another.",
    transform="dense",
    needs=Needs(training=True),
    stages=("rigid",),
    references=(
        Reference(
            authors="de Vos, Berendsen, Viergever, Sokooti, Staring, Išgum",
            title="A deep learning framework for unsupervised affine and deformable image "
            "registration",
            venue="Medical Image Analysis 52:128-143",
            year=2019,
            doi="10.1016/j.media.2018.11.010",
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
            help="Steps that the weights are fitted to this very pair before it is registered.",
        ),
        Parameter(
            name="last_stage",
            default="fine",
            choices=("affine", "coarse", "fine"),
            help="Stage after which a registration ends.",
        ),
        Parameter(
            name="similarity",
            default="lncc",
            choices=("lncc", "ncc", "mse", "mi"),
            help="What the B-splines compare in training; the affine map takes mi or else ncc.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="radius",
            default=2,
            minimum=1,
            maximum=10,
            unit="voxel",
            help="Half width of the window of local correlation.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="coarse_spacing",
            default=8,
            minimum=2,
            maximum=32,
            unit="voxel",
            help="Distance of the control points of the coarse stage; a power of two.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="fine_spacing",
            default=4,
            minimum=1,
            maximum=16,
            unit="voxel",
            help="Distance of the control points of the fine stage; a power of two.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="bending",
            default=1.0,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the bending energy of each spline.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="bounded",
            default=True,
            help="Whether control points move at most 0.4 of their distance, so that none fold.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="perturbation",
            default=0.35,
            minimum=0.0,
            maximum=3.0,
            help="Size of random affine changes in the affine stage; 1 turns by up to 10 degrees.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=32,
            minimum=1,
            maximum=512,
            help="Features of each layer.",
            advanced=True,
            training=True,
        ),
    ),
)

_STAGES = ("affine", "coarse", "fine")


class Algorithm(LearnedRegistration):
    """Registration by an affine and two B-spline networks."""

    #: A map of the whole image is not put together from windows.
    in_tiles = False

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        for name in ("coarse_spacing", "fine_spacing"):
            if halvings_of(int(values[name])) is None:
                raise ParameterError(
                    f"Parameter '{name}' takes a power of two, such as 4 or 8, not {values[name]}."
                )
        if values["fine_spacing"] > values["coarse_spacing"]:
            raise ParameterError(
                f"Parameter 'fine_spacing' takes at most the spacing of the coarse control points, "
                f"{values['coarse_spacing']}, not {values['fine_spacing']}."
            )
        #: The coarsest lattice has whole elements on any grid of this multiple.
        self.multiple = max(16, int(values["coarse_spacing"]))

    def stages(self) -> tuple[Stage, ...]:
        """Returns the three stages; each trains its own network alone."""
        # Affine steps take a tenth of the time of the others, and it needs more of them.
        shares = (0.7, 0.15, 0.15)
        return tuple(Stage(name, share, (name,)) for name, share in zip(_STAGES, shares))

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        channels, bounded = int(self.values["channels"]), bool(self.values["bounded"])
        parts: dict[str, nn.Module] = {"affine": AffineNetwork(channels)}
        for name in ("coarse", "fine"):
            halvings = halvings_of(int(self.values[f"{name}_spacing"]))
            assert halvings is not None
            parts[name] = SplineNetwork(halvings, channels, bounded)
        return nn.ModuleDict(parts)

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the stage that is trained; of all, each for itself, if none is."""
        learning = (batch.stage,) if batch.stage in _STAGES else _STAGES
        moving, change = batch.moving, None
        if batch.stage == "affine" and self.values["perturbation"] > 0:
            change = random_affine(len(moving), batch.shape, self.values["perturbation"])
            change = change.to(moving.device)
        run = _Run(network, batch.fixed, moving, change)
        terms: dict[str, Tensor] = {}
        for name in _STAGES[: _STAGES.index(learning[-1]) + 1]:
            with contextlib.nullcontext() if name in learning else torch.no_grad():
                run.advance(name)
                if name in learning:
                    terms |= self._terms(name, run)
            run.freeze()
        return terms

    def _terms(self, name: str, run: _Run) -> dict[str, Tensor]:
        kind = str(self.values["similarity"])
        if name == "affine" and kind != "mi":
            kind = "ncc"
        options = {"radius": self.values["radius"]} if kind == "lncc" else {}
        terms = {f"{name} similarity": similarity(kind, **options)(run.fixed, run.moved())}
        if run.latest is not None:
            terms[f"{name} bending"] = self.values["bending"] * bending_energy(run.latest)
        return terms

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; see the head of this file for what is given."""
        run = _Run(network, fixed, moving)
        for name in _STAGES[: _STAGES.index(self.values["last_stage"]) + 1]:
            run.advance(name)
        assert run.matrix is not None
        linear = run.matrix[0].double()
        if run.coefficients is None or run.displacement is None:
            return Prediction(linear=linear)
        lattice, coefficients, displacement = run.lattice, run.coefficients, run.displacement
        assert lattice is not None
        values = {}
        if run.latest is not run.displacement:
            coefficients = fitted_coefficients(lattice, displacement)
            spline = lattice.evaluate(coefficients)
            apart = vector_lengths(spline - displacement) * spacing_mm
            values = {"fit_mean_mm": float(apart.mean()), "fit_largest_mm": float(apart.max())}
            displacement = spline
        return Prediction(
            displacement=displacement,
            linear=linear,
            control_points=coefficients,
            mesh=lattice.mesh,
            values=values,
        )


class _Run:
    """The stages on one pair: what they have found so far.

    Args:
        network: The networks of all stages.
        fixed: Fixed images, (B, 1, *shape).
        moving: Moving images.
        change: Affine changes of the moving images, (B, 4, 4) in voxels; they are resampled only
            together with all that the stages find.
    """

    def __init__(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, change: Tensor | None = None
    ) -> None:
        self.network, self.fixed = network, fixed
        self._moving, self._change = moving, change
        self.matrix: Tensor | None = None
        self.displacement: Tensor | None = None
        #: Displacement, coefficients and lattice of the stage that ran last.
        self.latest: Tensor | None = None
        self.coefficients: Tensor | None = None
        self.lattice: BSplineLattice | None = None

    def advance(self, name: str) -> None:
        """Runs the next stage."""
        part = self.network.get_submodule(name)
        found: Tensor = part(self.fixed, self.moved())
        if not isinstance(part, SplineNetwork):
            self.matrix = found
            return
        self.coefficients = found
        self.lattice = part.lattice(self.fixed.shape[2:])
        self.latest = self.lattice.evaluate(found)
        if self.displacement is None:
            self.displacement = self.latest
        else:
            # The stage saw moving(A(x + u(x))) and moves that, so that its spline comes first.
            self.displacement = compose_displacements(self.displacement, self.latest)

    def moved(self) -> Tensor:
        """Returns the moving images as they are so far, resampled once."""
        shape = self.fixed.shape[2:]
        where = voxel_coordinates(shape, self.fixed.device)
        if self.displacement is not None:
            where = where + self.displacement
        for matrix in (self.matrix, self._change):
            if matrix is not None:
                where = apply_affine(matrix, where)
        return sample(self._moving, where, padding="fill")

    def freeze(self) -> None:
        """Lets no gradient pass to the stages that ran already."""
        for name in ("matrix", "displacement", "latest", "coefficients"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.detach())
