"""The mouse skulls, as large as human heads, for systems that find or judge rigid maps.

Micro-CT of mice of different strains in arbitrary poses (`mouse_skull_ct`), thin bone in air: one
millimeter beside the truth a plain similarity sees next to nothing. Landmarks bring all of them
into one pose, which is the truth; no registration has a part in it. Their millimeters are
multiplied, so that a voxel of the checks (3 mm) is 0.45 mm of a mouse, and all settings in
millimeters, which are for people, mean as many voxels as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from common import SKULLS, data_folder, ordered_pairs
from numpy.typing import NDArray
from scipy.spatial import Delaunay

from DeepRegLib.geometry.affine import fit_points
from DeepRegLib.geometry.grid import Grid, Matrix, invert_matrix, transform_points
from DeepRegLib.io.images import read_image
from DeepRegLib.io.landmarks import read_landmarks
from DeepRegLib.registration.base import Image
from DeepRegLib.registration.source import BatchSource
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.pairs import PreparedPairs
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.prepared import PreparedSet
from DeepRegLib.training.subjects import Subject

from .cases import CACHE, FRAME, SPACING_MM, EvaluationPair

#: Millimeters of a mouse that a voxel is, and how much larger it becomes.
_VOXEL_MM = 0.45
_LARGER = SPACING_MM / _VOXEL_MM
#: Strain whose landmarks tell the pose of all.
_REFERENCE = "C57L_J_"
#: The landmarks of these do not lie on their images.
_LEFT_OUT = ("LP.J_", "PL.J_")
#: Brightness of bone; images run from 0 to 1.
_BONE = 0.3


class SkullLoader:
    """Reads a skull in the pose of all, enlarged."""

    key = f"skull in the pose of {_REFERENCE}, {_LARGER:g} times as large"

    def __call__(self, subject: Subject) -> tuple[Image, None]:
        """Returns the image; its voxels are as they were, and lie elsewhere."""
        image = read_image(subject.image)
        place = _from_subject(subject.name) @ image.grid.voxel_to_ras
        return Image(image.data, Grid(image.grid.shape, place)), None


def training_strains() -> tuple[str, ...]:
    """Names of the strains to train with, all but those that are tested and left out."""
    names = sorted(f.name[: -len(".mrk.json")] for f in _folder().glob("*.mrk.json"))
    return tuple(name for name in names if name not in (*SKULLS, *_LEFT_OUT))


def skulls(pairs: PreparedPairs, changes: Mapping[str, object]) -> BatchSource:
    """Pairs of the training strains, in place of the people; see `Variant.wrap`."""
    augmentation = Augmentation(**changes)  # type: ignore[arg-type]
    return PreparedPairs(_prepared(training_strains()), None, "all", augmentation=augmentation)


@cache
def skull_pairs() -> list[EvaluationPair]:
    """The twelve ordered pairs of the four strains that are tested, aligned by landmarks."""
    prepared = _prepared(SKULLS)
    place = torch.tensor(prepared.grid.voxel_to_ras)
    found = []
    for a, b in ordered_pairs(SKULLS):
        fixed, moving = (prepared.image(SKULLS.index(name)) for name in (a, b))
        labels = [(image > _BONE).long() for image in (fixed, moving)]
        found.append(
            EvaluationPair(
                f"{a}<-{b}", fixed, moving, labels[0], labels[1],
                torch.eye(4, dtype=torch.float64), place,
            )
        )  # fmt: skip
    return found


@cache
def skull_mask(pair_name: str) -> Image:
    """Where the fixed skull of a pair is: the convex hull of its landmarks, 0 or 1.

    The forelegs, which lie otherwise in every mouse, are left out.
    """
    name, grid = pair_name.split("<-")[0], _prepared(SKULLS).grid
    points = transform_points(_from_subject(name), _landmarks(name))
    voxels = np.indices(grid.shape).reshape(3, -1).T
    inside = Delaunay(grid.to_voxel(points)).find_simplex(voxels) >= 0
    return Image(torch.from_numpy(inside.reshape(1, 1, *grid.shape)).float(), grid)


def _prepared(names: tuple[str, ...]) -> PreparedSet:
    # All at once, so that all lie on the grid around the reference.
    every = [Subject(n, _folder() / f"{n}.nii.gz") for n in (*training_strains(), *SKULLS)]
    prepared = prepare(every, FRAME, CACHE / "prepared", reference=_REFERENCE, alignment="none",
                       loader=SkullLoader())  # fmt: skip
    if prepared.frame != FRAME:
        raise RuntimeError(f"the skulls do not fit into {FRAME.shape}")
    return prepared.only([s for s in every if s.name in names])


@cache
def _landmarks(name: str) -> NDArray[np.float64]:
    return np.asarray(read_landmarks(_folder() / f"{name}.mrk.json").points_ras)


def _from_subject(name: str) -> Matrix:
    """Leads from a mouse's own space into that of all, enlarged."""
    to_subject = fit_points(_upright_reference(), _landmarks(name), "rigid")
    larger: Matrix = np.diag([_LARGER] * 3 + [1.0])
    return larger @ invert_matrix(np.asarray(to_subject))


@cache
def _upright_reference() -> NDArray[np.float64]:
    """Landmarks of the reference about its middle, the longest axis along A, the shortest S."""
    points = _landmarks(_REFERENCE)
    around = points - points.mean(axis=0)
    axes: Matrix = np.linalg.svd(around, full_matrices=False)[2][[1, 0, 2]]
    if np.linalg.det(axes) < 0.0:
        axes[2] = -axes[2]
    return around @ axes.T


def _folder() -> Path:
    return data_folder() / "mouse_skull_ct"
