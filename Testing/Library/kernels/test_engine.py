"""The dense engine by kernels gives what it gives by torch, on images that end inside each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import known_matrix, make_image, make_labels
from support import make_grid

from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.kernels import operations
from DeepRegLib.registration.base import ImagePair, Progress
from DeepRegLib.registration.dense import DenseEngine, DenseSettings
from DeepRegLib.registration.levels import Lattice, PairLevel, Puller

SETTINGS = DenseSettings(
    similarity="lncc", radius=2, factors=(1,), iterations=(3,), step=1.0, update_sigma=1.7,
    field_sigma=0.7, volume_weight=0.1, lattice=1, tolerance=0.0, finest_mm=0.0,
)  # fmt: skip
#: Kernels of every step of a dense registration.
ALWAYS = {"sample", "force", "convolve", "max_norm"}


@pytest.fixture(autouse=True)
def _fresh(no_switched_off_kernels):
    pass


@pytest.fixture
def ran(monkeypatch):
    """Names of the kernels that gave a result."""
    names = set()

    def attempt(name, launch):
        result = original(name, launch)
        if result is not None:
            names.add(name)
        return result

    original = operations.attempt
    monkeypatch.setattr(operations, "attempt", attempt)
    return names


@pytest.fixture
def pair(device):
    """An oblique pair whose moving image covers but a part of the fixed one, with masks."""
    fixed, moving = _centred(make_grid("oblique", (20, 22, 18), (3.4, 2.8, 3.9))), _centred(
        make_grid("LPS", (18, 24, 21), (3.1, 2.6, 2.9))
    )  # fmt: skip
    back = np.linalg.inv(known_matrix())
    return ImagePair(
        make_image(fixed),
        make_image(moving, back),
        fixed_mask=make_labels(fixed),
        moving_mask=make_labels(moving, back),
        initial=Transform(known_matrix(turn=(0.05, 0.0, 0.1))),
    ).to(device)


@pytest.mark.parametrize(
    ("changes", "masked", "kernels"),
    [
        ({}, True, ALWAYS | {"lncc"}),
        # Windows on blocks of voxels have no kernel; all else has.
        ({"lattice": 2}, False, ALWAYS),
        ({"similarity": "mi", "lattice": 2}, True, ALWAYS | {"histogram"}),
    ],
)
def test_the_engine_finds_the_same_field(pair, ran, monkeypatch, changes, masked, kernels):
    pair = pair if masked else replace(pair, fixed_mask=None, moving_mask=None)
    settings = replace(SETTINGS, **changes)
    fused = _displacement(pair, settings)
    assert ran == kernels
    ran.clear()
    monkeypatch.setenv("DEEPREG_TRITON", "0")
    plain = _displacement(pair, settings)
    assert not ran
    assert float((fused - plain).abs().max()) < 1e-3
    assert float(plain.norm(dim=1).max()) > 0.5


@pytest.mark.parametrize("name", ["stationary", "symmetric"])
def test_both_halves_find_the_same_field(pair, ran, monkeypatch, name):
    settings = replace(SETTINGS, iterations=(2,), lattice=2)
    fused = _displacement(pair, settings, name)
    assert ran == ALWAYS
    monkeypatch.setenv("DEEPREG_TRITON", "0")
    assert float((fused - _displacement(pair, settings, name)).abs().max()) < 1e-3


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("identity", [False, True])
def test_images_are_pulled_alike(pair, ran, monkeypatch, factor, partial, masked, identity):
    level = PairLevel.of(pair, pair.initial.linear, 1.0)
    # Seventeen voxels are no whole voxels of a lattice of two.
    grid = level.grid.cropped((0, 0, 0), (20, 22, 17))
    lattice = Lattice.over(grid, factor)
    mask = level.moving_mask if masked else None
    matrix = np.eye(4) if identity else level.to_moving
    noise = torch.randn(1, 3, *lattice.shape, generator=torch.Generator().manual_seed(3))
    displacement = gaussian_smooth(noise, 2.0).to(level.moving.device) * 30.0
    puller = Puller(level.moving, mask, matrix, lattice, partial)
    ran.clear()
    moved, weight = puller.pull(displacement)
    assert ran == {"sample"}
    monkeypatch.setenv("DEEPREG_TRITON", "0")
    expected, expected_weight = Puller(level.moving, mask, matrix, lattice, partial).pull(
        displacement
    )
    assert moved.shape == expected.shape and moved.dtype == expected.dtype == torch.float32
    # Kernels read the image in half precision, whose steps are 1/2048 just below 1.
    assert torch.allclose(moved, expected, atol=1e-4 + 2.0**-12)
    # If kernels cease to run, torch takes the image as it is kept for them.
    assert torch.allclose(puller.pull(displacement)[0], moved, atol=1e-4)
    assert (weight is None) == (expected_weight is None) == (not partial and not masked)
    if weight is not None:
        # A voxel on the very rim may fall to either side of it.
        assert float(((weight - expected_weight).abs() > 1e-4).float().mean()) < 1e-3
        assert 0.05 < float(weight.mean()) < 0.95


def _displacement(pair, settings, model="compositive"):
    result = DenseEngine(settings, model).register(pair, Progress())
    return result.transform.field.displacement


def _centred(grid):
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] -= grid.center_ras
    return Grid(grid.shape, matrix)
