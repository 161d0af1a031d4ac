"""Prediction of a momentum patch by patch: two encoders, one for each image, and three decoders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import Convolution, Doubling, Head

#: Edge of a patch, and distance of neighboring patches, in voxels of the lattice of the momentum.
WIDTH, STRIDE = 15, 14
#: Patches that are computed at once where the whole lattice is predicted.
_AT_ONCE = 8
#: Standard deviation of the weights that end in the momentum, before training.
_SPREAD = 3e-4
#: Usual gray value of an object, and half of its range.
_GRAY, _CONTRAST = 0.3, 0.25
#: Features below this are background.
_SHOWN = 0.02

Start = tuple[int, int, int]


class MomentumNetwork(nn.Module):
    """Finds the initial momentum of a geodesic in a patch.

    Yang et al. 2017, doi:10.1016/j.neuroimage.2017.07.008, figure 3: either image passes an encoder
    of its own (two times three convolutions and one of stride 2), and each component of the
    momentum has a decoder of its own (two times a transposed convolution and three plain ones, the
    very last without activation). Other than there, the decoders also see what the encoders found
    before each halving: the momentum is a product of differences and gradients of the images, which
    is slow to learn where both images meet at a quarter of the resolution only.

    Convention:
        Takes features of the fixed and of the moving image, (B, inputs, *patch), 0 to 1, and gives
        (B, 3, *patch), component c along tensor axis c.

    Args:
        inputs: Features of each image in a voxel of the lattice.
        channels: Channels at the full and at half the resolution.
        dropout: Share of the activations that are left out at random, in use as in training.
    """

    def __init__(self, inputs: int, channels: tuple[int, int], dropout: float = 0.0) -> None:
        super().__init__()
        self.fixed = _Encoder(inputs, channels, dropout)
        self.moving = _Encoder(inputs, channels, dropout)
        self.components = nn.ModuleList(_Decoder(channels, dropout) for _ in range(3))

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns the momentum of patches."""
        found = zip(self.fixed(_centered(fixed)), self.moving(_centered(moving)))
        both = [torch.cat(pair, dim=1) for pair in found]
        return torch.cat([decoder(*both) for decoder in self.components], dim=1)


class _Encoder(nn.Module):
    """Three convolutions and one of stride 2, at two resolutions."""

    def __init__(self, inputs: int, channels: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.layers, self.halving = nn.ModuleList(), nn.ModuleList()
        for width in channels:
            self.layers.append(nn.Sequential(*_convolutions(inputs, width, 3, dropout)))
            self.halving.append(Convolution(width, width, stride=2, activation="prelu"))
            inputs = width

    def forward(self, patch: Tensor) -> list[Tensor]:
        """Returns features at the full resolution, at half and at a quarter of it."""
        found = []
        for layers, halving in zip(self.layers, self.halving):
            found.append(layers(patch))
            patch = halving(found[-1])
        return [*found, patch]


class _Decoder(nn.Module):
    """A transposed and three plain convolutions, at two resolutions, for one component."""

    def __init__(self, channels: tuple[int, int], dropout: float) -> None:
        super().__init__()
        fine, coarse = channels
        self.doubling = nn.ModuleList([Doubling(2 * coarse, coarse), Doubling(coarse, fine)])
        self.slopes = nn.ModuleList([nn.PReLU(coarse), nn.PReLU(fine)])
        # What is doubled, and what both encoders found.
        self.coarse = nn.Sequential(*_convolutions(3 * coarse, coarse, 3, dropout))
        self.fine = nn.Sequential(*_convolutions(3 * fine, fine, 2, dropout))
        self.head = Head(fine, outputs=1, spread=_SPREAD)

    def forward(self, full: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
        """Returns the component, (B, 1, *patch), from the features of three resolutions."""
        doubled = self.slopes[0](self.doubling[0](quarter, half.shape[2:]))
        features = self.coarse(torch.cat([doubled, half], dim=1))
        doubled = self.slopes[1](self.doubling[1](features, full.shape[2:]))
        component: Tensor = self.head(self.fine(torch.cat([doubled, full], dim=1)))
        return component


def _centered(features: Tensor) -> Tensor:
    """Returns features about zero, of about unit size: what differs is small beside the gray."""
    return (features - _GRAY) / _CONTRAST


class Dropout(nn.Module):
    """Leaves out a share of the activations at random, also in evaluation mode.

    Gal & Ghahramani 2016, arXiv:1506.02142: what a network says with other activations left out is
    a sample of what it might have learned.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        """Returns the features with some at zero and the others scaled up."""
        return F.dropout(features, self.share, training=True)


def _convolutions(inputs: int, outputs: int, count: int, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for index in range(count):
        layers.append(Convolution(outputs if index else inputs, outputs, activation="prelu"))
        if dropout > 0.0:
            layers.append(Dropout(dropout))
    return layers


def folded(image: Tensor, factors: Sequence[int]) -> Tensor:
    """Returns the voxels of each block as channels of one voxel, so that nothing is lost.

    Args:
        image: (B, 1, *shape); each size is a multiple of its factor.
        factors: Voxels of a block along each tensor axis.

    Returns:
        (B, product of the factors, *shape / factors).
    """
    batch = image.shape[0]
    sizes = [(n // f, f) for n, f in zip(image.shape[2:], factors)]
    blocks = image.reshape(batch, *(n for pair in sizes for n in pair))
    blocks = blocks.permute(0, 2, 4, 6, 1, 3, 5)
    return blocks.reshape(batch, -1, *(n for n, _ in sizes))


def patch_starts(shape: Sequence[int], width: int = WIDTH, stride: int = STRIDE) -> list[Start]:
    """Returns the first voxels of patches that cover a lattice, from its first voxel to its last.

    The last patch of an axis ends with it, so that it may overlap the one before by more.

    Args:
        shape: Lattice, at least `width` along each axis.
        width: Edge of a patch.
        stride: Distance of neighboring patches.
    """
    axes = [[*range(0, n - width, stride), n - width] for n in shape]
    return [(a, b, c) for a, b, c in itertools.product(*axes)]


def cut(features: Tensor, starts: Sequence[Start], width: int = WIDTH) -> Tensor:
    """Returns patches of one pair, (patches, C, width, width, width), from (1, C, *lattice)."""
    return torch.cat(
        [
            features[:, :, a : a + width, b : b + width, c : c + width]
            for a, b, c in starts
        ]
    )  # fmt: skip


def joined(patches: Tensor, starts: Sequence[Start], shape: Sequence[int]) -> Tensor:
    """Returns the mean of overlapping patches, (1, C, *shape); zero where there is none."""
    width = patches.shape[-1]
    total = patches.new_zeros(1, patches.shape[1], *shape)
    count = patches.new_zeros(1, 1, *shape)
    for patch, (a, b, c) in zip(patches, starts):
        where = (..., slice(a, a + width), slice(b, b + width), slice(c, c + width))
        total[where] = total[where] + patch
        count[where] += 1.0
    return total / count.clamp(min=1.0)


def showing(fixed: Tensor, moving: Tensor, starts: Sequence[Start]) -> list[Start]:
    """Returns the patches in which either image shows something."""
    shown = torch.maximum(fixed.amax(1, keepdim=True), moving.amax(1, keepdim=True)) > _SHOWN
    return [
        (a, b, c)
        for a, b, c in starts
        if bool(shown[:, :, a : a + WIDTH, b : b + WIDTH, c : c + WIDTH].any())
    ]


def random_starts(fixed: Tensor, moving: Tensor, count: int) -> list[Start]:
    """Returns random patches that show something, as many as asked for if there are any.

    Args:
        fixed: Features of one fixed image, (1, C, *lattice).
        moving: Those of the moving image.
        count: Number of patches.
    """
    shape = fixed.shape[2:]
    drawn = [
        torch.randint(0, n - WIDTH + 1, (4 * count,)).tolist() for n in shape
    ]  # fmt: skip
    candidates = [(a, b, c) for a, b, c in zip(*drawn)]
    found = showing(fixed, moving, candidates) or candidates
    return (found * count)[:count]


def predicted(network: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
    """Returns the momentum on a whole lattice from overlapping patches.

    Patches without anything to see stay zero. With a tape each patch is computed again for the
    gradient, so that memory does not grow with the lattice.

    Args:
        network: A `MomentumNetwork`.
        fixed: Features of the fixed image, (1, inputs, *lattice).
        moving: Those of the moving image.

    Returns:
        (1, 3, *lattice).
    """
    shape = fixed.shape[2:]
    fixed, moving = at_least(fixed), at_least(moving)
    starts = showing(fixed, moving, patch_starts(fixed.shape[2:]))
    if not starts:
        return fixed.new_zeros(1, 3, *shape)
    taped = torch.is_grad_enabled() and any(p.requires_grad for p in network.parameters())
    parts = []
    for first in range(0, len(starts), _AT_ONCE):
        some = starts[first : first + _AT_ONCE]
        patches = cut(fixed, some), cut(moving, some)
        if taped:
            parts.append(checkpoint(network, *patches, use_reentrant=False))
        else:
            parts.append(network(*patches))
    a, b, c = shape
    return joined(torch.cat(parts), starts, fixed.shape[2:])[:, :, :a, :b, :c]


def at_least(features: Tensor, width: int = WIDTH) -> Tensor:
    """Returns features with zeros behind, so that a patch fits into them."""
    rest = [max(0, width - n) for n in reversed(features.shape[2:])]
    return F.pad(features, [side for r in rest for side in (0, r)]) if any(rest) else features
