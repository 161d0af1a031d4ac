"""From features on a grid of any shape to a few numbers, and back: cells and dense layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry.sampling import resize_image

#: Slope of the leaky rectifier for negative values, as in the other networks.
_LEAK = 0.2


class CellReader(nn.Module):
    """Dense layers that read numbers off features, which are averaged in a lattice of cells.

    A dense layer has as many weights as features; the cells make it fit grids of any shape. Where
    the features have the shape of the lattice nothing is averaged.

    Args:
        channels: Features of a voxel.
        cells: Cells along each tensor axis.
        numbers: Numbers of each dense layer.
        starts: Value that each layer begins around; one layer for each.
        spreads: Size of its weights at the beginning; 1 keeps the variance of the features.
    """

    def __init__(
        self,
        channels: int,
        cells: Sequence[int],
        numbers: int,
        starts: Sequence[float] = (0.0,),
        spreads: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        a, b, c = (int(n) for n in cells)
        self._cells = (a, b, c)
        self.layers = nn.ModuleList()
        for start, spread in zip(starts, spreads):
            layer = nn.Linear(channels * math.prod(self._cells), numbers)
            nn.init.normal_(layer.weight, 0.0, spread * layer.in_features**-0.5)
            nn.init.constant_(layer.bias, start)
            self.layers.append(layer)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Returns the numbers of each layer, (B, numbers), float32."""
        # Half precision is too coarse for numbers that a whole field follows from.
        with torch.autocast(features.device.type, enabled=False):
            cells = F.adaptive_avg_pool3d(features.float().contiguous(), self._cells).flatten(1)
            return [layer(cells) for layer in self.layers]


class CellWriter(nn.Module):
    """A dense layer that makes features in a lattice of cells from a few numbers.

    Args:
        numbers: Numbers that come in.
        channels: Features of a voxel.
        cells: Cells along each tensor axis.
    """

    def __init__(self, numbers: int, channels: int, cells: Sequence[int]) -> None:
        super().__init__()
        self._shape = (channels, *(int(n) for n in cells))
        self.layer = nn.Linear(numbers, math.prod(self._shape))
        nn.init.kaiming_normal_(self.layer.weight, _LEAK)
        nn.init.zeros_(self.layer.bias)

    def forward(self, numbers: Tensor, shape: Sequence[int]) -> Tensor:
        """Returns features (B, channels, *shape) over the same extent, float32."""
        with torch.autocast(numbers.device.type, enabled=False):
            flat = F.leaky_relu(self.layer(numbers.float()), _LEAK)
            cells = flat.reshape(-1, *self._shape)
            return resize_image(cells, shape, antialias=False)
