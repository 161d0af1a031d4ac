"""An agent that registers step by step: its actions, what they are worth, and a run of it.

Liao et al. 2017, doi:10.1609/aaai.v31i1.11230. The state is the pair of images as the transform so
far moves it, an action turns or shifts what is seen by one step, T' = T exp(a). Since the truth is
known in training, the value of each action is computed instead of explored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .rigid_motion import average_motion, motion_matrix, motion_parameters

#: Names of the actions, in the order of the network's values.
ACTIONS = ("R+", "A+", "S+", "turn R+", "turn A+", "turn S+",
           "R-", "A-", "S-", "turn R-", "turn A-", "turn S-")  # fmt: skip
#: An agent rests where all actions are worth less. At the truth they are worth -1 and the way back;
#: where values are not quite learned, going there and back is a surer sign of it.
WORTH = -0.3
#: A transform this near to an earlier one (in steps) closes a cycle.
_SAME = 0.5
#: Rewards further ahead than this weigh nothing any more.
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Steps:
    """How far an action goes.

    Args:
        mm: A shift.
        deg: A rotation.
    """

    mm: float = 1.0
    deg: float = 1.0

    def sizes(self, like: Tensor) -> Tensor:
        """Returns the size of one step of each of the six parameters, (6,)."""
        return torch.tensor([self.mm] * 3 + [self.deg] * 3, dtype=torch.float64).to(like)

    def motions(self, spacing_mm: float, center: Tensor) -> Tensor:
        """Returns the motions of all actions about centers, in voxels, float64.

        Args:
            spacing_mm: Voxel size.
            center: (3,) or (K, 3).

        Returns:
            (12, 4, 4) or (K, 12, 4, 4).
        """
        sizes = self.sizes(torch.zeros(1, dtype=torch.float64))
        one_each = torch.cat([torch.diag(sizes), -torch.diag(sizes)])
        return motion_matrix(one_each, spacing_mm, center.double().cpu()[..., None, :])


def path_value(parameters: Tensor, discount: float) -> Tensor:
    """Returns the discounted sum of the rewards along the greedy path to the truth.

    The path always takes the step along the largest parameter that is left, which brings the most,
    and ends where every step would lead away. Parameters are taken as if they added up.

    Args:
        parameters: What is left to go, (..., 6), in steps.
        discount: Weight of the reward after the next one.

    Returns:
        (...).
    """
    left = parameters.abs()
    value, weight = torch.zeros_like(left[..., 0]), 1.0
    before = left.norm(dim=-1)
    while weight >= _LEAST_WEIGHT:
        top, where = left.max(dim=-1, keepdim=True)
        going = top > 0.5
        if not bool(going.any()):
            break
        left = left.scatter(-1, where, torch.where(going, (top - 1.0).abs(), top))
        after = left.norm(dim=-1)
        value = value + weight * (before - after)
        before, weight = after, weight * discount
    return value


def action_values(
    residual: Tensor, steps: Steps, discount: float, spacing_mm: float, center: Tensor
) -> Tensor:
    """Returns what each action is worth (Q*) when the truth is known.

    Q*(s, a) = D(s) - D(s') + discount * V(s'), with D the Euclidean length of the six parameters
    that are left, in steps, and V the value of the greedy path from there. D is exact; V takes the
    parameters as if they added up.

    Args:
        residual: G = T^-1 T_truth in voxels, (B, 4, 4): what is left to move what is seen by.
        steps: Size of the actions.
        discount: See `path_value`.
        spacing_mm: Voxel size.
        center: What the parameters turn about, (3,) or (B, 3).

    Returns:
        (B, 12), float64.
    """
    residual = residual.double()
    center = center.to(residual)
    sizes = steps.sizes(residual)
    now = (motion_parameters(residual, spacing_mm, center) / sizes).norm(dim=-1, keepdim=True)
    back = torch.linalg.inv(steps.motions(spacing_mm, center)).to(residual.device)
    left = motion_parameters(back @ residual[:, None], spacing_mm, center[..., None, :]) / sizes
    return now - left.norm(dim=-1) + discount * path_value(left, discount)


def states_on_paths(
    count: int, reach: Sequence[float], steps: Steps, device: torch.device | str | None = None
) -> Tensor:
    """Draws what may be left to go on the way to the truth, densely near it.

    The greedy path from a random start cuts the largest parameters down first, to one length; how
    far it got is the square of an even random number, one for shifts and one for turns, as an agent
    may be done with one kind before it sees the other. From torch's global generator.

    Args:
        count: States.
        reach: Largest shift and rotation of a start, in mm and degrees.
        steps: Size of the actions.
        device: Where the numbers are.

    Returns:
        (count, 6) in mm and degrees, float64.
    """
    bounds = torch.tensor([reach[0]] * 3 + [reach[1]] * 3, dtype=torch.float64, device=device)
    sizes = steps.sizes(bounds)
    start = bounds * (2.0 * torch.rand(count, 6, dtype=torch.float64, device=device) - 1.0)
    share = torch.rand(count, 2, dtype=torch.float64, device=device).square()
    share = share.repeat_interleave(3, dim=1)
    cap = share * (bounds / sizes).max() * sizes
    return torch.minimum(torch.maximum(start, -cap), cap)


@dataclass(eq=False)
class Episode:
    """What an agent did.

    Args:
        actions: Numbers of the actions, in order; see `ACTIONS`.
        transforms: Transforms before the first, and after each action, (4, 4) in voxels.
        found: The transform that it ended with.
        ended: ``cycle`` (it came back to an earlier transform; the mean of the cycle is found),
            ``rest`` (no action promised anything), ``lost`` (it went too far away; the start is
            found) or ``limit`` (too many steps).
    """

    actions: list[int] = field(default_factory=list)
    transforms: list[Tensor] = field(default_factory=list)
    found: Tensor = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))
    ended: str = "limit"


#: Says for a transform which action to take, with its motion; None to rest.
Policy = Callable[[Tensor], tuple[int, Tensor] | None]


def follow(
    policy: Policy,
    start: Tensor,
    steps: Steps,
    most: int,
    spacing_mm: float,
    center: Tensor,
    reach: tuple[float, float] = (math.inf, math.inf),
) -> Episode:
    """Lets an agent act until it comes back to where it was, rests, is lost, or acts no more.

    Args:
        policy: See `Policy`.
        start: First transform, (4, 4) in voxels, float64.
        steps: Size of the actions.
        most: Most actions.
        spacing_mm: Voxel size.
        center: Middle of the grid, (3,): means of transforms are taken about it.
        reach: Shift in mm and rotation in degrees, away from the start, beyond which it is lost:
            there is nothing that it has learned about.

    Returns:
        What it did. In a cycle (most often of two), the mean of its transforms is found; one that
        is lost has found nothing but the start.
    """
    episode = Episode(transforms=[start], found=start)
    while len(episode.actions) < most:
        chosen = policy(episode.transforms[-1])
        if chosen is None:
            episode.ended = "rest"
            break
        action, motion = chosen
        after = episode.transforms[-1] @ motion
        begin = _met_before(episode.transforms[:-1], after, steps, spacing_mm, center)
        episode.actions.append(action)
        episode.transforms.append(after)
        episode.found = after
        if _beyond(torch.linalg.inv(start) @ after, reach, spacing_mm, center):
            episode.found, episode.ended = start, "lost"
            break
        if begin is not None:
            cycle = torch.stack(episode.transforms[begin:-1])
            episode.found, episode.ended = average_motion(cycle, center), "cycle"
            break
    return episode


def _met_before(
    earlier: Sequence[Tensor], now: Tensor, steps: Steps, spacing_mm: float, center: Tensor
) -> int | None:
    """Returns the number of an earlier transform that is the same; None if there is none."""
    if not earlier:
        return None
    apart = torch.linalg.solve(torch.stack(list(earlier)), now.expand(len(earlier), 4, 4))
    left = motion_parameters(apart, spacing_mm, center) / steps.sizes(apart)
    distance = left.norm(dim=-1)
    nearest = int(distance.argmin())
    return nearest if float(distance[nearest]) < _SAME else None


def _beyond(motion: Tensor, reach: tuple[float, float], spacing_mm: float, center: Tensor) -> bool:
    """Whether a motion shifts or turns by more than it may, in total."""
    left = motion_parameters(motion, spacing_mm, center)
    return float(left[:3].norm()) > reach[0] or float(left[3:].norm()) > reach[1]
