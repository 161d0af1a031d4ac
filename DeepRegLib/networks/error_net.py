"""The network that reads a registration error off a pair of patches, at one place or everywhere.

Eppenhof & Pluim 2018, doi:10.1117/1.JMI.5.2.024003: two groups of two convolutions and a maximum
over 2 x 2 x 2 voxels, then three fully connected layers, with batch normalization. Convolutions do
not pad, so that what the network says of a patch depends on nothing but its voxels, and the fully
connected layers are convolutions, the first as wide as the features that reach it. The same weights
then judge one patch or a whole volume, in which patches share their features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ParameterError
from ..geometry.jacobian import spatial_gradient
from ..geometry.sampling import sample, voxel_coordinates

#: Distances in voxels at which a volume can be judged.
STEPS = (1, 2, 4)
#: Voxels of the volume that are judged at once; more would need much memory.
_MOST = 3_000_000
#: Change of intensity per voxel below which a slope says little; intensities run from 0 to 1.
_FLAT = 0.07
#: Share of a batch in the running statistics: few patches tell little of all.
_MOMENTUM = 0.05


class Layer(nn.Module):
    """A convolution without padding, batch normalization, and a rectifier.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        width: Voxels of the kernel along each axis.
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(inputs, outputs, width, bias=False)
        self.normalization = nn.BatchNorm3d(outputs, momentum=_MOMENTUM)
        nn.init.kaiming_normal_(self.convolution.weight, nonlinearity="relu")

    def forward(self, features: Tensor, dilation: int, settled: bool) -> Tensor:
        """Returns the features, smaller by dilation x (width - 1) along each axis.

        Args:
            features: (B, inputs, *shape).
            dilation: Distance of the voxels that the kernel takes together.
            settled: Whether the statistics of the training are used in place of those of the batch.
        """
        features = F.conv3d(features, self.convolution.weight, dilation=dilation)
        norm = self.normalization
        if settled:
            features = F.batch_norm(features, norm.running_mean, norm.running_var, norm.weight,
                                    norm.bias, False, 0.0, norm.eps)  # fmt: skip
        else:
            features = norm(features)
        return F.relu(features)


class ErrorNetwork(nn.Module):
    """Estimates a registration error from both images around a place.

    Convention:
        A patch has `field` voxels along each axis, 4 x window + 14, an even number; what is said of
        it is said of its middle, between two voxels. Error in mm, a linear number without bound.

    Args:
        channels: Features of the two groups of convolutions.
        hidden: Features of the first two fully connected layers.
        window: Voxels along each axis that the first fully connected layer sees; each stands for
            four of the images.
        start: What an untrained network says, in mm.

    Raises:
        ParameterError: If there are not two groups and two layers.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (512, 128),
        window: int = 2,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        if len(channels) != 2 or len(hidden) != 2:
            raise ParameterError(
                f"The error map has two groups of convolutions and two hidden layers, not "
                f"{tuple(channels)} and {tuple(hidden)}."
            )
        first, second = channels
        #: Voxels of a patch along each axis.
        self.field = 4 * window + 14
        self.fine = nn.ModuleList([Layer(5, first, 3), Layer(first, first, 3)])
        self.coarse = nn.ModuleList([Layer(first, second, 3), Layer(second, second, 3)])
        self.dense = nn.ModuleList(
            [Layer(second, hidden[0], window), Layer(hidden[0], hidden[1], 1)]
        )
        self.last = nn.Conv3d(hidden[1], 1, 1)
        nn.init.normal_(self.last.weight, 0.0, 1e-2)
        nn.init.constant_(self.last.bias, start)  # type: ignore[arg-type]

    def forward(self, pair: Tensor, step: int = 4, settled: bool = False) -> Tensor:
        """Returns the errors of all patches that fit in, every `step` voxels.

        A step of four is the network as it was published, moved over the images. For smaller ones
        the maxima are taken at more places, and what comes after them reaches over the distance
        that they had: the same numbers as patch by patch, without doing anything twice.

        Args:
            pair: Both images, (B, 2, *shape), each size at least `field`.
            step: Distance of the patches, one of `STEPS`.
            settled: Whether the statistics of the training are used in place of those of the batch;
                they always are in evaluation mode.

        Returns:
            (B, 1, *out), the first of them for the middle of the first patch.
        """
        settled = settled or not self.training
        strides = (2 if step > 1 else 1, 2 if step > 2 else 1)
        features, dilation = _shown(pair), 1
        for layers, stride in zip((self.fine, self.coarse), strides):
            for layer in layers:
                features = layer(features, dilation, settled)
            features = F.max_pool3d(features, 2, stride, dilation=dilation)
            dilation *= 2 // stride
        for layer in self.dense:
            features = layer(features, dilation, settled)
        result: Tensor = self.last(features)
        return result

    def everywhere(self, pair: Tensor, step: int = 2) -> Tensor:
        """Returns the error at every voxel, interpolated between patches `step` voxels apart.

        What lies beyond the images is 0, as is their background. Large volumes are judged slab by
        slab, which makes no difference.

        Args:
            pair: Both images, (1, 2, *shape).
            step: One of `STEPS`.

        Returns:
            (1, 1, *shape), in mm.
        """
        shape = pair.shape[2:]
        # Patches lie around the places step x i - 1/2, so that the first and last are outermost.
        counts = [-(-(2 * n - 1) // (2 * step)) + 1 for n in shape]
        before = self.field // 2
        sides = [
            side
            for n, count in reversed(list(zip(shape, counts)))
            for side in (before, (count - 1) * step + self.field - before - n)
        ]
        padded = F.pad(pair, sides)
        layer = padded.shape[3] * padded.shape[4]
        rows = max(1, (_MOST // layer - self.field) // step)
        parts = []
        for first in range(0, counts[0], rows):
            last = min(first + rows, counts[0])
            slab = padded[:, :, first * step : (last - 1) * step + self.field]
            parts.append(self(slab, step, settled=True))
        found = torch.cat(parts, dim=2)
        where = (voxel_coordinates(shape, pair.device) + 0.5) / step
        return sample(found.float(), where)


def _shown(pair: Tensor) -> Tensor:
    """Returns what the network is shown, (B, 5, *shape less 2): the images, and their forces.

    A force is the displacement that the difference of both asks for along the slope of their mean,
    at most half a voxel (Thirion 1998, doi:10.1016/S1361-8415(98)80022-4).
    """
    apart, slope = pair[:, :1] - pair[:, 1:], spatial_gradient(pair.mean(dim=1, keepdim=True))[:, 0]
    squares = slope.square().sum(dim=1, keepdim=True) + apart.square() + _FLAT**2
    shown = torch.cat([pair, apart * slope / squares], dim=1)[..., 1:-1, 1:-1, 1:-1]
    return shown.contiguous(memory_format=torch.channels_last_3d)
