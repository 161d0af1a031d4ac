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
from DeepRegLib.training.augment import Augmentation

#: Voxel size of the small models, and parameters that make their networks small.
MODEL_MM = 3.0
SMALL = {
    "deep_metric": {"channels": (8, 12, 12, 16, 16), "patches": 20, "shifts": (1, 8)},
    "ssemnet": {"channels": (6, 10, 12)},
}


def other_contrast(values):
    """A curve that rises steeply up to 30 and falls from there on.

    The background stays 0, the body (40) gets 80, its dark and its bright blobs less.
    """
    rising, falling = 3.0 * values, 120.0 - values
    return falling + (rising - falling) * (rising < falling)


def bend(points):
    """Moves points by 4 mm at most, smoothly."""
    return points + 4.0 * np.sin(points[..., [1, 2, 0]] / 9.0)


def texture(seed, shape=(26, 30, 24), sigma=1.5):
    """A random image (1, 1, *shape) without background, 0.2 to 1."""
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian_smooth(noise, sigma)
    return 0.2 + 0.8 * (smooth - smooth.min()) / (smooth.max() - smooth.min())


def marble(points, seed=7):
    """Structure everywhere: sums of waves of 12 to 30 mm; values 20 to 100.

    There is no outline, which would tell a patch alone whether both images agree.
    """
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(40):
        wave = rng.normal(size=3)
        wave *= 2.0 * np.pi / rng.uniform(12.0, 30.0) / np.linalg.norm(wave)
        total = total + np.cos(points @ wave + rng.uniform(0.0, 2.0 * np.pi))
    return 60.0 + 40.0 * np.tanh(total / 6.0)


def aligned_batch(two_contrasts=True, shape=(24, 28, 24), count=6):
    """Marbles in two contrasts, or the phantom twice, at one place, on an upright grid."""
    matrix = np.diag([MODEL_MM] * 3 + [1.0])
    matrix[:3, 3] = -MODEL_MM * (np.array(shape) - 1) / 2
    grid = Grid(shape, matrix)
    sides: tuple[list, list] = ([], [])
    for seed in range(count):
        points = pairs.voxel_points(grid)
        values = marble(points, 100 + seed) if two_contrasts else pairs.phantom(points)
        values = values + np.random.default_rng(seed).normal(0, 0.5, shape)
        both = [values, other_contrast(values) if two_contrasts else values]
        for side, v in zip(sides, both):
            side.append(normalized(Image.from_array(v.astype(np.float32), grid)))
    return Batch(torch.cat(sides[0]), torch.cat(sides[1]), MODEL_MM)


def bent_pair(two_contrasts=True, **extra):
    """A marble and a bent one in another contrast, or phantoms, on oblique, anisotropic grids."""
    fixed, moving = (
        g.resized([n * 3 // 2 for n in g.shape]) for g in (pairs.fixed_grid(), pairs.moving_grid())
    )
    shows = marble if two_contrasts else pairs.phantom
    still, bent = shows(pairs.voxel_points(fixed)), shows(bend(pairs.voxel_points(moving)))
    bent = other_contrast(bent) if two_contrasts else bent
    images = []
    for seed, (values, grid) in enumerate(((still, fixed), (bent, moving))):
        noise = np.random.default_rng(seed).normal(0, 0.5, values.shape)
        images.append(Image.from_array((values + noise).astype(np.float32), grid))
    return ImagePair(*images, **extra)


def bend_error_mm(transform):
    """Mean distance from the truth of `bent_pair`, in the fixed space."""
    points = pairs.body_points()
    return float(np.linalg.norm(bend(transform.map_points_ras(points)) - points, axis=1).mean())


def trained(key, batch, steps, rate=2e-3, **values):
    """A small system with a network that was trained on one batch, its intensities changed."""
    system = registry.create(key, **{**SMALL[key], **values})
    torch.manual_seed(0)
    network = system.build()
    adam = torch.optim.Adam(network.parameters(), lr=rate)
    shade = Augmentation(gamma=0.15, contrast=0.1, noise=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        seen = shade(replace(batch, step=step), generator)
        terms = system.training_loss(network, seen)
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


def turned_pair(matrix, **extra):
    """A marble and a turned one in another contrast; the true map, fixed to moving, is `matrix`."""
    fixed, moving = pairs.fixed_grid(), pairs.moving_grid()
    back = np.linalg.inv(matrix)
    points = pairs.voxel_points(moving) @ back[:3, :3].T + back[:3, 3]
    turned = other_contrast(marble(points))
    images = (
        Image.from_array(values.astype(np.float32), grid)
        for values, grid in ((marble(pairs.voxel_points(fixed)), fixed), (turned, moving))
    )
    return ImagePair(*images, **extra)
