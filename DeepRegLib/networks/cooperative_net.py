"""A registration network together with an autoencoder of the displacements that it finds.

Bhalodia et al. 2019, doi:10.1007/978-3-030-32245-8_44.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry.sampling import resize_image
from .blocks import Convolution, Head, enlarged, pair_input, resized_vectors
from .cells import CellReader, CellWriter
from .unet import voxelmorph_unet

#: Factor of what the linear layers say. Their weights are as much larger, so that the optimizer,
#: whose steps have a fixed length, turns them more slowly.
_SLOW = 0.1


class CooperativeNetwork(nn.Module):
    """Both networks, so that one training step learns both.

    Args:
        encoder: Channels of the registration network at 1/2, 1/4, ... of the resolution.
        decoder: Its channels from the coarsest resolution up to half.
        final: Its channels at the full resolution.
        autoencoder: Channels of the autoencoder at 1/2, 1/4, ... of the resolution.
        latent: Numbers of the code.
        cells: Lattice of the dense layers along each tensor axis.
        lattice: Lattice of the linear path of the autoencoder.
    """

    def __init__(
        self,
        encoder: Sequence[int],
        decoder: Sequence[int],
        final: Sequence[int],
        autoencoder: Sequence[int],
        latent: int,
        cells: Sequence[int],
        lattice: Sequence[int],
    ) -> None:
        super().__init__()
        self.registration = _Registration(encoder, decoder, final)
        self.autoencoder = FieldAutoencoder(autoencoder, latent, cells, lattice)

    def forward(
        self, fixed: Tensor, moving: Tensor, share: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Registers a pair and encodes the displacement.

        Args:
            fixed: (B, 1, *shape).
            moving: (B, 1, *shape).
            share: Share of the autoencoder's gradient that reaches the displacement, 0 to 1. The
                autoencoder itself always learns.

        Returns:
            The displacement u, its reconstruction AE(u), both (B, 3, *shape) in voxels, and the
            code (B, latent).
        """
        displacement = self.registration(fixed, moving)
        rebuilt, code = self.autoencoder(shared_gradient(displacement, share))
        return displacement, rebuilt, code


class _Registration(nn.Module):
    """U-Net to the full resolution and the convolution that gives the displacement."""

    def __init__(
        self, encoder: Sequence[int], decoder: Sequence[int], final: Sequence[int]
    ) -> None:
        super().__init__()
        self.unet = voxelmorph_unet(encoder, decoder, final)
        self.head = Head(self.unet.outputs)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns the displacement, (B, 3, *shape) in voxels; images are (B, 1, *shape)."""
        displacement: Tensor = self.head(self.unet(pair_input(fixed, moving)))
        return displacement


class FieldAutoencoder(nn.Module):
    """An autoencoder of displacements with a narrow code.

    Convolutions of stride 2 lead to a lattice of cells and a dense layer to the code; the decoder
    is the mirror of that, up to half the resolution, where the vectors are read off and enlarged.
    Beside them code and displacement have a linear path: it finds the principal modes, which hold
    most of what a population has in common and which convolutions are slow to learn.

    Args:
        channels: Channels at 1/2, 1/4, ... of the resolution.
        latent: Numbers of the code.
        cells: Lattice of the dense layers along each tensor axis.
        lattice: Lattice of the vectors of the linear path.
    """

    def __init__(
        self, channels: Sequence[int], latent: int, cells: Sequence[int], lattice: Sequence[int]
    ) -> None:
        super().__init__()
        self.linear = _LinearPath(latent, lattice)
        self.down = nn.ModuleList(
            Convolution(i, o, stride=2) for i, o in zip([3, *channels], channels)
        )
        self.reader = CellReader(channels[-1], cells, latent)
        self.writer = CellWriter(latent, channels[-1], cells)
        backwards = [*reversed(channels)]
        self.up = nn.ModuleList(
            Convolution(i, o) for i, o in itertools.pairwise([backwards[0], *backwards])
        )
        self.head = Head(channels[0])

    def forward(self, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the reconstruction, (B, 3, *shape) in voxels, and the code, (B, latent)."""
        code = self.encode(displacement)
        return self.decode(code, displacement.shape[2:]), code

    def encode(self, displacement: Tensor) -> Tensor:
        """Returns the codes (B, latent) of displacements (B, 3, *shape) in voxels."""
        features = displacement.contiguous(memory_format=torch.channels_last_3d)
        for layer in self.down:
            features = layer(features)
        code: Tensor = self.reader(features)[0] + self.linear.read(displacement)
        return code

    def decode(self, code: Tensor, shape: Sequence[int]) -> Tensor:
        """Returns the displacements (B, 3, *shape) in voxels that codes (B, latent) stand for."""
        sizes = [list(shape)]
        for _ in self.down:
            sizes.append([-(-n // 2) for n in sizes[-1]])
        features = self.writer(code, sizes[-1])
        for layer, size in zip(self.up, reversed(sizes[1:])):
            joined = enlarged(features, size).contiguous(memory_format=torch.channels_last_3d)
            features = layer(joined)
        return resized_vectors(self.head(features), shape) + self.linear.written(code, shape)


class _LinearPath(nn.Module):
    """From displacements to a code and back, by linear maps of the vectors on a lattice.

    Args:
        latent: Numbers of the code.
        lattice: Vectors along each tensor axis.
    """

    def __init__(self, latent: int, lattice: Sequence[int]) -> None:
        super().__init__()
        a, b, c = (int(n) for n in lattice)
        self._lattice, count = (a, b, c), 3 * a * b * c
        self.reader = nn.Linear(count, latent, bias=False)
        self.writer = nn.Linear(latent, count)
        nn.init.normal_(self.reader.weight, 0.0, count**-0.5 / _SLOW)
        with torch.no_grad():
            # At first what comes out is the projection onto a few directions: next to nothing.
            self.writer.weight.copy_(self.reader.weight.T)
            self.writer.bias.zero_()

    def read(self, displacement: Tensor) -> Tensor:
        """Returns the part in the codes, (B, latent), float32."""
        with torch.autocast(displacement.device.type, enabled=False):
            vectors = F.adaptive_avg_pool3d(displacement.float().contiguous(), self._lattice)
            code: Tensor = _SLOW * self.reader(vectors.flatten(1))
            return code

    def written(self, code: Tensor, shape: Sequence[int]) -> Tensor:
        """Returns the part in the displacements, (B, 3, *shape) in voxels of that shape."""
        with torch.autocast(code.device.type, enabled=False):
            vectors = _SLOW * self.writer(code.float())
            return resize_image(vectors.reshape(-1, 3, *self._lattice), shape, antialias=False)


def shared_gradient(values: Tensor, share: float) -> Tensor:
    """Returns the values themselves, to whose origin only a share of a gradient passes."""
    still = values.detach()
    return values if share >= 1.0 else still + share * (values - still)
