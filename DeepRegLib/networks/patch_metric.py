"""A network that tells from two patches of the same place whether they show the same anatomy.

All convolutions are valid ones, so a patch of 17 voxels gives one number, and a whole image, in
one pass, gives exactly the numbers of its patches: at every fourth voxel, at every second, or at
all of them. There is no normalization, which would make the number of one patch depend on others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Head, pair_input

#: Voxels of a patch along each axis, and between the patches of one pass.
PATCH, STRIDE = 17, 4
#: Voxels between the middle and the end of a patch.
REACH = PATCH // 2
#: Images run from 0 to 1; the network sees them around zero, or it hardly learns.
_MIDDLE, _SPREAD = 0.5, 0.25
#: Kernel and stride of the layers.
_LAYERS = ((3, 1), (3, 2), (3, 1), (3, 2), (2, 1))


class PatchMetric(nn.Module):
    """A dissimilarity of patches: below zero where they are aligned, above where they are not.

    Args:
        channels: Channels of the five layers.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 64, 128, 128)) -> None:
        super().__init__()
        sizes = [2, *channels]
        self.layers = nn.ModuleList(
            nn.Conv3d(inputs, outputs, width, step)
            for inputs, outputs, (width, step) in zip(sizes, sizes[1:], _LAYERS)
        )
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.head = Head(sizes[-1], 1, width=1)

    def forward(self, fixed: Tensor, moving: Tensor, stride: int = STRIDE) -> Tensor:
        """Returns the number of each patch that lies inside the images.

        Args:
            fixed: (B, 1, *shape), at least 17 voxels along each axis.
            moving: The same of the other image.
            stride: Voxels between patches: 1, 2 or 4.

        Returns:
            (B, 1, *places): place k of an axis is the patch around voxel 8 + k times the stride.
        """
        features, left, dilation = (pair_input(fixed, moving) - _MIDDLE) / _SPREAD, stride, 1
        for layer, (_, step) in zip(self.layers, _LAYERS):
            # A stride that is not wanted becomes a dilation of all that follows.
            taken = step if left >= step else 1
            left //= taken
            features = F.conv3d(
                features, layer.weight, layer.bias, taken, 0, dilation  # type: ignore[arg-type]
            ).relu()  # fmt: skip
            dilation *= step // taken
        scores: Tensor = self.head(features)
        return scores

    def everywhere(self, fixed: Tensor, moving: Tensor, stride: int = STRIDE) -> Tensor:
        """Returns the number at voxels 0, stride, 2 stride, ..., with the edge repeated outside.

        Returns:
            (B, 1, *places) with (n - 1) // stride + 1 places along an axis of n voxels.
        """
        return self(framed(fixed), framed(moving), stride)


def bounded(scores: Tensor) -> Tensor:
    """Returns numbers of patches between -1 and 1, so that no patch outweighs all others."""
    return scores / (1.0 + scores.abs())


def framed(image: Tensor) -> Tensor:
    """Returns an image with as much of its edge repeated as patches need to lie in it."""
    return F.pad(image, (REACH,) * 6, mode="replicate")


def squared_weights(network: nn.Module) -> Tensor:
    """Returns the sum of the squared weights of the convolutions, for weight decay."""
    squares = [
        module.weight.square().sum()
        for module in network.modules()
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d))
    ]
    return torch.stack(squares).sum()
