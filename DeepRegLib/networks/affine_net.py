"""A network that finds an affine map between two images, and affine maps in voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import convolved, result_layer
from .dual_stream import first_layout

#: Voxels that the translation moves for an output of one; rotations and scales move the rim of an
#: object of usual size about as far.
_REACH = 20.0


class AffineNetwork(nn.Module):
    """AIRNet: both images pass one convolutional network, a dense network reads the map off.

    De Vos et al. 2019, doi:10.1016/j.media.2018.11.010. Five times a convolution of 3 x 3 x 3, ELU
    and average pooling, then the mean over the image; the features of both images go through two
    dense layers to translation, rotation (up to 90 degrees), scale (half to twice) and shear (up
    to 45 degrees). Images of different sizes are fine: each has its own pass.

    Other than in the publication the images are averaged to half their resolution first, which an
    affine map does not miss: a step takes a fifth of the time.

    Args:
        channels: Features of each convolution.
        blocks: Convolutions.
        hidden: Features of the dense layers.
    """

    def __init__(self, channels: int = 32, blocks: int = 5, hidden: int = 64) -> None:
        super().__init__()
        inputs = [1, *[channels] * (blocks - 1)]
        self.convolutions = nn.ModuleList(nn.Conv3d(i, channels, 3, padding=1) for i in inputs)
        self.dense = nn.ModuleList([nn.Linear(2 * channels, hidden), nn.Linear(hidden, hidden)])
        self.heads = result_layer(nn.Linear(hidden, 12))
        start_weights(self)
        nn.init.normal_(self.heads.weight, 0.0, 1e-3)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Finds the maps.

        Args:
            fixed: (B, 1, *shape).
            moving: (B, 1, *shape), of the same or any other shape.

        Returns:
            (B, 4, 4), from voxels of the fixed to voxels of the moving grid, float32.
        """
        features = torch.cat([self.describe(fixed), self.describe(moving)], dim=1)
        for layer in self.dense:
            features = F.elu(layer(features))
        found = self.heads(features).float()
        return affine_matrix(
            translation=_REACH * found[:, 0:3],
            rotation=torch.tanh(found[:, 3:6]) * (math.pi / 2),
            scale=torch.exp2(torch.tanh(found[:, 6:9])),
            shear=torch.tanh(found[:, 9:12]) * (math.pi / 4),
            center=center_of(fixed.shape[2:]),
            to=center_of(moving.shape[2:]),
        )

    def describe(self, image: Tensor) -> Tensor:
        """Returns the features of an image, (B, channels)."""
        features = first_layout(_halved(image))
        for layer in self.convolutions:
            assert isinstance(layer, nn.Conv3d)
            features = _halved(F.elu(convolved(features, layer)))
        return features.mean(dim=(2, 3, 4))


def affine_matrix(
    translation: Tensor,
    rotation: Tensor,
    scale: Tensor,
    shear: Tensor,
    center: Sequence[float],
    to: Sequence[float],
) -> Tensor:
    """Returns x -> S K R (x - center) + to + t, with R = Rz Ry Rx.

    De Vos et al. 2019, doi:10.1016/j.media.2018.11.010, section 3.

    Convention:
        x, y and z are the three tensor axes, in this order; lengths are voxels.

    Args:
        translation: t, (B, 3), voxels.
        rotation: Angles about the axes, (B, 3), radians.
        scale: Diagonal of S, (B, 3).
        shear: Angles of the shears of x by y, x by z and y by z, (B, 3), radians.
        center: Where the map has its origin.
        to: Where it takes the origin without a translation.

    Returns:
        (B, 4, 4); differentiable.
    """
    (cx, cy, cz), (sx, sy, sz) = rotation.cos().unbind(1), rotation.sin().unbind(1)
    one, zero = torch.ones_like(cx), torch.zeros_like(cx)
    about_x = _matrix((one, zero, zero), (zero, cx, -sx), (zero, sx, cx))
    about_y = _matrix((cy, zero, sy), (zero, one, zero), (-sy, zero, cy))
    about_z = _matrix((cz, -sz, zero), (sz, cz, zero), (zero, zero, one))
    kxy, kxz, kyz = torch.tan(shear).unbind(1)
    sheared = _matrix((one, kxy, kxz), (zero, one, kyz), (zero, zero, one))
    linear = scale[:, :, None] * (sheared @ about_z @ about_y @ about_x)
    start, end = (torch.tensor(list(c)).to(translation) for c in (center, to))
    offset = end + translation - linear @ start
    top = torch.cat([linear, offset[:, :, None]], dim=2)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(top).expand(len(top), 1, 4)
    return torch.cat([top, bottom], dim=1)


def random_affine(count: int, shape: Sequence[int], amount: float) -> Tensor:
    """Draws affine maps about the middle of a grid, from torch's global generator.

    Args:
        count: How many.
        shape: Shape of the grid.
        amount: 1 draws translations up to 4 voxels, rotations and shears up to 10 and 4 degrees,
            and scales from 0.85 to its inverse, evenly; other values draw as many times as much.

    Returns:
        (count, 4, 4) in voxels.
    """
    draw = amount * (2.0 * torch.rand(4, count, 3) - 1.0)
    middle = center_of(shape)
    return affine_matrix(
        translation=4.0 * draw[0],
        rotation=math.radians(10.0) * draw[1],
        scale=torch.exp(math.log(0.85) * draw[2]),
        shear=math.radians(4.0) * draw[3],
        center=middle,
        to=middle,
    )


def apply_affine(matrix: Tensor, coordinates: Tensor) -> Tensor:
    """Applies matrices (B, 4, 4) to coordinates (B or 1, 3, *out); differentiable by both."""
    flat = coordinates.flatten(2)
    mapped = matrix[:, :3, :3] @ flat + matrix[:, :3, 3:]
    return mapped.reshape(len(mapped), 3, *coordinates.shape[2:])


def center_of(shape: Sequence[int]) -> list[float]:
    """Returns the middle of a grid in voxels."""
    return [(size - 1) / 2 for size in shape]


def start_weights(network: nn.Module) -> None:
    """Gives all layers weights that keep the variance of what passes them, and no biases.

    With those that torch gives (a third of that variance), what is left of the images after seven
    layers is less than the biases. He et al. 2015, doi:10.1109/ICCV.2015.123.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def _halved(image: Tensor) -> Tensor:
    """Averages neighbors; what an odd number of voxels leaves over stays, so any shape will do."""
    width = [min(2, size) for size in image.shape[2:]]
    return F.avg_pool3d(image, width, ceil_mode=True, count_include_pad=False)


def _matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
