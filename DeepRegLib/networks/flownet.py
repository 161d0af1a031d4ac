"""FlowNetS in 3D: both images as channels, strided convolutions, flows from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from .blocks import Convolution, Head, enlarged, pair_input, resized_vectors, standardized

#: Widths of the strided convolutions, from the images on; all others are three voxels wide.
_WIDTHS = (7, 5, 5)
#: Levels, counted from the images, from which on a second convolution follows.
_DOUBLE_FROM = 2
#: Standard deviation of the weights that give the flows, at the beginning.
_SPREAD = 1e-3


class FlowNet(nn.Module):
    """Encoder and refining decoder of FlowNetS, with a flow at each resolution.

    Dosovitskiy et al. 2015, doi:10.1109/ICCV.2015.316, figures 2 and 3: strided convolutions of 7,
    5, 5, 3, 3 voxels shrink the images; from the third on another one of stride 1 follows. The
    decoder enlarges the features, appends those of the encoder at that resolution and the enlarged
    flow of the one before, and gives a finer flow.

    The doubling of features and a convolution of three voxels see the same neighbors as the
    publication's transposed convolutions of four, and leave no pattern of every other voxel. The
    flow is enlarged linearly and its vectors grow with the number of voxels; the publication learns
    this. Rectifiers have the slope 0.2 for negative values, not 0.1.

    Each image is brought to mean 0 and standard deviation 1 (the publication takes the mean off).
    With images from 0 to 1 as they are, learning hardly begins.

    Convention:
        Takes two images (B, 1, *shape) of any shape; gives flows from coarse to fine,
        (B, 3, *shape / 2^l rounded up) for l = levels ... 1, each in voxels of its own grid, over
        the extent of the images; component c along tensor axis c.

    Args:
        channels: Channels at 1/2, 1/4, ... of the resolution.

    Raises:
        ParameterError: If there are fewer than two levels.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64, 128, 128)) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ParameterError(
                f"This network has at least two resolutions, but got the channels "
                f"{tuple(channels)}."
            )
        self.down = nn.ModuleList()
        for level, (before, after) in enumerate(zip([2, *channels], channels)):
            width = _WIDTHS[level] if level < len(_WIDTHS) else 3
            parts = [Convolution(before, after, stride=2, width=width)]
            if level >= _DOUBLE_FROM:
                parts.append(Convolution(after, after))
            self.down.append(nn.Sequential(*parts))
        self.up, self.flows = nn.ModuleList(), nn.ModuleList([_flow_head(channels[-1])])
        width = channels[-1]
        for skip in reversed(channels[:-1]):
            refined = max(1, skip // 2)
            self.up.append(Convolution(width, refined))
            width = refined + skip + 3
            self.flows.append(_flow_head(width))

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """Returns the flows, from coarse to fine."""
        features, skips = pair_input(standardized(fixed), standardized(moving)), []
        for layer in self.down:
            features = layer(features)
            skips.append(features)
        features = skips.pop()
        found = [self.flows[0](features)]
        for layer, head in zip(self.up, self.flows[1:]):
            skip = skips.pop()
            shape = skip.shape[2:]
            flow = resized_vectors(found[-1], [int(n) for n in shape])
            refined = layer(enlarged(features, shape))
            features = torch.cat([skip, refined, flow.to(refined.dtype)], dim=1)
            found.append(head(features))
        return found


def _flow_head(channels: int) -> Head:
    return Head(channels, spread=_SPREAD)
