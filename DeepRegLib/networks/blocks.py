"""Parts that the networks share: convolutions, doubling, and the layer that ends in vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import GeometryError
from ..geometry.field import Field
from ..geometry.grid import Grid
from ..geometry.sampling import sample, voxel_coordinates

#: Slope of the leaky rectifier for negative values.
_LEAK = 0.2
#: Batch times channels times the first two sizes, up to which torch takes its slow convolution.
_SMALL = 20480
#: Least standard deviation of an image that is scaled to one.
_LEAST = 1e-3


class Convolution(nn.Module):
    """A convolution of odd width that keeps the shape (or halves it), and its activation.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: 2 keeps every other voxel; sizes n become (n + 1) // 2.
        activation: ``leaky`` (slope 0.2), ``relu``, ``prelu`` (one learned slope for each channel)
            or ``linear``.
        width: Voxels of the kernel along each axis, odd.
        bias: Whether a constant is added to each channel.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        activation: str = "leaky",
        width: int = 3,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(inputs, outputs, width, stride, width // 2, bias=bias)
        self.activation = _activation(activation, outputs)
        # The weights keep the variance of the features (He et al. 2015, doi:10.1109/ICCV.2015.123).
        slope = {"leaky": _LEAK, "prelu": 0.25, "linear": 1.0}.get(activation, 0.0)
        nn.init.kaiming_normal_(self.convolution.weight, slope)
        if self.convolution.bias is not None:
            nn.init.zeros_(self.convolution.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the features, (B, outputs, *shape)."""
        features: Tensor = self.activation(convolved(image, self.convolution))
        return features


class Head(nn.Module):
    """The convolution that ends in vectors (or other numbers for each voxel).

    Its weights begin so small that nothing moves.

    Args:
        inputs: Channels that come in.
        outputs: Numbers for each voxel.
        spread: Standard deviation of the weights at the beginning.
        start: What comes out at the beginning.
        width: Voxels of the kernel along each axis, odd.
        bias: Whether a constant is added to each number; without it `start` has no effect.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int = 3,
        spread: float = 1e-5,
        start: float = 0.0,
        width: int = 3,
        bias: bool = True,
    ) -> None:
        super().__init__()
        layer = nn.Conv3d(inputs, outputs, width, padding=width // 2, bias=bias)
        self.convolution = result_layer(layer)
        nn.init.normal_(self.convolution.weight, 0.0, spread)
        if self.convolution.bias is not None:
            nn.init.constant_(self.convolution.bias, start)

    def forward(self, features: Tensor) -> Tensor:
        """Returns (B, outputs, *shape) in single precision, channels first."""
        # Half precision has steps of a 30th of a voxel at 4 voxels: too coarse for vectors.
        with torch.autocast(features.device.type, enabled=False):
            return convolved(features.float(), self.convolution).contiguous()


_Layer = TypeVar("_Layer", bound=nn.Module)


def result_layer(layer: _Layer) -> _Layer:
    """Marks a layer as the last one, whose outputs are what the network says; returns it.

    The optimizer treats it with more care than hidden layers; see `optimizer.hidden_weights`.
    """
    layer.gives_result = True  # type: ignore[assignment]
    return layer


class Doubling(nn.Module):
    """A transposed convolution of width and stride 2: each voxel becomes eight, with weights.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        bias: Whether a constant is added to each channel.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose3d(inputs, outputs, 2, stride=2, bias=bias)
        # Each voxel that goes out has one voxel that came in: a linear map of its channels.
        nn.init.normal_(self.convolution.weight, 0.0, (1.0 / inputs) ** 0.5)
        if self.convolution.bias is not None:
            nn.init.zeros_(self.convolution.bias)

    def forward(self, features: Tensor, shape: Sequence[int]) -> Tensor:
        """Returns (B, outputs, *shape), where `features` have half that shape, rounded up."""
        if _is_slow(features) and features.shape[2] % 2 == 0:
            doubled = torch.cat(self.convolution(torch.cat(features.chunk(2, 2))).chunk(2), 2)
        else:
            doubled = self.convolution(features)
        a, b, c = shape
        return doubled[:, :, :a, :b, :c]


def convolved(image: Tensor, layer: nn.Conv3d) -> Tensor:
    """Returns a convolution with equal padding on both sides, as fast as the CPU can.

    torch gives one small volume in single precision to a general loop on the CPU, several times
    slower than the library that it uses for batches and for large volumes. So a small volume is
    cut in two along its first axis, with what the kernel sees of the other half, and both halves
    pose as a batch.

    Args:
        image: (B, C, *shape).
        layer: Its kernel is odd and its padding half of that.
    """
    sizes = image.shape
    if not _is_slow(image):
        return layer(image)  # type: ignore[no-any-return]
    stride, radius = layer.stride[0], layer.kernel_size[0] // 2
    outputs = -(-sizes[2] // stride)
    half = stride * -(-outputs // 2)
    length = half + 2 * radius
    padded = F.pad(image, (0, 0, 0, 0, radius, half + length - radius - sizes[2]))
    halves = torch.cat([padded.narrow(2, 0, length), padded.narrow(2, half, length)])
    padding = (0, *layer.padding[1:])
    both = F.conv3d(halves, layer.weight, layer.bias, layer.stride, padding)
    count = half // stride
    return torch.cat([both[:1, :, :count], both[1:, :, :count]], dim=2).narrow(2, 0, outputs)


def _is_slow(image: Tensor) -> bool:
    """Tells whether torch would take its slow convolution; see `convolved`."""
    sizes = image.shape
    small = sizes[0] == 1 and sizes[:4].numel() <= _SMALL and sizes[2] >= 4
    single = image.device.type == "cpu" and image.dtype == torch.float32
    return small and single and not torch.is_autocast_enabled("cpu")


def standardized(image: Tensor) -> Tensor:
    """Returns images (B, C, *shape) with mean 0 and standard deviation 1 in each channel."""
    mean = image.mean(dim=(2, 3, 4), keepdim=True)
    deviation = image.std(dim=(2, 3, 4), correction=0, keepdim=True)
    return (image - mean) / deviation.clamp(min=_LEAST)


def pair_input(fixed: Tensor, moving: Tensor) -> Tensor:
    """Returns both images as channels, (B, 2, *shape): moving, then fixed.

    The layout is channels last, in which convolutions on a CPU are fastest.

    Raises:
        GeometryError: If the images are not (B, 1, *shape) of the same shape.
    """
    if fixed.ndim != 5 or fixed.shape != moving.shape or fixed.shape[1] != 1:
        raise GeometryError(
            "A network takes two images of the same shape (B, 1, D, H, W), but got "
            f"{tuple(fixed.shape)} and {tuple(moving.shape)}."
        )
    both = torch.cat([moving, fixed], dim=1)
    return both.contiguous(memory_format=torch.channels_last_3d)


def channels_last(network: nn.Module) -> nn.Module:
    """Returns the network with its kernels laid out as the features are; see `pair_input`."""
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]


def halved(features: Tensor) -> Tensor:
    """Returns means of 2 x 2 x 2 voxels; of an odd size the last voxel is left out.

    That is `avg_pool3d`, which on a CPU knows neither channels last nor half precision.
    """
    last = features.is_contiguous(memory_format=torch.channels_last_3d)
    if features.device.type != "cpu" or not last or features.shape[1] == 1:
        return F.avg_pool3d(features, 2)
    return _Halving.apply(features)  # type: ignore[no-any-return,no-untyped-call]


class _Halving(torch.autograd.Function):
    """Adds the two voxels of each pair, axis by axis."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        """Returns the means."""
        ctx.shape = features.shape
        for axis in (2, 3, 4):
            even = features.shape[axis] // 2 * 2
            features = features.narrow(axis, 0, even)
            first, second = features.unflatten(axis, (-1, 2)).unbind(axis + 1)
            features = first + second
        return features.mul_(0.125)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Returns an eighth of the gradient at each of the eight voxels."""
        gradient = (0.125 * gradients[0]).permute(0, 2, 3, 4, 1)
        b, d, h, w, c = gradient.shape
        eight = gradient[:, :, None, :, None, :, None].expand(b, d, 2, h, 2, w, 2, c)
        whole = eight.reshape(b, 2 * d, 2 * h, 2 * w, c).permute(0, 4, 1, 2, 3)
        lacking = [n - m for n, m in zip(ctx.shape[2:], whole.shape[2:])]
        if any(lacking):
            whole = F.pad(whole, [side for n in reversed(lacking) for side in (0, n)])
        return whole


def enlarged(features: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns features (B, C, *shape) of about twice the size, each voxel repeated."""
    if tuple(features.shape[2:]) == tuple(shape):
        return features
    return F.interpolate(features, size=tuple(shape), mode="nearest")


def resized_vectors(field: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns a displacement or velocity on a grid of another shape over the same extent.

    Convention:
        The field is (B, 3, *old) in voxels of its grid, the result (B, 3, *shape) in voxels of the
        new one: values grow with the number of voxels. Differentiable.
    """
    sizes = [int(n) for n in field.shape[2:]]
    grid = Grid((sizes[0], sizes[1], sizes[2]), np.eye(4))
    return Field(field, grid).resized([int(n) for n in shape]).displacement


def warped(image: Tensor, displacement: Tensor) -> Tensor:
    """Returns image(x + u(x)), (B, C, *shape), differentiable by both; the edge is repeated.

    Convention:
        `displacement` is (B, 3, *shape) in voxels of the grid of the image.
    """
    where = voxel_coordinates(displacement.shape[2:], displacement.device, displacement.dtype)
    return sample(image, where + displacement)


def _activation(name: str, channels: int) -> nn.Module:
    if name == "leaky":
        return nn.LeakyReLU(_LEAK)
    if name == "relu":
        return nn.ReLU()
    if name == "prelu":
        return nn.PReLU(channels)
    if name == "linear":
        return nn.Identity()
    raise ValueError(f"Activation '{name}' is not leaky, relu, prelu or linear.")
