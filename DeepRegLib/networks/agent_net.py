"""A network that values the actions of an agent, from what it sees of two images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ParameterError
from .blocks import Convolution, pair_input

#: What all actions are worth before anything is learned: no action is worth taking.
_UNTAUGHT = -0.5


class AgentNetwork(nn.Module):
    """Values of all actions (Q) in a state, which is a pair of images of one fixed shape.

    Liao et al. 2017, doi:10.1609/aaai.v31i1.11230: five convolutions with pooling in between, whose
    features keep their places (they are not averaged over the image, since a turn is told from a
    shift by where things move), and dense layers.

    The last layer begins with zero weights and values below zero, for which no agent acts.

    Args:
        size: Voxels of the images along each axis, a multiple of 16.
        channels: Features of the five convolutions.
        hidden: Features of the dense layers.
        actions: Number of actions.

    Raises:
        ParameterError: If the size or the number of convolutions does not fit.
    """

    def __init__(
        self,
        size: int = 32,
        channels: Sequence[int] = (8, 32, 32, 128, 128),
        hidden: Sequence[int] = (512, 512, 64),
        actions: int = 12,
    ) -> None:
        super().__init__()
        if len(channels) != 5 or size % 16 or size < 16 or not hidden:
            raise ParameterError(
                "An agent has five convolutions, dense layers, and a view whose size is a multiple "
                f"of 16, not {len(channels)} convolutions, {len(hidden)} layers and {size} voxels."
            )
        inputs = [2, *channels[:-1]]
        self.convolutions = nn.ModuleList(
            Convolution(i, o, activation="relu") for i, o in zip(inputs, channels)
        )
        widths = [channels[-1] * (size // 16) ** 3, *hidden]
        self.dense = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, hidden))
        for layer in self.dense:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.last = nn.Linear(hidden[-1], actions)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, _UNTAUGHT)

    def forward(self, fixed: Tensor, moved: Tensor) -> Tensor:
        """Returns the values, (B, actions), float32; images are (B, 1, size, size, size)."""
        features = pair_input(fixed, moved)
        for level, layer in enumerate(self.convolutions):
            features = layer(features)
            if level < 4:
                features = F.max_pool3d(features, 2)
        flat = features.flatten(1)
        for layer in self.dense:
            flat = torch.relu(layer(flat))
        with torch.autocast(fixed.device.type, enabled=False):
            values: Tensor = self.last(flat.float())
        return values
