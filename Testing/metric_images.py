"""Images of two contrasts for tests of learned similarities, and small networks for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pairs
import torch

from DeepRegLib import registry
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.registration.base import Image, ImagePair
from DeepRegLib.registration.model_frame import normalized
from DeepRegLib.registration.trainable import Batch, total

#: Voxel size of the small models, and parameters that make their networks small.
MODEL_MM = 3.0
SMALL = {
    "deep_metric": {"channels": (8, 12, 12, 16, 16), "patches": 24, "shifts": (2, 8)},
    "ssemnet": {"channels": (6, 10, 12)},
}


def other_contrast(values):
    """A curve that rises and falls, so that no straight line leads from one contrast to the other.

    The background stays 0, the body (40) gets 93, its dark and its bright blobs less.
    """
    return values * (110.0 - values) / 30.0


def bend(points):
    """Moves points by 4 mm at most, smoothly."""
    return points + 4.0 * np.sin(points[..., [1, 2, 0]] / 9.0)


def texture(seed, shape=(28, 36, 24), sigma=1.5):
    """A random image (1, 1, *shape) without background, 0.2 to 1."""
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian_smooth(noise, sigma)
    return 0.2 + 0.8 * (smooth - smooth.min()) / (smooth.max() - smooth.min())


def aligned_batch(two_contrasts=True, shape=(24, 28, 24)):
    """The phantom in two contrasts at the same place, on an upright grid."""
    matrix = np.diag([MODEL_MM] * 3 + [1.0])
    matrix[:3, 3] = -MODEL_MM * (np.array(shape) - 1) / 2
    grid = Grid(shape, matrix)
    values = pairs.phantom(pairs.voxel_points(grid))
    both = [values, other_contrast(values) if two_contrasts else values]
    seen = [normalized(Image.from_array(v.astype(np.float32), grid)) for v in both]
    return Batch(seen[0], seen[1], MODEL_MM)


def bent_pair(two_contrasts=True, **extra):
    """Phantom and bent phantom on two oblique, anisotropic grids, the second in another contrast."""
    fixed, moving = (
        g.resized([n * 3 // 2 for n in g.shape]) for g in (pairs.fixed_grid(), pairs.moving_grid())
    )
    values = pairs.phantom(bend(pairs.voxel_points(moving)))
    values = other_contrast(values) if two_contrasts else values
    noise = np.random.default_rng(5).normal(0, 0.5, values.shape)
    image = Image.from_array((values + noise).astype(np.float32), moving)
    return ImagePair(pairs.make_image(fixed), image, **extra)


def bend_error_mm(transform):
    """Mean distance from the truth of `bent_pair`, in the fixed space."""
    points = pairs.body_points()
    return float(np.linalg.norm(bend(transform.map_points_ras(points)) - points, axis=1).mean())


def trained(key, batch, steps, rate=2e-3, **values):
    """A small system with a network that was trained on one batch; shifted at random each step."""
    system = registry.create(key, **{**SMALL[key], **values})
    torch.manual_seed(0)
    network = system.build()
    adam = torch.optim.Adam(network.parameters(), lr=rate)
    for step in range(steps):
        terms = system.training_loss(network, replace(batch, step=step))
        adam.zero_grad()
        total(terms).backward()
        adam.step()
    return system, network.eval()


def put(folder, system, network, name="small"):
    """Writes a model file of a small system; returns its path as a text."""
    key = type(system).__module__.rpartition(".")[2]
    spec = registry.spec(key)
    values = {p.name: system.values[p.name] for p in spec.parameters if p.training}
    path = folder / f"{name}.safetensors"
    save_model(path, network, ModelCard(name, key, values, MODEL_MM, (24, 28, 24)))
    return str(path)
