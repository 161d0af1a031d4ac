"""Label maps of heads as images: which labels are brain, and how bright tissue is in a T1 image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.grid import Grid
from ..io.files import PathLike
from ..io.images import read_labels
from ..registration.base import Image, Progress
from ..registration.model_frame import ModelFrame
from .preparation import Loader, prepare
from .prepared import PreparedSet
from .subjects import Subject

#: First label of FreeSurfer's numbering that is outside the brain, and the fluid around the brain.
FIRST_OUTSIDE, FLUID_AROUND = 500, 24
#: Structures of the right side by FreeSurfer's numbers, and those of the left side.
TWINS = {41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18,
         57: 25, 58: 26, 60: 28, 62: 30, 137: 136, 164: 163}  # fmt: skip
#: Brightness in T1 images, 0 to 1, by the left side's numbers: rounded means of scans of adults,
#: scaled as models take them. Outside the brain, the labels of whole-head maps: 507 soft tissue,
#: 511 skin, 515 skull, 516 other bone.
T1 = {
    2: 0.88, 7: 0.86, 16: 0.76, 28: 0.80, 10: 0.76, 13: 0.88, 85: 0.75,
    3: 0.62, 8: 0.62, 17: 0.64, 18: 0.60, 26: 0.68, 11: 0.70, 12: 0.76,
    4: 0.32, 5: 0.32, 14: 0.38, 15: 0.32, 24: 0.25, 72: 0.32, 30: 0.40, 25: 0.45,
    77: 0.70, 136: 0.68, 163: 0.66,
    507: 0.60, 511: 0.80, 515: 0.15, 516: 0.40,
}  # fmt: skip
#: How far around the brain the fluid belongs to what skull stripping leaves.
_FLUID_MM = 4.0
#: Brightness of labels that the table lacks.
T1_OTHER = 0.5


def t1_brightness(labels: Tensor) -> Tensor:
    """Returns the usual brightness of structures in T1 images, by FreeSurfer's numbers."""
    values = [T1.get(TWINS.get(n, n), T1_OTHER) if n > 0 else 0.0 for n in labels.tolist()]
    return torch.tensor(values)


def prepare_maps(
    subjects: Sequence[Subject],
    frame: ModelFrame | float,
    folder: PathLike,
    progress: Progress | None = None,
    *,
    loader: Loader | None = None,
    finer: float = 1.5,
    **more: Any,
) -> tuple[PreparedSet, ModelFrame]:
    """Prepares label maps on finer voxels than those of the images that are made of them.

    Args:
        subjects: The maps, as images or as label maps.
        frame: Frame of the images, or only their voxel size in mm; see `prepare`.
        folder: Where what was prepared is kept.
        progress: Gets events, and can cancel.
        loader: How maps are read; `LabelMapLoader()` if omitted.
        finer: How many times finer the voxels of the maps are.
        **more: See `prepare`.

    Returns:
        The maps, and the frame of the images, for `GeneratedPairs`.
    """
    loader = loader or LabelMapLoader()
    # The frame may grow where the heads need it; both grids have the same extent then.
    frame = prepare(subjects, frame, folder, progress, loader=loader, **more).frame
    a, b, c = (math.ceil(n * finer) for n in frame.shape)
    fine = ModelFrame(frame.spacing_mm / finer, (a, b, c))
    return prepare(subjects, fine, folder, progress, loader=loader, **more), frame


class LabelMapLoader:
    """Reads a label map and makes an image of it that can be aligned, brightness as in T1.

    Args:
        brain_only: Whether labels outside the brain are dropped, by FreeSurfer's numbers.
        t1: Whether labels are FreeSurfer's, so that the brightness is known; otherwise each label
            gets one by its number.
    """

    def __init__(self, brain_only: bool = False, t1: bool = True) -> None:
        self._brain_only, self._t1 = brain_only, t1

    @property
    def key(self) -> str:
        """Tells this way of loading from others."""
        return f"label map 1 {self._brain_only} {self._t1}"

    def __call__(self, subject: Subject) -> tuple[Image, Image | None]:
        """Reads the label map of a subject (its label map, or else its image)."""
        path = subject.image if subject.labels is None else subject.labels
        labels = read_labels(path)
        data = labels.data
        if self._brain_only:
            data = _brain(data, labels.grid)
        found, index = data.unique(return_inverse=True)
        if len(found) < 2:
            raise InputError(f"'{path}' has no labels to make images from; choose another.")
        level = t1_brightness(found) if self._t1 else _by_number(found)
        return Image(level[index].float(), labels.grid), Image(data, labels.grid)


def _brain(labels: Tensor, grid: Grid) -> Tensor:
    """Drops what is outside the brain, and fluid that is far from it."""
    labels = torch.where(labels < FIRST_OUTSIDE, labels, torch.zeros_like(labels))
    brain = ((labels > 0) & (labels != FLUID_AROUND)).float()
    reach = [round(_FLUID_MM / s) for s in grid.spacing_mm]
    near = torch.nn.functional.max_pool3d(
        brain, [2 * r + 1 for r in reach], stride=1, padding=reach
    )
    return torch.where((labels != FLUID_AROUND) | (near > 0), labels, torch.zeros_like(labels))


def _by_number(labels: Tensor) -> Tensor:
    """Brightness that differs well between labels, whatever they mean; 0 for the background."""
    golden = (labels.double() * 0.618034) % 1.0
    return torch.where(labels == 0, torch.zeros(()).double(), 0.3 + 0.7 * golden).float()
