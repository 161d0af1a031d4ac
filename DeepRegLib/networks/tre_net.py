"""A network that tells from two images how far they are from being aligned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import convolved, pair_input

#: Millimeters for one unit of what the last layer gives, so that errors of usual size are about 1.
_UNIT_MM = 5.0
#: Slope of the leaky rectifier for negative values.
_LEAK = 0.2


class TreNetwork(nn.Module):
    """Regression of the target registration error (TRE) from a fixed and a moved image.

    Haskins et al. 2019, doi:10.1007/s11548-018-1875-7. Convolutions of stride 2 with batch
    normalization see the pair; the averages of the last features, and by a skip those of the middle
    layer, which still know details, go through a dense layer to one number, which a softplus keeps
    positive. Images may have any shape.

    The last layer begins with zero weights: what has not learned takes all alignments for alike.

    Args:
        channels: Features at 1/2, 1/4, ... of the resolution.
        hidden: Features of the dense layer.
        start_mm: What comes out at the beginning.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 64, 64, 128),
        hidden: int = 64,
        start_mm: float = 10.0,
    ) -> None:
        super().__init__()
        inputs = [2, *channels[:-1]]
        self.convolutions = nn.ModuleList(
            StridedConvolution(i, o) for i, o in zip(inputs, channels)
        )
        self.skipped = (len(channels) - 1) // 2
        joined = channels[-1] + (channels[self.skipped] if len(channels) > 1 else 0)
        self.dense = nn.Linear(joined, hidden)
        self.last = nn.Linear(hidden, 1)
        nn.init.kaiming_normal_(self.dense.weight, _LEAK)
        nn.init.zeros_(self.dense.bias)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, math.log(math.expm1(start_mm / _UNIT_MM)))

    def forward(self, fixed: Tensor, moved: Tensor) -> Tensor:
        """Returns the estimated errors, (B,) in mm, float32; images are (B, 1, *shape)."""
        features = pair_input(fixed, moved)
        means = []
        for level, layer in enumerate(self.convolutions):
            features = layer(features)
            if level in (self.skipped, len(self.convolutions) - 1):
                means.append(features.float().mean(dim=(2, 3, 4)))
        # Half precision has steps of a 30th of a millimeter at 5 mm: too coarse for a search.
        with torch.autocast(fixed.device.type, enabled=False):
            joined = torch.cat(means, dim=1)
            hidden = F.leaky_relu(self.dense(joined), _LEAK)
            estimate: Tensor = _UNIT_MM * F.softplus(self.last(hidden)[:, 0])
        return estimate


class StridedConvolution(nn.Module):
    """A convolution of 3 x 3 x 3 that keeps every other voxel, with batch normalization.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(outputs)
        nn.init.kaiming_normal_(self.convolution.weight, _LEAK)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the features, (B, outputs, *shape / 2)."""
        features: Tensor = self.norm(convolved(image, self.convolution))
        return F.leaky_relu(features, _LEAK)
