"""What happens at which step: stages, step size, random numbers. No state, so nothing to restore.

The random numbers of a batch depend on the seed and the number of the batch alone. A training that
goes on after an interruption therefore draws the very same pairs, and so do two processes that
share the batches of a step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..errors import ParameterError
from ..registration.trainable import Stage
from .settings import TrainingSettings

#: Step size at the end of a cosine, as a share of the largest.
_LAST = 0.01


@dataclass(frozen=True)
class Part:
    """A stage and its steps.

    Args:
        stage: The stage.
        first: Number of its first step in the whole training.
        count: Its steps.
    """

    stage: Stage
    first: int
    count: int


def plan(stages: Sequence[Stage], steps: int) -> list[Part]:
    """Gives each stage its share of all steps, at least one.

    Raises:
        ParameterError: If there are fewer steps than stages.
    """
    if steps < len(stages):
        raise ParameterError(
            f"The training has {len(stages)} stages "
            f"({', '.join(stage.name for stage in stages)}), so it needs at least as many steps, "
            f"not {steps}."
        )
    whole = sum(stage.share for stage in stages)
    parts: list[Part] = []
    first, share = 0, 0.0
    for index, stage in enumerate(stages):
        share += stage.share
        later = len(stages) - index - 1
        end = min(max(round(steps * share / whole), first + 1), steps - later)
        parts.append(Part(stage, first, end - first))
        first = end
    return parts


def learning_rate(settings: TrainingSettings, done: int, count: int, share: float = 1.0) -> float:
    """Returns the step size for the step after `done` of the `count` steps of a stage.

    Args:
        settings: Largest step size, schedule and warm-up.
        done: Steps of the stage so far.
        count: Steps of the stage.
        share: Of the largest step size, that the stage takes.
    """
    largest = settings.learning_rate * share
    warmup = min(settings.warmup, count // 4)
    if done < warmup:
        return largest * (done + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return largest
    passed = (done - warmup) / max(count - warmup, 1)
    return largest * (_LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * passed)))


def mixed_seed(seed: int, number: int, purpose: str) -> int:
    """Returns a seed for the random numbers of one batch and purpose, 0 to 2^63 - 1."""
    text = f"{seed}/{number}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def enter(stage: Stage, network: nn.Module) -> list[nn.Parameter]:
    """Freezes what does not learn in a stage, and returns the weights that do.

    Frozen parts are in evaluation mode as well, so that running means stay what they are.

    Raises:
        ParameterError: If the network has no submodule of a name, or nothing to learn.
    """
    learning = stage.modules or ("",)
    network.requires_grad_(False).eval()
    for name in learning:
        try:
            part = network.get_submodule(name)
        except AttributeError as error:
            raise ParameterError(
                f"The stage '{stage.name}' trains '{name}', which the network does not have."
            ) from error
        part.requires_grad_(True).train()
    weights = [p for p in network.parameters() if p.requires_grad]
    if not weights:
        raise ParameterError(f"The stage '{stage.name}' of the training has no weights to learn.")
    return weights
