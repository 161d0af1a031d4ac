"""Features of one image at several resolutions, by a network that both images pass alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import GeometryError
from .blocks import Convolution, enlarged, halved


class Stream(nn.Module):
    """Encoder and decoder with skips; what the decoder finds at each resolution is its output.

    One stream takes the fixed and the moving image, stacked along the batch, so that the features
    of both are comparable (Hu et al. 2019, doi:10.1007/978-3-030-32245-8_43). Features are halved
    by averaging neighbors and doubled by repeating them. Both keep them centered on the voxels of
    the coarser grid, as `Grid.resized` has them, while a convolution that skips every other voxel
    shifts them by half a voxel at each level, and the fields that are found from them.

    Convention:
        Takes (B, 1, *shape), each size a multiple of `multiple`; gives a list from coarse to fine,
        (B, C, *shape / 2^level).

    Args:
        encoded: Channels of the encoder, from the full resolution to the coarsest.
        decoded: Channels of the decoder at the same levels; the coarsest is the encoder's last.
        finest: Finest level that is decoded; 0 is the full resolution.
    """

    def __init__(self, encoded: Sequence[int], decoded: Sequence[int], finest: int = 0) -> None:
        super().__init__()
        last = len(encoded) - 1
        before = [1, *encoded[:-1]]
        self.down = nn.ModuleList(Convolution(i, o) for i, o in zip(before, encoded))
        #: Channels of the features that come out, from coarse to fine.
        self.channels = [
            encoded[-1],
            *(decoded[level] for level in range(last - 1, finest - 1, -1)),
        ]
        levels = range(last - 1, finest - 1, -1)
        self.up = nn.ModuleList(
            Convolution(below + encoded[level], decoded[level])
            for below, level in zip(self.channels, levels)
        )
        self.multiple = 2**last

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the features of the images, from coarse to fine."""
        check_multiple(image.shape[2:], self.multiple)
        features, skips = first_layout(image), []
        for level, layer in enumerate(self.down):
            features = layer(features if level == 0 else halved(features))
            skips.append(features)
        found = [skips.pop()]
        for layer in self.up:
            skip = skips.pop()
            found.append(layer(torch.cat([enlarged(found[-1], skip.shape[2:]), skip], dim=1)))
        return found


def first_layout(image: Tensor) -> Tensor:
    """Returns an image in the layout in which convolutions are fastest, channels last.

    An image of one channel is the same in both layouts, and torch takes it for the slower one
    unless its strides say otherwise.
    """
    if image.shape[1] > 1:
        return image.contiguous(memory_format=torch.channels_last_3d)
    image = image.contiguous()
    b, _, *rest = image.stride()
    return image.as_strided(image.shape, (b, 1, *rest))


def check_multiple(shape: Sequence[int], multiple: int) -> None:
    """Checks that a network can halve a grid as often as it does.

    Raises:
        GeometryError: If it cannot.
    """
    if any(size % multiple for size in shape):
        raise GeometryError(
            f"This network takes images whose sizes are multiples of {multiple}, but got "
            f"{tuple(shape)}; choose the shape of the model accordingly."
        )
