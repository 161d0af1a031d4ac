"""The networks of label-driven registration: displacement, affine map, and both composed.

Hu et al. 2018, doi:10.1016/j.media.2018.07.002.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.sampling import resize_image
from .blocks import Doubling, Head, convolved, halved, pair_input, result_layer
from .composite import moved_by
from .dual_stream import check_multiple

#: Halvings of the grid.
DEPTH = 4
#: Voxels that the translation moves for a number of one; turns move the rim about as far.
_REACH = 20.0
#: Cells along each axis whose features the affine network reads.
_CELLS = 2
#: What the numbers of the affine network are multiplied by, so that its steps are small.
_GENTLE = 0.1
#: What the features of a level are multiplied by before they give vectors, over its channels: one
#: step of an optimizer changes all weights, and the sums over many channels leaped by ten voxels.
_GENTLE_FEATURES = 0.3


class NormalizedConvolution(nn.Module):
    """A convolution that keeps the shape, batch normalization, and a rectifier if wanted.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        width: Voxels of the kernel along each axis, odd.
        rectified: Whether negative values become zero.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 3, rectified: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(inputs, outputs, width, padding=width // 2, bias=False)
        self.norm = nn.BatchNorm3d(outputs)
        self.rectified = rectified
        nn.init.kaiming_normal_(self.convolution.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Returns the features, (B, outputs, *shape)."""
        features: Tensor = self.norm(convolved(image, self.convolution))
        return torch.relu(features) if self.rectified else features


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to what came in, before the last rectifier."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = NormalizedConvolution(channels, channels)
        self.second = NormalizedConvolution(channels, channels, rectified=False)

    def forward(self, features: Tensor) -> Tensor:
        """Returns features of the same shape."""
        return torch.relu(self.second(self.first(features)) + features)


class Encoder(nn.Module):
    """Residual blocks with pooling by the maximum between them, and a convolution at the end.

    The first convolution is 7 voxels wide. Pooling by pairs keeps features centered on the voxels
    of the coarser grid.

    Args:
        inputs: Channels of the images.
        channels: Channels at 1, 1/2, ... of the resolution; the last has no residual block.
    """

    def __init__(self, inputs: int, channels: Sequence[int]) -> None:
        super().__init__()
        before = [inputs, *channels[:-2]]
        self.enter = nn.ModuleList(
            NormalizedConvolution(i, o, 3 if level else 7)
            for level, (i, o) in enumerate(zip(before, channels[:-1]))
        )
        self.residual = nn.ModuleList(ResidualBlock(c) for c in channels[:-1])
        self.deep = NormalizedConvolution(channels[-2], channels[-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the features of all resolutions, from fine to coarse."""
        found, features = [], images
        for enter, residual in zip(self.enter, self.residual):
            found.append(residual(enter(features)))
            features = F.max_pool3d(found[-1], 2)
        return [*found, self.deep(features)]


class UpBlock(nn.Module):
    """Doubles the resolution: a transposed convolution plus the enlarged features themselves.

    Additive upsampling: the features are enlarged linearly, and the two halves of their channels
    are added up. The skip is added too, not appended.

    Args:
        outputs: Channels that go out; twice as many come in.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.doubling = Doubling(2 * outputs, outputs, bias=False)
        self.norm = nn.BatchNorm3d(outputs)
        self.residual = ResidualBlock(outputs)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Returns features of the shape of `skip`."""
        shape = skip.shape[2:]
        halves = features.chunk(2, dim=1)
        enlarged = resize_image(halves[0] + halves[1], shape, antialias=False)
        learned = torch.relu(self.norm(self.doubling(features, shape)))
        found: Tensor = self.residual(learned + enlarged + skip)
        return found


class LocalNet(nn.Module):
    """Gives a displacement as the sum of what several resolutions say of it.

    Four residual blocks down, a convolution at the coarsest resolution, and as many blocks up. A
    convolution at each chosen level gives vectors in voxels of the full grid, zero at first; they
    are enlarged linearly, without a change of their values, and added up.

    Args:
        channels: Channels at the full resolution; twice as many at each coarser one.
        levels: Levels whose vectors are added up; 0 is the full resolution, 4 the coarsest. What is
            finer than the finest of them is not computed on the way up.

    Raises:
        ParameterError: If there is no such level.
    """

    def __init__(self, channels: int, levels: Sequence[int] = (0, 1, 2, 3, 4)) -> None:
        super().__init__()
        if not levels or not set(levels) <= set(range(DEPTH + 1)):
            raise ParameterError(
                f"The levels of the network are 0 (full resolution) to {DEPTH} (coarsest), not "
                f"{', '.join(map(str, levels))}."
            )
        #: From coarse to fine, each once.
        self.levels = tuple(sorted(set(levels), reverse=True))
        widths = [channels * 2**level for level in range(DEPTH + 1)]
        self.encoder = Encoder(2, widths)
        finest = self.levels[-1]
        self.up = nn.ModuleList(UpBlock(widths[k]) for k in range(DEPTH - 1, finest - 1, -1))
        self.heads = nn.ModuleList(Head(widths[level], spread=0.0) for level in self.levels)
        self._gentle = [_GENTLE_FEATURES / widths[level] for level in self.levels]

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns the displacement, (B, 3, *shape) in voxels; images are (B, 1, *shape).

        Raises:
            GeometryError: If a size is no multiple of 16.
        """
        shape = fixed.shape[2:]
        check_multiple(shape, 2**DEPTH)
        passed = self.encoder(pair_input(fixed, moving))
        features = {DEPTH: passed.pop()}
        for level, block in zip(range(DEPTH - 1, -1, -1), self.up):
            features[level] = block(features[level + 1], passed.pop())
        parts = [
            head(share * features[k])
            for k, head, share in zip(self.levels, self.heads, self._gentle)
        ]
        return torch.stack([resize_image(p, shape, antialias=False) for p in parts]).sum(dim=0)


class GlobalNet(nn.Module):
    """Gives an affine map of twelve numbers, the identity at first.

    The encoder of `LocalNet` sees images of half the resolution, which an affine map does not miss
    (a step takes an eighth of the time); the mean features of eight cells are read by one dense
    layer, whatever the shape of the images.

    Args:
        channels: Channels at half the resolution; twice as many at each coarser one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(DEPTH)]
        self.encoder = Encoder(2, widths)
        self.numbers = result_layer(nn.Linear(widths[-1] * _CELLS**3, 12))
        nn.init.zeros_(self.numbers.weight)
        nn.init.zeros_(self.numbers.bias)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Returns (B, 4, 4), from voxels of the fixed to voxels of the moving grid, float32.

        Raises:
            GeometryError: If a size is no multiple of 16.
        """
        shape = fixed.shape[2:]
        check_multiple(shape, 2**DEPTH)
        features = self.encoder(halved(pair_input(fixed, moving)))[-1]
        cells = F.adaptive_avg_pool3d(features, _CELLS).flatten(1)
        with torch.autocast(cells.device.type, enabled=False):
            return linear_map(_GENTLE * self.numbers(cells.float()), shape)


def linear_map(numbers: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns x -> (I + D)(x - c) + c + t about the middle c of a grid, (B, 4, 4) in voxels.

    Args:
        numbers: (B, 12): D row by row, then t in units of 20 voxels.
        shape: Shape of the grid.
    """
    linear = numbers[:, :9].reshape(-1, 3, 3) + torch.eye(3).to(numbers)
    middle = torch.tensor([(n - 1) / 2 for n in shape]).to(numbers)
    offset = middle + _REACH * numbers[:, 9:] - linear @ middle
    top = torch.cat([linear, offset[:, :, None]], dim=2)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(top).expand(len(top), 1, 4)
    return torch.cat([top, bottom], dim=1)


class Found(NamedTuple):
    """What a network says of pairs: x -> A(x + u(x)).

    Args:
        matrix: A, (B, 4, 4) in voxels, if there is an affine part.
        displacement: u, (B, 3, *shape) in voxels, if there is a deformable part.
    """

    matrix: Tensor | None
    displacement: Tensor | None


class RegistrationNet(nn.Module):
    """An affine network, a deformable one, or the second after the first.

    The deformable one sees the moving image as the affine map moves it, so that what it finds is
    composed with that map, not added to it.

    Args:
        channels: Channels of the deformable network; None for none.
        levels: See `LocalNet`.
        affine_channels: Channels of the affine network; None for none.
    """

    def __init__(
        self, channels: int | None, levels: Sequence[int], affine_channels: int | None
    ) -> None:
        super().__init__()
        self.affine = None if affine_channels is None else GlobalNet(affine_channels)
        self.local = None if channels is None else LocalNet(channels, levels)

    def forward(self, fixed: Tensor, moving: Tensor) -> Found:
        """Returns what is found; images are (B, 1, *shape)."""
        matrix = None if self.affine is None else self.affine(fixed, moving)
        if self.local is None:
            return Found(matrix, None)
        seen = moving if matrix is None else moved_by(moving, matrix, None)
        return Found(matrix, self.local(fixed, seen))
