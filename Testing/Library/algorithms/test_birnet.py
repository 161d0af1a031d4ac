"""BIRNet: what it sees, what it learns from at which time, and that the teacher shows the way."""

import numpy as np
import pairs
import pytest
import torch

from DeepRegLib import models
from DeepRegLib.algorithms.birnet import SPEC, Algorithm, hierarchical_error, network_input
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.losses import similarity
from DeepRegLib.losses.kl_velocity import neighbor_energy
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration import learned
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.trainable import Batch, total
from DeepRegLib.training.settings import TrainingSettings
from DeepRegLib.training.teacher import TaughtPairs
from DeepRegLib.training.trainer import Trainer

SHAPE = (12, 16, 20)
SMALL = {"channels": (6, 8, 10)}


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


def batch(fraction=0.0, truth=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    fixed, moving = torch.rand(2, 2, 1, *SHAPE, generator=generator)
    field = torch.randn(2, 3, *SHAPE, generator=generator) if truth else None
    return Batch(fixed, moving, 3.0, truth=field, fraction=fraction)


class Fields:
    """Stands for a network that gives the same fields for every pair."""

    def __init__(self, seed=0, count=2):
        generator = torch.Generator().manual_seed(seed)
        self.fields = [
            torch.randn(count, 3, *(n // f for n in SHAPE), generator=generator)
            for f in (4, 2, 1)
        ]  # fmt: skip

    def __call__(self, images):
        self.seen = images
        return self.fields


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


def test_sees_both_images_their_difference_and_their_edges():
    moving = torch.zeros(1, 1, *SHAPE)
    moving[..., 8:, :] = 1.0
    fixed = torch.full((1, 1, *SHAPE), 0.25)
    seen = network_input(fixed, moving)
    assert seen.shape == (1, 5, *SHAPE) and seen.stride(1) == 1
    assert torch.equal(seen[:, :1], moving) and torch.equal(seen[:, 1:2], fixed)
    assert torch.equal(seen[:, 2:3], fixed - moving)
    edge = seen[0, 3]
    assert (edge[:, 7:9] == 0.5).all() and (edge[:, :7] == 0).all() and (edge[:, 9:] == 0).all()
    assert (seen[0, 4] == 0).all()


def test_fields_of_all_resolutions_are_compared_in_voxels_of_the_full_one():
    truth = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    shapes = [tuple(n // f for n in SHAPE) for f in (4, 2, 1)]
    exact = [truth[..., :a, :b, :c].clone() for a, b, c in shapes]
    assert float(hierarchical_error(exact, truth)) == pytest.approx(0.0, abs=1e-9)
    off = [field + torch.tensor([0.0, 0.3, 0.4]).view(1, 3, 1, 1, 1) for field in exact]
    assert float(hierarchical_error(off, truth)) == pytest.approx(3 * 0.25, rel=1e-4)
    assert float(hierarchical_error([*exact[:2], off[2]], truth)) == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("name", ["mse", "lncc"])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_the_teacher_gives_way_to_the_images(name, fraction):
    network, pair = Fields(), batch(fraction)
    terms = make(similarity=name, image_weight=3.0, guidance=(0.9, 0.3)).training_loss(
        network, pair
    )
    share = 0.9 - 0.6 * fraction
    options = {"radius": 2} if name == "lncc" else {}
    unlike = similarity(name, **options)(pair.fixed, warped(pair.moving, network.fields[-1]))
    assert set(terms) == {"field", "similarity"}
    assert torch.allclose(terms["field"], share * hierarchical_error(network.fields, pair.truth))
    assert torch.allclose(terms["similarity"], 3.0 * (1.0 - share) * unlike)


def test_learns_from_the_teacher_alone():
    network, pair = Fields(), batch(0.7)
    terms = make(image_weight=0.0).training_loss(network, pair)
    assert set(terms) == {"field"}
    assert torch.allclose(terms["field"], hierarchical_error(network.fields, pair.truth))


def test_without_a_teacher_smoothness_takes_its_place():
    network, pair = Fields(), batch(truth=False)
    terms = make(smoothness=0.4).training_loss(network, pair)
    assert set(terms) == {"similarity", "smoothness"}
    assert torch.allclose(terms["smoothness"], 0.4 * neighbor_energy(network.fields[-1]))
    alone = make(image_weight=0.0).training_loss(network, pair)
    assert float(alone["similarity"]) > 0.0


def test_begins_with_the_identity_and_gives_the_finest_field():
    system = make()
    fixed, moving = torch.rand(2, 1, 1, *SHAPE)
    found = system.predict(system.build(), fixed, moving, 2.0)
    assert found.displacement.shape == (1, 3, *SHAPE)
    assert found.displacement.abs().max() < 0.01 and found.inverse is None
    network = Fields(count=1)
    assert system.predict(network, fixed, moving, 2.0).displacement is network.fields[-1]


def test_gap_filling_is_a_parameter():
    count = [
        sum(p.numel() for p in make(gap_filling=g).build().parameters()) for g in (True, False)
    ]
    assert count[0] > 1.2 * count[1]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_learns_a_shift_in_the_right_direction(fraction, shifted, learn, shift_at_object):
    """From the teacher's field at the beginning, and from the images at the end."""
    weight = torch.nn.functional.max_pool3d(shifted.fixed, 5, stride=1, padding=2)
    truth = weight * torch.tensor([0.0, 2.0, 0.0]).view(1, 3, 1, 1, 1)
    guidance = (1.0, 0.0)
    taught = Batch(shifted.fixed, shifted.moving, 3.0, truth=truth, fraction=fraction)
    system = make(guidance=guidance)
    network, first, last = learn(system, taught, steps=60)
    assert sum(last.values()) < 0.8 * sum(first.values())
    with torch.no_grad():
        found = system.predict(network, shifted.fixed, shifted.moving, 3.0)
    shift = shift_at_object(found.displacement, shifted)
    assert 0.9 < shift[1] < 3.0 and shift[[0, 2]].abs().max() < 0.8


def test_every_weight_learns():
    system = make()
    network = system.build()
    for head in network.heads:
        torch.nn.init.normal_(head.convolution.weight, 0.0, 0.1)
    total(system.training_loss(network, batch(0.5))).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_the_source_is_taught_by_whom_the_user_chose(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(TaughtPairs, "__init__", lambda self, *a, **k: made.append(a))
    system = make(teacher="syn", teacher_preset="fast", taught_pairs=9)
    system.source("pairs", tmp_path, Progress())
    source, teacher, count, folder, _ = made[0]
    assert (source, count, folder) == ("pairs", 9, tmp_path / "taught")
    assert teacher.key == "syn"
    assert dict(teacher.values) != dict(make(teacher="syn").teacher().values)
    for key in SPEC.parameter("teacher").choices:
        assert make(teacher=key).teacher().key == key


def test_trains_with_its_teacher(tmp_path):
    system = make(taught_pairs=2, teacher_preset="fast", guidance=(1.0, 0.5))
    source = system.source(Bumps(), tmp_path, Progress())
    settings = TrainingSettings(steps=6, validate_every=6, warmup=0, device="cpu")
    result = Trainer(system, source, settings, tmp_path / "run").run()
    rows = [row for row in result.history if row["kind"] == "training"]
    assert result.ended == "complete" and len(rows) == 6
    assert rows[0]["loss_similarity"] == 0.0 < rows[-1]["loss_similarity"]
    assert all(row["loss_field"] > 0.0 for row in rows)


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="guidance"):
        make(guidance=(0.8,))


def test_registers_an_oblique_pair(monkeypatch, tmp_path):
    """Fitted to the pair itself, on unlike, anisotropic, oblique grids."""
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 60)
    monkeypatch.setattr(learned, "_SCRATCH_VOXELS", {"cpu": 24**3, "cuda": 24**3})

    def bend(points):
        return points + 5.0 * np.sin(points[..., [1, 2, 0]] / 12.0)

    moving = pairs.moving_grid()
    values = pairs.phantom(bend(pairs.voxel_points(moving))).astype(np.float32)
    pair = pairs.ImagePair(
        pairs.make_image(pairs.fixed_grid()), pairs.Image.from_array(values, moving)
    )
    result = make().register(pair, Progress())
    points = pairs.body_points()
    before = np.linalg.norm(bend(points) - points, axis=1).mean()
    after = np.linalg.norm(bend(result.transform.map_points_ras(points)) - points, axis=1).mean()
    assert after < 0.75 * before
