"""Trained models: their cards, where their files lie, and how one is found. Standard library only.

A model is one safetensors file, which holds numbers and text and no code. What it is stands in the
header of the file, its card, so that a panel lists models before torch is installed.

References:
    The safetensors format: eight bytes with the length of the header (unsigned, little-endian),
    the header as JSON, then the numbers. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Union

from .errors import FileFormatError, ParameterError

#: Version of the card; files of a later one are refused.
FORMAT = 1
SUFFIX = ".safetensors"
#: Folders of models, joined by the system's path separator; training writes to the first.
ENVIRONMENT = "DEEPREG_MODELS"
#: The only axes and the only scale of intensities that models know (registration/model_frame.py).
ORIENTATION, INTENSITY = "RAS", "foreground"

_HERE = Path(__file__).resolve().parent
#: The models that come with DeepReg: beside the library, or in it.
SHIPPED = (_HERE.parent / "Resources" / "Models", _HERE / "Models")
#: Entry of the header that holds the card.
_ENTRY = "deepreg"
_LARGEST_HEADER = 10_000_000
#: Bytes of a number, by its name in the header.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
          "BOOL": 1}  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

PathLike = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class ModelCard:
    """What a trained model is, and what is known of it.

    Convention:
        The images that the network sees have `shape` voxels of `spacing_mm`, tensor axes to R, A
        and S, intensities from 0 to 1 by the foreground (registration/model_frame.py).

    Args:
        name: Name of the file without its suffix: small letters, digits, ``_`` and ``-``.
        algorithm: Key of the algorithm that it belongs to.
        parameters: Complete values of the algorithm's parameters that training decides.
        spacing_mm: Voxel size of the images, along all axes.
        shape: Voxels of the images along R, A and S.
        orientation: Where the tensor axes run to; only ``RAS`` is known.
        intensity: How intensities are scaled; only ``foreground`` is known.
        anatomy: What it was trained for, in words.
        contrast: Which contrasts it takes, in words.
        data: What it was trained on.
        terms: On what terms the file may be used.
        figures: Figures that it reached in validation, by name.
        training: How it was trained: steps, seed, seconds, versions, date.
        format: Version of this card.
        library: Version of DeepRegLib that wrote it.

    Raises:
        ParameterError: If an entry has the wrong type or makes no sense.
    """

    name: str
    algorithm: str
    parameters: dict[str, Any]
    spacing_mm: float
    shape: tuple[int, int, int]
    orientation: str = ORIENTATION
    intensity: str = INTENSITY
    anatomy: str = ""
    contrast: str = ""
    data: str = ""
    terms: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    library: str = "0.1.0"

    def __post_init__(self) -> None:
        _check_entries(self)
        object.__setattr__(self, "spacing_mm", float(self.spacing_mm))
        object.__setattr__(self, "shape", tuple(self.shape))

    def to_json(self) -> str:
        """Returns the card as JSON.

        Raises:
            ParameterError: If parameters, figures or training hold what JSON cannot.
        """
        try:
            return json.dumps(asdict(self), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ParameterError(
                f"The card of the model '{self.name}' holds what JSON cannot ({error})."
            ) from error


@dataclass(frozen=True)
class ModelFile:
    """A file in a folder of models.

    Args:
        path: The file.
        card: Its card; None if it cannot be read.
        bundled: Whether it came with DeepReg.
        problem: Why it cannot be read, as a sentence.
    """

    path: Path
    card: ModelCard | None = None
    bundled: bool = False
    problem: str = ""

    @property
    def name(self) -> str:
        """Name by which it is chosen: that of the file, without its suffix."""
        return self.path.name.removesuffix(SUFFIX)


def user_folder() -> Path:
    """Returns the folder that training writes models to; it may not exist yet."""
    return _user_folders()[0]


def model_folders() -> list[Path]:
    """Returns the folders in which models are looked for, the user's first, as far as they exist.

    They are those in the environment variable ``DEEPREG_MODELS`` or else the user's data folder,
    and the folder of the models that come with DeepReg.
    """
    folders = [folder for folder in _user_folders() if folder.is_dir()]
    return folders + [folder for folder in SHIPPED if folder.is_dir() and folder not in folders]


def list_models(algorithm: str | None = None) -> list[ModelFile]:
    """Returns the models in all folders: the user's newest first, then those of DeepReg by name.

    A file that cannot be read has a sentence instead of a card. It belongs to no algorithm, so it
    is left out if one is given.

    Args:
        algorithm: Key of an algorithm, for its models only.
    """
    own: list[ModelFile] = []
    bundled: list[ModelFile] = []
    for folder in model_folders():
        files = sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_file())
        (bundled if folder in SHIPPED else own).extend(map(_looked_at, files))
    own.sort(key=lambda file: file.path.stat().st_mtime, reverse=True)
    return [
        file for file in own + bundled
        if algorithm is None or (file.card is not None and file.card.algorithm == algorithm)
    ]  # fmt: skip


def find_model(algorithm: str, name: str = "") -> ModelFile:
    """Returns the model of an algorithm that a user asked for.

    Args:
        algorithm: Key of the algorithm.
        name: Name of a model in the folders, or a file; if empty, the newest model of the user, or
            else the first that comes with DeepReg.

    Raises:
        ParameterError: If there is none, or it belongs to another algorithm.
        FileFormatError: If the file is damaged, or none of DeepReg's models.
    """
    if not name.strip():
        candidates = list_models(algorithm)
        if not candidates:
            raise ParameterError(
                f"There is no trained model for '{algorithm}'; train one, or put a model file into "
                f"'{user_folder()}'."
            )
        return candidates[0]
    file = _named(algorithm, name.strip())
    card = file.card or read_card(file.path)  # reading again raises what is wrong with it
    if card.algorithm != algorithm:
        raise ParameterError(
            f"The model '{file.name}' belongs to '{card.algorithm}', not to '{algorithm}'; choose "
            f"another model, or that algorithm."
        )
    return file


def read_card(path: PathLike) -> ModelCard:
    """Reads the card of a model file, and makes sure that the file is whole.

    Raises:
        FileFormatError: If the file is missing, truncated or damaged, is none of DeepReg's models,
            or is of a later version.
    """
    path = Path(path).expanduser()
    header = _read_header(path)
    text = (header.get("__metadata__") or {}).get(_ENTRY)
    if not isinstance(text, str):
        raise FileFormatError(
            f"'{path.name}' is a safetensors file, but no model of DeepReg: it has no card."
        )
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
        return _card(content)
    except (ParameterError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise FileFormatError(f"The card of the model '{path.name}' is damaged: {reason}.") from (
            error
        )


def is_path(name: str) -> bool:
    """Tells whether a text means a file and not the name of a model."""
    path = Path(name)
    return path.suffix == SUFFIX or len(path.parts) > 1


def metadata(card: ModelCard) -> dict[str, str]:
    """Returns what the header of a model file holds besides the tensors."""
    return {_ENTRY: card.to_json()}


def _card(content: object) -> ModelCard:
    """Makes a card from JSON; entries that this version does not know are passed over."""
    if not isinstance(content, dict):
        raise ParameterError("it is no JSON object")
    version = content.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise ParameterError(f"it has the format {version}, and this DeepReg knows {FORMAT}")
    known = {f.name for f in fields(ModelCard)}
    missing = {"name", "algorithm", "parameters", "spacing_mm", "shape"} - set(content)
    if missing:
        raise ParameterError(f"it has no entry '{sorted(missing)[0]}'")
    return ModelCard(**{key: value for key, value in content.items() if key in known})


def _check_entries(card: ModelCard) -> None:
    if not isinstance(card.name, str) or not _NAME.fullmatch(card.name):
        raise ParameterError(
            f"A model has a name of small letters, digits, '_' and '-', not {card.name!r:.60}."
        )
    if not isinstance(card.algorithm, str) or not card.algorithm.isidentifier():
        raise ParameterError(f"{card.algorithm!r:.60} is no key of an algorithm.")
    spacing, shape = card.spacing_mm, card.shape
    if not _is_number(spacing) or not 0.0 < spacing < 1e3:
        raise ParameterError(f"A model has a positive voxel size in mm, not {spacing!r:.60}.")
    whole = isinstance(shape, (list, tuple)) and len(shape) == 3
    if not whole or not all(type(n) is int and 0 < n < 10_000 for n in shape):
        raise ParameterError(f"A model has three sizes in voxels, not {shape!r:.60}.")
    for key, known in (("orientation", ORIENTATION), ("intensity", INTENSITY)):
        if getattr(card, key) != known:
            raise ParameterError(
                f"its {key} is {getattr(card, key)!r:.60}, and this DeepReg knows '{known}'"
            )
    kinds = {"parameters": dict, "figures": dict, "training": dict, "anatomy": str,
             "contrast": str, "data": str, "terms": str, "library": str}  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(getattr(card, key), kind):
            raise ParameterError(f"its entry '{key}' has the wrong type")
    if not all(map(_is_number, card.figures.values())):
        raise ParameterError("one of its figures is no number")


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _looked_at(path: Path) -> ModelFile:
    bundled = path.parent in SHIPPED
    try:
        return ModelFile(path, read_card(path), bundled)
    except FileFormatError as error:
        return ModelFile(path, None, bundled, str(error))


def _named(algorithm: str, name: str) -> ModelFile:
    path = Path(name).expanduser()
    if is_path(name):
        return replace(_looked_at(path), bundled=path.resolve().parent in SHIPPED)
    for file in list_models():
        if file.name == name:
            return file
    known = ", ".join(file.name for file in list_models(algorithm)) or "none"
    raise ParameterError(
        f"There is no model '{name}'; the models for '{algorithm}' are: {known}. A file of another "
        f"folder is given with its path."
    )


def _user_folders() -> list[Path]:
    named = [part for part in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if part.strip()]
    if named:
        return [Path(part).expanduser() for part in named]
    home = Path.home()
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return [data / "DeepReg" / "models"]


def _read_header(path: Path) -> dict[str, Any]:
    """Reads the header of a safetensors file and compares the size that it tells of."""
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            header = _parsed_header(stream, size, path.name)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileFormatError(f"The model file '{path}' cannot be read ({reason}).") from error
    told = _told_size(header, path.name)
    if told != size - header.pop("__start__"):
        raise FileFormatError(
            f"The model file '{path.name}' is truncated or damaged; copy or train it again."
        )
    return header


def _parsed_header(stream: BinaryIO, size: int, name: str) -> dict[str, Any]:
    length = int.from_bytes(stream.read(8), "little")
    if size < 10 or not 2 <= length <= min(size - 8, _LARGEST_HEADER):
        raise FileFormatError(
            f"'{name}' is no safetensors file, or only the beginning of one; models of DeepReg are "
            "safetensors files."
        )
    try:
        header = json.loads(stream.read(length).decode("utf-8"))
    except ValueError as error:  # no UTF-8, or no JSON
        raise FileFormatError(
            f"'{name}' is no safetensors file, or its header is damaged; copy or train it again."
        ) from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise FileFormatError(f"The header of '{name}' is damaged; copy or train it again.")
    return {**header, "__start__": 8 + length}


def _told_size(header: Mapping[str, Any], name: str) -> int:
    """Bytes of all numbers, by the entries of the tensors."""
    size = 0
    for key, entry in header.items():
        if key.startswith("__"):
            continue
        try:
            begin, end = entry["data_offsets"]
            count = math.prod(int(n) for n in entry["shape"]) * _BYTES[entry["dtype"]]
            fits = begin >= 0 and end - begin == count
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise FileFormatError(f"The entry '{key:.60}' of '{name}' is damaged or unknown.")
        size = max(size, end)
    return size
