"""A convolutional autoencoder, whose encoder describes the surroundings of every voxel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Convolution, enlarged


class FeatureAutoencoder(nn.Module):
    """Convolutions with maxima of 2 x 2 x 2 voxels in between, and their mirror image.

    Sections, which have one voxel along an axis, are not halved along it; the network takes
    volumes and sections alike.

    Args:
        channels: Channels at 1, 1/2, 1/4, ... of the resolution.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        sizes = [1, *channels]
        self.encoder = nn.ModuleList(
            Convolution(a, b, activation="relu") for a, b in itertools.pairwise(sizes)
        )
        back = [channels[-1], *reversed(channels)]
        self.decoder = nn.ModuleList(
            Convolution(a, b, activation="relu") for a, b in itertools.pairwise(back)
        )
        self.last = Convolution(channels[0], 1, activation="linear")
        nn.init.normal_(self.last.convolution.weight, 0.0, 1e-2)

    @property
    def multiple(self) -> int:
        """Sizes that the network takes as they are are multiples of this, or 1."""
        return int(2 ** len(self.encoder))

    def forward(self, image: Tensor) -> Tensor:
        """Returns the image again, (B, 1, *shape), as far as its code tells; -1 to 1."""
        shape = image.shape[2:]
        features = self.features(image)
        code = _halved(features[-1])
        for layer, same in zip(self.decoder, reversed(features)):
            code = layer(enlarged(code, same.shape[2:]))
        again: Tensor = torch.tanh(self.last(code))
        return again[:, :, : shape[0], : shape[1], : shape[2]]

    def features(self, image: Tensor) -> list[Tensor]:
        """Returns the features of each resolution, (B, channels, *shape / 1, 2, 4, ...).

        Args:
            image: (B, 1, *shape), 0 to 1; sizes that do not fit are filled up (see `filled_up`).
        """
        found: list[Tensor] = []
        image = filled_up(image, self.multiple)
        for layer in self.encoder:
            image = layer(image if not found else _halved(found[-1]))
            found.append(image)
        return found


def filled_up(image: Tensor, multiple: int, edge: bool = True) -> Tensor:
    """Returns an image whose sizes are multiples of a number, or 1.

    Args:
        image: (B, C, *shape).
        multiple: The number.
        edge: Whether the edge is repeated behind; zeros otherwise.
    """
    rest = [0 if n == 1 else -n % multiple for n in image.shape[2:]]
    if not any(rest):
        return image
    sides = [side for after in reversed(rest) for side in (0, after)]
    return F.pad(image, sides, mode="replicate") if edge else F.pad(image, sides)


def corrupted(images: Tensor, share: float) -> Tensor:
    """Returns images with tiles that are black or inverted, from torch's global generator.

    Args:
        images: (B, 1, *shape), 0 to 1.
        share: Share of each image that tiles cover, about.
    """
    if share <= 0.0:
        return images
    spoiled = images.clone()
    shape = images.shape[2:]
    for image in spoiled:
        covered = 0.0
        while covered < share:
            sizes = [_tile(n) for n in shape]
            starts = [int(torch.randint(n - s + 1, ())) for n, s in zip(shape, sizes)]
            tile = image[(slice(None), *(slice(a, a + s) for a, s in zip(starts, sizes)))]
            tile.copy_(torch.zeros_like(tile) if torch.rand(()) < 0.5 else 1.0 - tile)
            covered += float(tile.numel()) / image.numel()
    return spoiled


def _tile(size: int) -> int:
    """Draws the width of a tile along an axis: a tenth to three tenths of it."""
    return 1 if size == 1 else max(2, round(size * (0.1 + 0.2 * float(torch.rand(())))))


def _halved(image: Tensor) -> Tensor:
    return F.max_pool3d(image, [2 if n > 1 else 1 for n in image.shape[2:]])
