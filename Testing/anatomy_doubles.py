"""A model of anatomies for tests: smooth shapes and textures that no registration had to find."""

from __future__ import annotations

import torch
from support import make_grid

from DeepRegLib.geometry.field import fade_window
from DeepRegLib.geometry.sampling import gaussian_smooth, voxel_coordinates
from DeepRegLib.training.shape_model import AnatomyModel

SHAPE, LATTICE = (20, 28, 24), (10, 14, 12)
GRID = make_grid("RAS", SHAPE, (3.0, 3.0, 3.0))
#: Where no image ends.
INNER = (slice(None), slice(None), slice(3, -3), slice(3, -3), slice(3, -3))


def make_model(n=5, size=1.2, seed=0, labels=True, **values):
    """A model of smooth shapes of up to `size` lattice voxels, and textures that are alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = gaussian_smooth(torch.randn(n, 3, *LATTICE, generator=generator), 2.5)
    noise = noise * fade_window(LATTICE, 3)
    velocities = noise * (size / noise.norm(dim=1).max())
    x = voxel_coordinates(SHAPE)
    away = (x - (torch.tensor(SHAPE).view(1, 3, 1, 1, 1) - 1) / 2).norm(dim=1, keepdim=True)
    waves = torch.sin(x / 3.0).prod(dim=1, keepdim=True)
    template = torch.sigmoid(8.0 - away) * (0.6 + 0.25 * waves)
    changes = 0.05 * gaussian_smooth(torch.randn(n, 1, *SHAPE, generator=generator), 1.0)
    textures = (template + changes * (template > 0.1)).clamp(0.0, 1.0)
    regions = (template > 0.3).long() + (away < 3.0).long() if labels else None
    values = {"locality_mm": (0.0, 40.0, 20.0), "texture_locality_mm": (0.0, 20.0), **values}
    return AnatomyModel(GRID, velocities, textures, regions, about={"engine": "svf"}, **values)
