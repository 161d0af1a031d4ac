"""U-Net whose skips are filled with convolutions, and which ends in a field at each resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ParameterError
from .blocks import Convolution, Doubling, Head
from .dual_stream import check_multiple


class GapUNet(nn.Module):
    """U-Net of two convolutions at each resolution, on the way down and on the way up.

    Fan et al. 2019, doi:10.1016/j.media.2019.03.006, section 3.1. What skips the coarse levels has
    passed far fewer convolutions than what comes up from them. Convolutions in the skips fill this
    gap: as many as the way through the coarser levels has, two for each change of resolution. At
    each resolution a head gives a field, so that the coarse ones learn from the teacher as well.

    Convention:
        Takes (B, inputs, *shape), each size a multiple of `multiple`; gives a list of displacements
        from coarse to fine, (B, 3, *shape / 2^level), all in voxels of the full resolution.

    Args:
        inputs: Channels that come in.
        channels: Channels at the full, half, quarter, ... resolution; at least two.
        gap_filling: Whether there are convolutions in the skips.

    Raises:
        ParameterError: If there are fewer than two resolutions.
    """

    def __init__(self, inputs: int, channels: Sequence[int], gap_filling: bool = True) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ParameterError(
                f"This network takes channels of at least two resolutions, not {tuple(channels)}."
            )
        last = len(channels) - 1
        self.multiple = 2**last
        before = [inputs, *channels[:-1]]
        self.down = nn.ModuleList(_block(i, o, 2) for i, o in zip(before, channels))
        fine = range(last)
        self.gaps = nn.ModuleList(
            _block(channels[k], channels[k], 2 * (last - k) if gap_filling else 0) for k in fine
        )
        self.doubling = nn.ModuleList(Doubling(channels[k + 1], channels[k]) for k in fine)
        self.up = nn.ModuleList(_block(2 * channels[k], channels[k], 2) for k in fine)
        self.heads = nn.ModuleList(Head(count) for count in channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the displacements, from coarse to fine."""
        check_multiple(images.shape[2:], self.multiple)
        passed: list[Tensor] = []
        features = images
        for level, layers in enumerate(self.down):
            features = layers(features if level == 0 else F.max_pool3d(features, 2))
            passed.append(features)
        fields = [self.heads[-1](features)]
        for level in reversed(range(len(self.gaps))):
            skip = self.gaps[level](passed[level])
            doubled = F.leaky_relu(self.doubling[level](features, skip.shape[2:]), 0.2)
            features = self.up[level](torch.cat([doubled, skip], dim=1))
            fields.append(self.heads[level](features))
        return fields


def _block(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """Returns convolutions one after the other; without any, what comes in goes out."""
    return nn.Sequential(
        *(Convolution(outputs if index else inputs, outputs) for index in range(count))
    )
