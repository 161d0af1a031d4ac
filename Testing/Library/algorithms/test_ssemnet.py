"""Autoencoder features: learned once, then at rest; what registers by them, and artifacts."""

from dataclasses import replace

import metric_images
import pairs
import pytest
import torch
from metric_images import aligned_batch, bend_error_mm, bent_pair, put

from DeepRegLib import models, registry
from DeepRegLib.algorithms.ssemnet import SPEC, Algorithm
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.losses.feature_distance import ScaledMSE
from DeepRegLib.registration import learned
from DeepRegLib.registration.base import Image, Progress
from DeepRegLib.registration.metric_similarity import FeatureSimilarity
from DeepRegLib.registration.trainable import Batch


def make(**values):
    return Algorithm(**SPEC.values(**{**metric_images.SMALL["ssemnet"], **values}))


@pytest.fixture(scope="module", autouse=True)
def _no_models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPREG_MODELS", str(tmp_path_factory.mktemp("models")))
        patch.setattr(models, "SHIPPED", ())
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An autoencoder that was trained on the phantom, and its model file."""
    batch = aligned_batch(two_contrasts=False, count=2)
    system, network = metric_images.trained("ssemnet", batch, 120, 3e-3)
    return system, network, put(tmp_path_factory.mktemp("encoder"), system, network)


def test_the_loss_is_that_of_an_autoencoder():
    """Mean squared difference of what is shown and what was there, without the other image."""
    one, two = (torch.rand(1, 1, 8, 8, 16) for _ in range(2))

    class Double(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv3d(1, 1, 1)
            torch.nn.init.constant_(self.layer.weight, 3.0)

        def forward(self, image):
            return 2.0 * image

    terms = make(corruption=0.0, decay=0.5).training_loss(Double(), Batch(one, two, 1.0))
    expected = 0.5 * ((one**2).mean() + (two**2).mean())
    assert float(terms["reconstruction"]) == pytest.approx(float(expected), rel=1e-5)
    assert terms["decay"].item() == pytest.approx(0.5 * 9.0)


def test_spoiled_images_are_to_be_shown_as_they_were():
    image = torch.full((2, 1, 16, 16, 16), 0.3)

    class Same(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv3d(1, 1, 1)

        def forward(self, seen):
            return seen

    torch.manual_seed(0)
    loss = make(corruption=0.3).training_loss(Same(), Batch(image, image, 1.0))["reconstruction"]
    # Black tiles cost 0.09, inverted ones 0.16, on about a third of the image.
    assert 0.02 < float(loss) < 0.08


def test_it_learns_and_the_features_then_rest(encoder):
    _, network, _ = encoder
    batch = aligned_batch(two_contrasts=False, count=2)
    torch.manual_seed(0)
    first = make(corruption=0.0).training_loss(make().build(), batch)["reconstruction"]
    last = make(corruption=0.0).training_loss(network, batch)["reconstruction"]
    assert float(last) < 0.3 * float(first)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    frame = learned.ModelFrame(3.0, (24, 28, 24))
    quick = make(iterations=(3,), factors=(1,))
    result = quick.optimized(network, frame, bent_pair(False), Progress())
    assert all(torch.equal(weights[n], v) for n, v in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())
    assert len(result.history) == 3


def test_it_registers_with_a_model(encoder):
    pair = bent_pair(False)
    before = bend_error_mm(Transform())
    events = []
    system = registry.create("ssemnet", model=encoder[2])
    result = system.register(pair, Progress(events.append, preview_seconds=0.0))
    after = bend_error_mm(result.transform)
    assert after < 0.5 * before, (before, after)
    values = [e["value"] for e in result.history]
    assert len(values) == 110 and values[-1] < values[80]
    previews = [e.transform for e in events if e.kind == "preview"]
    assert bend_error_mm(previews[-1]) < before
    found = result.extras["feature_difference"]
    assert found.grid is pair.fixed.grid and float(found.data.min()) >= 0.0
    assert result.provenance["model"]["name"] == "small" and result.provenance["pair_steps"] == 0


def test_without_a_model_the_autoencoder_learns_from_the_pair(monkeypatch):
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 30)
    monkeypatch.setattr(learned, "_SCRATCH_VOXELS", {"cpu": 26**3})
    pair = bent_pair(False)
    result = make(iterations=(25, 20), factors=(2, 1)).register(pair, Progress())
    assert bend_error_mm(result.transform) < 0.7 * bend_error_mm(Transform())
    assert result.provenance["pair_steps"] == 30
    said = result.provenance["values"]
    assert said["fit_last"] < said["fit_first"]


def test_it_goes_on_from_a_deformed_start(encoder):
    pair = bent_pair(False)
    system = registry.create("ssemnet", model=encoder[2], iterations=(30, 20), factors=(2, 1))
    first = system.register(pair, Progress())
    again = system.register(replace(pair, initial=first.transform), Progress())
    assert bend_error_mm(again.transform) < bend_error_mm(first.transform) + 0.15
    assert again.transform.field.grid.matches(pair.fixed.grid)


def test_missing_tiles_inside_the_object_are_left_out(encoder):
    """Black tiles in the moving image pull at a comparison that sees them."""
    pair = bent_pair(False)
    data = pair.moving.data.clone()
    a, b, c = data.shape[2:]
    data[..., a // 2 - 5 : a // 2 + 3, b // 3 : b // 3 + 7, c // 3 : c // 3 + 9] = data.min()
    data[..., a // 2 - 2 : a // 2 + 6, b // 2 : b // 2 + 8, c // 2 : c // 2 + 8] = data.min()
    spoiled = replace(pair, moving=Image(data, pair.moving.grid))
    errors = {}
    for ignore in (True, False):
        system = registry.create(
            "ssemnet", model=encoder[2], ignore_empty=ignore, iterations=(30, 25), factors=(2, 1)
        )
        errors[ignore] = bend_error_mm(system.register(spoiled, Progress()).transform)
    assert errors[True] < 0.9 * errors[False], errors


@pytest.mark.parametrize(("key", "values"), [
    ("greedy", {"iterations": (40, 30), "factors": (2, 1)}),
    ("syn", {"iterations": (30, 20), "factors": (2, 1)}),
    ("bspline", {"iterations": (20, 15), "factors": (2, 1)}),
])  # fmt: skip
def test_deformable_engines_take_the_features(encoder, key, values):
    system = registry.create(key, similarity="features", metric_model=encoder[2], **values)
    after = bend_error_mm(system.register(bent_pair(False), Progress()).transform)
    assert after < 0.7 * bend_error_mm(Transform()), after


def test_linear_engines_take_the_features(encoder):
    matrix = pairs.known_matrix((0.06, -0.05, 0.07), (3.0, -3.5, 2.5))
    pair = pairs.make_pair(matrix, initial=Transform())
    system = registry.create(
        "affine", similarity="features", metric_model=encoder[2], sizes=(12, 24), samples=1000
    )
    result = system.register(pair, Progress())
    assert pairs.error_mm(result.transform, matrix) < 0.3 * pairs.error_mm(Transform(), matrix)


def test_intensities_can_take_the_place_of_features(encoder):
    system, network, _ = encoder
    measure = system.measure(network, (3.0, 3.0, 3.0), 3.0)
    assert isinstance(measure, FeatureSimilarity)
    assert isinstance(make(compare="mse").measure(network, (3.0, 3.0, 3.0), 3.0), ScaledMSE)


def test_parameters_that_do_not_fit_are_refused():
    for weights in ((1.0,), (0.0, 0.0, 0.0)):
        with pytest.raises(ParameterError, match="layer_weights"):
            make(layer_weights=weights)
