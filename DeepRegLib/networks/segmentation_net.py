"""A small U-Net that names the structure of each voxel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import GeometryError, ParameterError
from .blocks import Convolution, Doubling, result_layer

#: Slope of the leaky rectifier for negative values, as in the other networks.
_LEAK = 0.2
#: The last layer reads features so many times as large, by weights that begin that much smaller.
#: Adam's steps have a fixed length, and few features have to tell many classes apart: with plain
#: weights hundreds of steps went by before the logits were large enough to do so.
_GAIN = 30.0


class SegmentationNet(nn.Module):
    """U-Net with two convolutions at each resolution, for an image of one channel.

    The light U-Net of Xu & Niethammer 2019, doi:10.1007/978-3-030-32245-8_47: maxima of 2 x 2 x 2
    voxels halve, transposed convolutions double, the features of the encoder are appended, and a
    convolution of one voxel ends in one number for each class. Each convolution is followed by a
    normalization over the image and a leaky rectifier.

    Convention:
        Takes (B, 1, *shape) of any shape from 0 to 1; gives logits (B, classes, *shape), whose
        channels lie last in memory; class 0 is the background.

    Args:
        classes: Number of classes with the background.
        encoder: Channels of the convolutions from the full resolution on, two at each.
        decoder: Channels from the coarsest but one up to the full resolution, two at each.

    Raises:
        ParameterError: If encoder and decoder do not fit together.
    """

    def __init__(self, classes: int, encoder: Sequence[int], decoder: Sequence[int]) -> None:
        super().__init__()
        if len(encoder) < 4 or len(encoder) % 2 or len(decoder) != len(encoder) - 2:
            raise ParameterError(
                "The segmentation network has two convolutions at each of at least two resolutions "
                "on the way down, and two fewer on the way up, such as 8,16,16,32 and 16,16; not "
                f"{tuple(encoder)} and {tuple(decoder)}."
            )
        if classes < 1:
            raise ParameterError(f"A segmentation has at least one class, not {classes}.")
        ends = [encoder[i + 1] for i in range(0, len(encoder), 2)]
        starts = [1, *ends[:-1]]
        self.down = nn.ModuleList(
            _Pair(start, *encoder[2 * level : 2 * level + 2]) for level, start in enumerate(starts)
        )
        self.doubling, self.up = nn.ModuleList(), nn.ModuleList()
        channels = ends.pop()
        for level in range(0, len(decoder), 2):
            self.doubling.append(Doubling(channels, channels))
            self.up.append(_Pair(channels + ends.pop(), *decoder[level : level + 2]))
            channels = decoder[level + 1]
        self.classes = result_layer(nn.Linear(channels, classes))
        with torch.no_grad():
            self.classes.weight /= _GAIN

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits of the classes.

        Raises:
            GeometryError: If the image is not (B, 1, *shape).
        """
        if image.ndim != 5 or image.shape[1] != 1:
            raise GeometryError(
                f"A segmentation takes images (B, 1, D, H, W), but got {tuple(image.shape)}."
            )
        features = image.contiguous(memory_format=torch.channels_last_3d)
        passed: list[Tensor] = []
        for level, layers in enumerate(self.down):
            if level:
                features = F.max_pool3d(features, 2, ceil_mode=True)
            features = layers(features)
            passed.append(features)
        passed.pop()
        for double, layers in zip(self.doubling, self.up):
            skip = passed.pop()
            larger = double(features, skip.shape[2:])
            features = layers(torch.cat([larger, skip], dim=1))
        # One number a class is a product of matrices where the channels lie last.
        logits: Tensor = self.classes(_GAIN * features.movedim(1, -1)).movedim(-1, 1)
        return logits


class _Pair(nn.Sequential):
    """Two convolutions with their normalizations and rectifiers."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for i, o in ((inputs, middle), (middle, outputs)):
            layers.append(Convolution(i, o, activation="linear", bias=False))
            layers.append(_ImageNorm(o))
            layers.append(nn.LeakyReLU(_LEAK, inplace=True))
        super().__init__(*layers)


class _ImageNorm(nn.Module):
    """Normalizes each channel over each image by itself, then scales and shifts it.

    Batches hold one or two volumes, whose running means would say little; so there are none, and a
    network does in use what it did in training.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        # A batch of one, because the gradient of torch's group normalization takes 25 times as
        # long on a CPU where the channels lie last, in half precision.
        parts = [
            F.batch_norm(part, None, None, self.weight, self.bias, training=True)
            for part in features.split(1)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
