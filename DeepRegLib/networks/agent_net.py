"""A network that values the actions of an agent, from what it sees of two images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ParameterError
from .blocks import halved
from .local_net import NormalizedConvolution

#: Poolings, after the first convolutions.
_POOLINGS = 3
#: What all actions are worth before anything is learned: no action is worth taking.
_UNTAUGHT = -1.0


class AgentNetwork(nn.Module):
    """Values of all actions (Q) in a state, which is a pair of images of one fixed shape.

    Liao et al. 2017, doi:10.1609/aaai.v31i1.11230: five convolutions, the first three with pooling,
    whose features keep their places (they are not averaged over the image, since a turn is told
    from a shift by where things move), and dense layers. Beside the images it is shown where these
    push each other, and features are normalized; without both, shifts are learned soon, but turns
    not within thousands of states.

    The last layer begins with zero weights and values below zero, for which no agent acts.

    Args:
        size: Voxels of the images along each axis, a multiple of 8.
        channels: Features of the five convolutions.
        hidden: Features of the dense layers.
        actions: Number of actions.

    Raises:
        ParameterError: If the size or the number of convolutions does not fit.
    """

    def __init__(
        self,
        size: int = 32,
        channels: Sequence[int] = (8, 32, 32, 64, 64),
        hidden: Sequence[int] = (512, 512, 64),
        actions: int = 12,
    ) -> None:
        super().__init__()
        if len(channels) != 5 or size % 2**_POOLINGS or size < 16 or not hidden:
            raise ParameterError(
                "An agent has five convolutions, dense layers, and a view whose size is a multiple "
                f"of 8, not {len(channels)} convolutions, {len(hidden)} layers and {size} voxels."
            )
        self.scale = nn.BatchNorm3d(5)
        inputs = [5, *channels[:-1]]
        self.convolutions = nn.ModuleList(
            NormalizedConvolution(i, o) for i, o in zip(inputs, channels)
        )
        widths = [channels[-1] * (size // 2**_POOLINGS) ** 3, *hidden]
        self.dense = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, hidden))
        for layer in self.dense:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.last = nn.Linear(hidden[-1], actions)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, _UNTAUGHT)

    def forward(self, fixed: Tensor, moved: Tensor) -> Tensor:
        """Returns the values, (B, actions), float32; images are (B, 1, size, size, size)."""
        features = self.scale(_pushes(fixed, moved))
        for level, layer in enumerate(self.convolutions):
            features = layer(features)
            if level < _POOLINGS:
                features = halved(features)
        flat = features.flatten(1)
        for layer in self.dense:
            flat = torch.relu(layer(flat))
        with torch.autocast(fixed.device.type, enabled=False):
            values: Tensor = self.last(flat.float())
        return values


def _pushes(fixed: Tensor, moved: Tensor) -> Tensor:
    """Returns what an agent is shown, (B, 5, *shape).

    The fixed image, the difference of both, and its products with the slope of their mean along
    each axis: averaged over a place, these tell which way the place would have to move (Thirion
    1998, doi:10.1016/S1361-8415(98)80022-4), so that turns are as easy to see as shifts.
    """
    apart, mean = moved - fixed, F.pad((moved + fixed) / 2, [1] * 6, mode="replicate")
    shown = [fixed, apart]
    for axis, n in zip((2, 3, 4), fixed.shape[2:]):
        inner = [slice(None), slice(None), *(slice(1, -1),) * 3]
        inner[axis] = slice(2, n + 2)
        ahead = mean[tuple(inner)]
        inner[axis] = slice(0, n)
        shown.append(apart * (ahead - mean[tuple(inner)]) / 2)
    return torch.cat(shown, dim=1).contiguous(memory_format=torch.channels_last_3d)
