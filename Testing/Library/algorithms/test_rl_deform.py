"""The bending agent: its modes, what it learns, and its native result."""

import json
from dataclasses import replace

import pairs
import pytest
import torch
from training_doubles import Blobs

from DeepRegLib import models
from DeepRegLib.algorithms.rl_deform import SPEC, Algorithm
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.networks.blocks import warped
from DeepRegLib.networks.bspline_net import unit_lattice
from DeepRegLib.networks.composite import moved_by
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.trainable import Batch, total
from DeepRegLib.training.deformation_modes import ModeledPairs, examples
from DeepRegLib.training.lesson import Lesson, Teacher
from DeepRegLib.training.settings import TrainingSettings
from DeepRegLib.training.trainer import Trainer

SHAPE, MESH = (16, 20, 18), (2, 2, 2)
SMALL = {"modes": 3, "mesh": MESH, "channels": (4, 8, 8), "hidden": (48, 24), "states": 16,
         "step": 0.5, "rounds": 40, "several": 6}  # fmt: skip


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


def control_points(count=10, seed=0):
    """Examples of two modes: shifts along the first axis, and a stretch along the second."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.zeros(3, 5, 5, 5)
    shift[0] = 1.0
    stretch = torch.zeros(3, 5, 5, 5)
    stretch[1] = torch.linspace(-1, 1, 5).view(1, 5, 1)
    scores = torch.randn(count, 2, generator=generator) * torch.tensor([1.5, 1.0])
    return torch.einsum("nk,kcxyz->ncxyz", scores, torch.stack([shift, stretch]))


def image(seed=0):
    noise = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian_smooth(noise, 1.5)
    smooth = (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())
    window = torch.ones(1, 1, *SHAPE)
    for axis, n in enumerate(SHAPE):
        ramp = torch.linspace(0, torch.pi, n).sin().view([-1 if d == axis else 1 for d in range(3)])
        window = window * ramp
    return smooth * window


def agent(system):
    network = system.build()
    network.model.learn(control_points())
    return network


@pytest.fixture(scope="module")
def taught():
    """A network that has learned to bend one image; the same for all tests."""
    torch.manual_seed(0)
    system, moving = make(), image()
    network = agent(system)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    steps = 150
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        drawn = torch.randn(2, 3)
        with torch.no_grad():
            truth = network.model.displacement(drawn, SHAPE)
            both = moving.expand(2, -1, -1, -1, -1)
            batch = Batch(moved_by(both, None, truth), both, 3.0, truth=truth)
        optimizer.zero_grad()
        total(system.training_loss(network, batch)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        rate.step()
    return network.eval()


@pytest.mark.xfail(
    strict=True, reason="what the agent learns so far brings the coefficients only a third nearer"
)
def test_the_agent_finds_the_coefficients(taught):
    system, moving = make(), image()
    before, after = [], []
    for wanted in ([1.2, -1.0, 0.0], [-1.5, 0.5, 0.0], [0.5, 1.5, 0.0]):
        drawn = torch.tensor([wanted])
        with torch.no_grad():
            truth = taught.model.displacement(drawn, SHAPE)
            found = system.predict(taught, moved_by(moving, None, truth), moving, 3.0)
        before.append(float((truth - taught.model.displacement(0 * drawn, SHAPE)).norm()))
        after.append(float((truth - found.displacement).norm()))
    assert sum(after) < 0.5 * sum(before)


def test_the_result_is_a_native_spline(taught):
    system, moving = make(), image()
    with torch.no_grad():
        truth = taught.model.displacement(torch.tensor([[1.0, -1.0, 0.0]]), SHAPE)
        found = system.predict(taught, moved_by(moving, None, truth), moving, 3.0)
    assert found.mesh == MESH and found.linear is None
    lattice = unit_lattice(SHAPE, MESH)
    assert torch.allclose(lattice.evaluate(found.control_points), found.displacement, atol=1e-5)
    json.dumps(found.values)
    trajectory, code = found.values["trajectory"], found.values["latent_code"]
    assert trajectory["coefficients"][0] == [0.0] * 3 and trajectory["rounds"] >= 1
    assert trajectory["coefficients"][-1] == pytest.approx(code, abs=1e-3)
    assert code[2] == 0.0, "a mode that is not there"


def test_loss_is_that_of_the_closed_form():
    # Once it is there, each step leads away: -1 + discount, and the agent says -1 of all.
    system, moving = make(states=2, discount=0.5), image()
    network = agent(system)
    system._states = lambda truth: torch.zeros_like(truth)
    batch = Batch(moving, moving, 3.0, truth=torch.zeros(1, 3, *SHAPE))
    loss = float(system.training_loss(network, batch)["values"].detach())
    assert loss == pytest.approx(4 * (-1.0 + 0.5) ** 2, rel=1e-4)
    system = make(states=2, discount=0.9)
    system._states = lambda truth: torch.zeros_like(truth)
    loss = float(system.training_loss(network, batch)["values"].detach())
    assert loss == pytest.approx(4 * (-1.0 + 0.1) ** 2, rel=1e-4), "two modes of three are there"


def test_states_lie_between_the_truth_and_nothing():
    torch.manual_seed(0)
    truth = torch.tensor([[2.0, -1.0, 0.5]]).expand(3000, 3)
    left = make()._states(truth)
    largest = left.abs().amax(dim=1)
    assert (largest < 0.3).double().mean() > 0.25 and largest.max() > 2.0
    assert (left[:, 0] >= -0.5).double().mean() > 0.95


def test_the_moved_image_is_that_of_the_state():
    system, moving, seen = make(states=1), image(), []
    network = agent(system)
    system._states = lambda truth: torch.zeros_like(truth)
    truth = network.model.displacement(torch.tensor([[1.0, 1.0, 0.0]]), SHAPE)
    fixed = moved_by(moving, None, truth)
    inner = network.forward

    def watched(one, other):
        seen.append((one, other))
        return inner(one, other)

    network.forward = watched
    system.training_loss(network, Batch(fixed, moving, 3.0, truth=truth))
    one, other = seen[0]
    assert (one - other).abs().max() < 1e-3 and (moving - one).abs().max() > 0.1


def test_without_modes_nothing_moves():
    system, moving = make(), image()
    found = system.predict(system.build().eval(), moving, image(1), 3.0)
    assert not found.displacement.any() and found.values["trajectory"]["ended"] == "rest"


def test_modes_travel_with_the_model(taught, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    parameters = {p.name: make().values[p.name] for p in SPEC.parameters if p.training}
    card = models.ModelCard("m", "rl_deform", parameters, 4.0, (16, 16, 16))
    save_model(tmp_path / "m.safetensors", taught, card)
    result = make().register(pairs.make_pair(), Progress())
    values = result.provenance["values"]
    assert len(values["latent_code"]) == 3
    assert result.transform.field is not None and result.transform.spline is not None


@pytest.fixture
def quick(monkeypatch):
    """A teacher who knows smooth deformations at once."""

    def teach(self, fixed, moving, spacing_mm, progress=None):
        generator = torch.Generator().manual_seed(int(1e6 * float(fixed.mean())))
        vectors = unit_lattice(fixed.shape[2:], MESH).evaluate(
            control_points(1, generator.initial_seed())
        )
        return Lesson(vectors, None, True, 0.1, 0.0, {"ncc": 0.5, "nmi": 1.0},
                      {"ncc": 0.6, "nmi": 1.1})  # fmt: skip

    monkeypatch.setattr(Teacher, "teach", teach)


def test_pairs_are_made_from_the_modes(quick, tmp_path):
    system = make(taught_pairs=6, made_share=1.0)
    source = system.source(Blobs(labels=False), tmp_path, Progress())
    assert isinstance(source, ModeledPairs) and source.describe()["modes"] == 2
    batch = source.draw(3, torch.Generator().manual_seed(0))
    back = warped(batch.moving, batch.truth)
    inner = (slice(None), slice(None), *(slice(3, -3),) * 3)
    assert (back - batch.fixed)[inner].abs().mean() < 0.3 * (batch.moving - batch.fixed)[
        inner
    ].abs().mean()
    network = system.build()
    assert torch.allclose(
        network.model.mean[0], examples(source._taught, MESH).mean(dim=0), atol=1e-5
    )
    # Real ones bring what the teacher found.
    real = make(taught_pairs=6, made_share=0.0).source(Blobs(labels=False), tmp_path, Progress())
    drawn = real.draw(1, torch.Generator().manual_seed(0))
    known = [real._taught.pair(i).truth for i in range(6)]
    assert any(torch.allclose(drawn.truth, truth, atol=1e-3) for truth in known)


def test_trained_by_the_trainer(quick, tmp_path):
    system = make(taught_pairs=4, states=2, rounds=3)
    system.multiple = 4
    source = system.source(Blobs(), tmp_path, Progress())
    settings = TrainingSettings(steps=4, validate_every=4, device="cpu")
    result = Trainer(system, source, settings, tmp_path).run()
    assert result.ended == "complete" and bool(result.network.model.known.any())
    pair = replace(source.draw(1, torch.Generator().manual_seed(0)), truth=None)
    value = system.training_loss(result.network, pair)["values"]
    assert value.isfinite() and value > 0
