"""A coarse and a fine agent on one pair, and the trajectory of what they did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .agent import ACTIONS, WORTH, Episode, Policy, Steps, follow
from .attention import attention, blurred, look, regions, view_points

#: Least distance of two regions of attention, as a share of the width of the fine view.
_APART = 0.5


class AgentRun:
    """One pair that agents act on.

    Args:
        network: Has the submodules ``coarse`` and ``fine``, each of which values the actions.
        fixed: (1, 1, *shape).
        moving: (1, 1, *shape).
        spacing_mm: Voxel size.
        steps: Size of the actions.
        size: Width of what an agent sees, in its voxels.
        ratio: Voxel size of what the coarse agent sees, in voxels of the images.
        leashes: Shift in mm and rotation in degrees from which on an agent is lost, by its name.
    """

    def __init__(
        self, network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float, steps: Steps,
        size: int, ratio: float, leashes: Mapping[str, tuple[float, float]],
    ) -> None:  # fmt: skip
        self._network, self._fixed, self._moving = network, fixed, moving
        self._spacing, self._steps, self._size = spacing_mm, steps, size
        self._leashes = leashes
        self._center = middle(fixed)
        # The coarse agent sees both images without what its voxels cannot show.
        self._points = view_points(size, ratio, self._center.to(fixed.device))
        self._whole = look(blurred(fixed, ratio), self._points)
        self._blurred = blurred(moving, ratio)
        self.episodes: dict[str, Episode] = {}

    def coarse(self, start: Tensor, most: int) -> Tensor:
        """The agent that sees the whole acts; returns the map that it finds, (4, 4) in voxels."""
        motions = self._steps.motions(self._spacing, self._center)

        def policy(matrix: Tensor) -> tuple[int, Tensor] | None:
            moved = look(self._blurred, self._points, matrix[None])
            found = self._values("coarse", self._whole, moved)[0]
            best = int(found.argmax())
            return (best, motions[best]) if float(found[best]) > WORTH else None

        return self._follow("coarse", policy, start, most)

    def fine(self, start: Tensor, most: int, count: int) -> Tensor:
        """The agent that sees where the attention of the coarse one lies acts."""
        centers = self.regions(start, count)
        motions = self._steps.motions(self._spacing, centers)
        cubes = view_points(self._size, 1.0, centers)
        seen = look(self._fixed, cubes)

        def policy(matrix: Tensor) -> tuple[int, Tensor] | None:
            found = self._values("fine", seen, look(self._moving, cubes, matrix[None]))
            region, best = divmod(int(found.argmax()), found.shape[1])
            surest = float(found[region, best])
            return (best, motions[region, best]) if surest > WORTH else None

        return self._follow("fine", policy, start, most)

    def regions(self, matrix: Tensor, count: int) -> Tensor:
        """Returns the middles of the regions of attention, (K, 3) in voxels of the fixed image."""
        moved = look(self._blurred, self._points, matrix[None])
        salience = attention(self._network.get_submodule("coarse"), self._whole, moved)
        return regions(salience, self._points, count, _APART * self._size)

    def trajectory(self) -> dict[str, Any]:
        """Returns all that was done, for JSON.

        - ``frames``: what led to each transform: ``start``, an action, or ``coarse: mean`` and
          ``fine: mean`` for what an agent ended with.
        - ``transforms_about_center``: as many 4 x 4 matrices, in mm about the middle of the grid.
        - ``steps`` and ``ended``: number of actions and how it ended, for each agent.
        """
        frames, transforms = ["start"], [next(iter(self.episodes.values())).transforms[0]]
        for name, episode in self.episodes.items():
            frames += [*(ACTIONS[action] for action in episode.actions), f"{name}: mean"]
            transforms += [*episode.transforms[1:], episode.found]
        return {
            "frames": frames,
            "transforms_about_center": [self._about_center(m).tolist() for m in transforms],
            "steps": {name: len(episode.actions) for name, episode in self.episodes.items()},
            "ended": {name: episode.ended for name, episode in self.episodes.items()},
        }

    def _about_center(self, matrix: Tensor) -> Tensor:
        """Returns a map in voxels as one in mm whose origin is the middle of the grid."""
        moved = matrix.clone()
        to = matrix[:3, :3] @ self._center + matrix[:3, 3]
        moved[:3, 3] = (to - self._center) * self._spacing
        return moved

    def _values(self, name: str, fixed: Tensor, moved: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self._network.get_submodule(name)(fixed, moved)
        return found.cpu()

    def _follow(self, name: str, policy: Policy, start: Tensor, most: int) -> Tensor:
        episode = follow(
            policy, start, self._steps, most, self._spacing, self._center, self._leashes[name]
        )
        self.episodes[name] = episode
        return episode.found


def middle(image: Tensor) -> Tensor:
    """Returns the middle of the grid of images in voxels, (3,), float64, on the CPU."""
    return (torch.tensor(image.shape[2:], dtype=torch.float64) - 1) / 2
