"""Pairs of prepared subjects: which, in what order, the same again for the same generator."""

import pytest
import torch

from DeepRegLib import registry
from DeepRegLib.errors import InputError
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.mixed import MixedPairs
from DeepRegLib.training.pairs import PreparedPairs
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.subjects import Subject, find_subjects

FRAME = ModelFrame(4.0, (16, 32, 16))


@pytest.fixture(scope="module")
def prepared(people, tmp_path_factory):
    subjects = find_subjects(people.folder, person=r"(.+)_\d")
    folder = tmp_path_factory.mktemp("pairs")
    return prepare(subjects, FRAME, folder, reference="ann_1", alignment="none")


def part(prepared, *names):
    return prepared.only([s for s in prepared.subjects if s.name in names])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def who(prepared, image):
    """Name of the subject that an image of a batch shows."""
    for index, subject in enumerate(prepared.subjects):
        if torch.equal(prepared.image(index)[0], image):
            return subject.name
    return "nobody"


def drawn(pairs, prepared, count=60):
    batch = pairs.draw(count, generator())
    return {(who(prepared, f), who(prepared, m)) for f, m in zip(batch.fixed, batch.moving)}


def test_all_pairs_in_both_orders(prepared):
    some = part(prepared, "ann_1", "ann_2", "bob_1")
    names = [s.name for s in some.subjects]
    expected = {(a, b) for a in names for b in names if a != b}
    assert drawn(PreparedPairs(some), prepared) == expected


def test_pairs_within_a_person(prepared):
    pairs = PreparedPairs(prepared, mode="within")
    assert drawn(pairs, prepared, 20) == {("ann_1", "ann_2"), ("ann_2", "ann_1")}


def test_pairs_with_an_atlas(prepared):
    train, held = part(prepared, "ann_1", "ann_2", "bob_1"), part(prepared, "cyd_1")
    pairs = PreparedPairs(train, held, mode="atlas", atlas="ann_1")
    assert drawn(pairs, prepared, 20) == {("ann_1", "ann_2"), ("ann_1", "bob_1")}
    (batch,) = pairs.validation()
    assert who(prepared, batch.fixed[0]) == "ann_1" and who(prepared, batch.moving[0]) == "cyd_1"
    other = PreparedPairs(train, held, mode="atlas", atlas="cyd_1")
    assert {fixed for fixed, _ in drawn(other, prepared, 20)} == {"cyd_1"}


def test_batches_are_as_the_trainer_wants_them(prepared):
    pairs = PreparedPairs(prepared, augmentation=Augmentation.usual())
    batch = pairs.draw(3, generator())
    assert batch.fixed.shape == batch.moving.shape == batch.fixed_labels.shape == (3, 1, 16, 32, 16)
    assert batch.fixed.dtype == torch.float32 and batch.moving_labels.dtype == torch.int64
    assert batch.spacing_mm == 4.0 and pairs.frame == prepared.frame and batch.truth is None
    assert set(batch.fixed_labels.unique().tolist()) <= {0, *pairs.structures()}
    # Labels belong to their images: the object is where the labels are.
    for image, labels in ((batch.fixed, batch.fixed_labels), (batch.moving, batch.moving_labels)):
        assert image[labels > 0].mean() > 5 * image[labels == 0].mean()


def test_the_generator_decides_everything(prepared):
    pairs = PreparedPairs(prepared, augmentation=Augmentation.usual())
    state = generator(3)
    first = [pairs.draw(2, state) for _ in range(2)]
    torch.manual_seed(99)  # the global generator says nothing
    again = generator(3)
    second = [pairs.draw(2, again) for _ in range(2)]
    for a, b in zip(first, second):
        assert torch.equal(a.fixed, b.fixed) and torch.equal(a.moving_labels, b.moving_labels)
    assert not torch.equal(first[0].fixed, first[1].fixed)


def test_validation_pairs_stay_the_same(prepared):
    train, held = part(prepared, "ann_1", "ann_2"), part(prepared, "bob_1", "cyd_1")
    pairs = PreparedPairs(train, held, augmentation=Augmentation.usual())
    first, second = pairs.validation(), pairs.validation()
    assert len(first) == 2
    for a, b in zip(first, second):
        assert torch.equal(a.fixed, b.fixed)
        assert who(prepared, a.fixed[0]) in ("bob_1", "cyd_1")  # not augmented either
    assert len(PreparedPairs(train, held, most_validation=1).validation()) == 1
    assert PreparedPairs(train).validation() == []


def test_some_without_labels(prepared, people, tmp_path):
    bare = [Subject("bare", people.folder / "bob_1_t1.nii.gz"), prepared.subjects[0]]
    mixed = prepare(bare, FRAME, tmp_path, reference="ann_1", alignment="none")
    assert not mixed.labeled and mixed.structures() == [1, 2, 3]
    pairs = PreparedPairs(mixed, mixed)
    batch = pairs.draw(4, generator())
    for images, labels in ((batch.fixed, batch.fixed_labels), (batch.moving, batch.moving_labels)):
        assert labels.dtype == torch.int64
        for image, known in zip(images, labels):
            bare_one = who(mixed, image) == "bare"
            assert bool((known == -1).all()) == bare_one and bool((known >= 0).all()) != bare_one
    # Dice needs both maps, so these pairs are validated without.
    assert pairs.validation()[0].fixed_labels is None
    with pytest.raises(InputError, match="label maps of at least two"):
        pairs.labeled()


def test_labeled_pairs_only(prepared, people, tmp_path):
    bare = [Subject("bare", people.folder / "bob_1_t1.nii.gz"), *prepared.subjects[:2]]
    mixed = prepare(bare, FRAME, tmp_path, reference="ann_1", alignment="none")
    pairs = PreparedPairs(mixed)
    assert len(pairs.members()) == 6 and len(pairs.labeled().members()) == 2
    assert {name for pair in drawn(pairs.labeled(), mixed) for name in pair} == {"ann_1", "ann_2"}
    assert len(pairs.members()) == 6
    whole = PreparedPairs(prepared)
    assert whole.labeled() is whole
    atlas = PreparedPairs(mixed, mode="atlas", atlas="ann_2").labeled()
    assert drawn(atlas, mixed) == {("ann_2", "ann_1")}
    with pytest.raises(InputError, match="atlas has no label map"):
        PreparedPairs(mixed, mode="atlas", atlas="bare").labeled()


def test_what_the_card_says(prepared):
    train, held = part(prepared, "ann_1", "ann_2"), part(prepared, "bob_1", "cyd_1")
    said = PreparedPairs(train, held, text="phantoms", terms="CC0").describe()
    assert said["text"] == "phantoms" and said["terms"] == "CC0"
    assert (said["subjects"], said["validation_subjects"], said["validation_pairs"]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("names", "arguments", "sentence"),
    [
        (("ann_1",), {}, "at least two"),
        (("ann_1", "bob_1"), {"mode": "within"}, "No person has two"),
        (("ann_1", "bob_1"), {"mode": "some"}, "'some'"),
        (("ann_1", "bob_1"), {"mode": "atlas", "atlas": "eve"}, "'eve'"),
        (("ann_1",), {"mode": "atlas", "atlas": "ann_1"}, "beside the atlas"),
    ],
)
def test_pairs_that_cannot_be(prepared, names, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        PreparedPairs(part(prepared, *names), **arguments)


def test_sets_of_two_grids_are_refused(prepared, tmp_path):
    other = prepare(prepared.subjects, ModelFrame(5.0, (16, 16, 16)), tmp_path, alignment="none")
    with pytest.raises(InputError, match="different grids"):
        PreparedPairs(prepared, other)
    with pytest.raises(InputError, match="same voxel size"):
        MixedPairs([PreparedPairs(prepared), PreparedPairs(other)])


def test_mixed_sources(prepared):
    ann = PreparedPairs(part(prepared, "ann_1", "ann_2"), text="first", terms="CC0")
    rest = PreparedPairs(part(prepared, "bob_1", "cyd_1"), prepared, text="second", terms="CC0")
    mixed = MixedPairs([ann, rest], [1, 3])
    state, counts = generator(), {"ann": 0, "bob": 0, "cyd": 0}
    for _ in range(80):
        batch = mixed.draw(1, state)
        counts[who(prepared, batch.fixed[0])[:3]] += 1
    assert 8 <= counts["ann"] <= 34
    sequences = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # the global generator says nothing
        state = generator(7)
        sequences.append([who(prepared, mixed.draw(1, state).fixed[0]) for _ in range(12)])
    assert sequences[0] == sequences[1]
    assert len(mixed.validation()) == len(rest.validation()) > 0
    assert mixed.describe()["text"] == "first; second" and mixed.describe()["terms"] == "CC0"
    assert mixed.structures() == [1, 2, 3]
    assert mixed.labeled().describe()["shares"] == mixed.describe()["shares"]
    for sources, shares in (([], []), ([ann], [1, 2]), ([ann], [-1.0])):
        with pytest.raises(InputError):
            MixedPairs(sources, shares)


def test_shifts_of_the_moving_image(prepared):
    """Shifts of whole voxels are exact, so a network can be asked for them."""
    plain = PreparedPairs(part(prepared, "ann_1", "ann_2")).draw(4, generator(1))
    shifted = Augmentation(shift_voxels=2)(plain, generator(2))
    assert torch.equal(plain.fixed, shifted.fixed)
    seen = set()
    for before, after in zip(plain.moving, shifted.moving):
        fits = []
        for move in torch.cartesian_prod(*[torch.arange(-2, 3)] * 3):
            where = voxel_coordinates(FRAME.shape) + move.view(1, 3, 1, 1, 1)
            moved = sample(before[None], where, padding="fill")
            if torch.allclose(moved[0], after, atol=1e-4):
                fits.append(tuple(move.tolist()))
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) > 1


def test_pairs_that_lie_still_change_in_brightness_only(prepared):
    moves = Augmentation(flip=1.0, rotation_deg=15.0, shift_mm=8.0, misalignment=1.0, bend_mm=3.0,
                         together_mm=3.0, shift_voxels=2, gamma=0.3)  # fmt: skip
    moving = PreparedPairs(prepared, augmentation=moves)
    still = moving.still()
    assert still.describe()["augmentation"] == Augmentation(gamma=0.3).told()
    assert moving.describe()["augmentation"]["flip"] == 1.0  # the given ones stay as they are
    batch = PreparedPairs(prepared, augmentation=moves.still()).draw(4, generator())
    same = still.draw(4, generator())
    plain = PreparedPairs(prepared).draw(4, generator())
    assert torch.equal(batch.fixed, same.fixed)
    assert not torch.equal(same.fixed, plain.fixed)
    # A power of the intensities keeps their order, so the same voxels are brightest.
    for one, other in zip(same.fixed, plain.fixed):
        assert torch.equal(one > one.quantile(0.9), other > other.quantile(0.9))
    assert PreparedPairs(prepared).still().describe()["augmentation"] is None


def test_systems_of_populations_learn_from_pairs_as_they_lie(prepared, tmp_path):
    posed = PreparedPairs(prepared, augmentation=Augmentation.usual())
    system = registry.create("coop_ae", **registry.spec("coop_ae").values())
    learned = system.source(posed, tmp_path, Progress())
    assert learned.describe()["augmentation"]["rotation_deg"] == 0.0
    assert learned.describe()["augmentation"]["gamma"] > 0.0
