"""The stages of DLIR: each trains alone, and together they give one native transform."""

import pytest
import torch
from torch import nn

from DeepRegLib.algorithms.dlir import SPEC, Algorithm
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from DeepRegLib.networks.affine_net import (
    affine_matrix,
    apply_affine,
    center_of,
    random_affine,
)
from DeepRegLib.networks.blocks import warped
from DeepRegLib.networks.bspline_net import unit_lattice
from DeepRegLib.registration.trainable import Batch, total

SHAPE = (16, 32, 24)
STAGES = ("affine", "coarse", "fine")


def images(seed=0, sigma=2.0):
    """Two smooth random images that fade towards the rim."""
    generator = torch.Generator().manual_seed(seed)
    noise = gaussian_smooth(torch.randn(2, 1, *SHAPE, generator=generator), sigma)
    noise = (noise - noise.amin()) / (noise.amax() - noise.amin())
    window = torch.ones(1, 1, *SHAPE)
    for axis, n in enumerate(SHAPE):
        ramp = torch.linspace(0, torch.pi, n).sin().view([-1 if d == axis else 1 for d in range(3)])
        window = window * ramp
    return (noise * window).chunk(2)


def build(seed=0, spread=0.0, **values):
    """A system and its network; `spread` makes control points move at random."""
    torch.manual_seed(seed)
    system = Algorithm(**SPEC.values(**{"channels": 6, **values}))
    network = system.build()
    for name in ("coarse", "fine"):
        part = network.get_submodule(name)
        nn.init.normal_(part.vectors.weight, 0.0, spread)
    return system, network


def test_stages_are_parts_of_the_network():
    system, network = build()
    assert [s.name for s in system.stages()] == list(STAGES)
    parts = [name for stage in system.stages() for name in stage.modules]
    assert parts == [name for name, _ in network.named_children()]
    assert sum(s.share for s in system.stages()) == pytest.approx(1.0)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_its_own_network_alone(stage):
    system, network = build(spread=0.5)
    batch = Batch(*images(), 3.0, stage=stage)
    total(system.training_loss(network, batch)).backward()
    for name, weight in network.named_parameters():
        learns = weight.grad is not None and bool(weight.grad.abs().max() > 0)
        assert learns == name.startswith(stage), name


def test_terms_of_each_stage():
    system, network = build()
    batch = Batch(*images(), 3.0)
    whole = system.training_loss(network, batch)
    splines = [f"{s} {kind}" for s in ("coarse", "fine") for kind in ("similarity", "bending")]
    assert list(whole) == ["affine similarity", *splines]
    total(whole).backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if "vectors" in n)


def test_affine_changes_are_drawn_in_the_affine_stage_only():
    values = {}
    for stage in ("affine", "coarse", "train"):
        for amount in (0.0, 1.0):
            system, network = build(perturbation=amount)
            torch.manual_seed(3)
            terms = system.training_loss(network, Batch(*images(), 3.0, stage=stage))
            values[stage, amount] = float(next(iter(terms.values())).detach())
    assert abs(values["affine", 0.0] - values["affine", 1.0]) > 1e-3
    for stage in ("coarse", "train"):
        assert values[stage, 0.0] == pytest.approx(values[stage, 1.0], abs=1e-6)


def test_the_image_is_resampled_once_with_its_change():
    # What the affine network finds is applied to the image before its change, in one step.
    system, network = build(perturbation=1.0)
    matrix = affine_matrix(
        *(torch.tensor([v]) for v in ([2.0, -1.0, 1.0], [0.1, 0.2, -0.1], [1.1, 0.9, 1.0], [0.0] * 3)),
        center_of(SHAPE), center_of(SHAPE),
    )  # fmt: skip

    class Found(nn.Module):
        def forward(self, fixed, moving):
            self.seen = moving
            return matrix

    network["affine"] = found = Found()
    fixed, moving = images()
    torch.manual_seed(5)
    value = system.training_loss(network, Batch(fixed, moving, 3.0, stage="affine"))
    torch.manual_seed(5)
    change = random_affine(1, SHAPE, 1.0)
    where = voxel_coordinates(SHAPE)
    seen = sample(moving, apply_affine(change, where), padding="fill")
    assert torch.allclose(found.seen, seen, atol=1e-5)
    moved = sample(moving, apply_affine(change @ matrix, where), padding="fill")
    expected = 1.0 - torch.corrcoef(torch.stack([fixed.flatten(), moved.flatten()]))[0, 1]
    assert float(value["affine similarity"]) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("last", STAGES)
def test_prediction_is_a_native_transform(last):
    system, network = build(spread=0.3, last_stage=last)
    fixed, moving = images()
    with torch.no_grad():
        prediction = system.predict(network, fixed, moving, 2.0)
    assert prediction.linear.shape == (4, 4) and prediction.linear.dtype == torch.float64
    if last == "affine":
        assert prediction.displacement is None and prediction.control_points is None
        return
    assert prediction.mesh == tuple(n // (8 if last == "coarse" else 4) for n in SHAPE)
    lattice = unit_lattice(SHAPE, prediction.mesh)
    assert torch.allclose(
        lattice.evaluate(prediction.control_points), prediction.displacement, atol=1e-5
    )
    assert prediction.displacement.abs().max() > 0.05


def test_stages_compose():
    system, network = build(spread=1.0)
    fixed, moving = images(sigma=4.0)
    with torch.no_grad():
        prediction = system.predict(network, fixed, moving, 1.0)
        # One after the other, resampled at every stage.
        matrix = network["affine"](fixed, moving)
        step = sample(moving, apply_affine(matrix, voxel_coordinates(SHAPE)), padding="fill")
        for name in ("coarse", "fine"):
            lattice = network[name].lattice(SHAPE)
            step = warped(step, lattice.evaluate(network[name](fixed, step)))
    where = voxel_coordinates(SHAPE) + prediction.displacement
    once = sample(moving, apply_affine(prediction.linear[None].float(), where), padding="fill")
    inner = (slice(None), slice(None), *(slice(4, -4),) * 3)
    assert (step - moving)[inner].abs().max() > 0.05
    assert (once - step)[inner].abs().max() < 0.02
    assert 0 < prediction.values["fit_mean_mm"] <= prediction.values["fit_largest_mm"] < 0.3


def test_learns_stage_by_stage():
    system, network = build(channels=8, perturbation=0.0, bending=0.01, similarity="ncc")
    fixed, _ = images()
    where = voxel_coordinates(SHAPE)
    # Scaled by 0.9 along one axis, and bent.
    bend = 1.2 * torch.sin(where[:, [1, 2, 0]] / 4.0)
    scaled = (where - 12.0) * torch.tensor([1.0, 0.9, 1.0]).view(1, 3, 1, 1, 1) + 12.0
    batch = Batch(fixed, sample(fixed, scaled + bend, padding="fill"), 3.0)
    reached = []
    for stage, steps in zip(STAGES, (30, 30, 30)):
        optimizer = torch.optim.Adam(network.get_submodule(stage).parameters(), lr=2e-3)
        least = float("inf")
        for _ in range(steps):
            staged = Batch(batch.fixed, batch.moving, 3.0, stage=stage)
            terms = system.training_loss(network, staged)
            optimizer.zero_grad()
            total(terms).backward()
            optimizer.step()
            least = min(least, float(terms[f"{stage} similarity"].detach()))
        reached.append(least)
    before = 1.0 - torch.corrcoef(torch.stack([fixed.flatten(), batch.moving.flatten()]))[0, 1]
    assert float(before) > reached[0] > reached[1] > reached[2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coarse_spacing": 6}, "power of two"),
        ({"fine_spacing": 3}, "power of two"),
        ({"coarse_spacing": 4, "fine_spacing": 8}, "fine_spacing"),
    ],
)
def test_spacings_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ParameterError, match=message):
        Algorithm(**SPEC.values(**values))
