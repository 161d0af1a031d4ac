"""A conditional variational autoencoder of deformations: a few numbers stand for a velocity.

Krebs et al. 2019, doi:10.1109/TMI.2019.2897112, figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..geometry.sampling import gaussian_smooth, resize_image
from .blocks import Convolution, Head, enlarged, pair_input
from .cells import CellReader, CellWriter

#: Logarithm of the variance of the code before training.
_START = -6.0
#: Size of the weights that end in the mean and in that logarithm: a pair has to show in its code.
_SPREADS = (2.0, 0.1)


class LatentNetwork(nn.Module):
    """Encoder of a pair of images and decoder that is conditioned on the moving image.

    Args:
        latent: Numbers of the code.
        encoder: Channels of the encoder's convolutions; all but the last halve the grid.
        decoder: Channels of the decoder, from its coarsest resolution to its finest.
        final: Channels of the last convolution before the velocity.
        cells: Lattice of the dense layers along each tensor axis.
        bound: Largest velocity along an axis, in voxels of the images.
        smoothing: Standard deviation of the Gaussian that smooths the velocity, likewise.
        coarsening: Voxels of the images for each voxel of the finest velocity, along an axis.
    """

    def __init__(
        self,
        latent: int,
        encoder: Sequence[int],
        decoder: Sequence[int],
        final: int,
        cells: Sequence[int],
        bound: float,
        smoothing: float,
        coarsening: int,
    ) -> None:
        super().__init__()
        self.encoder = PairEncoder(latent, encoder, cells)
        self.decoder = VelocityDecoder(latent, decoder, final, cells, bound, smoothing, coarsening)

    def forward(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encodes a pair and decodes a code that is drawn in training, else its mean.

        Returns:
            Mean and logarithm of the variance of the code, (B, latent), and the velocities at all
            resolutions of the decoder; see `VelocityDecoder`.
        """
        mean, log_variance = self.encoder(fixed, moving)
        code = mean
        if self.training:
            code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return mean, log_variance, self.decoder(code, moving)


class PairEncoder(nn.Module):
    """Convolutions and two dense layers: the distribution of the code of a pair.

    Args:
        latent: Numbers of the code.
        channels: Channels of the convolutions; all but the last one halve the grid.
        cells: Lattice that the dense layers read.
    """

    def __init__(self, latent: int, channels: Sequence[int], cells: Sequence[int]) -> None:
        super().__init__()
        last = len(channels) - 1
        self.convolutions = nn.Sequential(
            *(
                Convolution(i, o, stride=1 if level == last else 2)
                for level, (i, o) in enumerate(zip([2, *channels], channels))
            )
        )
        self.numbers = CellReader(channels[-1], cells, latent, (0.0, _START), _SPREADS)

    def forward(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and logarithm of the variance, (B, latent), float32."""
        mean, log_variance = self.numbers(self.convolutions(pair_input(fixed, moving)))
        return mean, log_variance


class VelocityDecoder(nn.Module):
    """Turns a code into velocities, at each resolution with a look at the moving image.

    The code becomes features at the coarsest resolution. At each resolution the moving image of
    that size is appended and a convolution follows; then the features are doubled. A velocity is
    read off at each, held within a bound by tanh and smoothed by a Gaussian, so that it is the sum
    of smooth bumps whatever the code.

    Args:
        latent: Numbers of the code.
        channels: Channels from the coarsest resolution to the finest.
        final: Channels of the last convolution before the velocity.
        cells: Lattice that the dense layer writes.
        bound: Largest velocity along an axis, in voxels of the images.
        smoothing: Standard deviation of the Gaussian, likewise.
        coarsening: Voxels of the images for each voxel of the finest velocity, along an axis.
    """

    def __init__(
        self,
        latent: int,
        channels: Sequence[int],
        final: int,
        cells: Sequence[int],
        bound: float,
        smoothing: float,
        coarsening: int,
    ) -> None:
        super().__init__()
        self._bound, self._smoothing, self._finest = bound, smoothing, coarsening
        self.cells = CellWriter(latent, channels[0], cells)
        self.levels = nn.ModuleList(
            Convolution(i + 1, o) for i, o in zip([channels[0], *channels], channels)
        )
        self.final = Convolution(channels[-1], final)
        self.heads = nn.ModuleList(Head(c) for c in (*channels[:-1], final))

    def forward(self, code: Tensor, moving: Tensor) -> list[Tensor]:
        """Decodes codes (B, latent) for moving images (B, 1, *shape).

        Returns:
            Velocities from the coarsest resolution to the finest, (B, 3, *size) in voxels of their
            own grid.
        """
        shape, coarsest = moving.shape[2:], len(self.levels) - 1
        features: Tensor | None = None
        velocities = []
        for level, (layer, head) in enumerate(zip(self.levels, self.heads)):
            smaller = self._finest * 2 ** (coarsest - level)
            size = [-(-n // smaller) for n in shape]
            if features is None:
                features = self.cells(code, size)
            seen = resize_image(moving, size)
            joined = torch.cat([enlarged(features, size), seen.to(features.dtype)], dim=1)
            features = layer(joined.contiguous(memory_format=torch.channels_last_3d))
            if level == coarsest:
                features = self.final(features)
            raw = self._bound / smaller * torch.tanh(head(features))
            velocities.append(gaussian_smooth(raw, self._smoothing / smaller))
        return velocities
