"""Doubles for tests of the training: pairs of shifted blobs, and systems of a few weights."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.trainable import Batch, Prediction, Stage, Trainable

#: Where a voxel of the fixed image lies in the moving image, in voxels along the tensor axes.
SHIFT = (2.0, 1.0, -3.0)
SHAPE = (12, 16, 20)


class Blobs:
    """Pairs of a blob and the same blob, shifted by `SHIFT`; the shape is an anisotropic box."""

    def __init__(self, validation=2, labels=True, fail_at=(), draws=None):
        self.frame = ModelFrame(3.0, SHAPE)
        self.count, self.labels = validation, labels
        #: Numbers of the draws (from 1) without a single number.
        self.fail_at, self.draws = fail_at, draws if draws is not None else []

    def draw(self, count, generator):
        self.draws.append(generator.initial_seed())
        offsets = torch.rand(count, 3, generator=generator) * 2 - 1
        batch = self._batch(offsets)
        return replace(batch, fixed=batch.fixed * math.nan) if self._fails() else batch

    def _fails(self):
        return len(self.draws) in self.fail_at

    def validation(self):
        generator = torch.Generator().manual_seed(99)
        return [self._batch(torch.rand(1, 3, generator=generator) - 0.5) for _ in range(self.count)]

    def describe(self):
        return {"text": "blobs", "subjects": 2, "terms": "free"}

    def _batch(self, offsets):
        center = torch.tensor([(n - 1) / 2 for n in SHAPE]) + offsets
        fixed, moving = _blob(center), _blob(center + torch.tensor(SHIFT))
        labels = [(image > 0.5).long() + (image > 0.8).long() for image in (fixed, moving)]
        truth = torch.tensor(SHIFT).reshape(1, 3, 1, 1, 1).expand(len(offsets), 3, *SHAPE)
        return Batch(fixed, moving, 3.0, *(labels if self.labels else (None, None)), truth=truth)


def _blob(center):
    away = voxel_coordinates(SHAPE) - center.reshape(-1, 3, 1, 1, 1)
    return torch.exp(-away.square().sum(1, keepdim=True) / 18.0)


class Network(nn.Module):
    """Two convolutions; the last one is zero at first."""

    def __init__(self, normalize=True):
        super().__init__()
        self.encoder = nn.Conv3d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4) if normalize else nn.Identity()
        self.head = nn.Conv3d(4, 3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.seen = None

    def forward(self, pair):
        features = self.norm(self.encoder(pair)).relu()
        self.seen = features.dtype
        return 3.0 * self.head(features)


class Shifter(Trainable):
    """Learns displacements by mean squares, on images with noise from torch's global generator."""

    multiple = 4

    def __init__(self, stages=(), noise=0.05, normalize=True):
        super().__init__(noise=noise, normalize=normalize)
        self._stages = tuple(stages)
        self.batches = []

    def build(self):
        return Network(self.values["normalize"])

    def stages(self):
        return self._stages or super().stages()

    def training_loss(self, network, batch):
        self.batches.append((batch.stage, batch.fraction))
        moving = batch.moving + self.values["noise"] * torch.randn_like(batch.moving)
        u = network(torch.cat([batch.fixed, moving], 1))
        moved = sample(moving, voxel_coordinates(batch.shape) + u)
        return {
            "image": (moved - batch.fixed).square().mean() * 10,
            "size": 1e-4 * u.square().mean(),
        }

    def predict(self, network, fixed, moving, spacing_mm):
        torch.rand(3)  # predictions may draw random numbers of their own
        return Prediction(network(torch.cat([fixed, moving], 1)))


TWO_STAGES = (Stage("head", 1.0, ("head",)), Stage("rest", 3.0, ("encoder", "norm")))
