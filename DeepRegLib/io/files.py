"""Files on disk: their suffixes, reading by SimpleITK, and writing all at once or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Union

import numpy as np
import SimpleITK as sitk

from ..errors import FileFormatError, InputError
from .dicom import read_dicom_series
from .integrity import check_complete, check_raw_size

PathLike = Union[str, "os.PathLike[str]"]

#: Images that one file holds and that keep origin, spacing and direction.
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
#: Transforms that only hold a few numbers.
LINEAR_SUFFIXES = (".tfm", ".txt", ".mat")
#: Transforms of any kind.
TRANSFORM_SUFFIXES = (".h5", ".hdf5")
LANDMARK_SUFFIXES = (".mrk.json", ".fcsv", ".csv")
#: What can be written, by kind of result.
WRITABLE: dict[str, tuple[str, ...]] = {
    "image": IMAGE_SUFFIXES,
    "linear": TRANSFORM_SUFFIXES + LINEAR_SUFFIXES + IMAGE_SUFFIXES,
    "deformable": TRANSFORM_SUFFIXES + IMAGE_SUFFIXES,
    "landmarks": LANDMARK_SUFFIXES,
    "json": (".json",),
}


def suffix_of(path: PathLike) -> str:
    """Returns the suffix in lower case, double ones such as ``.nii.gz`` and ``.mrk.json`` whole."""
    name = Path(path).name.lower()
    for double in (".nii.gz", ".img.gz", ".gipl.gz", ".mrk.json"):
        if name.endswith(double):
            return double
    return Path(name).suffix


def check_writable(path: PathLike, kinds: str | Sequence[str]) -> None:
    """Makes sure, before a long run, that a result can be written where it shall go.

    Args:
        path: File to be written later.
        kinds: Keys of `WRITABLE` that the file may be: ``image``, ``linear``, ``deformable``,
            ``landmarks`` or ``json``.

    Raises:
        FileFormatError: If the suffix does not fit, the folder is missing, or writing is denied.
    """
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    check_suffix(path, names)
    path = Path(path)
    if not path.parent.is_dir():
        raise FileFormatError(
            f"The folder '{path.parent}' does not exist; make it, or write '{path.name}' elsewhere."
        )
    if path.is_dir():
        raise FileFormatError(f"'{path}' is a folder; give the name of a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise FileFormatError(f"'{path}' is write-protected; choose another name or unlock it.")
    try:
        # Access bits lie on network drives and on Windows; making something is the real test.
        with tempfile.TemporaryDirectory(prefix=".deepreg-", dir=path.parent):
            pass
    except OSError as error:
        raise FileFormatError(
            f"The folder '{path.parent}' cannot be written to ({error.strerror}); choose another."
        ) from error


def check_suffix(path: PathLike, kinds: Sequence[str]) -> str:
    """Returns the suffix of a file to be written.

    Raises:
        FileFormatError: If no kind can be written with it.
    """
    known = {key: WRITABLE[key] for key in kinds}
    suffix = suffix_of(path)
    if any(suffix in suffixes for suffixes in known.values()):
        return suffix
    name = Path(path).name
    allowed = list(dict.fromkeys(s for suffixes in known.values() for s in suffixes))
    if suffix in LINEAR_SUFFIXES and "deformable" in kinds:
        raise FileFormatError(
            f"'{name}' cannot hold a deformation: as '{suffix}' it would be a huge list of "
            f"numbers. Use one of {', '.join(allowed)}."
        )
    raise FileFormatError(
        f"'{name}' has the suffix '{suffix}', which is not one of {', '.join(allowed)}; rename it."
    )


def write_whole(path: PathLike, write: Callable[[Path], None]) -> None:
    """Writes a file completely or not at all; an older file stays until the new one is whole.

    Args:
        path: Where the file shall be.
        write: Writes the file at the path that it is given, in the same folder.

    Raises:
        FileFormatError: If the file cannot be written; nothing is left behind.
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing to the file
    try:
        with tempfile.TemporaryDirectory(prefix=".deepreg-", dir=target.parent) as folder:
            # ITK looks at the suffix and knows it in lower case only.
            temporary = Path(folder) / f"file{suffix_of(path)}"
            write(temporary)
            os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        raise FileFormatError(
            f"'{path}' could not be written: {_reason(error)}. Check the folder, its permissions "
            "and the free space."
        ) from error


def require_file(path: PathLike) -> Path:
    """Returns the path of a file that exists.

    Raises:
        FileFormatError: If there is none, or it is empty.
    """
    path = Path(path)
    if not path.exists():
        raise FileFormatError(f"There is no file '{path}'; check the name and the folder.")
    if path.is_file() and path.stat().st_size == 0:
        raise FileFormatError(f"'{path}' is an empty file (0 bytes); copy or export it again.")
    return path


def read_sitk(path: PathLike, components: int = 1) -> sitk.Image:
    """Reads a 3-D image (2-D becomes one slice) from a file, or a folder with one DICOM series.

    Args:
        path: File or folder.
        components: Numbers that each voxel must hold: 1 for an image, 3 for displacements.

    Raises:
        FileFormatError: If the file is missing, cut short, or not an image.
        InputError: If it is an image of another kind, such as a time series or a color image.
    """
    path = require_file(path)
    if path.is_dir():
        image = read_dicom_series(path)
        _check_kind(path.name, image.GetSize(), image.GetNumberOfComponentsPerPixel(), components)
        return as_volume(image)
    check_complete(path)
    try:
        with readable_by_itk(path) as readable:
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(readable))
            reader.ReadImageInformation()
            size, found = reader.GetSize(), reader.GetNumberOfComponents()
            complex_pixels = "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID())
            _check_kind(path.name, size, 2 if complex_pixels else found, components)
            check_raw_size(path, int(np.prod(size)) * found * _bytes(reader.GetPixelID()))
            return as_volume(sitk.ReadImage(str(readable)))
    except RuntimeError as error:
        raise FileFormatError(
            f"'{path.name}' is not an image that can be read, or it is damaged: {_reason(error)}. "
            "Open it in another program, or export it again."
        ) from error


def as_volume(image: sitk.Image) -> sitk.Image:
    """Returns a 3-D image from one of 2, 3, or 4 dimensions with a last size of 1."""
    if image.GetDimension() == 2:
        return sitk.JoinSeries([image])
    while image.GetDimension() > 3:
        image = image[..., 0]
    return image


@contextmanager
def readable_by_itk(path: Path) -> Iterator[Path]:
    """Gives a path under which ITK reads a file rightly: the file's own, or that of a copy.

    ITK's NIfTI reader takes the voxels of ``x.nii`` for ``x.nii.gz`` where both exist, without a
    word, and some readers know suffixes in lower case only. A copy in a folder of its own has no
    such neighbor and a plain name.
    """
    suffix = suffix_of(path)
    beside = suffix == ".nii.gz" and path.with_suffix("").exists()
    if path.name.endswith(suffix) and not beside:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deepreg-") as folder:
        copy = Path(folder) / f"file{suffix}"
        shutil.copyfile(path, copy)
        yield copy


def _check_kind(name: str, size: Sequence[int], found: int, components: int) -> None:
    if min(size) < 1:
        raise InputError(f"'{name}' has no voxels ({' x '.join(map(str, size))}); export it again.")
    extra = [n for n in size[3:] if n > 1]
    if extra:
        wanted = "one displacement of 3 components" if components == 3 else "one number"
        raise InputError(
            f"'{name}' has {len(size)} dimensions ({extra[0]} time points or components), but a "
            f"3-D image with {wanted} in each voxel is needed; extract one."
        )
    if found != components and components == 1:
        raise InputError(
            f"'{name}' has {found} components in each voxel (color, vectors or complex numbers), "
            "but one is needed; extract one, or convert it to gray values."
        )
    if found != components:
        raise InputError(
            f"'{name}' has {found} component(s) in each voxel, but a displacement image has "
            f"{components}; choose a displacement field, or an .h5 or .tfm transform file."
        )


def _bytes(pixel_id: int) -> int:
    """Returns the bytes of one component of a pixel type."""
    text = sitk.GetPixelIDValueAsString(pixel_id)
    return next((n // 8 for n in (64, 32, 16, 8) if str(n) in text), 1)


def _reason(error: Exception) -> str:
    """Picks the telling part out of ITK's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    for line in lines:
        if "ERROR:" in line:
            text = line.split("ERROR:", 1)[1].strip() or text
    return text[:200].rstrip(" .")
