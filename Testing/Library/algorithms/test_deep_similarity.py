"""Deep similarity: estimates that mean millimeters, and the registration that they lead to."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch

from DeepRegLib import models, pipeline, registry
from DeepRegLib.algorithms import deep_similarity
from DeepRegLib.algorithms.deep_similarity import SPEC, Algorithm
from DeepRegLib.card import card_rows, card_text
from DeepRegLib.errors import InputError, ParameterError
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import voxel_coordinates
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.networks.affine_net import apply_affine
from DeepRegLib.networks.composite import moved_by
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.registration.base import Progress, Result
from DeepRegLib.registration.learned import see
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.rigid_learned import mass_start
from DeepRegLib.registration.rigid_motion import (
    motion_matrix,
    motions_of_error,
    surface_points,
    target_error_mm,
)
from DeepRegLib.registration.trainable import Batch, total
from DeepRegLib.registration.tre_estimate import card_figures, estimated_tre_mm
from DeepRegLib.registration.tre_probe import responds

SPACING, SHAPE = 5.0, (16, 16, 16)
FRAME = ModelFrame(SPACING, SHAPE)
SMALL = {"channels": (8, 16, 16), "hidden": 16, "candidates": 12, "affine_share": 0.0,
         "population": 12, "generations": 12, "iterations": 12, "passes": 4}  # fmt: skip


def make(**values):
    return Algorithm(**SPEC.values(**{**SMALL, **values}))


def aligned():
    """The phantom and itself in other intensities, on the grid of the model, aligned."""
    view = see(pairs.make_pair(np.eye(4)), FRAME)
    moving = (view.batch.moving**1.2).clamp(0, 1)
    return replace(view.batch, moving=moving, truth=torch.zeros(1, 3, *view.batch.shape))


@pytest.fixture(scope="module")
def taught():
    """A network that has learned from the phantom; the same for all tests."""
    torch.manual_seed(0)
    system, batch = make(), aligned()
    network = system.build().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    steps = 220
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        terms = system.training_loss(network, batch)
        optimizer.zero_grad()
        total(terms).backward()
        optimizer.step()
        rate.step()
    return network.eval()


@pytest.fixture
def model(taught, tmp_path, monkeypatch):
    """The taught network as the only model that there is."""
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    parameters = {p.name: make().values[p.name] for p in SPEC.parameters if p.training}
    card = models.ModelCard("m", "deep_similarity", parameters, SPACING, SHAPE, anatomy="head",
                            contrast="T1")  # fmt: skip
    save_model(tmp_path / "m.safetensors", taught, card)
    return tmp_path


def moved_at_random(batch, count, most=20.0, seed=3):
    """Motions with errors up to `most`, with the images as they move them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        points = surface_points(batch.fixed, 200).expand(count, -1, -1)
        motions, errors = motions_of_error(points, most * torch.rand(count), SPACING)
    images = batch.moving.expand(count, -1, -1, -1, -1)
    return motions, errors, moved_by(images, motions.float(), None)


def test_estimates_are_the_errors_in_mm(taught):
    batch = aligned()
    _, errors, moved = moved_at_random(batch, 60)
    with torch.no_grad():
        found = taught(batch.fixed.expand_as(moved), moved)
    r = torch.corrcoef(torch.stack([found, errors.float()]))[0, 1]
    assert r > 0.85
    assert (found - errors).abs().mean() < 3.0
    with torch.no_grad():
        assert float(taught(batch.fixed, batch.moving)) < 4.0


def test_the_loss_is_the_squared_error_in_units_of_the_range():
    system, batch = make(range_mm=16.0, candidates=40), aligned()
    network = system.build().eval()  # says 8 mm of everything
    torch.manual_seed(1)
    value = float(system.training_loss(network, batch)["squared_error"].detach())
    # The variance of even numbers from 0 to 1 is a twelfth.
    assert value == pytest.approx(1.0 / 12.0, rel=0.35)


def test_a_known_displacement_is_the_truth_of_a_pair():
    # A pair that lies 10 mm apart, with its truth, is a pair that is aligned.
    batch = aligned()
    shift = torch.tensor([2.0, 0.0, 0.0]).view(1, 3, 1, 1, 1).expand(1, 3, *batch.shape)
    matrix = torch.eye(4)[None].clone()
    matrix[0, 0, 3] = -2.0
    apart = replace(batch, moving=moved_by(batch.moving, matrix, None), truth=shift)
    seen = []

    def network(fixed, moved):
        seen.append((fixed, moved))
        return torch.full((len(moved),), 1.0)

    system = make(range_mm=0.1, candidates=2)
    system.training_loss(network, apart)
    fixed, moved = seen[0]
    unlike = (moved - batch.moving).abs().mean()
    assert unlike < 0.15 * (apart.moving - batch.moving).abs().mean()
    assert torch.equal(fixed[:1], batch.fixed)


def test_a_pair_without_truth_teaches_by_its_single_images():
    batch = replace(aligned(), truth=None)
    seen = []

    def network(fixed, moved):
        seen.append(fixed)
        return torch.full((len(moved),), 1.0)

    make(candidates=2).training_loss(network, batch)
    assert torch.equal(seen[0][::2], torch.cat([batch.fixed, batch.moving]))


def test_registration_lowers_the_true_error(taught):
    batch = aligned()
    system = make(generations=25, population=16)
    motions, _, moved = moved_at_random(batch, 6, seed=5)
    points = surface_points(batch.fixed, 200)
    before, after = [], []
    for motion, image in zip(motions, moved):
        with torch.no_grad():
            found = system.predict(taught, batch.fixed, image[None], SPACING)
        truth = torch.linalg.inv(motion)
        still = torch.eye(4, dtype=torch.float64)
        before.append(float(target_error_mm(points, still[None], truth[None], SPACING)))
        after.append(float(target_error_mm(points, found.linear[None], truth[None], SPACING)))
        linear = found.linear[:3, :3]
        assert torch.allclose(linear.T @ linear, torch.eye(3).double(), atol=1e-9)
        assert found.values["estimated_tre_mm"] <= found.values["estimated_tre_before_mm"]
    assert np.median(after) < 0.5 * np.median(before)


def test_what_has_not_learned_leaves_the_start_alone():
    batch, system = aligned(), make()
    network = system.build().eval()
    found = system.predict(network, batch.fixed, batch.moving, SPACING)
    assert torch.equal(found.linear, torch.eye(4, dtype=torch.float64))
    assert found.values["moved"] is False
    start = torch.eye(4, dtype=torch.float64)
    start[0, 3] = 2.5
    assert torch.equal(
        system.search(network, batch.fixed, batch.moving, SPACING, start).linear, start
    )


def test_prediction_repeats_and_leaves_random_numbers_alone(taught):
    batch, system = aligned(), make(generations=3, iterations=3)
    _, _, moved = moved_at_random(batch, 1)
    before = torch.get_rng_state()
    one, same = (system.predict(taught, batch.fixed, moved, SPACING).linear for _ in range(2))
    assert torch.equal(one, same) and torch.equal(before, torch.get_rng_state())


def test_registers_an_oblique_pair_from_far_away(model):
    truth = pairs.known_matrix((0.2, -0.15, 0.2), (4.0, -3.0, 2.5))
    pair = pairs.make_pair(truth)
    # The moving image lies far beyond the grid; its center of mass leads there.
    shift = np.eye(4)
    shift[:3, 3] = 60.0, 20.0, -30.0
    grid = Grid(pair.moving.grid.shape, shift @ pair.moving.grid.voxel_to_ras)
    pair, truth = replace(pair, moving=replace(pair.moving, grid=grid)), shift @ truth
    start = mass_start(pair)
    result = make(generations=25, population=16).register(pair, Progress())
    assert result.transform.is_linear
    assert pairs.error_mm(start, truth) < 0.2 * pairs.error_mm(Transform(), truth)
    assert pairs.error_mm(result.transform, truth) < pairs.error_mm(start, truth)
    values = result.provenance["values"]
    assert values["estimated_tre_mm"] < values["estimated_tre_before_mm"]


def test_estimate_of_any_linear_alignment(model):
    matrix = pairs.known_matrix()
    pair, system = pairs.make_pair(matrix), make()
    right = system.estimate(pair, Transform(matrix))
    values = [right]
    for size in (6.0, 14.0):
        wrong = matrix.copy()
        wrong[:3, 3] += (size, 0.0, 0.0)
        values.append(system.estimate(pair, Transform(wrong)))
    assert values == sorted(values) and values[0] < 5.0 and values[2] > values[0] + 5.0
    stretched = matrix.copy()
    stretched[:3, :3] *= 1.02
    assert system.estimate(pair, Transform(stretched)) == pytest.approx(right, abs=3.0)
    assert estimated_tre_mm(pair, Transform(matrix)) == pytest.approx(right, abs=1.0)
    # What the pair starts from has no part in it.
    initial = replace(pair, initial=Transform(np.diag([1.0, 1.0, 1.0, 1.0]) + np.eye(4, k=3) * 30))
    assert system.estimate(initial, Transform(matrix)) == right


def test_estimate_needs_a_model_and_a_linear_alignment(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "SHIPPED", ())
    pair = pairs.make_pair()
    assert make().estimate(pair) is None and estimated_tre_mm(pair) is None
    with pytest.raises(ParameterError):
        estimated_tre_mm(pair, model="none")
    grid = pair.fixed.grid
    bent = Transform(np.eye(4), Field(torch.zeros(1, 3, *grid.shape), grid))
    with pytest.raises(InputError, match="linear"):
        make().estimate(pair, bent)


def from_files(pair):
    """The pair as a run gets it: everything that belongs to a run and not to the estimate, too."""
    return replace(pair, initial=Transform(np.eye(4)), initial_is_given=True)


def test_a_linear_result_has_the_estimate_on_its_card(model, monkeypatch):
    matrix = pairs.known_matrix()
    seen, before = [], torch.get_rng_state()
    result = run_with(monkeypatch, from_files(pairs.make_pair(matrix)), Transform(matrix), seen)
    assert torch.equal(before, torch.get_rng_state())
    card = result.quality
    assert card["estimated_tre_mm"] == pytest.approx(
        make(passes=8).estimate(pairs.make_pair(matrix), Transform(matrix)), abs=0.01
    )
    assert card["estimated_tre_model"] == "m (head, T1)" and result.provenance["remarks"] == []
    rows = {name: after for name, _, after in card_rows(card)}
    assert rows["Estimated error (TRE)"] == f"{card['estimated_tre_mm']:.1f} mm"
    assert rows["Model of the estimate"] == "m (head, T1)"
    assert "m (head, T1)" in card_text(card) and not any("estimate" in e.text for e in seen)
    # A worse alignment has a larger figure.
    off = matrix.copy()
    off[:3, 3] += (7.0, 0.0, 0.0)
    worse = run_with(monkeypatch, pairs.make_pair(matrix), Transform(off)).quality
    assert worse["estimated_tre_mm"] > card["estimated_tre_mm"] + 2.0


def test_no_estimate_for_deformations_and_without_a_model(model, tmp_path, monkeypatch):
    pair = pairs.make_pair()
    grid = pair.fixed.grid
    bent = Transform(np.eye(4), Field(torch.full((1, 3, *grid.shape), 0.1), grid))
    (model / "m.safetensors").rename(model / "kept")
    plain = run_with(monkeypatch, pair, Transform(pairs.known_matrix())).quality
    assert not any(key.startswith("estimated") for key in plain)
    (model / "kept").rename(model / "m.safetensors")
    assert set(run_with(monkeypatch, pair, bent).quality) == set(plain)


@pytest.mark.parametrize(
    ("make_wrong", "reason"),
    [
        (lambda p: larger(p, 2.8, "fixed"), "voxels of the fixed image are more than twice"),
        (lambda p: larger(p, 3.2, "moving"), "voxels of the moving image are more than twice"),
        (lambda p: larger(larger(p, 0.2, "fixed"), 0.2, "moving"), "fixed image is smaller than"),
        (lambda p: larger(p, 1.9, "moving"), "moving image is larger"),
        (lambda p: replace(p, fixed=noise_of(p.fixed)), "do not look like those"),
        (lambda p: replace(p, moving=noise_of(p.moving)), "do not look like those"),
    ],
)
def test_no_estimate_for_images_that_the_model_is_not_for(model, make_wrong, reason, monkeypatch):
    seen = []
    pair = make_wrong(pairs.make_pair())
    result = run_with(monkeypatch, pair, Transform(pairs.known_matrix()), seen)
    assert not any(key.startswith("estimated") for key in result.quality)
    (sentence,) = (e.text for e in seen if "gives no estimate" in e.text)
    assert reason in sentence and "'m'" in sentence
    assert sentence in result.provenance["remarks"]
    monkeypatch.setattr(models, "SHIPPED", (model,))  # Nobody chose it, so nothing is said of it.
    assert card_figures(pair, Transform(), torch.device("cpu")) == ({}, "")


def test_no_estimate_where_the_images_tell_nothing_together(model, taught, monkeypatch):
    pair, matrix = pairs.make_pair(), pairs.known_matrix()
    assert make().trusted_estimate(pair, Transform(matrix)).mm is not None
    far = matrix.copy()
    far[:3, 3] += (30.0, 0.0, 10.0)
    found = make().trusted_estimate(pair, Transform(far))
    assert found.mm is None and "18 mm or more apart" in found.reason
    monkeypatch.setattr(deep_similarity, "responds", lambda *_: False)
    found = make().trusted_estimate(pair, Transform(matrix))
    assert found.mm is None and "never saw together" in found.reason


def test_a_network_is_believed_if_its_estimate_rises_from_where_the_images_lie(taught):
    batch = aligned()

    def deaf(fixed, moved):
        return torch.full((len(moved),), 6.0)

    images = (batch.fixed, batch.moving, SPACING, 20.0)
    assert responds(taught, *images, 2.5) and not responds(deaf, *images, 6.0)
    for _, error, moved in zip(*moved_at_random(batch, 8, most=7.0)):
        with torch.no_grad():
            said = float(taught(batch.fixed, moved[None]))
        assert responds(taught, batch.fixed, moved[None], SPACING, 20.0, said), float(error)


def test_a_failing_estimate_fails_no_registration(model, monkeypatch):
    (model / "m.safetensors").rename(model / "n.safetensors")
    card = replace(models.read_card(model / "n.safetensors"), name="m", figures={"x": 1.0})
    save_model(model / "m.safetensors", torch.nn.Linear(2, 2), card)
    (model / "n.safetensors").unlink()
    seen = []
    result = run_with(monkeypatch, pairs.make_pair(), Transform(pairs.known_matrix()), seen)
    assert "estimated_tre_mm" not in result.quality and result.quality["verdict"] == "green"
    (sentence,) = (e.text for e in seen if "gives no estimate" in e.text)
    assert sentence.endswith(".") and not sentence.endswith("..")


def run_with(monkeypatch, pair, transform, seen=None):
    """A run whose algorithm finds a set transform; all else is as in any run."""
    create = registry.create

    class Fake:
        def register(self, pair, progress):
            return Result(transform)

    with monkeypatch.context() as patch:
        patch.setattr(registry, "create", lambda key, **values: (
            Fake() if key == "rigid" else create(key, **values)))  # fmt: skip
        progress = Progress(None if seen is None else seen.append)
        return pipeline.run(pair, "rigid", device="cpu", progress=progress)


def larger(pair, factor, side):
    """The pair with one image scaled about its middle."""
    image = getattr(pair, side)
    matrix = image.grid.voxel_to_ras.copy()
    matrix[:3, :3] *= factor
    center = image.grid.center_ras
    matrix[:3, 3] = center - matrix[:3, :3] @ ((np.array(image.grid.shape) - 1) / 2)
    return replace(pair, **{side: replace(image, grid=Grid(image.grid.shape, matrix))})


def noise_of(image):
    """An object of the same place and size, without anything that can be recognized."""
    generator = torch.Generator().manual_seed(1)
    values = 60.0 + 40.0 * torch.rand(image.data.shape, generator=generator)
    return replace(image, data=torch.where(image.data > 20.0, values, image.data))


def test_validation_examines_motions_of_known_error(taught):
    """From none to the largest, about the alignment: nothing is registered."""
    system, batch = make(), aligned()
    start = motion_matrix(torch.tensor([[9.0, -6.0, 4.0, 5.0, -8.0, 3.0]]).double(), SPACING,
                          torch.tensor([7.5] * 3))  # fmt: skip
    moving = moved_by(batch.moving, start.float(), None)
    where = voxel_coordinates(batch.shape)
    truth = apply_affine(torch.linalg.inv(start).float(), where) - where
    apart = replace(batch, moving=moving, truth=truth)
    seen = []
    taught_hook = taught.register_forward_hook(lambda _, images, __: seen.append(images[1]))
    torch.manual_seed(0)
    with torch.no_grad():
        figures = system.examine(taught, apart)
    taught_hook.remove()
    assert figures["correlation"] > 0.8 and figures["score"] > 0.3
    off = (torch.cat(seen) - batch.moving)[..., 4:-4, 4:-4, 4:-4].abs().mean(dim=(1, 2, 3, 4))
    assert 3 * off[0] < off[-1], "the first is aligned by the truth"


def test_trained_by_the_trainer(tmp_path):
    from training_doubles import Blobs

    from DeepRegLib.training.settings import TrainingSettings
    from DeepRegLib.training.trainer import Trainer

    system = make(channels=(4, 4), candidates=4, generations=1, population=4, iterations=1,
                  passes=1, reach_mm=5.0)  # fmt: skip
    system.multiple = 4
    source = system.source(Blobs(), tmp_path, Progress())
    settings = TrainingSettings(steps=6, validate_every=6, device="cpu")
    result = Trainer(system, source, settings, tmp_path).run()
    assert result.ended == "complete" and "correlation" in result.figures
    batch = source.draw(1, torch.Generator().manual_seed(0))
    assert isinstance(batch, Batch) and batch.truth is not None
