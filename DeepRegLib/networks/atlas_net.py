"""The networks of DeepAtlas: one that registers and one that segments, as one module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ParameterError
from .blocks import Convolution, Head, pair_input
from .segmentation_net import SegmentationNet
from .unet import UNet


class AtlasNetwork(nn.Module):
    """The two networks; one call runs one of them, so that half precision covers both.

    Args:
        classes: Number of classes with the background.
        encoder: Channels of the registration network at 1, 1/2, ... of the resolution.
        decoder: Its channels from the coarsest resolution but one up to the full one.
        down: Channels of the segmentation network on the way down.
        up: Its channels on the way up.
    """

    def __init__(
        self,
        classes: int,
        encoder: Sequence[int],
        decoder: Sequence[int],
        down: Sequence[int],
        up: Sequence[int],
    ) -> None:
        super().__init__()
        self.registration = RegistrationNet(encoder, decoder)
        self.segmentation = SegmentationNet(classes, down, up)

    def forward(self, fixed: Tensor, moving: Tensor | None = None) -> Tensor:
        """Returns vectors (B, 3, *shape) of a pair, or logits (B, classes, *shape) of an image."""
        if moving is None:
            logits: Tensor = self.segmentation(fixed)
            return logits
        vectors: Tensor = self.registration(fixed, moving)
        return vectors


class RegistrationNet(nn.Module):
    """VoxelMorph as DeepAtlas has it: the encoder begins at the full resolution.

    Args:
        encoder: Channels at 1, 1/2, 1/4, ... of the resolution.
        decoder: Channels from the coarsest resolution but one up to the full one.

    Raises:
        ParameterError: If encoder and decoder do not fit together.
    """

    def __init__(self, encoder: Sequence[int], decoder: Sequence[int]) -> None:
        super().__init__()
        levels = len(encoder) - 1
        if levels < 1 or len(decoder) < levels:
            raise ParameterError(
                f"The registration network with the encoder {tuple(encoder)} needs a decoder of at "
                f"least {max(levels, 1)} convolutions and an encoder of two, not {tuple(decoder)}."
            )
        groups = [(encoder[-1],), *((c,) for c in decoder[: levels - 1]), decoder[levels - 1 :]]
        self.first = Convolution(2, encoder[0])
        self.unet = UNet(encoder[0], encoder[1:], groups)
        self.head = Head(self.unet.outputs)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns the displacement or velocity, (B, 3, *shape) in voxels."""
        vectors: Tensor = self.head(self.unet(self.first(pair_input(fixed, moving))))
        return vectors
