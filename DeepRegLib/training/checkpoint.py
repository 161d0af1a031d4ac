"""Checkpoints: one safetensors file with everything that a training needs to go on exactly."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import FileFormatError

FILE = "checkpoint.safetensors"
_KEY, _VERSION = "deepreg_checkpoint", 1


@dataclass
class Checkpoint:
    """The state of a training between two steps.

    Args:
        network: State of the network.
        best: State of the best network so far; empty if there is none.
        optimizer: `torch.optim.Optimizer.state_dict`.
        content: Everything else, as JSON holds it.
    """

    network: dict[str, Tensor]
    best: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes the checkpoint; the one before stays until this one is whole.

        Raises:
            OSError: If it cannot be written, for example because the disk is full.
        """
        state, plain = _split_optimizer(self.optimizer)
        tensors = {
            **{f"network/{name}": value for name, value in self.network.items()},
            **{f"best/{name}": value for name, value in self.best.items()},
            **{f"optimizer/{name}": value for name, value in state.items()},
        }
        content = {"version": _VERSION, "optimizer": plain, "content": self.content}
        path, temporary = folder / FILE, folder / (FILE + ".part")
        try:
            save_file(_separate(tensors), temporary, {_KEY: json.dumps(content)})
            # A checkpoint is for bad days: it has to be on the disk before the old one goes.
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint | None:
        """Returns the checkpoint in a folder; None if there is none.

        Raises:
            FileFormatError: If the file is damaged or of another version.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                content = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise FileFormatError(
                f"The checkpoint '{path}' is damaged ({error}); delete it, and begin anew."
            ) from error
        if content.get("version") != _VERSION:
            raise FileFormatError(
                f"The checkpoint '{path}' was written by another version of DeepReg; delete it, "
                "and begin anew."
            )
        return cls(
            _part(tensors, "network"), _part(tensors, "best"),
            _joined_optimizer(_part(tensors, "optimizer"), content["optimizer"]),
            content["content"],
        )  # fmt: skip


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a copy of a network's state on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lists what a training that goes on has otherwise, as ``name=value`` of the beginning."""
    # Through JSON, as tuples come back as lists.
    one, other = (json.loads(json.dumps(d)) for d in (before, now))
    names = list(dict.fromkeys([*one, *other]))
    return [f"{name}={one.get(name)!s:.80}" for name in names if one.get(name) != other.get(name)]


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns copies on the CPU that share no memory, as the file format wants it."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors of an optimizer's state by path, and the rest for JSON."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in state.get("state", {}).items():
        for name, value in values.items():
            target: dict[str, Any] = tensors if isinstance(value, Tensor) else numbers
            target[f"{index}/{name}"] = value
    return tensors, {"numbers": numbers, "groups": state.get("param_groups", [])}


def _joined_optimizer(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for path, value in {**tensors, **plain["numbers"]}.items():
        index, _, name = path.partition("/")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": plain["groups"]}


def _part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    start = kind + "/"
    return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}
