"""What every algorithm in the registry must do, found without naming any of them.

Systems that learn run without a model and are fitted to the pair for a few steps only, which is
enough for everything but the accuracy; that is measured with trained models elsewhere.
"""

import importlib

import numpy as np
import pairs
import pytest
import torch

from DeepRegLib import models, pipeline, registry
from DeepRegLib.errors import Cancelled
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.registration import learned
from DeepRegLib.registration.base import Event, Image, Progress
from DeepRegLib.registration.compose import parse_stages

#: Whatever makes a run small, for those algorithms that have it.
SMALL = {"initialization": "stored", "samples": 4000, "sizes": (12, 24), "time_steps": 3}
#: What else makes the slowest of them quick enough to be run many times.
SLOW = {
    "lddmm": {"iterations": (15, 15, 5)},
    "deep_metric": {"iterations": (4, 3, 2), "channels": (8, 8, 8, 8, 8), "patches": 8},
    "ssemnet": {"iterations": (6, 5, 4), "channels": (6, 8, 8)},
    "rl_rigid": {"size": 16, "states": 4},
}
#: What says how wide a network is; a quarter of it computes the same way.
WIDTHS = ("channels", "width_channels", "affine_channels", "hidden", "encoder", "decoder", "final",
          "autoencoder", "segmentation_encoder", "segmentation_decoder")  # fmt: skip


def small_settings(key):
    """Returns the part of SMALL that an algorithm has, and narrow networks."""
    own, parameters = {**SMALL, **SLOW.get(key, {})}, registry.spec(key).parameters
    wide = {p.name: p.default for p in parameters if p.training and p.name in WIDTHS}
    own = {**{name: narrow(value) for name, value in wide.items()}, **own}
    return {p.name: own[p.name] for p in parameters if p.name in own}


def narrow(width):
    if isinstance(width, tuple):
        return tuple(narrow(n) for n in width)
    return min(width, max(4, width // 4))


def create(key):
    return registry.create(key, **registry.spec(key).values(preset_of(key), **small_settings(key)))


def preset_of(key):
    """Returns the preset to test; the fast one of deformations is too coarse for small images."""
    return "fast" if registry.spec(key).transform == "linear" else "balanced"


def limit_of(key):
    """Returns the error in mm to stay below; the linear stages of a deformation leave 1.65."""
    return 0.5 if registry.spec(key).transform == "linear" else 1.2


def learns(key):
    """Whether nothing can be said of the accuracy without a trained model."""
    return registry.spec(key).needs.training


def truth_of(key):
    """Returns the transform to be found, and its inverse as a function of moving points."""
    spec = registry.spec(key)
    matrix = pairs.known_matrix()
    if key in ("similarity", "affine"):
        matrix[:3, :3] *= 1.06
    back = np.linalg.inv(matrix)

    def to_fixed(points):
        points = points @ back[:3, :3].T + back[:3, 3]
        if spec.transform == "linear":
            return points
        return points + 4.0 * np.sin(points[..., [1, 2, 0]] / 9.0)

    return to_fixed


def make_pair(key, **extra):
    fixed, moving = pairs.fixed_grid(), pairs.moving_grid()
    if registry.spec(key).transform != "linear":
        # Deformations need structure to hold on to.
        fixed, moving = (g.resized([n * 3 // 2 for n in g.shape]) for g in (fixed, moving))
    values = pairs.phantom(truth_of(key)(pairs.voxel_points(moving)))
    image = Image.from_array(values.astype(np.float32), moving)
    return pairs.ImagePair(pairs.make_image(fixed), image, **extra)


def error_mm(key, transform):
    """Mean distance from the truth, in the fixed space."""
    points = pairs.body_points()
    back = truth_of(key)(transform.map_points_ras(points))
    return float(np.linalg.norm(back - points, axis=1).mean())


class Case:
    """One run of an algorithm with its usual stages before it, shared by several tests."""

    def __init__(self, key):
        self.key = key
        self.pair = make_pair(key)
        self.kept = self.pair.fixed.data.clone(), self.pair.moving.data.clone()
        self.events = []
        self.result = self.run(Progress(self.events.append, preview_seconds=0.0))

    def run(self, progress=None, device="cpu"):
        settings = {
            f"{key}.{name}": value
            for key in parse_stages(self.key)
            for name, value in small_settings(key).items()
        }
        return pipeline.run(self.pair, self.key, preset_of(self.key), settings, device, progress)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _no_models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPREG_MODELS", str(tmp_path_factory.mktemp("models")))
        patch.setattr(models, "SHIPPED", ())
        patch.setattr(learned, "_SCRATCH_STEPS", 3)
        patch.setattr(learned, "_SCRATCH_VOXELS", {"cpu": 32**3, "cuda": 32**3})
        yield


@pytest.fixture(scope="module", params=list(registry.specs()))
def case(request):
    return Case(request.param)


def test_it_aligns(case):
    if learns(case.key):
        pytest.skip("needs a trained model")
    before = error_mm(case.key, Transform())
    after = error_mm(case.key, case.result.transform)
    assert after < limit_of(case.key) < 0.3 * before
    assert case.result.quality["verdict"] == "green", case.result.quality["sentence"]


def test_the_result_is_complete(case):
    result, spec = case.result, registry.spec(case.key)
    assert result.transform.is_linear == (spec.transform == "linear")
    assert result.moved.grid is case.pair.fixed.grid and torch.isfinite(result.moved.data).all()
    assert result.quality["folds_percent"] == 0.0
    assert result.quality["inverse_mean_mm"] < 0.1
    assert list(result.seconds) == list(parse_stages(case.key))
    assert result.history and {"stage", "level", "iteration", "value"} <= set(result.history[0])
    assert all(np.isfinite(entry["value"]) for entry in result.history)
    if result.transform.field is not None:
        assert result.transform.field.grid.matches(case.pair.fixed.grid)
        assert result.transform.field.displacement.dtype == torch.float32


def test_it_reports_while_it_runs(case):
    progress = [e for e in case.events if e.kind == "progress" and e.stage == case.key]
    assert len(progress) >= 2 and all(isinstance(e, Event) for e in case.events)
    fractions = [e.fraction for e in case.events if e.kind == "progress"]
    assert fractions == sorted(fractions) and fractions[0] > 0 and fractions[-1] == 1.0
    previews = [e.transform for e in case.events if e.kind == "preview" and e.stage == case.key]
    assert previews
    assert error_mm(case.key, previews[-1]) < error_mm(case.key, Transform())


def test_inputs_are_not_changed(case):
    assert torch.equal(case.pair.fixed.data, case.kept[0])
    assert torch.equal(case.pair.moving.data, case.kept[1])


def test_it_gives_the_same_result_again(case):
    again = case.run()
    np.testing.assert_array_equal(again.transform.linear, case.result.transform.linear)
    if again.transform.field is not None:
        assert torch.equal(
            again.transform.field.displacement, case.result.transform.field.displacement
        )


@pytest.mark.parametrize("which", ["fixed_mask", "moving_mask"])
def test_one_mask_alone_is_enough(case, which):
    """The mask lies on a grid of its own, as a segmentation does; what it leaves out is spoiled."""
    image = case.pair.fixed if which == "fixed_mask" else case.pair.moving
    grid = image.grid.resized([n * 2 // 3 for n in image.grid.shape])
    points = pairs.voxel_points(grid)
    spoiled_points = pairs.voxel_points(image.grid)
    if which == "moving_mask":
        points, spoiled_points = truth_of(case.key)(points), truth_of(case.key)(spoiled_points)
    inside = np.linalg.norm(points / [32.0, 38.0, 35.0], axis=-1) < 1.0
    mask = Image.from_array(inside.astype(np.uint8), grid)
    data = image.data.clone()
    data[0, 0][torch.from_numpy(spoiled_points[..., 1] < -42.0)] = 3000.0
    spoiled = Image(data, image.grid)
    parts = {"fixed": case.pair.fixed, "moving": case.pair.moving, which[:-5]: spoiled, which: mask}
    start = case.result.transform if registry.spec(case.key).stages else None
    result = create(case.key).register(pairs.ImagePair(**parts, initial=start), Progress())
    if learns(case.key):
        # Without a model it does not align; but what the mask leaves out makes no difference.
        parts[which[:-5]] = image
        whole = create(case.key).register(pairs.ImagePair(**parts, initial=start), Progress())
        points = pairs.body_points()
        np.testing.assert_allclose(
            result.transform.map_points_ras(points),
            whole.transform.map_points_ras(points),
            atol=1e-3,
        )
        return
    assert error_mm(case.key, result.transform) < 1.5


def test_cancel_ends_it(case):
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        create(case.key).register(case.pair, progress)


def test_stop_keeps_the_best_so_far(case):
    seen = []

    def listen(event):
        seen.append(event)
        if event.kind == "progress" and event.stage == case.key:
            progress.stop()

    progress = Progress(listen)
    progress.stage(case.key, 0.0, 1.0)
    result = create(case.key).register(case.pair, progress)
    assert len([e for e in seen if e.kind == "progress"]) <= 2
    assert np.isfinite(result.transform.map_points_ras(pairs.body_points())).all()


def test_a_given_start_is_used(case):
    """From the solution it stays there, also when the stored position is far off."""
    pair = pairs.ImagePair(case.pair.fixed, case.pair.moving, initial=case.result.transform,
                           initial_is_given=True)  # fmt: skip
    result = create(case.key).register(pair, Progress())
    limit = limit_of(case.key)
    if learns(case.key):
        limit = 0.5 * error_mm(case.key, Transform())
    assert error_mm(case.key, result.transform) < limit


def test_the_file_says_what_an_import_gives(case):
    module = importlib.import_module(f"DeepRegLib.algorithms.{case.key}")
    assert registry.spec(case.key) == module.SPEC
    for preset in ("fast", "balanced", "accurate"):
        module.Algorithm(**module.SPEC.values(preset))


def test_the_spec_helps_people(case):
    spec = registry.spec(case.key)
    assert spec.summary.endswith(".") and spec.references
    for reference in spec.references:
        assert reference.link.startswith("https://")
    for parameter in spec.parameters:
        assert parameter.help.endswith(".") and parameter.name.isidentifier()
        for preset in ("fast", "balanced", "accurate"):
            value = parameter.for_preset(preset)
            assert parameter.parse(value) == value
    for key in spec.stages:
        assert registry.spec(key)


def test_a_system_that_learns_takes_a_model_of_its_own(case, tmp_path, monkeypatch):
    """A model of this size and these parameters is found, fits, is named, and leaves no trace."""
    if not learns(case.key):
        pytest.skip("takes no model")
    spec = registry.spec(case.key)
    assert [p.name for p in spec.parameters[:2]] == ["model", "pair_steps"]
    system = create(case.key)
    values = {p.name: system.values[p.name] for p in spec.parameters if p.training}
    torch.manual_seed(5)
    card = models.ModelCard("m", case.key, values, 3.5, (32, 32, 32), terms="for this test")
    save_model(tmp_path / "m.safetensors", system.build(), card)
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    start = pairs.ImagePair(case.pair.fixed, case.pair.moving, initial=case.result.transform)
    result = create(case.key).register(start, Progress())
    assert result.provenance["model"]["terms"] == "for this test"
    assert error_mm(case.key, result.transform) < error_mm(case.key, start.initial) + 0.3
    fitted = registry.create(case.key, pair_steps=2).register(start, Progress())
    assert fitted.provenance["pair_steps"] == 2
    assert fitted.history and all(np.isfinite(e["value"]) for e in fitted.history)
    again = create(case.key).register(start, Progress())
    np.testing.assert_array_equal(again.transform.linear, result.transform.linear)
    if result.transform.field is not None:
        one, two = (r.transform.field.displacement for r in (again, result))
        assert torch.equal(one, two)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same(case):
    result = case.run(device="cuda")
    assert result.transform.is_linear or result.transform.field.displacement.device.type == "cpu"
    points = pairs.body_points()
    there = result.transform.map_points_ras(points) - case.result.transform.map_points_ras(points)
    assert np.linalg.norm(there, axis=1).mean() < 0.5
    assert result.quality["peak_memory_mb"] > 0
