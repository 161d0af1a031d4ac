"""Weights of a network in a model file: saved, loaded, and filled into a network that fits."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import FileFormatError, ParameterError
from ..models import SUFFIX, ModelCard, PathLike, metadata, read_card

#: Tensors that a complaint names.
_NAMED = 3


def save_model(path: PathLike, network: nn.Module, card: ModelCard, half: bool = False) -> None:
    """Writes a model file at once: either the whole file is there, or the one from before.

    Args:
        path: ``<name>.safetensors``; the card takes its name from it.
        network: The network, on any device.
        card: What stands in the file besides the weights.
        half: Whether weights are kept as float16, which halves the file; those beyond its range
            stay float32.

    Raises:
        ParameterError: If the name is none for a model, or weights are not finite.
        FileFormatError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ParameterError(f"A model file ends in {SUFFIX}, but '{path.name}' was given.")
    card = replace(card, name=path.stem)
    weights = {key: _stored(key, value, half) for key, value in network.state_dict().items()}
    content = safetensors.torch.save(weights, metadata(card))
    try:
        _replace(path, content)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileFormatError(f"The model '{path}' cannot be written ({reason}).") from error


def load_weights(path: PathLike) -> dict[str, Tensor]:
    """Returns the tensors of a model file by name, on the CPU, floating ones as float32.

    Raises:
        FileFormatError: If the file is missing, damaged, or none of DeepReg's models.
    """
    read_card(path)
    try:
        # Not mapped: Windows does not let a mapped file be replaced by a newer one.
        weights = safetensors.torch.load(Path(path).expanduser().read_bytes())
    except (OSError, SafetensorError) as error:
        raise FileFormatError(
            f"The model file '{Path(path).name}' is damaged ({error}); copy or train it again."
        ) from error
    return {key: t.float() if t.is_floating_point() else t for key, t in weights.items()}


def fill(network: nn.Module, path: PathLike) -> ModelCard:
    """Fills a network with the weights of a model file, all of them or none.

    Args:
        network: A network of the same architecture, on any device.
        path: The model file.

    Returns:
        The card of the file.

    Raises:
        FileFormatError: If the file is missing or damaged, holds weights that are not finite, or
            does not fit the network.
    """
    card, weights = read_card(path), load_weights(path)
    wanted = network.state_dict()
    faults = [f"{key} is missing" for key in wanted if key not in weights]
    faults += [f"{key} is too much" for key in weights if key not in wanted]
    faults += [
        f"{key} has the shape {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if faults:
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise FileFormatError(
            f"The model '{Path(path).name}' does not fit the network of '{card.algorithm}': "
            f"{', '.join(faults[:_NAMED])}{more}."
        )
    broken = [key for key, t in weights.items() if not torch.isfinite(t).all()]
    if broken:
        raise FileFormatError(
            f"The model '{Path(path).name}' holds weights that are no numbers ({broken[0]}); copy "
            "or train it again."
        )
    network.load_state_dict(weights)
    return card


def _stored(key: str, value: Tensor, half: bool) -> Tensor:
    """A copy of its own (tied weights share memory, which the format does not allow)."""
    value = value.detach().to("cpu", copy=True).contiguous()
    if not value.is_floating_point():
        return value
    value = value.float()
    if not torch.isfinite(value).all():
        raise ParameterError(
            f"The weights '{key}' are not finite: the training diverged. Train again with a lower "
            "learning rate."
        )
    small = value.half()
    return small if half and bool(torch.isfinite(small).all()) else value


def _replace(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)  # a temporary file is for its owner alone
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
