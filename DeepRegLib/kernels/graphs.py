"""Replays a step of an optimiser as a CUDA graph, so that Python does not start its kernels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[..., tuple[Tensor, ...]]

#: Calls before the capture: kernels are compiled and tuned in them, which a capture forbids.
_WARM_UP = 3

_log = logging.getLogger(__name__)


class StepGraph:
    """Calls a step function; on a CUDA device it records the step once and replays it.

    The step has to be a function of its tensors alone: shapes and everything else stay as they
    were at the recording, it gives the host no number (``float(t)``, ``t.item()``), and it changes
    neither its inputs nor anything else (it is called a few times before the recording). Elsewhere
    than on a CUDA device, with ``DEEPREG_GRAPHS=0``, under autograd, after a failed recording
    (with one warning in the log) and for inputs of other shapes, the step itself is called.

    Convention:
        The tensors that a replay returns are the same ones each time: the next call overwrites
        them. They may be handed to the next call; what is to last has to be cloned.

    Args:
        step: Takes tensors and returns a tuple of tensors.

    Example:
        >>> step = StepGraph(lambda x, y: (x + y, x * y))
        >>> [float(t) for t in step(torch.tensor(2.0), torch.tensor(3.0))]
        [5.0, 6.0]
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()
        self._failed = False

    @property
    def captured(self) -> bool:
        """Whether the step is replayed from a graph."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns what the step returns for these inputs."""
        if not _suitable(inputs):
            return self._step(*inputs)
        graph = self._graph or self._try_capture(inputs)
        if graph is None or not _fit(self._inputs, inputs):
            return self._step(*inputs)
        self._load(inputs)
        graph.replay()
        return self._outputs

    def _try_capture(self, inputs: Sequence[Tensor]) -> torch.cuda.CUDAGraph | None:
        if self._failed:
            return None
        try:
            self._graph = self._capture(inputs)
        except RuntimeError as error:  # CUDA's errors, and too little memory for the graph's pool
            self._failed, self._inputs, self._outputs = True, [], ()
            reason = str(error).strip().splitlines() or [type(error).__name__]
            _log.warning("The step is not replayed as a CUDA graph (%s).", reason[0])
            return None
        return self._graph

    def _capture(self, inputs: Sequence[Tensor]) -> torch.cuda.CUDAGraph:
        """Records the step on copies of the inputs, after a few calls on a stream of its own."""
        device = inputs[0].device
        self._inputs = [t.detach().clone() for t in inputs]
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self._step(*self._inputs)
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                self._outputs = self._step(*self._inputs)
        return graph

    def _load(self, inputs: Sequence[Tensor]) -> None:
        """Copies inputs into the recorded ones; outputs are not written before the replay."""
        for kept, given in zip(self._inputs, inputs):
            if kept.data_ptr() != given.data_ptr():
                kept.copy_(given)


def _suitable(inputs: Sequence[Tensor]) -> bool:
    if not inputs or os.environ.get("DEEPREG_GRAPHS", "1") == "0":
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return False
    return all(t.is_cuda and t.device == inputs[0].device for t in inputs)


def _fit(kept: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    return len(kept) == len(given) and all(
        k.shape == g.shape and k.dtype == g.dtype and k.device == g.device
        for k, g in zip(kept, given)
    )
