"""Whose images a training uses: from a folder, a table, or a BIDS data set; and who validates."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import FileFormatError, InputError
from ..io.files import PathLike

#: Files that are taken for images where no pattern says which are.
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz", ".hdr")
#: Ends of names that mark a label map.
_LABEL_END = re.compile(r"[._-]?(?:d?seg|aseg|segmentation|labels?|labelmap|parc)$", re.IGNORECASE)
_IMAGE_FOLDERS = ("images", "image", "imagesTr")
_LABEL_FOLDERS = ("labels", "label", "labelsTr", "segmentations")
#: Words of the column `split` and what they mean; others are refused.
_SPLITS = {"": "", "train": "train", "training": "train", "validation": "validation",
           "val": "validation", "valid": "validation", "test": "test"}  # fmt: skip
_COLUMNS = ("image", "labels", "name", "group", "split")


@dataclass(frozen=True)
class Subject:
    """An image to train with.

    Args:
        name: Its name, unique among the subjects.
        image: Any file that `io.images.read_image` reads.
        labels: Label map of the same space, on any grid.
        group: The person; several images of one person never part in training and validation.
        split: ``train``, ``validation``, ``test`` (left out), or empty where chance decides.
    """

    name: str
    image: Path
    labels: Path | None = None
    group: str = ""
    split: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", self.group or self.name)


def find_subjects(
    source: PathLike, images: str = "", labels: str = "", person: str = ""
) -> list[Subject]:
    """Finds the subjects in a table (``.csv``), a BIDS data set, or another folder.

    Args:
        source: The table or the folder.
        images: For a folder, see `from_folder`.
        labels: For a folder, see `from_folder`.
        person: For a folder, see `from_folder`.

    Raises:
        FileFormatError: If there is no such file or folder, or the table is none.
        InputError: If nothing fits, or more than one thing does.
    """
    path = Path(source)
    if not path.exists():
        raise FileFormatError(f"There is no '{path}'; give a folder of images or a CSV table.")
    if path.is_file():
        return from_csv(path)
    if not images and any(path.glob("sub-*/anat")) | any(path.glob("sub-*/ses-*/anat")):
        return from_bids(path)
    return from_folder(path, images, labels, person)


def from_folder(
    folder: PathLike, images: str = "", labels: str = "", person: str = ""
) -> list[Subject]:
    """Finds the images in a folder, and their label maps.

    Without patterns, label maps are those in a folder ``labels`` beside one named ``images``, or
    files that end like ``_seg`` or ``_labels``; an image belongs to them that begins alike. Where
    there are label maps only, they are the images.

    Args:
        folder: The folder.
        images: Pattern with one ``*``, which stands for the name: ``*_t1.nii.gz``, ``t1/*.nrrd``.
            What fits may also be a folder with a DICOM series.
        labels: Pattern of the label maps: ``*_seg.nii.gz``.
        person: Regular expression whose first group is the person in a name: ``(.+)_visit``.
            Each name is a person of its own if omitted.

    Raises:
        InputError: If no image fits, or it is not clear which do.
    """
    folder = Path(folder)
    if images:
        found = _by_pattern(folder, images)
        maps = _by_pattern(folder, labels) if labels else {}
        matched = {name: maps[name] for name in found if name in maps}
    else:
        found, maps = _without_pattern(folder)
        if found:
            found, matched = _matched(found, maps, folder)
        else:  # only label maps, to generate images from
            found, maps, matched = maps, {}, {}
    if not found:
        what = f"no file fits '{images}'" if images else "there are no images"
        raise InputError(f"In '{folder}' {what}; check the folder and the pattern.")
    if maps and not matched:
        raise InputError(
            f"In '{folder}' no label map has the name of an image ('{next(iter(found))}' and "
            f"'{next(iter(maps))}', for example); give patterns for both."
        )
    return _checked(
        [Subject(n, p, matched.get(n), _person(n, person)) for n, p in sorted(found.items())]
    )


def from_csv(path: PathLike) -> list[Subject]:
    """Reads a table with the columns image, labels, name, group and split.

    Only ``image`` is needed. Paths are relative to the table; commas, semicolons or tabs part the
    columns.

    Raises:
        FileFormatError: If it is no such table.
        InputError: If a file is missing or a value does not fit.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"'{path}' is not a CSV table that can be read.") from error
    head = (text.splitlines() or [""])[0]
    separator = max(",;\t", key=head.count)
    reader = csv.DictReader(text.splitlines(), delimiter=separator)
    columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    odd = [name for name in columns if name not in _COLUMNS]
    if "image" not in columns or odd:
        raise FileFormatError(
            f"The first line of '{path.name}' must name the columns: image, and as needed "
            f"{', '.join(_COLUMNS[1:])}; it holds '{head.strip()}'."
        )
    reader.fieldnames = columns
    subjects = []
    for row in reader:
        cells = {key: (value or "").strip() for key, value in row.items() if key in _COLUMNS}
        if any(cells.values()):
            subjects.append(_from_row(cells, path, reader.line_num))
    return _checked(subjects)


def from_bids(folder: PathLike, suffix: str = "T1w") -> list[Subject]:
    """Finds the anatomical images of a BIDS data set, and their segmentations in derivatives.

    A segmentation ``*_dseg`` belongs to the image all of whose entities it has; one in another
    space does not count.

    Args:
        folder: The data set.
        suffix: Kind of image: ``T1w``, ``T2w``, ``FLAIR``.

    Raises:
        InputError: If there are no such images, or several segmentations fit one equally well.

    References:
        BIDS specification, https://bids-specification.readthedocs.io
    """
    folder = Path(folder)
    images = [
        file
        for pattern in (f"sub-*/anat/*_{suffix}.nii*", f"sub-*/ses-*/anat/*_{suffix}.nii*")
        for file in sorted(folder.glob(pattern))
    ]
    if not images:
        raise InputError(f"'{folder}' has no sub-*/[ses-*/]anat/*_{suffix}.nii.gz; check it.")
    maps = sorted((folder / "derivatives").glob("**/anat/*_dseg.nii*"))
    subjects = []
    for image in images:
        entities = _stem(image).split("_")[:-1]
        subjects.append(
            Subject("_".join(entities), image, _segmentation(entities, maps), entities[0])
        )
    return _checked(subjects)


def split_subjects(
    subjects: Sequence[Subject], share: float = 0.2, seed: int = 0
) -> tuple[list[Subject], list[Subject]]:
    """Parts the subjects into those for training and those for validation, person by person.

    Subjects whose split is given keep it; only if none is given, chance decides.

    Args:
        subjects: All subjects.
        share: Share of the persons that validate; 0 for none.
        seed: Decides which.

    Raises:
        InputError: If a person would be in both, or there are too few persons.
    """
    splits: dict[str, str] = {}
    for subject in subjects:
        if splits.setdefault(subject.group, subject.split) != subject.split:
            raise InputError(
                f"The images of '{subject.group}' are in '{splits[subject.group] or 'no split'}' "
                f"and in '{subject.split or 'no split'}'; put all images of a person in one."
            )
    if not any(splits.values()):
        people = sorted(splits)
        count = 0 if share <= 0 else max(1, round(share * len(people)))
        if count >= len(people):
            raise InputError(
                f"Training and validation need people of their own, but there are "
                f"{len(people)} in all; add images, or set the share of validation to 0."
            )
        chosen = set(random.Random(seed).sample(people, count))
        splits = {name: "validation" if name in chosen else "train" for name in people}
    parts = {
        wanted: [replace(s, split=wanted) for s in subjects if splits[s.group] in also]
        for wanted, also in (("train", ("train", "")), ("validation", ("validation",)))
    }
    if not parts["train"]:
        raise InputError("No subject is left for training; write 'train' in the column split.")
    return parts["train"], parts["validation"]


def _from_row(cells: dict[str, str], table: Path, line: int) -> Subject:
    where = f"'{table.name}', line {line}"
    split = _SPLITS.get(cells.get("split", "").lower())
    if split is None:
        raise InputError(
            f"{where}: the split is train, validation or test, not '{cells['split']}'."
        )
    if not cells.get("image"):
        raise InputError(f"{where} has no image.")
    files = {key: table.parent / cells[key] for key in ("image", "labels") if cells.get(key)}
    for file in files.values():
        if not file.exists():
            raise InputError(f"{where}: there is no file '{file}'; paths count from the table.")
    name = cells.get("name") or _stem(files["image"])
    return Subject(name, files["image"], files.get("labels"), cells.get("group", ""), split)


def _checked(subjects: list[Subject]) -> list[Subject]:
    """Refuses names that occur twice, and no subjects at all."""
    if not subjects:
        raise InputError("There are no subjects; list at least one image.")
    seen: dict[str, Subject] = {}
    for subject in subjects:
        other = seen.setdefault(subject.name, subject)
        if other is not subject:
            raise InputError(
                f"Two images have the name '{subject.name}' ('{other.image}' and "
                f"'{subject.image}'); give them different names."
            )
    return subjects


def _by_pattern(folder: Path, pattern: str) -> dict[str, Path]:
    """Returns what fits a pattern by what its star stands for."""
    if pattern.count("*") != 1:
        raise InputError(
            f"The pattern '{pattern}' must hold one '*', which stands for the name of the subject."
        )
    before, after = pattern.replace("\\", "/").split("*")
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(pattern)):
        text = path.relative_to(folder).as_posix()
        found[text[len(before) : len(text) - len(after)]] = path
    return found


def _without_pattern(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Returns images and label maps by their names, by the folders they are in or their ends."""
    for name in _IMAGE_FOLDERS:
        if (folder / name).is_dir():
            beside = next((folder / n for n in _LABEL_FOLDERS if (folder / n).is_dir()), None)
            maps = _by_stem(_files(beside)) if beside else {}
            return _by_stem(_files(folder / name)), maps
    files = _files(folder)
    labels = [file for file in files if _LABEL_END.search(_stem(file))]
    return _by_stem([file for file in files if file not in labels]), _by_stem(labels)


def _matched(
    images: dict[str, Path], maps: dict[str, Path], folder: Path
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Returns images and label maps by common names: that which both begin with.

    The image ``1000_t1`` and the label map ``1000_seg`` are those of ``1000``.
    """
    named: dict[str, Path] = {}
    matched: dict[str, Path] = {}
    bases = {name: _LABEL_END.sub("", name) for name in maps}
    for name, file in images.items():
        fits = [
            (len(base), base, key)
            for key, base in bases.items()
            if name in (key, base) or re.match(re.escape(base) + r"[._-]", name)
        ]
        _, base, key = max(fits, default=(0, name, ""))
        base = name if name == key else base
        if base in named:
            raise InputError(
                f"In '{folder}' several images ({named[base].name}, {file.name}) fit the label map "
                f"'{maps[key].name if key else base}'; choose one kind with a pattern such as "
                f"'*{file.name.removeprefix(base)}'."
            )
        named[base] = file
        if key:
            matched[base] = maps[key]
    return named, matched


def _segmentation(entities: Sequence[str], maps: Iterable[Path]) -> Path | None:
    """Returns the segmentation with all entities of an image and the fewest others."""
    fits = []
    for file in maps:
        have = _stem(file).split("_")[:-1]
        spaces = [e for e in have if e.startswith("space-") and e not in entities]
        if set(entities) <= set(have) and all(s in ("space-T1w", "space-orig") for s in spaces):
            fits.append((len(have), str(file), file))
    fits.sort()
    if len(fits) > 1 and fits[0][0] == fits[1][0]:
        raise InputError(
            f"Several segmentations fit {'_'.join(entities)} ('{fits[0][1]}' and '{fits[1][1]}'); "
            "list the images and label maps in a CSV table."
        )
    return fits[0][2] if fits else None


def _files(folder: Path) -> list[Path]:
    return sorted(
        f for f in folder.iterdir() if f.name.lower().endswith(_SUFFIXES) and f.name[0] != "."
    )


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(_stem(file), file)
        if other != file:
            raise InputError(
                f"'{other.name}' and '{file.name}' have the same name; remove one of them, or "
                "choose with a pattern."
            )
    return found


def _stem(path: Path) -> str:
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def _person(name: str, expression: str) -> str:
    if not expression:
        return name
    try:
        found = re.search(expression, name)
        return found.group(1) if found else name
    except (re.error, IndexError) as error:
        raise InputError(
            f"'{expression}' is no regular expression with a group in brackets, such as "
            f"'(.+)_visit' ({error})."
        ) from error
