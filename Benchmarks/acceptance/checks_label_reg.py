"""What label-driven registration has to show: two contrasts, and structures that do not overlap.

Two kinds of pairs with two contrasts:

- remapped: T1 images, the moving ones in another contrast (`training.contrast.Contrast`: a curve
  that neither rises nor falls throughout, bias field, noise). Trained on the fifteen people, tested
  on the twelve pairs of the other four.
- flair: T1 images of those people as fixed images, and FLAIR images of people of `brain_t1_flair`,
  another data set with other scanners, as moving ones. Its label maps follow the same protocol and
  numbers (but for white matter, which is cut into lobes there, and counts in neither map), but
  belong to the T1 images; they go to the FLAIR images of the same people by rigid registration.
  Trained with four of the six people, tested on the four test people with the other two.

The curve and who is tested were chosen before anything was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from common import BRAINS, brain, data_folder, register
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image, read_labels
from DeepRegLib.metrics.overlap import dice_per_label, labels_present, mean_dice
from DeepRegLib.registration.base import Image, ImagePair
from DeepRegLib.registration.model_frame import labels_onto_frame, normalized, onto_frame
from DeepRegLib.registration.source import BatchSource
from DeepRegLib.registration.trainable import Prediction, Trainable
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.contrast import Contrast, CrossPairs, RemappedPairs
from DeepRegLib.training.pairs import PreparedPairs
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.subjects import Subject

from .cases import CACHE, FRAME, SPACING_MM, EvaluationPair, evaluation_pairs
from .figures import Figures
from .plans import Check, Plan, Rows, Variant, at_least, mean

#: People of `brain_t1_flair` to train with and to test on.
FLAIR_TRAIN, FLAIR_TEST = ("01", "04", "05", "12"), ("17", "20")
#: Seed of the contrasts and the noise of the test images.
_SEED = 20180712
#: White matter, and its lobes, whose protocols differ; what is not labeled; lesions and vessels.
_LEFT_OUT = (1, 42, 43, 44, 45, 46, 53, 54, 63, 64, *range(81, 96))
#: Labels of one pair, and how their Dice before and after is averaged.
Measure = Callable[[EvaluationPair, Transform], Figures]


def remapped_pairs() -> list[EvaluationPair]:
    """The twelve test pairs with the moving image in another contrast."""
    generator, contrast = torch.Generator().manual_seed(_SEED), Contrast()
    return [
        replace(pair, moving=contrast(pair.moving, SPACING_MM, generator))
        for pair in evaluation_pairs()
    ]


def remapped(pairs: PreparedPairs, changes: Mapping[str, float]) -> BatchSource:
    """The pairs for training with the moving image in another contrast; see `Variant.wrap`."""
    return RemappedPairs(pairs)


def flair(pairs: PreparedPairs, changes: Mapping[str, float]) -> BatchSource:
    """The fifteen T1 images with the FLAIR images of four other people; see `Variant.wrap`."""
    fixed, _ = pairs.prepared()
    # The reference of a preparation is the one that its alignment leaves where it is.
    turns = [np.abs(fixed.linear(i) - np.eye(4)).max() for i in range(len(fixed))]
    reference = fixed.subjects[int(np.argmin(turns))].image
    folder = data_folder() / "brain_t1_flair"
    subjects = [
        Subject(f"flair {name}", folder / f"{name}_flair.nii.gz", folder / f"{name}_seg.nii.gz")
        for name in FLAIR_TRAIN
    ]
    moving = prepare(subjects, FRAME, CACHE / "prepared", reference=reference, loader=FlairLoader())
    return CrossPairs(fixed, moving, augmentation=Augmentation(**changes))


class FlairLoader:
    """Reads a FLAIR image, and the label map of the T1 image of the same person onto it."""

    key = "FLAIR with the labels of T1, without white matter"

    def __call__(self, subject: Subject) -> tuple[Image, Image | None]:
        """Returns image and label map on its grid."""
        image = read_image(subject.image)
        assert subject.labels is not None
        t1 = read_image(subject.image.with_name(subject.image.name.replace("_flair", "_t1")))
        labels = read_labels(subject.labels)
        result, _ = register(ImagePair(image, t1), "rigid")
        moved = result.transform.warp(labels.data, labels.grid, image.grid, "nearest")
        return image, Image(compared(moved), image.grid)


def compared(labels: Tensor) -> Tensor:
    """Returns a label map without the labels that the two data sets do not share."""
    out = torch.isin(labels, torch.tensor(_LEFT_OUT, dtype=labels.dtype))
    return labels.masked_fill(out, 0)


def flair_pairs() -> list[EvaluationPair]:
    """T1 images of the four test people with the FLAIR images of two others, aligned affinely."""
    found = []
    for a in BRAINS:
        for b in FLAIR_TEST:
            path = CACHE / "test" / f"{a}_flair_{b}.safetensors"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(_aligned(a, b), str(path))
            tensors = load_file(str(path))
            found.append(
                EvaluationPair(
                    f"{a}<-FLAIR {b}",
                    **{name: tensors[name].float() for name in ("fixed", "moving")},
                    **{name: tensors[name].long() for name in ("fixed_labels", "moving_labels")},
                    **{name: tensors[name] for name in ("linear", "voxel_to_ras")},
                )
            )
    return found


def _aligned(a: str, b: str) -> dict[str, Tensor]:
    fixed, fixed_labels = brain(a)
    folder = data_folder() / "brain_t1_flair"
    subject = Subject(b, folder / f"{b}_flair.nii.gz", folder / f"{b}_seg.nii.gz")
    moving, moving_labels = FlairLoader()(subject)
    assert moving_labels is not None
    result, _ = register(ImagePair(fixed, moving), "rigid+affine")
    grid, linear = FRAME.grid(fixed), result.transform
    maps = [
        labels_onto_frame(labels.data, labels.grid, grid, t).to(torch.int16)
        for labels, t in ((fixed_labels, Transform()), (moving_labels, linear))
    ]
    return {
        "fixed": onto_frame(normalized(fixed), fixed.grid, grid).half(),
        "moving": onto_frame(normalized(moving), moving.grid, grid, linear).half(),
        "fixed_labels": compared(maps[0]),
        "moving_labels": maps[1],
        "linear": torch.tensor(linear.linear),
        "voxel_to_ras": torch.tensor(grid.voxel_to_ras),
    }


def transform_of(pair: EvaluationPair, prediction: Prediction) -> Transform:
    """The transform of a prediction on the grid of a pair, RAS mm."""
    matrix = np.eye(4)
    if prediction.linear is not None:
        linear = prediction.linear.double().numpy()
        matrix = pair.grid.voxel_to_ras @ linear @ pair.grid.ras_to_voxel
    u = prediction.displacement
    return Transform(matrix, None if u is None else Field(u, pair.grid))


def overlaps(pair: EvaluationPair, transform: Transform) -> Figures:
    """Dice of all labels, and of those alone that do not overlap at first; both before and after.

    A pair without such labels has none of these figures.
    """
    both = {*labels_present(pair.fixed_labels)} & {*labels_present(pair.moving_labels)}
    moved = transform.warp(pair.moving_labels, pair.grid, pair.grid, "nearest")
    before = dice_per_label(pair.fixed_labels, pair.moving_labels)
    after = dice_per_label(pair.fixed_labels, moved)
    apart = [label for label in both if before.get(label, 0.0) == 0.0]
    found = {"before": mean_dice(before, both), "after": mean_dice(after, both)}
    if apart:
        found |= {"apart": mean_dice(after, apart), "apart_count": float(len(apart))}
    return found


def contrast(algorithm: Trainable, network: nn.Module) -> Figures:
    """Dice on the remapped pairs; see `measure.EXTRA`."""
    found = _over(remapped_pairs(), algorithm, network)
    return {
        "dice_remapped": found["after"], "dice_remapped_before": found["before"],
        "dice_apart": found["apart"], "labels_apart": found["apart_count"],
    }  # fmt: skip


def flairs(algorithm: Trainable, network: nn.Module) -> Figures:
    """Dice on the pairs of T1 and FLAIR images; see `measure.EXTRA`."""
    found = _over(flair_pairs(), algorithm, network)
    return {"dice_flair": found["after"], "dice_flair_before": found["before"]}


def _over(pairs: list[EvaluationPair], algorithm: Trainable, network: nn.Module) -> Figures:
    rows = []
    with torch.no_grad():
        for pair in pairs:
            said = algorithm.predict(network, pair.fixed, pair.moving, SPACING_MM)
            rows.append(overlaps(pair, transform_of(pair, said)))
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: float(np.mean([row[key] for row in rows if key in row])) for key in keys}


def checks(rows: Rows, base: Mapping[str, Figures]) -> list[Check]:
    """Judges the trainings."""
    found = []
    for kind, key in (("", "dice_remapped"), ("flair, ", "dice_flair")):
        own = mean(rows, f"{kind}full", key)
        for other in ("lncc", "mi"):
            found.append(
                at_least(
                    f"{key}: above the same network trained with {other}",
                    own - mean(rows, f"{kind}{other}", key), 0.03,
                )
            )  # fmt: skip
        found.append(
            at_least(f"{key}: above affine", own - mean(rows, f"{kind}full", f"{key}_before"), 0.0)
        )
    many, single = (mean(rows, name, "dice_apart") for name in ("full", "single scale"))
    shown = f"{many:.4f} > {single:.4f}"
    return [*found, Check("labels that do not overlap at first: above one scale", shown,
                          many > single)]  # fmt: skip


#: What makes the pairs of a variant of those that all trainings get.
WRAPS: Mapping[str, Callable[[PreparedPairs, Mapping[str, float]], BatchSource]] = {
    "full": remapped, "single scale": remapped, "lncc": remapped, "mi": remapped,
    "flair, full": flair, "flair, lncc": flair, "flair, mi": flair,
}  # fmt: skip
EXTRA = {"contrast": contrast, "flair": flairs}
PLAN = Plan(
    {
        "full": Variant(),
        "single scale": Variant({"scales": (0.0,)}),
        "lncc": Variant({"supervision": "lncc"}),
        "mi": Variant({"supervision": "mi"}),
        "flair, full": Variant(),
        "flair, lncc": Variant({"supervision": "lncc"}),
        "flair, mi": Variant({"supervision": "mi"}),
    },
    checks,
    steps=1500,
    extra=("contrast", "flair"),
)
