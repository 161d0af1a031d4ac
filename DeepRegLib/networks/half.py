"""Half precision inside a network, and float32 where it is not to be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


def half_type(precision: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """Returns the type of the numbers inside the network (None for float32), and a remark."""
    if precision == "float32":
        return None, ""
    if precision == "float16":
        if device.type == "cuda":
            return torch.float16, ""
        return None, "float16 needs a GPU; the training runs in float32."
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return None, "This GPU cannot compute in bfloat16; the training runs in float32."
    return torch.bfloat16, ""


@contextmanager
def half_inside(network: nn.Module, kind: str, half: torch.dtype | None) -> Iterator[None]:
    """Lets a network compute in half precision; what comes out of it is float32 again.

    Args:
        network: The network; as before at the end.
        kind: Type of the device, such as ``cpu``.
        half: Type of the numbers; None leaves the network as it is.
    """
    if half is None:
        yield
        return
    parts = list(network.modules())[1:] if kind == "cpu" else []
    layers = [part for part in parts if isinstance(part, nn.Conv3d)]
    for layer in layers:
        layer.forward = _exact_if_small(layer)  # type: ignore[assignment]
    inner = network.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        with torch.autocast(kind, half):
            return _as_float32(inner(*arguments, **keywords))

    network.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del network.forward
        for layer in layers:
            del layer.forward


def _exact_if_small(layer: nn.Conv3d) -> Callable[[Tensor], Tensor]:
    """Returns the forward pass of a convolution that stays in float32 for the smallest images.

    Where an image with padding is smaller than the kernel, the gradient of the weights that oneDNN
    finds in bfloat16 (torch 2.13, processors with AVX512-BF16) is not that of the convolution, and
    a part of it is memory that nobody wrote.
    """
    inner = layer.forward

    def forward(features: Tensor) -> Tensor:
        if all(n >= width for n, width in zip(features.shape[2:], layer.kernel_size)):
            return inner(features)
        with torch.autocast("cpu", enabled=False):
            return inner(features.float())

    return forward


def _as_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _as_float32(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_as_float32(item) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_as_float32(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _as_float32(getattr(value, f.name))
                                 for f in fields(value) if f.init})  # fmt: skip
    return value
