"""Named steps that prepare intensities before a registration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..errors import ParameterError
from ..geometry.sampling import gaussian_smooth, resize_image
from .base import ImagePair
from .preprocess import foreground, level_grid, quantiles, subsample

#: Width of the smooth field that `bias` removes, in mm, and the voxels that it is estimated on.
_BIAS_MM, _BIAS_VOXEL_MM = 30.0, 4.0
#: Quantiles that histograms are matched at.
_QUANTILES = 256


def winsorize(pair: ImagePair) -> ImagePair:
    """Cuts intensities at their 0.5 % and 99.5 % quantiles, in every channel of both images."""

    def cut(data: Tensor) -> Tensor:
        parts = []
        for channel in data.float().split(1, dim=1):
            low, high = quantiles(subsample(channel), (0.005, 0.995)).tolist()
            parts.append(channel.clamp(low, high) if high > low else channel)
        return torch.cat(parts, dim=1)

    return _with_data(pair, cut(pair.fixed.data), cut(pair.moving.data))


def match_histogram(pair: ImagePair) -> ImagePair:
    """Maps the moving intensities so that the foregrounds of both images are distributed alike.

    For one contrast only (Nyul et al. 2000, doi:10.1109/42.836373, with all quantiles as
    landmarks). Beyond the foreground's range the map goes on with its last slope.
    """
    fixed = pair.fixed.data[foreground(pair.fixed).expand(pair.fixed.data.shape)].float()
    moving = pair.moving.data[foreground(pair.moving).expand(pair.moving.data.shape)].float()
    if fixed.numel() < 2 or moving.numel() < 2:
        return pair
    levels = np.linspace(0.0, 1.0, _QUANTILES).tolist()
    target = quantiles(subsample(fixed), levels).cpu().numpy()
    source = quantiles(subsample(moving), levels).cpu().numpy()
    source, index = np.unique(source, return_index=True)
    target = target[index]
    if len(source) < 2:
        return pair
    data = pair.moving.data.float()
    mapped = np.interp(data.cpu().numpy(), source, target)
    below, above = data < float(source[0]), data > float(source[-1])
    result = torch.from_numpy(mapped).to(data)
    scale = float(target[-1] - target[0]) / float(source[-1] - source[0])
    result = torch.where(below, float(target[0]) + (data - float(source[0])) * scale, result)
    result = torch.where(above, float(target[-1]) + (data - float(source[-1])) * scale, result)
    return _with_data(pair, pair.fixed.data, result)


def flatten_bias(pair: ImagePair) -> ImagePair:
    """Divides each image by its smooth brightness, estimated in the foreground.

    Homomorphic unsharp masking (Brinkmann et al. 1998, doi:10.1109/42.700729): the logarithm of the
    intensities is smoothed within the foreground (normalised convolution, 30 mm), and its deviation
    from the mean is taken out. Only for images without negative values, such as MRI.

    Raises:
        ParameterError: If an image has negative intensities.
    """
    data = []
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        if float(image.data.min()) < 0:
            raise ParameterError(
                f"The {name} image has negative intensities, so it has no multiplicative bias; "
                "leave 'bias' out of the preparation."
            )
        inside = foreground(image).float()
        coarse = level_grid(image.grid, _BIAS_VOXEL_MM)
        sigma = [_BIAS_MM / s for s in coarse.spacing_mm]
        weight = resize_image(inside, coarse.shape)
        logs = torch.log(image.data.float().clamp(min=1e-6)) * inside
        total = gaussian_smooth(resize_image(logs, coarse.shape), sigma)
        count = gaussian_smooth(weight, sigma).clamp(min=1e-3)
        field = total / count
        mean = (field * weight).sum() / weight.sum().clamp(min=1e-6)
        field = resize_image(field - mean, image.grid.shape, antialias=False)
        data.append(image.data.float() * torch.exp(-field * inside))
    return _with_data(pair, *data)


#: Steps by the name that parameters use.
STEPS: dict[str, Callable[[ImagePair], ImagePair]] = {
    "winsorize": winsorize,
    "bias": flatten_bias,
    "match": match_histogram,
}


def prepared(pair: ImagePair, steps: str) -> ImagePair:
    """Applies named steps in order.

    Args:
        pair: The images.
        steps: Names joined by ``+``, such as ``winsorize+bias+match``; ``none`` or empty for none.

    Raises:
        ParameterError: If there is no step of a name.
    """
    for name in steps.replace(" ", "").split("+"):
        if name in ("", "none"):
            continue
        if name not in STEPS:
            raise ParameterError(
                f"There is no preparation '{name}'; join some of {', '.join(STEPS)} with '+', "
                "or give 'none'."
            )
        pair = STEPS[name](pair)
    return pair


def _with_data(pair: ImagePair, fixed: Tensor, moving: Tensor) -> ImagePair:
    return replace(
        pair,
        fixed=replace(pair.fixed, data=fixed),
        moving=replace(pair.moving, data=moving),
    )
