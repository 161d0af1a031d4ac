"""Tells whether a network that estimates errors can be believed for a pair of images.

A trained network answers for any images. What it says counts only if they are of the size that it
learned from, if it tells known motions of each image against itself about right, and if its
estimate for the two rises when one of them is moved away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.composite import moved_by
from .base import Image, ImagePair
from .learned import masked
from .model_frame import ModelFrame, normalized, onto_frame
from .rigid_motion import motions_of_error, surface_points

#: Largest voxels, in voxels of the model: thick slices look different.
_COARSEST = 2.0
#: Least and largest extent of an object, as a share of the images that the model was trained on.
_LEAST_EXTENT, _MOST_EXTENT = 0.35, 1.25
#: Known motions, as shares of the largest error that the model tells.
_KNOWN = (0.0, 0.25, 0.5, 0.75)
#: Mean miss that is still believed, and least rise from the smallest motion to the largest. One
#: answer for everything would miss by 0.25.
_MOST_MISS, _LEAST_RISE = 0.2, 0.35
#: Size of the motions of the images against each other, pairs of opposite ones, and their least
#: mean rise. Images that lie 0.7 of the largest error apart should still rise by 0.16.
_AWAY, _TRIED, _LEAST_RESPONSE = 0.5, 3, 0.05
_POINTS = 128
_SEED = 20180612


@dataclass(frozen=True)
class Estimate:
    """The estimated error of an alignment, or why there is none.

    Args:
        mm: Mean error; None if the network cannot be believed.
        reason: Why there is none, to go on with after a colon.
    """

    mm: float | None
    reason: str = ""


def misfit(pair: ImagePair, frame: ModelFrame) -> str:
    """Returns why a model of a frame is not for images of this size; empty if it is."""
    sides = (("fixed", pair.fixed, pair.fixed_mask), ("moving", pair.moving, pair.moving_mask))
    for name, image, mask in sides:
        if 1 in image.grid.shape:
            return f"the {name} image is a single slice"
        if max(image.grid.spacing_mm) > _COARSEST * frame.spacing_mm:
            return (
                f"the voxels of the {name} image are more than twice as large as those that it was "
                f"trained on ({frame.spacing_mm:g} mm)"
            )
        share = _extent(masked(image, mask), frame.spacing_mm) / _length(frame.shape)
        if not _LEAST_EXTENT <= share <= _MOST_EXTENT:
            size = "smaller" if share < 1.0 else "larger"
            return f"the object of the {name} image is {size} than those that it was trained on"
    return ""


def knows(
    network: nn.Module, image: Image, frame: ModelFrame, multiple: int, most_mm: float
) -> bool:
    """Tells whether a network finds out how far an image was moved against itself.

    Args:
        network: Estimates errors in mm of images (N, 1, *shape).
        image: The image, wherever it lies; without what its mask leaves out.
        frame: Frame of the model.
        multiple: See `ModelFrame.grid`.
        most_mm: Largest error that the network learned to tell.
    """
    grid = frame.grid(image, multiple)
    shown = onto_frame(normalized(image), image.grid, grid)
    with torch.no_grad(), _own_randomness():
        motions, errors = _motions(shown, [share * most_mm for share in _KNOWN], frame.spacing_mm)
        said = _said(network, shown, shown, motions)
    miss = float((said - errors).abs().mean())
    return miss <= _MOST_MISS * most_mm and float(said[-1] - said[0]) >= _LEAST_RISE * most_mm


def responds(
    network: nn.Module, fixed: Tensor, moving: Tensor, spacing_mm: float, most_mm: float,
    found_mm: float,
) -> bool:  # fmt: skip
    """Tells whether a network's estimate rises when one of two images is moved away.

    Args:
        network: See `knows`.
        fixed: (1, 1, *shape).
        moving: (1, 1, *shape), as an alignment moves it.
        spacing_mm: Voxel size.
        most_mm: See `knows`.
        found_mm: What the network says of the two.
    """
    with torch.no_grad(), _own_randomness():
        motions, _ = _motions(fixed, [_AWAY * most_mm] * _TRIED, spacing_mm)
        # Opposite motions: one of the two may well lead to a better place.
        away = _said(network, fixed, moving, torch.cat([motions, torch.linalg.inv(motions)]))
    return float(away.mean()) - found_mm >= _LEAST_RESPONSE * most_mm


def _motions(image: Tensor, errors_mm: list[float], spacing_mm: float) -> tuple[Tensor, Tensor]:
    """Returns random motions (N, 4, 4) with these errors, and their errors (N,), on the CPU."""
    # On the CPU, so that the draws are the same on every device.
    points = surface_points(image.cpu(), _POINTS).expand(len(errors_mm), -1, -1)
    wanted = torch.tensor(errors_mm, dtype=torch.float64).clamp(min=1e-3)
    return motions_of_error(points, wanted, spacing_mm)


def _said(network: nn.Module, fixed: Tensor, moving: Tensor, motions: Tensor) -> Tensor:
    """Returns the estimates (N,), float64, on the CPU, for the moving image after motions."""
    shape = (len(motions), *fixed.shape[1:])
    moved = moved_by(moving.expand(shape), motions.to(moving), None)
    said: Tensor = network(fixed.expand(shape), moved)
    return said.double().cpu()


def _extent(image: Image, spacing_mm: float) -> float:
    """Returns the diagonal of the box around an object, in voxels of the model."""
    return _length(ModelFrame(spacing_mm, (1, 1, 1)).grid(image, 1).shape)


def _length(shape: tuple[int, int, int]) -> float:
    return float(np.linalg.norm(shape))


@contextmanager
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield
