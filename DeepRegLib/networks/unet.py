"""U-Net of strided convolutions, as VoxelMorph has it; it may end below the full resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ParameterError
from .blocks import Convolution, enlarged


class UNet(nn.Module):
    """Encoder that halves, decoder that doubles, and skips between them.

    Balakrishnan et al. 2019, doi:10.1109/TMI.2019.2897538, figure 3: each level of the encoder is
    one convolution of stride 2; the decoder repeats voxels, appends the features of the encoder at
    that resolution (the images themselves at the full one), and convolves. All activations are
    leaky rectifiers of slope 0.2.

    Convention:
        Takes (B, inputs, *shape) of any shape; gives (B, outputs, *shape), each size divided by
        `2 ** level` and rounded up, where `level` is that of the decoder's last group.

    Args:
        inputs: Channels of the images.
        encoder: Channels at 1/2, 1/4, ... of the resolution.
        decoder: Channels of the convolutions at each resolution, from the coarsest of the encoder
            on; at most one group more than the encoder has levels.

    Raises:
        ParameterError: If encoder and decoder do not fit together.
    """

    def __init__(
        self, inputs: int, encoder: Sequence[int], decoder: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        if not 1 <= len(decoder) <= len(encoder) + 1 or not all(decoder):
            raise ParameterError(
                f"The decoder of a U-Net with the encoder {tuple(encoder)} needs convolutions at "
                f"each of its resolutions, but got {[tuple(group) for group in decoder]}."
            )
        skips = [inputs, *encoder[:-1]]
        self.down = nn.ModuleList(
            Convolution(i, o, stride=2) for i, o in zip([inputs, *encoder], encoder)
        )
        self.up = nn.ModuleList()
        channels = encoder[-1]
        for level, group in enumerate(decoder):
            channels += skips[-level] if level else 0
            pairs = zip([channels, *group], group)
            self.up.append(nn.Sequential(*(Convolution(i, o) for i, o in pairs)))
            channels = group[-1]
        #: Channels that come out.
        self.outputs = channels

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features of the decoder's last resolution."""
        passed = [images]
        for layer in self.down:
            passed.append(layer(passed[-1]))
        features = passed.pop()
        for level, layers in enumerate(self.up):
            if level:
                skip = passed.pop()
                features = torch.cat([enlarged(features, skip.shape[2:]), skip], dim=1)
            features = layers(features)
        return features


def voxelmorph_unet(
    encoder: Sequence[int], decoder: Sequence[int], final: Sequence[int] = ()
) -> UNet:
    """Makes a U-Net for a pair of images from lists of channels.

    Args:
        encoder: Channels at 1/2, 1/4, ... of the resolution.
        decoder: One convolution a resolution, from the coarsest on; all that are left are at half
            resolution.
        final: Channels at the full resolution; none ends the network at half resolution.

    Raises:
        ParameterError: If the lists do not fit together.
    """
    coarse = len(encoder) - 1
    groups: list[Sequence[int]] = [(c,) for c in decoder[:coarse]]
    groups.append(tuple(decoder[coarse:]))
    return UNet(2, encoder, [*groups, tuple(final)] if final else groups)
