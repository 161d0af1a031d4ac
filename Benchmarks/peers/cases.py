"""The pairs of the comparison, and how each of them is measured.

What has to be prepared (a rigid start, a resampled image, a known warp) is made once and kept under
build/compare, which git ignores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import BRAINS, ROOT, SKULLS, brain, data_folder, ordered_pairs, register

from DeepRegLib.geometry.sampling import resize_image
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image, read_labels, write_image
from DeepRegLib.io.itk_transform import read_transform, write_displacement
from DeepRegLib.io.landmarks import read_landmarks
from DeepRegLib.registration.base import Image, ImagePair

from . import evaluate

CACHE = ROOT / "build" / "compare"
LUNG_SPACING_MM = 2.0
FLAIR = ("01", "04", "12", "17")

#: Gets the total transform, and its inverse where there is one.
Measure = Callable[[Transform, "Transform | None"], evaluate.Figures]


@dataclass(frozen=True)
class Case:
    """One pair of a data set.

    Args:
        name: fixed<-moving.
        fixed: Image file that the methods get.
        moving: Image file that the methods get.
        measure: Measures a result.
        after: Linear map (fixed RAS to moving RAS) that follows what a method finds, where the
            moving file was resampled with it.
        aligned: Whether methods start from the stored positions.
        modality: ``same`` or ``different``.
    """

    name: str
    fixed: Path
    moving: Path
    measure: Measure
    after: np.ndarray | None = None
    aligned: bool = False
    modality: str = "same"

    @property
    def folder_name(self) -> str:
        """The name without signs that folders cannot have everywhere."""
        return self.name.replace("<-", "_")


def names(dataset: str) -> list[str]:
    """The names of the pairs of a data set, in order; nothing is prepared yet."""
    if dataset in ("brains", "skulls"):
        people = BRAINS if dataset == "brains" else SKULLS
        return [f"{a}<-{b}" for a, b in ordered_pairs(people)]
    return ["01_Fixed<-01_Moving"] if dataset == "lung" else [f"{s}_t1<-{s}_flair" for s in FLAIR]


def case(dataset: str, name: str) -> Case:
    """Prepares one pair."""
    fixed, moving = name.split("<-")
    return DATASETS[dataset](name, fixed, moving)


def _brains(name: str, a: str, b: str) -> Case:
    folder = data_folder() / "brain_t1_oasis" / "eval_1mm"

    def measure(transform: Transform, inverse: Transform | None) -> evaluate.Figures:
        (fixed, fixed_labels), (moving, moving_labels) = brain(a), brain(b)
        inside = fixed_labels.data > 0
        figures = evaluate.overlap(transform, fixed_labels, moving_labels)
        figures |= evaluate.regularity(transform, inside)
        if inverse is not None:
            figures |= evaluate.round_trip(transform, inverse, fixed, moving, inside)
        return figures

    return Case(name, folder / f"{a}_t1.nii.gz", folder / f"{b}_t1.nii.gz", measure)


def _skulls(name: str, a: str, b: str) -> Case:
    folder = data_folder() / "mouse_skull_ct"
    fixed_path = folder / f"{a}.nii.gz"
    fixed = read_image(fixed_path)
    moving = read_image(folder / f"{b}.nii.gz")
    matrix, _ = linear_start(CACHE / "skulls" / f"{a}_{b}", "rigid", fixed, moving)
    path = moved_by(CACHE / "skulls" / f"{a}_{b}" / "moving.nii.gz", fixed, moving, matrix)
    points = [read_landmarks(folder / f"{n}.mrk.json").points_ras for n in (a, b)]

    def measure(transform: Transform, inverse: Transform | None) -> evaluate.Figures:
        inside = fixed.data > float(fixed.data.max()) * 0.15
        figures = evaluate.landmark_error(transform, *points)
        return figures | evaluate.regularity(transform, inside)

    return Case(name, fixed_path, path, measure, matrix, aligned=True)


def _lung(name: str, a: str, b: str) -> Case:
    folder = _lung_folder()
    files = {n: (folder / f"{n}.nii.gz", folder / f"{n}_mask.nii.gz") for n in (a, b)}

    def measure(transform: Transform, inverse: Transform | None) -> evaluate.Figures:
        fixed, moving = (read_image(files[n][0]) for n in (a, b))
        lungs, moving_lungs = (read_labels(files[n][1]) for n in (a, b))
        inside = lungs.data > 0
        figures = evaluate.overlap(transform, lungs, moving_lungs)
        figures |= evaluate.likeness(transform, fixed, moving, inside)
        figures |= evaluate.regularity(transform, inside)
        if inverse is not None:
            figures |= evaluate.round_trip(transform, inverse, fixed, moving, inside)
        return figures

    return Case(name, files[a][0], files[b][0], measure)


def _lung_folder() -> Path:
    """EMPIRE10 case 01 at 2 mm, from the source distribution of FireANTs.

    The images may not be passed on, so they are downloaded and stay under build.
    """
    folder = CACHE / "lung"
    wanted = [folder / f"01_{n}{k}.nii.gz" for n in ("Fixed", "Moving") for k in ("", "_mask")]
    if all(path.exists() for path in wanted):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    package = "fireants==1.5.0"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
         package, "--dest", str(folder)],
        check=True,
    )  # fmt: skip
    archive = next(folder.glob("fireants-*.tar.gz"))
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            part = Path(member.name).parent.name
            if member.isfile() and part in ("lung_images", "lung_masks"):
                kind = "_mask" if part == "lung_masks" else ""
                source = folder / "full.nii.gz"
                stream = tar.extractfile(member)
                assert stream is not None
                source.write_bytes(stream.read())
                stem = Path(member.name).name.removesuffix(".nii.gz")
                _coarse(source, folder / f"{stem}{kind}.nii.gz", bool(kind))
                source.unlink()
    archive.unlink()
    return folder


def _coarse(source: Path, target: Path, mask: bool) -> None:
    """Writes an image at the coarser spacing; a mask keeps voxels that are half inside."""
    image = read_image(source)
    grid = image.grid.with_spacing(LUNG_SPACING_MM)
    data = resize_image(image.data.float(), grid.shape)
    write_image(Image((data > 0.5).to(torch.uint8) if mask else data, grid), target)


def _flair(name: str, a: str, b: str) -> Case:
    # The known warp and the answer are those of the main benchmark.
    from main_job import after, best_simpleitk, invert, known_warp, t1_flair

    subject = a.split("_")[0]
    folder = CACHE / "flair" / subject
    fixed, moving = t1_flair(subject)
    bent_path, answer_path = folder / "bent.nii.gz", folder / "answer.nrrd"
    if not answer_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        truth = known_warp(moving, 8.0, int(subject))
        bent = truth.warp(moving.data, moving.grid, moving.grid)
        write_image(Image(bent, moving.grid), bent_path)
        aligned, _ = best_simpleitk(fixed, moving)
        answer = after(aligned, invert(truth, moving.grid)[0], fixed.grid)
        write_displacement(answer, answer_path, fixed.grid)

    def measure(transform: Transform, inverse: Transform | None) -> evaluate.Figures:
        inside = fixed.data > 0
        figures = evaluate.distance_from(transform, read_transform(answer_path), inside)
        figures |= evaluate.regularity(transform, inside)
        if inverse is not None:
            figures |= evaluate.round_trip(transform, inverse, fixed, moving, inside)
        return figures

    path = data_folder() / "brain_t1_flair" / f"{a}.nii.gz"
    return Case(name, path, bent_path, measure, aligned=True, modality="different")


def linear_start(
    folder: Path, algorithm: str, fixed: Image, moving: Image, **settings: object
) -> tuple[np.ndarray, float]:
    """Our linear registration of a pair (RAS, fixed to moving) with its seconds, made once."""
    path = folder / f"{algorithm.replace('+', '_')}.json"
    if not path.exists():
        result, seconds = register(ImagePair(fixed, moving), algorithm, **settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"matrix_ras": result.transform.linear.tolist(), "seconds": seconds}
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    return np.array(found["matrix_ras"]), float(found["seconds"])


def moved_by(path: Path, fixed: Image, moving: Image, matrix: np.ndarray) -> Path:
    """Resamples a moving image on the fixed grid by a linear map, once."""
    if not path.exists():
        low = float(moving.data.min())
        data = Transform(matrix).warp(moving.data, moving.grid, fixed.grid, "linear", low)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(Image(data, fixed.grid), path)
    return path


DATASETS: dict[str, Callable[[str, str, str], Case]] = {
    "brains": _brains, "skulls": _skulls, "lung": _lung, "flair": _flair,
}  # fmt: skip
