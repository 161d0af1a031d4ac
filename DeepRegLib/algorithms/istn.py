"""Image-and-spatial transformers: images become maps of structures, which are then registered.

A small network (the image transformer, ITN) turns each image into a map of the structures of
interest (SoI); a second one (the spatial transformer, STN) reads an affine map, a cubic B-spline,
or both, off the two maps. All terms of the objective are squared differences; label maps are
needed in training only. The four `variant`s, with M and F the images, s their SoI, and phi the
transform:

- stn_u: the STN alone, trained by the images: M o phi and F.
- stn_s: the STN alone, trained by the structures: s_M o phi and s_F.
- istn_e: that, and explicitly ITN(M) and s_M, ITN(F) and s_F.
- istn_i: that, and implicitly ITN(M) o phi and s_F, s_M o phi and ITN(F).

The learned maps look alike where the structures agree, so that a trained model can go on with the
very pair: `pair_steps` steps on the weights of the STN lower the squared difference of ITN(M) o
phi and ITN(F), without any labels. The ITN stays as it is. (The STN alone has only the images to
compare.) The maps come along as ``representation`` and ``moving_representation``.

By default the structures are one map (`soi` union). Squared differences of structures that overlap
by less than half are lowest when they are gone, so that where small structures count for
themselves, a network may learn to make them vanish. Even with one map istn_i has that way out,
as nothing else tells its maps what the structures are; istn_e, the default, knows them. Away from
the structures nothing holds the transform, so other parts may fit worse than before.

A network without a model has no label maps to learn from, and compares the images.

Differences from the publication: features are halved by averages, not by strides, which would
shift them by half a voxel; the convolutions of the STN keep
the shape, and their features are averaged in 4 x 4 x 4 cells, so that grids of any shape will do;
images and maps are brought to mean 0 and standard deviation 1 before a network reads them; half of
the features are left out at random in training (`dropout`), or few people are learned by heart;
the first fifth of istn_i's steps are those of istn_e;
the lattice of the B-spline is laid out for a `grid_shape`, and stretched over others;
`transform_model` both puts a B-spline on top of the affine map, trained together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import GeometryError, ParameterError
from ..geometry.sampling import voxel_coordinates
from ..losses.mse import MSE
from ..networks.blocks import channels_last
from ..networks.composite import moved_by
from ..networks.istn_net import ISTN, Aligned
from ..registration.learned import LearnedRegistration
from ..registration.trainable import Batch, Prediction
from ..spec import AlgorithmSpec, Needs, Parameter, Reference

if TYPE_CHECKING:
    from pathlib import Path

    from ..registration.base import Progress
    from ..registration.source import BatchSource

SPEC = AlgorithmSpec(
    key="istn",
    title="Image-and-spatial transformers",
    family="weakly supervised",
    summary="Makes maps of the structures of interest from the images, and registers these.",
    transform="dense",
    needs=Needs(training=True, labels=True),
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Lee, Oktay, Schuh, Schaap, Glocker",
            title="Image-and-spatial transformer networks for structure-guided image registration",
            venue="MICCAI 2019, LNCS 11765:337-345",
            year=2019,
            doi="10.1007/978-3-030-32245-8_38",
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
            help="Steps of refinement on this very pair: the transform changes until the learned "
            "maps of both images agree.",
        ),
        Parameter(
            name="variant",
            default="istn_e",
            choices=("stn_u", "stn_s", "istn_e", "istn_i"),
            help="Trained by images, by structures, or with learned maps (explicit, implicit).",
            training=True,
        ),
        Parameter(
            name="transform_model",
            default="both",
            choices=("affine", "bspline", "both"),
            help="What is found: an affine map, a B-spline, or a B-spline after an affine map.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="structures",
            default=(0,),
            minimum=0,
            help="Labels of the structures of interest; 0 takes all that occur in training. Away "
            "from them nothing holds the transform, and other parts may fit worse than before.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="soi",
            default="union",
            choices=("intensities", "union", "groups"),
            help="Map of the structures: a gray value for each in the order given, one for all of "
            "them, or a channel for each.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="spacing",
            default=10.0,
            minimum=1.0,
            maximum=100.0,
            unit="voxel",
            help="Distance of the control points of the B-spline.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="grid_shape",
            default=(48, 64, 48),
            minimum=16,
            maximum=1024,
            unit="voxel",
            help="Grid that the control points are laid out for: that of the training.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="hidden",
            default=32,
            minimum=1,
            maximum=4096,
            help="Features that the numbers of the transforms are read off: their degrees of "
            "freedom, all in all.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="dropout",
            default=0.5,
            minimum=0.0,
            maximum=0.99,
            help="Share of the features that is left out at random in training, so that few people "
            "are not learned by heart.",
            advanced=True,
            training=True,
        ),
        Parameter(
            name="channels",
            default=2,
            minimum=1,
            maximum=256,
            help="Channels of the first convolution that makes the maps; the others follow it.",
            advanced=True,
            training=True,
        ),
    ),
)

#: Terms of each variant: which of the images, the structures and the maps are compared.
_WITH_MAPS = ("istn_e", "istn_i")
#: Share of the training in which istn_i's maps are told what the structures are.
_TOLD = 0.2
_MSE = MSE()


class Algorithm(LearnedRegistration):
    """Registration by image-and-spatial transformers."""

    #: A transform of the whole image is not put together from windows.
    in_tiles = False
    #: The refinement takes the step size of the training.
    pair_rate = 1e-3

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        shape = values["grid_shape"]
        if len(shape) != 3:
            raise ParameterError(
                f"Parameter 'grid_shape' takes the voxels along R, A and S, not {shape}."
            )

    def build(self) -> nn.Module:
        """Returns a new network; see `registration.trainable.Trainable`."""
        kind = self.values["transform_model"]
        maps = self._map_channels() if self.values["variant"] in _WITH_MAPS else None
        mesh = None if kind == "affine" else self.mesh()
        v = self.values
        network = ISTN(
            maps, int(v["channels"]), kind != "bspline", mesh, int(v["hidden"]), float(v["dropout"])
        )
        return channels_last(network)

    def mesh(self) -> tuple[int, int, int]:
        """Returns the elements of the lattice along each axis."""
        a, b, c = (max(1, round(n / self.values["spacing"])) for n in self.values["grid_shape"])
        return a, b, c

    def source(self, pairs: BatchSource, folder: Path, progress: Progress) -> BatchSource:
        """Returns those of the pairs whose images both have a label map, if it takes them."""
        frame, shape = pairs.frame.shape, tuple(self.values["grid_shape"])
        if self.values["transform_model"] != "affine" and frame != shape:
            here = " x ".join(f"{n / m:.1f}" for n, m in zip(frame, self.mesh()))
            progress.message(
                f"The control points are laid out for a grid of {' x '.join(map(str, shape))} "
                f"voxels; on this one they are {here} voxels apart."
            )
        return pairs if self.values["variant"] == "stn_u" else pairs.labeled()

    def training_loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of the variant; the refinement's while a model is fitted to a pair."""
        refines = batch.stage == "pair"
        found: Aligned = network(batch.fixed, batch.moving, frozen=refines)
        variant = self.values["variant"]
        if refines:
            return {"maps": _MSE(found.fixed, _moved(found.moving, found))}
        if variant == "stn_u" or batch.fixed_labels is None or batch.moving_labels is None:
            return {"images": _MSE(batch.fixed, _moved(batch.moving, found))}
        fixed, moving = (self._soi(x) for x in (batch.fixed_labels, batch.moving_labels))
        moved = _moved(moving, found)
        terms = {"structures": _MSE(fixed, moved)}
        told = variant == "istn_i" and batch.fraction < _TOLD
        if variant == "istn_e" or told:
            terms["fixed map"] = _MSE(fixed, found.fixed)
            terms["moving map"] = _MSE(moving, found.moving)
        elif variant == "istn_i":
            terms["moved map"] = _MSE(fixed, _moved(found.moving, found))
            terms["fixed map"] = _MSE(moved, found.fixed)
        return terms

    def predict(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float
    ) -> Prediction:
        """Registers one pair; the transform is native, and the maps come along."""
        found: Aligned = network(fixed, moving)
        maps = {}
        if self.values["variant"] in _WITH_MAPS:
            maps = {"representation": found.fixed, "moving_representation": found.moving}
        return Prediction(
            displacement=found.displacement,
            linear=None if found.matrix is None else found.matrix[0].double(),
            control_points=found.coefficients,
            mesh=None if found.coefficients is None else self.mesh(),
            maps=maps,
        )

    def _map_channels(self) -> int:
        return len(self.values["structures"]) if self.values["soi"] == "groups" else 1

    def _soi(self, labels: Tensor) -> Tensor:
        return soi_map(labels, self.values["structures"], self.values["soi"])


def soi_map(labels: Tensor, structures: Sequence[int], kind: str = "union") -> Tensor:
    """Returns a map of the structures of interest.

    Args:
        labels: Label map (B, 1, *shape), integers.
        structures: Their labels; (0,) stands for all labels above 0, as one structure.
        kind: ``intensities`` gives the k-th of n structures the gray value k / n, ``union`` gives
            1 to all of them, and ``groups`` gives each a channel of its own.

    Returns:
        (B, 1 or n, *shape), float32, 0 to 1; 0 where there is none of them.
    """
    if not any(structures):
        return (labels > 0).float()
    if kind == "groups":
        return torch.cat([labels == label for label in structures], dim=1).float()
    found = torch.zeros(labels.shape, device=labels.device)
    for place, label in enumerate(structures, 1):
        value = 1.0 if kind == "union" else place / len(structures)
        found = torch.where(labels == label, torch.full_like(found, value), found)
    return found


def soi_from_points(points_voxel: Tensor, shape: Sequence[int], sigma_voxel: float = 2.0) -> Tensor:
    """Returns heat maps of landmarks, which serve as structures of interest as well.

    Args:
        points_voxel: Landmarks in voxels of the grid along the tensor axes, (N, 3).
        shape: Shape of the grid.
        sigma_voxel: Standard deviation of the Gaussian around each landmark.

    Returns:
        (1, N, *shape), float32: 1 at a landmark, 0 far from it.

    Raises:
        GeometryError: If the points are not (N, 3), or the Gaussian has no width.
    """
    if points_voxel.ndim != 2 or points_voxel.shape[1] != 3 or not sigma_voxel > 0:
        raise GeometryError(
            "Heat maps take landmarks (N, 3) and a positive standard deviation, but got "
            f"{tuple(points_voxel.shape)} and {sigma_voxel}."
        )
    where = voxel_coordinates(shape, points_voxel.device)
    away = where - points_voxel.to(where.dtype).reshape(-1, 3, 1, 1, 1)
    return torch.exp(-away.square().sum(dim=1) / (2.0 * sigma_voxel**2))[None]


def _moved(image: Tensor, found: Aligned) -> Tensor:
    return moved_by(image, found.matrix, found.displacement)
