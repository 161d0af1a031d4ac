"""The learned metric: what it learns from, how good it is, and what registers by it."""

from dataclasses import replace

import metric_images
import numpy as np
import pairs
import pytest
import torch
from metric_images import (
    aligned_batch,
    bend_error_mm,
    bent_pair,
    put,
    texture,
    turned_pair,
)

from DeepRegLib import models, registry
from DeepRegLib.algorithms.deep_metric import SPEC, Algorithm
from DeepRegLib.errors import ParameterError
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration import learned
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.metric_quality import area_under_curve, separation, shift_profiles
from DeepRegLib.registration.metric_similarity import PatchSimilarity, similarity_for
from DeepRegLib.registration.trainable import Batch


def make(**values):
    return Algorithm(**SPEC.values(**{**metric_images.SMALL["deep_metric"], **values}))


@pytest.fixture(scope="module", autouse=True)
def _no_models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPREG_MODELS", str(tmp_path_factory.mktemp("models")))
        patch.setattr(models, "SHIPPED", ())
        yield


@pytest.fixture(scope="module")
def marble_metric(tmp_path_factory):
    """A metric that was trained on marbles in two contrasts, and its model file."""
    system, network = metric_images.trained("deep_metric", aligned_batch(), 120, 3e-3)
    return system, network, put(tmp_path_factory.mktemp("metric"), system, network)


class Constant(torch.nn.Module):
    """Says the same of all patches."""

    def __init__(self, value):
        super().__init__()
        self.layer, self.value = torch.nn.Conv3d(1, 1, 1), value
        torch.nn.init.constant_(self.layer.weight, 2.0)

    def forward(self, fixed, moving):
        return torch.full((len(fixed), 1, 1, 1, 1), self.value)


@pytest.mark.parametrize(("says", "aligned", "apart"), [
    (0.0, 0.5, 0.5), (-1.0, 0.0, 1.0), (1.0, 1.0, 0.0), (-2.0, 0.0, 1.5), (0.4, 0.7, 0.3),
])  # fmt: skip
def test_hinge_loss_and_weight_decay(says, aligned, apart):
    """max(0, 1 - y N) with y = -1 for aligned and +1 for other patches, half each."""
    terms = make(decay=0.25).training_loss(Constant(says), aligned_batch())
    assert {name: round(term.item(), 5) for name, term in terms.items()} == {
        "aligned": aligned, "apart": apart, "decay": 1.0,
    }  # fmt: skip


def test_a_known_displacement_is_undone_first():
    class Difference(torch.nn.Module):
        def forward(self, fixed, moving):
            return (fixed - moving).abs().mean(dim=(1, 2, 3, 4)).view(-1, 1, 1, 1, 1) - 1.0

    image = texture(0)
    shift = torch.tensor([2.0, -3.0, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, *image.shape[2:])
    moving = sample(image, voxel_coordinates(image.shape[2:]) - shift)
    assert (warped(moving, shift) - image)[..., 4:-4, 4:-4, 4:-4].abs().max() < 1e-5
    system = make(scales=(1,), decay=0.0, patches=60)
    values = []
    for truth in (None, shift):
        torch.manual_seed(1)
        batch = Batch(image, moving, 3.0, truth=truth)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("DeepRegLib.algorithms.deep_metric.squared_weights", lambda n: 0.0)
            values.append(float(system.training_loss(Difference(), batch)["aligned"]))
    assert values[1] < 0.4 * values[0]


def test_patches_come_at_each_scale_in_turn(monkeypatch):
    shapes = []
    monkeypatch.setattr(
        "DeepRegLib.algorithms.deep_metric.draw_patches",
        lambda fixed, *rest: shapes.append(tuple(fixed.shape[2:])) or _stop(),
    )
    for step in range(3):
        with pytest.raises(StopIteration):
            make(scales=(1, 2)).training_loss(None, replace(aligned_batch(), step=step))
    assert shapes == [(24, 28, 24), (12, 14, 12), (24, 28, 24)]


def _stop():
    raise StopIteration


def test_held_out_patches_are_told_apart_and_the_profile_is_least_without_a_shift(marble_metric):
    """Learned from six marbles, asked about a seventh."""
    network, seven = marble_metric[1], aligned_batch(count=7)
    held = Batch(seven.fixed[6:], seven.moving[6:], 3.0)
    torch.manual_seed(0)
    assert separation(network, held.fixed, held.moving, 200, 2, 8) > 0.9
    shares = [
        shift_profiles(network, held.fixed, held.moving, axis, 6, 60).share_within(1.0)
        for axis in range(3)
    ]
    assert np.mean(shares) > 0.9, shares
    # The similarity of whole images is least in the right place, too.
    measure = PatchSimilarity(network, (3.0, 3.0, 3.0), 3.0)
    values = {
        shift: float(measure(held.fixed, torch.roll(held.moving, shift, 3)).detach())
        for shift in (-4, -2, 0, 2, 4)
    }
    assert min(values, key=values.get) == 0, values
    # An untrained network knows nothing.
    torch.manual_seed(1)
    blind = separation(make().build(), held.fixed, held.moving, 200, 2, 8)
    assert 0.3 < blind < 0.7


def test_area_under_the_curve():
    assert area_under_curve(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert area_under_curve(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 2.0])) == 0.5
    assert area_under_curve(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5


def test_map_and_similarity_come_with_a_result(marble_metric):
    system, network, path = marble_metric
    pair = bent_pair()
    before = bend_error_mm(Transform())
    result = registry.create("deep_metric", model=path).register(pair, Progress())
    after = bend_error_mm(result.transform)
    assert after < 0.5 * before, (before, after)
    assert result.transform.spline is not None
    found = result.extras["dissimilarity"]
    assert found.grid is pair.fixed.grid and bool(torch.isfinite(found.data).all())
    start = registry.create("deep_metric", model=path, iterations=(0, 0, 0)).register(pair, Progress())
    assert bend_error_mm(start.transform) == pytest.approx(before, abs=0.05)
    assert float(found.data.mean()) < float(start.extras["dissimilarity"].data.mean())
    still = learned.see(pair, learned.ModelFrame(3.0, (24, 28, 24)), 4)
    assert system.predict(network, still.batch.fixed, still.batch.moving, 3.0).displacement is None
    assert result.provenance["model"]["name"] == "small"
    assert [e["value"] for e in result.history][-1] < result.history[0]["value"]


@pytest.mark.parametrize(("key", "values"), [
    ("greedy", {"iterations": (40, 20), "factors": (2, 1), "modality": "different"}),
    ("svf", {"iterations": (40, 20), "factors": (2, 1), "modality": "different"}),
    ("syn", {"iterations": (40, 20), "factors": (2, 1), "modality": "different"}),
    ("bspline", {"iterations": (20, 15), "factors": (2, 1)}),
    ("lddmm", {"iterations": (8,), "factors": (2,), "time_steps": 3, "sigma": 0.1}),
])  # fmt: skip
def test_deformable_engines_take_the_metric(marble_metric, key, values):
    pair = bent_pair()
    system = registry.create(key, similarity="deep_metric", metric_model=marble_metric[2], **values)
    after = bend_error_mm(system.register(pair, Progress()).transform)
    assert after < 0.5 * bend_error_mm(Transform()), after


@pytest.mark.parametrize("key", ["rigid", "affine"])
def test_linear_engines_take_the_metric(marble_metric, key):
    matrix = pairs.known_matrix((0.06, -0.05, 0.07), (3.0, -3.5, 2.5))
    pair = turned_pair(matrix, initial=Transform())
    system = registry.create(
        key, similarity="deep_metric", metric_model=marble_metric[2], sizes=(12, 24), samples=1000
    )
    result = system.register(pair, Progress())
    before, after = (pairs.error_mm(t, matrix) for t in (Transform(), result.transform))
    assert after < 0.35 * before, (before, after)


def test_without_a_model_others_say_so_and_this_system_learns_from_the_pair(monkeypatch):
    pair = bent_pair()
    with pytest.raises(ParameterError, match="no trained model for 'deep_metric'"):
        registry.create("greedy", similarity="deep_metric").register(pair, Progress())
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 20)
    monkeypatch.setattr(learned, "_SCRATCH_VOXELS", {"cpu": 26**3})
    events = []
    result = make(iterations=(10, 8), factors=(2, 1)).register(pair, Progress(events.append))
    assert any("fitted to this pair alone" in e.text for e in events)
    assert result.provenance["pair_steps"] == 20 and result.provenance["model"] is None
    # Taking a pair that is apart for aligned, it learns little; but it does no harm.
    assert bend_error_mm(result.transform) < 1.1 * bend_error_mm(Transform())


def test_a_model_of_another_system_is_refused(tmp_path):
    system = registry.create("ssemnet", **metric_images.SMALL["ssemnet"])
    path = put(tmp_path, system, system.build())
    with pytest.raises(ParameterError, match="belongs to 'ssemnet'"):
        similarity_for("deep_metric", (3.0, 3.0, 3.0), path)


def test_parameters_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="five numbers"):
        make(channels=(8, 8))
    with pytest.raises(ParameterError, match="least and the largest"):
        make(shifts=(8, 2))
