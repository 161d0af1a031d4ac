"""Fits the weights of a network to one pair of images, with the loss of its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.optimizer import network_optimizer
from .trainable import Batch, Stage, Trainable, total

#: Share of the steps after which the learning rate begins to fall, and what it falls to.
_CONSTANT, _LAST = 0.5, 0.1

#: Gets the number of steps done, the loss before the last one, and the network; True ends the fit.
Report = Callable[[int, float, nn.Module], bool]


@dataclass(frozen=True)
class FitSettings:
    """How a network is fitted to a pair.

    Args:
        steps: Number of steps.
        rate: Learning rate of Adam, and Muon's with it; it falls over the second half.
        from_scratch: Whether the weights are random, so that all training stages are gone through;
            else its `pair_modules` learn at once, in a stage called ``pair``.
        optimizer: ``muon`` or ``adam``; see `networks.optimizer`.
    """

    steps: int
    rate: float
    from_scratch: bool = False
    optimizer: str = "muon"


def fit(
    system: Trainable,
    network: nn.Module,
    batches: Sequence[Batch],
    settings: FitSettings,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """Lowers the training loss of one pair, and leaves the best weights that it met.

    The network stays in evaluation mode, so that what is fitted is what predicts: no dropout, and
    normalization by what the training found.

    Args:
        system: The system.
        network: Its network, which is changed.
        batches: The pair, or windows of it, which take turns.
        settings: See `FitSettings`.
        report: Called after each step.

    Returns:
        The loss of each step, as entries of `Result.history`.
    """
    network.eval()
    history: list[dict[str, Any]] = []
    stages: Sequence[Stage] = (Stage("pair", modules=system.pair_modules),)
    if settings.from_scratch:
        stages = system.stages()
    ended = False
    for level, (stage, steps) in enumerate(_shared_out(stages, settings.steps)):
        run = _StageRun(system, network, stage, settings, level, steps)
        ended = run.go(batches, report, history) or ended
        if ended:
            break
    network.requires_grad_(False)
    return history


class _StageRun:
    """The steps of one training stage."""

    def __init__(
        self, system: Trainable, network: nn.Module, stage: Stage, settings: FitSettings,
        level: int, steps: int,
    ) -> None:  # fmt: skip
        self._system, self._network, self._stage = system, network, stage
        self._from_scratch, self._rate = settings.from_scratch, settings.rate * stage.rate
        self._level, self._steps = level, steps
        network.requires_grad_(not stage.modules)
        for name in stage.modules:
            network.get_submodule(name).requires_grad_(True)
        learning = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = network_optimizer(settings.optimizer, network, learning, self._rate)

    def go(
        self, batches: Sequence[Batch], report: Report | None, history: list[dict[str, Any]]
    ) -> bool:
        """Makes the steps; returns whether the whole fit is to end."""
        best, kept, turn = math.inf, _weights(self._network), _weights(self._network)
        values: list[float] = []
        ended = False
        for step in range(self._steps):
            if step % len(batches) == 0:
                turn, values = _weights(self._network), []
            value = self._step(batches[step % len(batches)], step)
            if not math.isfinite(value):
                ended = True
                break
            values.append(value)
            history.append({"level": self._level, "iteration": step, "value": value})
            # A turn through all windows is judged as a whole, by the weights that it began with.
            if len(values) == len(batches) and sum(values) < best:
                best, kept = sum(values), turn
            if report is not None and report(len(history), value, self._network):
                ended = True
                break
        if self._steps and not self._last_is_best(batches, best):
            self._network.load_state_dict(kept)
        return ended

    def _step(self, batch: Batch, step: int) -> float:
        done = step / max(self._steps - 1, 1)
        self._optimizer.set_rate(self._rate * _falling(done))
        loss = self._loss(replace(batch, step=step), done if self._from_scratch else 1.0)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def _loss(self, batch: Batch, fraction: float) -> Tensor:
        part = replace(batch, stage=self._stage.name, fraction=fraction)
        with torch.enable_grad():
            return total(self._system.training_loss(self._network, part))

    def _last_is_best(self, batches: Sequence[Batch], best: float) -> bool:
        """Whether the weights after the last step, whose loss no step has seen, are the best."""
        with torch.no_grad():
            parts = [replace(b, stage=self._stage.name, fraction=1.0) for b in batches]
            value = sum(
                float(total(self._system.training_loss(self._network, part))) for part in parts
            )
        return value <= best  # a loss that is no number is not


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _falling(done: float) -> float:
    if done < _CONSTANT:
        return 1.0
    return 1.0 - (1.0 - _LAST) * (done - _CONSTANT) / (1.0 - _CONSTANT)


def _shared_out(stages: Sequence[Stage], steps: int) -> list[tuple[Stage, int]]:
    """Returns the steps of each stage by its share; the last gets what rounding leaves."""
    whole = sum(stage.share for stage in stages)
    counts = [round(steps * stage.share / whole) for stage in stages]
    counts[-1] = max(0, steps - sum(counts[:-1]))
    return list(zip(stages, counts))
