"""Taught pairs: the teacher's answer is right, exact after every change, and made only once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from training_doubles import SHAPE, SHIFT, Blobs

from DeepRegLib.errors import Cancelled, InputError, ParameterError
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.networks.blocks import warped
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.shooting import shooting_settings
from DeepRegLib.registration.shooting_frame import ShootingFrame
from DeepRegLib.registration.trainable import Batch
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.lesson import Lesson, Teacher
from DeepRegLib.training.teacher import TaughtPairs, mirrored

NO_CHANGE = Augmentation()
QUICK = {"factors": (4, 2, 1), "iterations": (15, 10, 3)}
SHOOTING = {"iterations": (6, 6, 4), "time_steps": 4, "widths": (4.0, 2.0), "weights": (1.0, 1.0)}


class Pairs(Blobs):
    """Blobs with what else a source has; some have no labels."""

    def __init__(self, unlabeled=(), **values):
        super().__init__(**values)
        self.unlabeled = unlabeled

    def draw(self, count, generator):
        batch = super().draw(count, generator)
        if len(self.draws) in self.unlabeled:
            unknown = torch.full_like(batch.fixed_labels, -1)
            return replace(batch, moving_labels=unknown)
        return batch

    def structures(self):
        return [1, 2]


class Bumps:
    """Smooth random images, the moving one bent a little, on a grid of another shape."""

    def __init__(self, shape=(16, 20, 24)):
        self.frame = ModelFrame(2.0, shape)

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


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def taught(source, folder, count=2, teacher=None, **values):
    teacher = teacher or Teacher("greedy", "fast", QUICK)
    return TaughtPairs(source, teacher, count, folder, shades=NO_CHANGE, device="cpu", **values)


@pytest.fixture
def counted(monkeypatch):
    """Replaces the teacher by a quick one, and keeps the images that it was shown."""
    seen = []

    def teach(self, fixed, moving, spacing_mm, progress=None):
        seen.append(fixed)
        (progress or Progress()).update(0.5)
        vectors = torch.ones(1, 3, *fixed.shape[2:]) * fixed.mean()
        better = 1.0 if bool(fixed.mean() >= 0.0) else 0.0
        return Lesson(vectors, None, True, 0.1, 0.0, {"ncc": 0.5, "nmi": 1.0},
                      {"ncc": 0.5 + better, "nmi": 1.0})  # fmt: skip

    monkeypatch.setattr(Teacher, "teach", teach)
    return seen


def test_the_answer_brings_the_moving_onto_the_fixed_image(tmp_path):
    pairs = taught(Bumps(), tmp_path, teacher=Teacher("greedy", "fast"))
    assert len(pairs) == 2 and pairs.frame == ModelFrame(2.0, (16, 20, 24))
    inner = (..., *(slice(2, -2),) * 3)
    for index in range(2):
        pair = pairs.pair(index)
        before = (pair.fixed - pair.moving)[inner].square().mean()
        after = (pair.fixed - warped(pair.moving, pair.truth))[inner].square().mean()
        assert after < 0.35 * before
        assert pair.momentum is None and pair.fixed_labels is None


def test_the_batch_is_what_the_source_drew(tmp_path):
    pair = taught(Pairs(), tmp_path, 1).pair(0)
    assert pair.shape == SHAPE and pair.spacing_mm == 3.0
    assert set(pair.fixed_labels.unique().tolist()) == {0, 1, 2}
    assert pair.fixed_labels.dtype == pair.moving_labels.dtype == torch.int64
    weight = pair.fixed / pair.fixed.sum()
    shift = (pair.truth * weight).sum((0, 2, 3, 4))
    assert (shift * torch.tensor(SHIFT) > 0.3).all()


def test_a_margin_changes_the_place_of_nothing(tmp_path):
    batch = Pairs().draw(1, generator())
    found = [
        Teacher("greedy", "fast", QUICK, margin).teach(batch.fixed, batch.moving, 3.0)
        for margin in (0, 4)
    ]
    inner = (..., *(slice(4, -4),) * 3)
    assert found[0].displacement.shape == found[1].displacement.shape
    assert (found[0].displacement - found[1].displacement)[inner].abs().mean() < 0.35


def test_the_momentum_ends_in_the_same_deformation(tmp_path):
    teacher = Teacher("lddmm", values=SHOOTING, margin=8)
    pairs = taught(Bumps(), tmp_path, 1, teacher)
    pair = pairs.pair(0)
    frame = ShootingFrame(pair.shape, 2.0, shooting_settings(teacher.values), 8)
    assert pair.momentum.shape == (1, 3, *frame.lattice.shape) == (1, 3, 16, 18, 20)
    shot = frame.displacement(frame.geodesic(pair.momentum).inverse)
    assert pair.truth.norm(dim=1).max() > 0.3
    assert (shot - pair.truth).norm(dim=1).max() < 0.02
    # What the mirrored momentum is shot to is the mirrored deformation.
    other = mirrored(pair)
    shot = frame.displacement(frame.geodesic(other.momentum).inverse)
    assert (shot - other.truth).norm(dim=1).max() < 0.02
    assert (shot - pair.truth).norm(dim=1).max() > 0.2


def test_a_lattice_that_is_not_symmetric_is_not_mirrored(tmp_path):
    pairs = taught(Bumps((17, 20, 24)), tmp_path, 1, Teacher("lddmm", values=SHOOTING), flip=1.0)
    assert torch.equal(pairs.draw(1, generator()).fixed, pairs.pair(0).fixed)


def test_mirrored_pairs_are_as_exact_as_before():
    shape = (12, 16, 20)
    moving = gaussian_smooth(torch.randn(2, 1, *shape, generator=generator()), 2.0)
    truth = 8.0 * gaussian_smooth(torch.randn(2, 3, *shape, generator=generator(1)), 3.0)
    fixed = warped(moving, truth)
    labels = (moving > 0).long()
    batch = Batch(fixed, moving, 2.0, labels, labels, truth)
    other = mirrored(batch)
    assert torch.allclose(other.fixed, fixed.flip(2))
    assert torch.allclose(warped(other.moving, other.truth), other.fixed, atol=1e-5)
    assert torch.equal(other.moving_labels, labels.flip(2))
    again = mirrored(other)
    assert torch.equal(again.truth, truth) and torch.equal(batch.truth, truth)


def test_draws_change_intensities_and_sides_only(tmp_path):
    shades = Augmentation(gamma=0.2, noise=0.1)
    teacher = Teacher("greedy", "fast", QUICK)
    pairs = TaughtPairs(Pairs(), teacher, 2, tmp_path, flip=0.5, shades=shades, device="cpu")
    originals = [pairs.pair(index) for index in range(2)]
    kept = [values for pair in originals for values in (pair, mirrored(pair))]
    drawn = [pairs.draw(2, generator(seed)) for seed in range(8)]
    found = set()
    for batch in drawn:
        assert batch.fixed.shape == (2, 1, *SHAPE) and batch.truth.shape == (2, 3, *SHAPE)
        for index in range(2):
            same = [torch.equal(batch.truth[index], pair.truth[0]) for pair in kept]
            assert sum(same) == 1
            original = kept[same.index(True)]
            found.add(same.index(True))
            assert not torch.equal(batch.fixed[index], original.fixed[0])
            assert torch.equal(batch.fixed_labels[index], original.fixed_labels[0])
            likeness = torch.corrcoef(
                torch.stack([batch.moving[index].flatten(), original.moving.flatten()])
            )
            assert likeness[0, 1] > 0.9
    assert found == {0, 1, 2, 3}
    again = pairs.draw(2, generator(3))
    assert torch.equal(again.fixed, drawn[3].fixed) and torch.equal(again.truth, drawn[3].truth)


def test_changes_that_move_are_refused(tmp_path):
    with pytest.raises(InputError, match="not moved"):
        TaughtPairs(Pairs(), Teacher("greedy"), 1, tmp_path, shades=Augmentation.usual())


def test_every_pair_is_taught_once(tmp_path, counted):
    taught(Pairs(), tmp_path, 3)
    assert len(counted) == 3
    taught(Pairs(), tmp_path, 3)
    assert len(counted) == 3
    assert len(taught(Pairs(), tmp_path, 5)) == 5 and len(counted) == 5
    taught(Pairs(), tmp_path, 3, Teacher("greedy", "fast", {**QUICK, "iterations": (15, 10, 4)}))
    assert len(counted) == 8
    taught(Pairs(), tmp_path, 3, Teacher("syn", "fast", QUICK))
    assert len(counted) == 11
    taught(Pairs(), tmp_path, 3, Teacher("greedy", "fast", QUICK, margin=2))
    assert len(counted) == 14


def test_other_images_are_taught_anew(tmp_path, counted):
    class Darker(Pairs):
        def draw(self, count, generator):
            batch = super().draw(count, generator)
            return replace(batch, fixed=0.9 * batch.fixed)

    taught(Pairs(), tmp_path, 2)
    taught(Darker(), tmp_path, 2)
    assert len(counted) == 4


def test_a_teaching_that_was_cancelled_goes_on(tmp_path, counted):
    progress = Progress()

    class Cancelling(Progress):
        def update(self, fraction, value=None):
            if len(counted) == 3:
                self.cancel()
            super().update(fraction, value)

    with pytest.raises(Cancelled):
        taught(Pairs(), tmp_path, 5, progress=Cancelling())
    # The third was under way.
    assert len(counted) == 3 and len(list(tmp_path.glob("*.safetensors"))) == 2
    assert len(taught(Pairs(), tmp_path, 5, progress=progress)) == 5
    assert len(counted) == 6


def test_a_damaged_file_is_made_anew(tmp_path, counted):
    taught(Pairs(), tmp_path, 2)
    file = sorted(tmp_path.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:100])
    assert len(taught(Pairs(), tmp_path, 2)) == 2 and len(counted) == 3


def test_several_at_once_share_the_work(tmp_path, counted):
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: len(taught(Pairs(), tmp_path, 6)), range(3)))
    assert found == [6, 6, 6] and len(counted) == 6


def test_it_tells_what_it_does(tmp_path, counted):
    events = []
    taught(Pairs(), tmp_path, 3, progress=Progress(events.append))
    assert any("'greedy' registers 3 pairs" in e.text for e in events if e.kind == "message")
    fractions = [e.fraction for e in events if e.kind == "progress"]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(set(fractions)) > 2


def test_failures_are_left_out_and_told(tmp_path):
    class Poor(Pairs):
        """The second pair shows the same image twice, the third is no image at all."""

        def draw(self, count, generator):
            batch = super().draw(count, generator)
            number = (len(self.draws) - 1) % 4
            if number == 1:
                return replace(batch, moving=batch.fixed)
            if number == 2:
                return replace(batch, moving=batch.moving * float("nan"))
            return batch

    events = []
    # All pairs are drawn once for their keys and once for the teacher.
    pairs = taught(Poor(), tmp_path, 4, progress=Progress(events.append))
    assert len(pairs) == 2
    (said,) = [e.text for e in events if e.kind == "message" and "left out" in e.text]
    assert said.startswith("2 of 4 pairs") and "no more alike" in said and "no numbers" in said
    pairs.draw(4, generator())


def test_folds_are_no_lesson():
    alike = {"ncc": 0.5, "nmi": 1.1}
    better = {"ncc": 0.8, "nmi": 1.0}
    flat = torch.zeros(1, 3, 4, 4, 4)
    assert Lesson(flat, None, True, 1.0, 0.0, alike, better).fault == ""
    assert "fold" in Lesson(flat, None, True, 1.0, 0.5, alike, better).fault
    assert "alike" in Lesson(flat, None, True, 1.0, 0.0, alike, alike).fault
    assert "no numbers" in Lesson(flat * float("nan"), None, True, 1.0, 0.0, alike, better).fault


def test_without_any_lesson_there_is_no_training(tmp_path):
    class Same(Pairs):
        def draw(self, count, generator):
            batch = super().draw(count, generator)
            return replace(batch, moving=batch.fixed)

    with pytest.raises(InputError, match="none of the 2 pairs"):
        taught(Same(), tmp_path, 2)


def test_labels_may_be_missing(tmp_path, counted):
    bare = taught(Pairs(labels=False), tmp_path, 2)
    assert bare.draw(2, generator()).fixed_labels is None
    with pytest.raises(InputError, match="label maps"):
        bare.labeled()
    # The second draw of each round has a map that is not known.
    partly = taught(Pairs(unlabeled=(2, 5)), tmp_path, 3)
    assert len(partly) == 3 and len(partly.labeled()) == 2
    assert min(int(partly.pair(i).moving_labels.min()) for i in range(3)) == -1
    assert all(int(partly.labeled().pair(i).moving_labels.min()) == 0 for i in range(2))


def test_validation_and_description_are_those_of_the_source(tmp_path, counted):
    source = Pairs()
    pairs = taught(source, tmp_path, 2)
    assert torch.equal(pairs.validation()[1].fixed, source.validation()[1].fixed)
    assert pairs.structures() == [1, 2]
    told = pairs.describe()
    assert told["text"] == "blobs" and told["taught_pairs"] == 2
    assert told["teacher"]["algorithm"] == "greedy"


@pytest.mark.parametrize("key", ["affine", "vxm", "nobody"])
def test_not_everyone_can_teach(key):
    with pytest.raises(ParameterError):
        Teacher(key)
