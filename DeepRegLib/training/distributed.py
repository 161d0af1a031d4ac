"""Several processes that train one network together, as ``torchrun`` starts them."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

#: The others wait while the first process prepares the data.
_LONGEST_WAIT = datetime.timedelta(hours=12)
#: Gloo's threads may still be at the last message. If they lose their group then, the process is
#: aborted when it ends, after all its work (torch 2.13).
_SETTLED_S = 0.5
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The processes of a training.

    Args:
        rank: Number of this process.
        size: Number of processes; 1 without ``torchrun``.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Returns a module whose gradients are averaged over the processes."""
        if self.size == 1:
            return module
        devices = [device] if device.type == "cuda" else None
        # Whatever a loss leaves unused in some step must not let the others wait for ever.
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean over the processes; not finite if it is not in one of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def largest(self, number: int, device: torch.device) -> int:
        """Returns the largest of the numbers that the processes bring."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def share(self, network: nn.Module) -> None:
        """Gives the weights of the first process to all."""
        if self.size > 1:
            for value in network.state_dict().values():
                dist.broadcast(value, src=0)

    def wait(self) -> None:
        """Waits for the other processes."""
        if self.size > 1:
            # On the CPU, hence by gloo, whatever the network is on.
            dist.all_reduce(torch.zeros(1))

    def told(self, text: str) -> str:
        """Returns the text that the first process has."""
        if self.size > 1:
            texts = [text]
            dist.broadcast_object_list(texts, src=0, device=_CPU)
            text = texts[0]
        return text

    @contextmanager
    def first(self) -> Iterator[None]:
        """Lets the first process go through a block before the others, which find its files.

        If it fails there, the others fail with it instead of waiting.
        """
        if not self.leads:
            self._hear()
        failed = True
        try:
            yield
            failed = False
        finally:
            if self.leads and self.size > 1:
                self._tell(failed)

    def _tell(self, failed: bool) -> None:
        dist.broadcast_object_list([failed], src=0, device=_CPU)

    def _hear(self) -> None:
        told = [False]
        dist.broadcast_object_list(told, src=0, device=_CPU)
        if told[0]:
            raise SystemExit(2)  # the first process has said why


@contextmanager
def joined(kind: str = "cpu") -> Iterator[World]:
    """Joins the processes that ``torchrun`` started, for the time of a block.

    Args:
        kind: ``cuda`` or ``cpu``: what the processes compute on.

    Yields:
        The world; of one process without ``torchrun``.
    """
    if dist.is_available() and dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size())
        return
    if not dist.is_available() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield World()
        return
    # Objects and barriers travel by gloo also where gradients travel by NCCL.
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    if kind == "cuda":
        torch.cuda.set_device(local_device(torch.device("cuda", 0)))
    dist.init_process_group(backend, timeout=_LONGEST_WAIT)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        time.sleep(_SETTLED_S)
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Returns the device of this process: each has a GPU of its own."""
    number = os.environ.get("LOCAL_RANK")
    if device.type != "cuda" or number is None:
        return device
    return torch.device("cuda", int(number))


def unsynchronized(module: nn.Module) -> AbstractContextManager[object]:
    """Keeps the gradients of a block to this process; a later backward pass shares the sum."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
