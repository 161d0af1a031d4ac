"""Doubles for tests of registration by a network: small systems, and answers known in RAS."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pairs
import torch
from support import make_grid, smooth_displacement
from torch import nn

from DeepRegLib import models, registry
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import resize_image, sample, voxel_coordinates
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.registration import learned
from DeepRegLib.registration.base import Image, ImagePair
from DeepRegLib.registration.learned import LearnedRegistration
from DeepRegLib.registration.trainable import Prediction
from DeepRegLib.spec import AlgorithmSpec, Needs, Parameter

SPEC = AlgorithmSpec(
    key="tiny", title="Tiny", family="unsupervised", summary="For tests.", transform="dense",
    needs=Needs(training=True),
    parameters=(
        Parameter(name="model", default="", help="Model."),
        Parameter(name="pair_steps", default=0, minimum=0, maximum=10000, help="Steps."),
        Parameter(name="nodes", default=(4, 4, 4), minimum=1, help="Nodes.", training=True),
        Parameter(name="factor", default=1.0, help="Factor.", training=True),
    ),
)  # fmt: skip


class Tiny(LearnedRegistration):
    """A network without eyes: its weights are a coarse displacement."""

    key = "tiny"
    multiple = 8
    scratch_rate = pair_rate = 0.05

    def build(self):
        return Nodes(self.values["nodes"], self.values["factor"])

    def training_loss(self, network, batch):
        u = network(batch.shape)
        where = voxel_coordinates(batch.shape, u.device) + u
        return {"similarity": (sample(batch.moving, where) - batch.fixed).square().mean(),
                "size": 1e-5 * u.square().mean()}  # fmt: skip

    def predict(self, network, fixed, moving, spacing_mm):
        return Prediction(displacement=network(fixed.shape[2:]), values={"code": [1.5]})


class Nodes(nn.Module):
    def __init__(self, nodes, factor):
        super().__init__()
        self.nodes = nn.Parameter(torch.randn(1, 3, *nodes) * 0.01)
        self.factor = factor

    def forward(self, shape):
        return self.factor * resize_image(self.nodes, tuple(shape), antialias=False)


class Local(LearnedRegistration):
    """Two convolutions: what it says at a voxel depends on two voxels around it, and no more."""

    key = "tiny"
    multiple = 8
    limit = math.inf

    def build(self):
        return nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 3, padding=1)
        )

    def training_loss(self, network, batch):
        self._check(batch.fixed)
        u = network(torch.cat([batch.fixed, batch.moving], 1))
        where = voxel_coordinates(batch.shape, u.device) + u
        return {"similarity": (sample(batch.moving, where) - batch.fixed).square().mean()}

    def predict(self, network, fixed, moving, spacing_mm):
        self._check(fixed)
        u = network(torch.cat([fixed, moving], 1))
        return Prediction(displacement=u, maps={"loud_mm": u.norm(dim=1, keepdim=True),
                                                "parts": (u[:, :1] * 50).round().long()},
                          values={"code": float(fixed.mean())})  # fmt: skip

    def _check(self, fixed):
        if fixed[0, 0].numel() > self.limit:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] not enough memory")


def only_tiny(tmp_path, monkeypatch):
    """Gives an empty folder of models and a registry that knows the double alone."""
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    monkeypatch.setattr(registry, "specs", lambda: {"tiny": SPEC})
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 6)
    return tmp_path


def make(kind=Tiny, **values):
    return kind(**SPEC.values(**values))


def put_model(folder, name="brain", network=None, **changes):
    values = {"nodes": [4, 4, 4], "factor": 1.0}
    card = ModelCard(name, "tiny", values, 4.0, (24, 24, 24), anatomy="brain", contrast="T1",
                     data="generated images", terms="CC0", figures={"dice": 0.8})  # fmt: skip
    save_model(folder / f"{name}.safetensors", network or Nodes((4, 4, 4), 1.0),
               replace(card, **changes))  # fmt: skip


def noisy(grid, seed=0):
    noise = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(seed))
    return Image(noise * 100.0, grid)


LINEAR = np.array([[1.04, 0.05, -0.02, 3.0], [-0.06, 0.97, 0.03, -2.0],
                   [0.02, -0.04, 1.02, 1.5], [0.0, 0.0, 0.0, 1.0]])  # fmt: skip
STRETCH = np.array([[0.05, -0.03, 0.02], [0.01, -0.06, 0.04], [-0.02, 0.03, 0.04]])


def bend_mm(points_ras, center):
    """A displacement that is linear in RAS, so that interpolation adds nothing to it."""
    return (points_ras - center) @ STRETCH.T + [1.3, -0.7, 2.1]


def wave_mm(points_ras, center):
    return 2.0 * np.sin((points_ras - center)[..., [1, 2, 0]] / 12.0)


def on_network_grid(grid, function, center):
    """What a network would say, in voxels of its upright grid."""
    vectors = function(pairs.voxel_points(grid), center) / grid.spacing_mm
    return torch.from_numpy(np.moveaxis(vectors, -1, 0)[None].copy()).float()


def centered(grid, center):
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] += center - grid.center_ras
    return Grid(grid.shape, matrix)


def make_start(kind, center):
    """A start of the pair, on a grid of its own for the field."""
    if kind == "none":
        return None
    linear = pairs.known_matrix(shift=(2.0, 1.0, -3.0))
    if kind == "linear":
        return Transform(linear)
    grid = centered(make_grid("SAR", (14, 18, 16), (4.1, 3.3, 3.7)), center)
    return Transform(linear, Field(smooth_displacement(grid.shape, 0.8), grid))


def scene(orientation, start="none", margin=4):
    """A pair on unlike grids and the grid of a network around the fixed one."""
    fixed = make_grid(orientation, (15, 19, 13), (1.7, 1.2, 2.3), (12, -30, 25))
    moving = centered(make_grid("LPS", (16, 12, 18), (2.1, 2.6, 1.9)), fixed.center_ras + 3.0)
    pair = ImagePair(noisy(fixed, 1), noisy(moving, 2), initial=make_start(start, fixed.center_ras))
    extent = fixed.corners_ras()
    shape = [math.ceil(e / 2.2) + 2 * margin for e in np.ptp(extent, axis=0)]
    matrix = np.diag([2.2, 2.2, 2.2, 1.0])
    # The middle of the network's grid is elsewhere, by no whole number of voxels.
    matrix[:3, 3] = fixed.center_ras + [0.37, -0.81, 0.5] - 2.2 * (np.array(shape) - 1) / 2
    return pair, Grid(tuple(shape), matrix)


def errors_mm(pair, transform, expected):
    """Distances at the fixed voxels, away from the outermost layer."""
    points = pairs.voxel_points(pair.fixed.grid)[1:-1, 1:-1, 1:-1].reshape(-1, 3)
    mapped = transform.map_points_ras(points)
    return np.linalg.norm(mapped - expected(points), axis=1)
