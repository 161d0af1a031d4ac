"""Models of anatomies as files: safetensors with a description, no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import DeepRegError, FileFormatError
from ..geometry.grid import Grid
from ..io.files import PathLike, require_file, write_whole
from .prepared import compact
from .shape_model import AnatomyModel

SUFFIX = ".safetensors"
#: Entry of the header, and the version of what stands in it.
_ENTRY, _VERSION = "deepreg_anatomies", 1


def save_anatomies(model: AnatomyModel, path: PathLike) -> dict[str, Any]:
    """Writes a model of anatomies, whole or not at all.

    Textures are kept as float16, as prepared images are.

    Returns:
        What stands in the file besides the arrays: `AnatomyModel.summary`, and how it was made.

    Raises:
        FileFormatError: If the file cannot be written, or its name ends otherwise.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise FileFormatError(
            f"A model of anatomies is a file that ends in {SUFFIX}, not '{path.name}'; rename it."
        )
    tensors = {
        "velocities": model.velocities.float().contiguous(),
        "textures": model.textures.half().contiguous(),
    }
    if model.labels is not None:
        tensors["labels"] = compact(model.labels).contiguous()
    content = {
        "version": _VERSION, "grid_shape": list(model.grid.shape),
        "voxel_to_ras": model.grid.voxel_to_ras.tolist(),
        "locality_mm": list(model.locality_mm),
        "texture_locality_mm": list(model.texture_locality_mm),
        "about": model.about, "summary": model.summary(),
    }  # fmt: skip
    data = safetensors.torch.save(tensors, {_ENTRY: json.dumps(content)})

    def write(target: Path) -> None:
        target.write_bytes(data)

    write_whole(path, write)
    return {**content["summary"], **model.about}


def load_anatomies(path: PathLike) -> AnatomyModel:
    """Reads a model of anatomies.

    Raises:
        FileFormatError: If the file is missing, damaged, something else, or of a later version.
    """
    path = require_file(path)
    content, tensors = _read(path)
    version = content.get("version")
    if version != _VERSION:
        raise FileFormatError(
            f"The model of anatomies '{path.name}' has the version {version!s:.20}, and this "
            f"DeepReg knows {_VERSION}; update DeepReg, or make the model again."
        )
    try:
        return _made(content, tensors)
    except (DeepRegError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"The model of anatomies '{path.name}' is damaged ({str(error).rstrip('.')}); copy it "
            "or make it again."
        ) from error


def read_summary(path: PathLike) -> dict[str, Any]:
    """Returns what stands in the file of a model besides the arrays.

    Raises:
        FileFormatError: As `load_anatomies`.
    """
    content, _ = _read(require_file(path))
    parts = [content.get(name) for name in ("summary", "about")]
    return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the description and the arrays of a file."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_ENTRY)
        # Not mapped into memory: a file that is cut short later would end the process.
        tensors = safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise FileFormatError(
            f"'{path.name}' is no model of anatomies that can be read, or it is damaged; give a "
            "file that 'anatomies fit' wrote."
        ) from error
    if text is None:
        raise FileFormatError(
            f"'{path.name}' is a safetensors file, but no model of anatomies; give a file that "
            "'anatomies fit' wrote."
        )
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise FileFormatError(
            f"The description in '{path.name}' is damaged; copy the model or make it again."
        )
    return content, tensors


def _made(content: dict[str, Any], tensors: dict[str, Tensor]) -> AnatomyModel:
    a, b, c = (int(n) for n in content["grid_shape"])
    grid = Grid((a, b, c), np.array(content["voxel_to_ras"], np.float64))
    velocities, textures = tensors["velocities"].float(), tensors["textures"].float()
    if not bool(torch.isfinite(velocities).all()) or not bool(torch.isfinite(textures).all()):
        raise ValueError("it holds values that are no numbers")
    labels = tensors.get("labels")
    return AnatomyModel(
        grid, velocities, textures, None if labels is None else labels.to(torch.int64),
        _lengths(content["locality_mm"]), _lengths(content["texture_locality_mm"]),
        dict(content["about"]),
    )  # fmt: skip


def _lengths(values: Any) -> tuple[float, ...]:
    lengths = tuple(float(value) for value in values)
    if not lengths or not all(0.0 <= value < 1e6 for value in lengths):
        raise ValueError("its scales of locality are no lengths")
    return lengths
