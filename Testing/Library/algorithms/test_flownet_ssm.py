"""FlowNet from a model of anatomy: its objective, its direction, its pairs, and a registration."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pairs as phantoms
import pytest
import torch
from anatomy_doubles import make_model

from DeepRegLib import models, registry
from DeepRegLib.algorithms import flownet_ssm
from DeepRegLib.algorithms.flownet_ssm import SPEC, Algorithm, tissue
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.registration.base import ImagePair, Progress
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.trainable import Batch, total
from DeepRegLib.training.model_pairs import ModelPairs
from DeepRegLib.training.model_source import PairSettings
from DeepRegLib.training.shape_model_fit import ModelSettings

SMALL = {"channels": (8, 8, 8), "level_weights": (0.32, 0.08, 0.02)}


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


class Flows:
    """Stands for a network that gives the same flows for every pair."""

    def __init__(self, *flows):
        self.flows = list(flows)

    def __call__(self, fixed, moving):
        return self.flows


def constant(shape, *vector):
    return torch.tensor(vector).view(1, 3, 1, 1, 1).expand(1, 3, *shape)


def test_the_objective_is_the_error_at_all_resolutions():
    shape = (16, 24, 32)
    flows = [constant((2, 3, 4), 0.5, 0.0, 0.0), constant((4, 6, 8), 1.0, 0.0, 0.0),
             constant((8, 12, 16), 1.0, 0.0, 0.0)]  # fmt: skip
    batch = Batch(*torch.rand(2, 1, 1, *shape), 3.0, truth=constant(shape, 4.0, 0.0, 0.0))
    terms = make(level_weights=(4.0, 1.0, 0.25)).training_loss(Flows(*flows), batch)
    assert list(terms) == ["end_point_8", "end_point_4", "end_point_2"]
    # The coarsest and the middle one are right (0.5 x 8 and 1 x 4); the finest is half of it.
    values = [term.item() for term in terms.values()]
    assert values == pytest.approx([0.0, 0.0, 2.0 / 3.0], abs=1e-4)


def test_what_is_background_counts_less():
    image = torch.zeros(1, 1, 12, 16, 14)
    image[:, :, :4] = 0.5
    weight = tissue(image, 0.1)
    assert (weight[:, :, :6] == 1.0).all() and torch.allclose(weight[:, :, 6:], torch.tensor(0.1))
    assert (tissue(image, 1.0) == 1.0).all()


def test_without_a_truth_images_are_compared():
    shape = (16, 16, 24)
    image = torch.rand(1, 1, *shape)
    for flow, better in ((0.0, True), (1.5, False)):
        network = Flows(constant((8, 8, 12), 0.0, flow, 0.0))
        terms = make(smoothness=2.0).training_loss(network, Batch(image, image, 3.0))
        assert list(terms) == ["similarity", "smoothness"]
        assert (terms["similarity"].item() < 0.05) == better
        assert terms["smoothness"].item() == pytest.approx(0.0, abs=1e-6)


def test_the_displacement_is_in_voxels_of_the_images():
    network = Flows(constant((2, 3, 2), 9.0, 9.0, 9.0), constant((6, 8, 5), 0.0, 1.5, -1.0))
    found = make().predict(network, *torch.rand(2, 1, 1, 12, 16, 10), 3.0)
    expected = torch.tensor([0.0, 3.0, -2.0]).view(1, 3, 1, 1, 1)
    assert torch.allclose(found.displacement, expected.expand(1, 3, 12, 16, 10), atol=1e-5)


def test_learns_the_true_shift(shifted, learn, shift_at_object):
    truth = torch.zeros(1, 3, *shifted.shape)
    truth[:, 1] = 2.0
    assert torch.allclose(
        sample(shifted.moving, voxel_coordinates(shifted.shape) + truth), shifted.fixed, atol=0.02
    )
    algorithm = make()
    network, first, last = learn(algorithm, replace(shifted, truth=truth), steps=60, rate=3e-3)
    assert sum(last.values()) < 0.4 * sum(first.values())
    found = algorithm.predict(network, shifted.fixed, shifted.moving, 3.0)
    shift = shift_at_object(found.displacement.detach(), shifted)
    assert 1.4 < shift[1] < 2.6 and shift[[0, 2]].abs().max() < 0.5


def test_learns_the_displacement_of_samples_of_a_model():
    """The error on pairs that it learns falls well below that of doing nothing."""

    class Base:
        frame = ModelFrame(3.0, (20, 28, 24))

    source = ModelPairs(Base(), make_model(size=1.5), shared_texture=1.0)
    algorithm = make(channels=(8, 16, 16))
    torch.manual_seed(0)
    network = algorithm.build()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    batches = [source.draw(1, torch.Generator().manual_seed(seed)) for seed in range(2)]
    for step in range(100):
        batch = batches[step % 2]
        optimizer.zero_grad()
        total(algorithm.training_loss(network, batch)).backward()
        optimizer.step()
    errors = []
    with torch.no_grad():
        for batch in batches:
            u = algorithm.predict(network, batch.fixed, batch.moving, 3.0).displacement
            inside = batch.fixed > 0.2
            errors.append([
                (v - batch.truth).norm(dim=1, keepdim=True)[inside].mean().item()
                for v in (u, torch.zeros_like(u))
            ])  # fmt: skip
    found, nothing = np.mean(errors, axis=0)
    assert found < 0.6 * nothing, (found, nothing)


def test_parameters_reach_the_making_of_pairs(monkeypatch):
    asked = []

    def made(pairs, settings, folder, progress):
        asked.append((pairs, settings, folder))
        return "pairs"

    monkeypatch.setattr(flownet_ssm, "supervised_pairs", made)
    system = make(augmentation="random", images=8, engine="greedy", rounds=1, locality=(0.0, 50.0),
                  texture_locality=(20.0,), shared_texture=0.25, spread=1.5, bend=3.0,
                  widths=(10.0, 20.0), teacher_pairs=9, own_texture=0.75)  # fmt: skip
    assert system.source("given", Path("folder"), Progress()) == "pairs"
    model = ModelSettings("greedy", "balanced", 1, (0.0, 50.0), (20.0,))
    settings = PairSettings("random", 8, model, 0.25, 1.5, 3.0, (10.0, 20.0), 9, 0.75)
    assert asked == [("given", settings, Path("folder"))]
    # What is not asked for is what the library takes by itself.
    make().source("given", Path("folder"), Progress())
    assert asked[1][1] == PairSettings()


def test_weights_and_channels_have_to_fit():
    for values in ({"level_weights": (1.0, 2.0)}, {"level_weights": (0.0, 0.0, 0.0)}):
        with pytest.raises(ParameterError, match="one weight for each of the 3"):
            make(**values)
    assert len(SPEC.parameter("level_weights").default) == len(SPEC.parameter("channels").default)


def test_registers_an_oblique_pair_with_a_model(tmp_path, monkeypatch):
    """A network that has learned one shift along an upright axis applies it in the patient."""
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    torch.manual_seed(0)
    algorithm = make()
    network = algorithm.build()
    with torch.no_grad():
        head = network.flows[-1].convolution
        head.weight.zero_()
        # Half a voxel of the half grid: one of the model, 4 mm, to the front.
        head.bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
    values = {p.name: algorithm.values[p.name] for p in SPEC.parameters if p.training}
    card = ModelCard("shifter", "flownet_ssm", values, 4.0, (32, 32, 32))
    save_model(tmp_path / "shifter.safetensors", network, card)
    pair = phantoms.make_pair(np.eye(4))
    result = registry.create("flownet_ssm").register(pair, Progress())
    middle = result.transform.map_points_ras([[0.0, 0.0, 0.0], [5.0, -8.0, 3.0]])
    np.testing.assert_allclose(middle - [[0, 0, 0], [5, -8, 3]], [[0, 4, 0]] * 2, atol=1e-3)
    assert result.provenance["model"]["name"] == "shifter"


def test_is_fitted_to_an_oblique_pair_without_a_model(tmp_path, monkeypatch):
    from DeepRegLib.registration import learned

    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 60)
    monkeypatch.setattr(learned, "_SCRATCH_VOXELS", {"cpu": 32**3})
    shift = np.eye(4)
    shift[:3, 3] = [3.0, -2.5, 2.0]
    pair = phantoms.make_pair(shift)
    result = make(smoothness=0.02).register(ImagePair(pair.fixed, pair.moving), Progress())
    values = [entry["value"] for entry in result.history]
    assert len(values) == 60 and values[-1] < values[0]
    before, after = (
        phantoms.error_mm(Transform(), shift),
        phantoms.error_mm(result.transform, shift),
    )
    assert after < 0.8 * before, (before, after)
