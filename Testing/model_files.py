"""Model files for tests: a card, a small network, files with both, and files that are none."""

import os
from dataclasses import replace

import torch
from torch import nn

from DeepRegLib import models
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.model_file import save_model


def card(**changes):
    standard = ModelCard(
        name="standard", algorithm="tiny", parameters={"channels": 4, "sizes": [8, 16]},
        spacing_mm=3.0, shape=(64, 80, 64), anatomy="brain", contrast="T1", data="generated",
        terms="CC0", figures={"dice": 0.81}, training={"steps": 10, "seed": 1},
    )  # fmt: skip
    return replace(standard, **changes)


def network(channels=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(2, channels, 3), nn.BatchNorm3d(channels), nn.Linear(3, 3))


def saved(path, day=0, **changes):
    save_model(path, network(), card(**changes))
    os.utime(path, (1e9 + day, 1e9 + day))
    return path


def noise(path):
    path.write_bytes(os.urandom(4000))


def folders(tmp_path, monkeypatch):
    """The user's folder of models, with an empty one of DeepReg's beside it."""
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    own.mkdir()
    shipped.mkdir()
    monkeypatch.setenv("DEEPREG_MODELS", str(own))
    monkeypatch.setattr(models, "SHIPPED", (shipped,))
    return own
