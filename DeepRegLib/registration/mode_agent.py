"""An agent that bends step by step along the modes of deformations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .agent import WORTH, path_value

#: Coefficients stay within so many standard deviations.
_MOST = 4.0

#: Values (2 m,) of the steps there and back for coefficients (m,).
Values = Callable[[Tensor], Tensor]


def mode_values(left: Tensor, discount: float) -> Tensor:
    """Returns what each step is worth (Q*) when the truth is known; modes simply add up.

    Args:
        left: What is left to go along each mode, (B, m), in steps.
        discount: Weight of the reward after the next one.

    Returns:
        (B, 2 m): of the steps there, then of those back.
    """
    count = left.shape[-1]
    eye = torch.eye(count, dtype=left.dtype, device=left.device)
    after = left[:, None] - torch.cat([eye, -eye])
    reward = left.norm(dim=-1, keepdim=True) - after.norm(dim=-1)
    return reward + discount * path_value(after, discount)


@dataclass(frozen=True)
class ModeSteps:
    """How an agent bends.

    Args:
        size: Length of a step in standard deviations.
        most: Most rounds of steps.
        several: Rounds at the beginning in which several modes are moved at once.
        sure: Share of the best value that a step needs to be one of them.
    """

    size: float = 0.25
    most: int = 200
    several: int = 20
    sure: float = 0.5


@dataclass(eq=False)
class Bending:
    """What an agent did.

    Args:
        coefficients: Before the first, and after each round, (m,).
        found: Coefficients that it ended with.
        ended: ``cycle``, ``rest`` or ``limit``, as for `agent.Episode`; a cycle ends in its mean.
    """

    coefficients: list[Tensor] = field(default_factory=list)
    found: Tensor = field(default_factory=lambda: torch.zeros(0))
    ended: str = "limit"


def bend(values: Values, known: Tensor, steps: ModeSteps) -> Bending:
    """Lets an agent bend until it comes back to where it was, rests, or takes too many rounds.

    Fuzzy control (Krebs et al. 2017, doi:10.1007/978-3-319-66182-7_40): in the first rounds all
    modes of whose step the agent is sure are moved at once, then only the best. Coming back to
    where it was ends the first rounds, too: it goes on from the mean of that cycle.

    Args:
        values: See `Values`.
        known: Which modes there are, (m,).
        steps: See `ModeSteps`.
    """
    count = len(known)
    bending = Bending([torch.zeros(count)], torch.zeros(count))
    several, since = steps.several, 0
    while len(bending.coefficients) <= steps.most:
        here, first = bending.coefficients[-1], len(bending.coefficients) <= several
        step = _step(values(here), known.cpu(), steps.sure if first else None)
        if step is None:
            bending.ended = "rest"
            break
        after = (here + steps.size * step).clamp(-_MOST, _MOST)
        begin = _met_before(bending.coefficients, since, after, 0.5 * steps.size)
        if begin is not None:
            after = torch.stack(bending.coefficients[begin:]).mean(dim=0)
        bending.coefficients.append(after)
        bending.found = after
        if begin is not None and not first:
            bending.ended = "cycle"
            break
        if begin is not None:
            several, since = 0, len(bending.coefficients) - 1
    return bending


def _step(values: Tensor, known: Tensor, sure: float | None) -> Tensor | None:
    """Returns the signs of the steps to take, (m,), 0 for none; None if none is worth taking.

    Those with a share `sure` of the best value are taken, or the best alone.
    """
    there, back = values.detach().float().cpu().split(len(known))
    better = torch.maximum(there, back).masked_fill(~known, float("-inf"))
    best = float(better.max())
    if best <= WORTH:
        return None
    taken = torch.zeros_like(known)
    taken[int(better.argmax())] = True
    if sure is not None:
        taken = better >= best - (1.0 - sure) * abs(best)
    return torch.where(there >= back, 1.0, -1.0) * taken


def _met_before(earlier: list[Tensor], since: int, now: Tensor, same: float) -> int | None:
    """Returns the number of earlier coefficients that are the same; None if there are none."""
    apart = (torch.stack(earlier[since:]) - now).abs().amax(dim=1)
    nearest = int(apart.argmin())
    return since + nearest if float(apart[nearest]) < same else None
