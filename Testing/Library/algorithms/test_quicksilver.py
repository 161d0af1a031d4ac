"""Quicksilver: what its networks learn, what is shot, and what its uncertainty is the spread of."""

import numpy as np
import pairs
import pytest
import torch
from support import smooth_displacement
from torch import nn

from DeepRegLib import models
from DeepRegLib.algorithms.quicksilver import SPEC, Algorithm
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.field import compose_displacements
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration import learned
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.trainable import Batch, total
from DeepRegLib.training.settings import TrainingSettings
from DeepRegLib.training.teacher import TaughtPairs
from DeepRegLib.training.trainer import Trainer

SHAPE = (16, 20, 24)
SMALL = {"channels": (4, 6), "widths": (4.0, 2.0), "weights": (1.0, 1.0), "time_steps": 4,
         "patches": 4}  # fmt: skip


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 1, 1, *SHAPE, generator=generator)


class Says(nn.Module):
    """Stands for a network whose momentum is made of what it sees, and keeps what it saw."""

    def __init__(self, make=None):
        super().__init__()
        self.make = make or (lambda fixed, moving: torch.cat([fixed, moving, fixed - moving], 1))
        self.seen = []

    def forward(self, fixed, moving):
        self.seen.append((fixed, moving))
        return self.make(fixed, moving)


class Bumps:
    """A source of smooth random images, the moving one bent a little."""

    frame = ModelFrame(2.0, (16, 32, 16))

    def draw(self, count, generator):
        shape = self.frame.shape
        noise = gaussian_smooth(torch.randn(count, 1, *shape, generator=generator), 2.0)
        fixed = (noise - noise.amin()) / (noise.amax() - noise.amin())
        bend = 20.0 * gaussian_smooth(torch.randn(count, 3, *shape, generator=generator), 4.0)
        return Batch(fixed, warped(fixed, bend), 2.0)

    def validation(self):
        return []

    def describe(self):
        return {"text": "bumps"}


def zero(fixed, moving):
    return torch.zeros(len(fixed), 3, *fixed.shape[2:])


@pytest.mark.parametrize("lattice", [1, 2])
def test_begins_with_the_identity(lattice):
    system = make(lattice=lattice)
    network = system.build()
    fixed, moving = images()
    with torch.no_grad():
        found = system.predict(network, fixed, moving, 3.0)
    assert found.displacement.shape == found.inverse.shape == (1, 3, *SHAPE)
    assert found.displacement.abs().max() < 0.05
    assert found.maps["moving_momentum"].shape == (1, 3, *SHAPE)
    assert set(dict(network.named_children())) == {"prediction", "correction"}


def test_the_momentum_is_made_of_all_patches_and_shot():
    system = make(lattice=1, correction=False, size=0.3)
    network = nn.ModuleDict({"prediction": Says()})
    fixed, moving = images()
    found = system.predict(network, fixed, moving, 3.0)
    expected = torch.cat([fixed, moving, fixed - moving], 1) * 0.9  # size times 3 mm
    assert torch.allclose(found.maps["moving_momentum"], expected, atol=1e-5)
    frame = system._frame(fixed, 3.0)
    momentum = torch.zeros(1, 3, *frame.lattice.shape)
    momentum[(..., *(slice(2, -2),) * 3)] = expected
    end = frame.geodesic(momentum)
    assert torch.allclose(found.displacement, frame.displacement(end.inverse), atol=1e-4)
    assert torch.allclose(found.inverse, frame.displacement(end.forward), atol=1e-4)
    assert found.displacement.norm(dim=1).max() > 0.1
    assert found.values["momentum_energy"] == pytest.approx(end.energies[0], rel=1e-3)
    assert found.values["lattice"] == [20, 24, 28]


def test_the_inverse_undoes_and_nothing_folds():
    system = make(correction=False)
    frame = system._frame(images()[0], 3.0)
    momentum = smooth_displacement(frame.lattice.shape, 1.0, seed=1, sigma=1.5)
    speed = 1e4 * frame.displacement(frame.shoot(momentum * 1e-4)).norm(dim=1).max()
    momentum = (2.0 / speed / system._unit(3.0)) * momentum

    def known(fixed, moving):
        # Patches of one lattice: those of the lattice's first, then last voxels.
        from DeepRegLib.networks.momentum_net import at_least, cut, patch_starts

        whole = at_least(momentum)
        starts = patch_starts(whole.shape[2:])
        return cut(whole, starts)[: len(fixed)]

    network = nn.ModuleDict({"prediction": Says(known)})
    found = system.predict(network, *images(), 3.0)
    assert found.displacement.norm(dim=1).max() > 0.8
    miss = compose_displacements(found.inverse, found.displacement).norm(dim=1)
    negated = compose_displacements(-found.displacement, found.displacement).norm(dim=1)
    inner = (..., *(slice(3, -3),) * 3)
    assert miss[inner].mean() < 0.05 and negated[inner].mean() > 2 * miss[inner].mean()
    assert (jacobian_determinant(found.displacement) > 0).all()


def test_the_correction_sees_the_target_in_the_moving_space():
    system = make(lattice=1, size=0.3)
    fixed, moving = images()
    prediction = Says()
    correction = Says(lambda f, m: torch.ones(len(f), 3, *f.shape[2:]))
    network = nn.ModuleDict({"prediction": prediction, "correction": correction})
    found = system.predict(network, fixed, moving, 3.0)
    alone = make(lattice=1, size=0.3, correction=False).predict(network, fixed, moving, 3.0)
    back = warped(fixed, alone.inverse)
    frame = system._frame(fixed, 3.0)
    seen_fixed, seen_moving = correction.seen[0]
    assert torch.allclose(seen_fixed[0], frame.features(back)[0, :, :15, :15, :15], atol=1e-4)
    assert torch.equal(seen_moving[0], frame.features(moving)[0, :, :15, :15, :15])
    assert (back - fixed).abs().max() > 0.05
    added = found.maps["moving_momentum"] - alone.maps["moving_momentum"]
    assert torch.allclose(added, torch.full_like(added, 0.9), atol=1e-4)


def batch_with_momentum(system, seed=0, stage="prediction"):
    fixed, moving = images(seed)
    frame = system._frame(fixed, 3.0)
    momentum = smooth_displacement(frame.lattice.shape, 0.1, seed=seed)
    return Batch(fixed, moving, 3.0, momentum=momentum, stage=stage)


def test_the_loss_is_the_mean_absolute_difference_in_patches():
    system = make(size=0.5, lattice=1)
    network = nn.ModuleDict({"prediction": Says(zero), "correction": Says(zero)})
    batch = batch_with_momentum(system)
    flat = Batch(batch.fixed, batch.moving, 3.0, momentum=torch.full_like(batch.momentum, -0.6))
    # All targets are -0.6 / (0.5 * 3) on a lattice of 20 x 24 x 28.
    terms = system.training_loss(network, flat)
    assert set(terms) == {"momentum"} and float(terms["momentum"]) == pytest.approx(0.4)
    ((fixed, moving),) = network["prediction"].seen
    assert fixed.shape == moving.shape == (4, 1, 15, 15, 15)
    # A batch of two pairs gives patches of both.
    both = Batch(torch.cat([batch.fixed] * 2), torch.cat([batch.moving] * 2), 3.0,
                 momentum=torch.cat([batch.momentum] * 2))  # fmt: skip
    system.training_loss(network, both)
    assert len(network["prediction"].seen[-1][0]) == 8


@pytest.mark.parametrize("stage", ["prediction", "correction"])
def test_a_stage_trains_its_own_network_alone(stage):
    system = make()
    torch.manual_seed(0)
    network = system.build()
    for part in network.values():
        for decoder in part.components:
            nn.init.normal_(decoder.head.convolution.weight, 0.0, 0.01)
    total(system.training_loss(network, batch_with_momentum(system, stage=stage))).backward()
    for name, weight in network.named_parameters():
        learns = weight.grad is not None and bool(weight.grad.abs().max() > 0)
        assert learns == name.startswith(stage), name


def test_the_correction_learns_what_is_missing():
    system = make(lattice=1, size=0.3)
    batch = batch_with_momentum(system, stage="correction")
    half = nn.ModuleDict({
        "prediction": Says(lambda f, m: torch.full((len(f), 3, 15, 15, 15), 0.5)),
        "correction": Says(zero),
    })  # fmt: skip
    flat = Batch(batch.fixed, batch.moving, 3.0, momentum=torch.full_like(batch.momentum, 1.8),
                 stage="correction")  # fmt: skip
    # The target is 1.8 / (0.3 * 3) = 2, of which the prediction says 0.5.
    assert float(system.training_loss(half, flat)["momentum"]) == pytest.approx(1.5, abs=1e-3)


def test_learns_momenta_from_the_images():
    """Two pairs that are each other's reverse, with opposite momenta."""
    system = make(correction=False, lattice=1, size=0.5, patches=2)
    torch.manual_seed(0)
    network = system.build()
    bright, dark = torch.full((1, 1, *SHAPE), 0.9), torch.full((1, 1, *SHAPE), 0.2)
    vector = torch.tensor([1.5, -3.0, 0.75]).view(1, 3, 1, 1, 1)
    momentum = vector.expand(1, 3, *system._frame(bright, 3.0).lattice.shape)
    batch = Batch(torch.cat([bright, dark]), torch.cat([dark, bright]), 3.0,
                  momentum=torch.cat([momentum, -momentum]), stage="prediction")  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    values = []
    for _ in range(45):
        loss = total(system.training_loss(network, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    # Without looking at the images nothing is better than zero, the mean of |m| / (0.5 * 3).
    assert values[0] == pytest.approx(3.5 / 3.0, rel=1e-2)
    assert np.mean(values[-5:]) < 0.7 * values[0]
    with torch.no_grad():
        found = system.predict(network, bright, dark, 3.0).maps["moving_momentum"]
    middle = found[0, :2, 4:12, 5:15, 6:18].mean((1, 2, 3))
    assert 0.5 < middle[0] < 3.0 and -6.0 < middle[1] < -1.0


def test_stages():
    assert [s.name for s in make().stages()] == ["prediction", "correction"]
    assert [s.modules for s in make().stages()] == [("prediction",), ("correction",)]
    for values in ({"correction": False}, {"bayesian": True}):
        assert [s.name for s in make(**values).stages()] == ["prediction"]
        assert list(make(**values).build().keys()) == ["prediction"]


class Unsure(nn.Module):
    """Momenta that differ from draw to draw: one number for the whole lattice."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def forward(self, fixed, moving):
        self.drawn.append(float(torch.randn(())))
        return torch.full((len(fixed), 3, 15, 15, 15), self.drawn[-1])


def test_uncertainty_is_the_spread_of_the_sampled_maps_about_their_mean():
    system = make(bayesian=True, draws=6, size=0.02)
    network = nn.ModuleDict({"prediction": Unsure()})
    fixed, moving = images()
    state = torch.get_rng_state()
    found = system.predict(network, fixed, moving, 3.0)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = network["prediction"].drawn
    assert len(drawn) == 6 and len(set(drawn)) == 6
    frame = system._frame(fixed, 3.0)
    one = torch.full((1, 3, *frame.lattice.shape), 0.02 * 3.0)
    maps = torch.cat([frame.displacement(frame.shoot(value * one)) for value in drawn])
    spread = 3.0 * maps.var(dim=0).sum(dim=0).sqrt()
    inner = (..., *(slice(3, -3),) * 3)
    assert torch.allclose(
        found.maps["uncertainty_mm"][0, 0][inner], spread[inner], rtol=0.05, atol=0.02
    )
    assert found.maps["uncertainty_mm"].shape == (1, 1, *SHAPE)
    assert found.values["uncertainty_mean_mm"] > 0.05
    # The result is the geodesic of the mean momentum.
    mean = frame.displacement(frame.geodesic(np.mean(drawn) * one).inverse)
    assert torch.allclose(found.displacement, mean, atol=1e-3)
    again = system.predict(network, fixed, moving, 3.0)
    assert torch.equal(again.maps["uncertainty_mm"], found.maps["uncertainty_mm"])


def test_the_bayesian_version_samples_its_own_network():
    system = make(bayesian=True, draws=3, dropout=0.3)
    torch.manual_seed(0)
    network = system.build().eval()
    for decoder in network["prediction"].components:
        nn.init.normal_(decoder.head.convolution.weight, 0.0, 0.3)
    with torch.no_grad():
        found = system.predict(network, *images(), 3.0)
    assert found.maps["uncertainty_mm"].mean() > 1e-3


def test_a_momentum_that_is_far_too_strong_is_made_weaker():
    system = make(correction=False, size=1.0)
    network = nn.ModuleDict(
        {"prediction": Says(lambda f, m: 300.0 * torch.randn(len(f), 3, *f.shape[2:]))}
    )
    found = system.predict(network, *images(), 3.0)
    assert torch.isfinite(found.displacement).all() and torch.isfinite(found.inverse).all()
    assert (jacobian_determinant(found.displacement) > 0).all()
    assert 0.0 < found.values["momentum_largest"] < 300.0


def test_without_a_teacher_it_lowers_the_objective_of_lddmm(shifted, learn, shift_at_object):
    system = make(correction=False, size=0.3)
    network, first, last = learn(system, shifted, steps=12, rate=5e-3)
    assert set(first) == {"energy", "similarity"}
    assert sum(last.values()) < 0.85 * sum(first.values())
    with torch.no_grad():
        found = system.predict(network, shifted.fixed, shifted.moving, 3.0)
    shift = shift_at_object(found.displacement, shifted)
    assert 0.5 < shift[1] < 3.5 and shift[[0, 2]].abs().max() < 0.8
    back = shift_at_object(found.inverse, Batch(shifted.moving, shifted.fixed, 3.0))
    assert back[1] < -0.4


def test_the_source_is_taught_by_lddmm_with_the_same_kernel(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(TaughtPairs, "__init__", lambda self, *a, **k: made.append(a))
    system = make(taught_pairs=7, lattice=1, sigma=0.2, iterations=(3, 2, 1))
    system.source("pairs", tmp_path, Progress())
    source, teacher, count, folder, _ = made[0]
    assert (source, count, folder) == ("pairs", 7, tmp_path / "taught")
    assert teacher.key == "lddmm" and teacher.margin == 2
    shared = ("widths", "weights", "kernel", "lattice", "sigma", "time_steps", "iterations")
    assert all(teacher.values[name] == system.values[name] for name in shared)
    assert len(teacher.values["factors"]) == len(teacher.values["iterations"])


def test_trains_with_its_teacher(tmp_path):
    system = make(taught_pairs=2, iterations=(2, 2, 1), time_steps=2, patches=2)
    source = system.source(Bumps(), tmp_path, Progress())
    settings = TrainingSettings(steps=4, validate_every=4, warmup=0, device="cpu")
    torch.manual_seed(settings.seed)
    before = {name: p.clone() for name, p in system.build().state_dict().items()}
    result = Trainer(system, source, settings, tmp_path / "run").run()
    assert result.ended == "complete"
    losses = [row["loss_momentum"] for row in result.history if row["kind"] == "training"]
    assert len(losses) == 4 and all(0.0 < value < 100.0 for value in losses)
    learned_parts = {
        name.split(".")[0]
        for name, p in result.network.state_dict().items()
        if not torch.equal(p, before[name])
    }
    assert learned_parts == {"prediction", "correction"}


@pytest.mark.parametrize(
    "values", [{"channels": (4, 6, 8)}, {"channels": (4,)}, {"iterations": (4, 6)}]
)
def test_values_that_do_not_fit_are_refused(values):
    with pytest.raises(ParameterError, match=next(iter(values))):
        make(**values)


def test_registers_an_oblique_pair(monkeypatch, tmp_path):
    """Fitted to the pair itself, on unlike, anisotropic, oblique grids."""
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 30)
    monkeypatch.setattr(Algorithm, "scratch_rate", 3e-3)  # for so small a network
    monkeypatch.setattr(learned, "_SCRATCH_VOXELS", {"cpu": 16**3, "cuda": 16**3})

    def bend(points):
        return points + 5.0 * np.sin(points[..., [1, 2, 0]] / 12.0)

    moving = pairs.moving_grid()
    values = pairs.phantom(bend(pairs.voxel_points(moving))).astype(np.float32)
    pair = pairs.ImagePair(
        pairs.make_image(pairs.fixed_grid()), pairs.Image.from_array(values, moving)
    )
    result = make(correction=False, lattice=3, time_steps=3).register(pair, Progress())
    points = pairs.body_points()
    before = np.linalg.norm(bend(points) - points, axis=1).mean()
    there = result.transform.map_points_ras(points)
    after = np.linalg.norm(bend(there) - points, axis=1).mean()
    assert after < 0.92 * before
    back = result.inverse.map_points_ras(there)
    assert np.linalg.norm(back - points, axis=1).mean() < 0.3
    assert result.extras["moving_momentum"].grid is pair.moving.grid
