"""One step of a training: pairs, gradients of the loss, and the optimizer."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.half import half_inside
from ..networks.optimizer import network_optimizer
from ..registration.source import BatchSource
from ..registration.trainable import Batch, Trainable, total
from .distributed import World, unsynchronized
from .schedule import Part, enter, learning_rate, mixed_seed
from .settings import TrainingSettings

#: float16 gradients are scaled by this at first; a good value is found within a few steps.
_FIRST_SCALE = 2.0**12


@dataclass(frozen=True)
class Taken:
    """What came of a step.

    Args:
        figures: ``loss``, its terms as ``loss_*``, ``learning_rate`` and ``gradient_norm``.
        finite: Whether loss and gradients were numbers; else the weights were left as they are.
    """

    figures: dict[str, float]
    finite: bool


class Supply:
    """Draws the batches of a training; on a GPU the next one is drawn while this one computes.

    Args:
        source: Where the pairs come from.
        settings: Seed, pairs a batch, batches a step.
        device: Where batches go.
        world: The processes that share the batches of a step.
    """

    def __init__(
        self, source: BatchSource, settings: TrainingSettings, device: torch.device, world: World
    ) -> None:
        self._source, self._settings, self._device, self._world = source, settings, device, world
        self._thread = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self._next: tuple[int, Future[Batch]] | None = None

    def numbers(self, step: int) -> list[int]:
        """Returns the numbers of the batches that this process computes in a step."""
        size = self._world.size
        first = step * self._settings.accumulate * size + self._world.rank
        return [first + index * size for index in range(self._settings.accumulate)]

    def batch(self, number: int, following: int) -> Batch:
        """Returns a batch on the device.

        Args:
            number: Its number.
            following: Number of the batch that will be asked for next.
        """
        if self._thread is None:
            return self._draw(number).to(self._device)
        if self._next is not None and self._next[0] == number:
            drawn = self._next[1].result()
        else:
            drawn = self._thread.submit(self._draw, number).result()
        self._next = (following, self._thread.submit(self._draw, following))
        return drawn.to(self._device)

    def close(self) -> None:
        """Ends the thread that draws ahead."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _draw(self, number: int) -> Batch:
        generator = torch.Generator().manual_seed(
            mixed_seed(self._settings.seed, number, "pairs")
        )  # fmt: skip
        return self._source.draw(self._settings.batch, generator)


class Stepper:
    """Trains a network through the steps of one stage, with an optimizer of its own.

    Args:
        algorithm: The system.
        network: Its network, on the device; what the stage does not train is frozen.
        part: The stage.
        settings: Step size, clipping, seed.
        supply: Where batches come from.
        device: Where to compute.
        world: The processes that share the batches of a step.
        half: Type of the numbers inside the network; None for float32.
    """

    def __init__(
        self,
        algorithm: Trainable,
        network: nn.Module,
        part: Part,
        settings: TrainingSettings,
        supply: Supply,
        device: torch.device,
        world: World,
        half: torch.dtype | None,
    ) -> None:
        self._settings, self._part, self._supply = settings, part, supply
        self._device, self._world = device, world
        self._weights = enter(part.stage, network)
        # Running means of normalizations change in the forward pass already.
        self._running = [b for name, b in network.named_buffers() if "running_" in name]
        self._objective = world.wrap(_Objective(algorithm, network, device.type, half), device)
        self._optimizer = network_optimizer(
            settings.optimizer, network, self._weights, settings.learning_rate
        )
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=_FIRST_SCALE, enabled=half is torch.float16
        )  # fmt: skip

    def step(self, done: int) -> Taken:
        """Takes the step after `done` steps of the stage."""
        rate = learning_rate(self._settings, done, self._part.count, self._part.stage.rate)
        self._optimizer.set_rate(rate)
        self._optimizer.zero_grad(set_to_none=True)
        before = [buffer.clone() for buffer in self._running]
        figures = self._gradients(done)
        self._scaler.unscale_(self._optimizer)
        limit = self._settings.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self._weights, limit)
        figures |= {"learning_rate": rate, "gradient_norm": float(norm)}
        finite = all(torch.tensor(list(figures.values())).isfinite().tolist())
        if finite:
            self._scaler.step(self._optimizer)
        else:
            for buffer, value in zip(self._running, before):
                buffer.copy_(value)
        self._scaler.update()
        return Taken(figures, finite)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the state of the optimizer, and that of the scaling of gradients."""
        return self._optimizer.state_dict(), self._scaler.state_dict()

    def load(self, optimizer: dict[str, Any], scaler: dict[str, Any]) -> None:
        """Goes on from a state."""
        self._optimizer.load_state_dict(optimizer)
        for weight, values in self._optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    # Files know no memory layout; steps are fast where it is that of the weights.
                    values[name] = torch.empty_like(weight).copy_(value)
        if scaler:
            self._scaler.load_state_dict(scaler)

    def _gradients(self, done: int) -> dict[str, float]:
        """Adds up the gradients of the mean loss of a step, and returns its terms."""
        step = self._part.first + done
        numbers = self._supply.numbers(step)
        names: list[str] = []
        sums = torch.zeros(0)
        for index, number in enumerate(numbers):
            last = index + 1 == len(numbers)
            following = self._supply.numbers(step + 1)[0] if last else numbers[index + 1]
            batch = replace(
                self._supply.batch(number, following),
                fraction=done / self._part.count,
                stage=self._part.stage.name,
                step=done,
            )
            torch.manual_seed(mixed_seed(self._settings.seed, number, "loss"))
            if last:
                terms = self._backward(batch, len(numbers))
            else:
                with unsynchronized(self._objective):
                    terms = self._backward(batch, len(numbers))
            names = list(terms)
            values = torch.stack([term.detach().float().reshape(()) for term in terms.values()])
            sums = values if index == 0 else sums + values
        means = self._world.mean(sums / len(numbers)).tolist()
        return {"loss": sum(means), **{f"loss_{n}": value for n, value in zip(names, means)}}

    def _backward(self, batch: Batch, parts: int) -> dict[str, Tensor]:
        terms = self._objective(batch)
        self._scaler.scale(total(terms) / parts).backward()
        return terms


class _Objective(nn.Module):
    """The loss as a module, so that several processes can share its gradients."""

    def __init__(
        self, algorithm: Trainable, network: nn.Module, kind: str, half: torch.dtype | None
    ) -> None:
        super().__init__()
        self.network = network
        self._algorithm, self._kind, self._half = algorithm, kind, half

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with half_inside(self.network, self._kind, self._half):
            return self._algorithm.training_loss(self.network, batch)
