"""Pairs with label maps come as often as asked for, the same again for the same generator."""

from dataclasses import replace

import pytest
import torch

from DeepRegLib.algorithms.deepatlas import SPEC, Algorithm
from DeepRegLib.errors import InputError
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.label_first import LabelFirst, label_first
from DeepRegLib.training.pairs import PreparedPairs
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.subjects import find_subjects

FRAME = ModelFrame(4.0, (16, 32, 16))


@pytest.fixture(scope="module")
def prepared(people, tmp_path_factory):
    """Four people of whom one has a label map."""
    subjects = [
        s if s.name == "bob_1" else replace(s, labels=None) for s in find_subjects(people.folder)
    ]
    folder = tmp_path_factory.mktemp("label_first")
    return prepare(subjects, FRAME, folder, reference="ann_1", alignment="none")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def known(labels):
    """Which of the images of a batch have a label map."""
    return labels is not None and (labels >= 0).flatten(1).any(1)


def with_labels(batch):
    """Whether each pair of a batch holds an image with a label map."""
    sides = [known(batch.fixed_labels), known(batch.moving_labels)]
    return bool((sides[0] | sides[1]).all()) if batch.fixed_labels is not None else False


@pytest.mark.parametrize(
    ("share", "low", "high"), [(1.0, 1.0, 1.0), (0.5, 0.6, 0.9), (0.0, 0.3, 0.7)]
)
def test_the_share_of_pairs_with_a_label_map(prepared, share, low, high):
    # Half of all pairs hold bob, so that a share of a half becomes three quarters.
    pairs = LabelFirst(PreparedPairs(prepared), share)
    drawn = [with_labels(pairs.draw(1, generator(seed))) for seed in range(60)]
    assert low <= sum(drawn) / len(drawn) <= high


def test_every_pair_of_a_batch_and_both_sides(prepared):
    batch = LabelFirst(PreparedPairs(prepared)).draw(24, generator())
    assert with_labels(batch)
    fixed, moving = known(batch.fixed_labels), known(batch.moving_labels)
    assert not (fixed & moving).any() and fixed.any() and moving.any()


def test_the_same_generator_draws_the_same_again(prepared):
    augmentation = Augmentation.usual()
    pairs = LabelFirst(PreparedPairs(prepared, augmentation=augmentation), 0.5)
    one, other = (pairs.draw(2, generator(3)) for _ in range(2))
    assert torch.equal(one.fixed, other.fixed) and torch.equal(one.moving, other.moving)


def test_the_rest_is_that_of_the_pairs(prepared):
    train = prepared.only([s for s in prepared.subjects if s.name != "cyd_1"])
    held = prepared.only([s for s in prepared.subjects if s.name == "cyd_1"])
    plain = PreparedPairs(train, held, mode="atlas", atlas="bob_1")
    pairs = LabelFirst(PreparedPairs(train, held), 0.25)
    assert pairs.frame == FRAME and len(pairs.validation()) == 0
    assert pairs.structures() == plain.structures() == [1, 2, 3]
    described = pairs.describe()
    assert (described["subjects"], described["labeled_subjects"]) == (3, 1)
    assert described["labeled_share"] == 0.25
    with pytest.raises(InputError, match="too few"):
        pairs.labeled()
    # With an atlas that has a label map, each pair has one.
    assert label_first(plain, 0.5) is plain


def test_an_atlas_without_a_label_map(prepared):
    pairs = PreparedPairs(prepared, mode="atlas", atlas="cyd_1")
    first = LabelFirst(pairs)
    assert len(pairs.members()) == 3 and len(first._some.members()) == 1
    assert known(first.draw(1, generator()).moving_labels).all()


def test_images_without_any_label_map_are_refused(prepared):
    none = prepared.only([s for s in prepared.subjects if s.name != "bob_1"])
    with pytest.raises(InputError, match="label maps of one image at least"):
        LabelFirst(PreparedPairs(none))
    with pytest.raises(InputError, match="0 to 1"):
        LabelFirst(PreparedPairs(prepared), 1.5)


def test_deepatlas_asks_for_them(prepared, tmp_path):
    algorithm = Algorithm(**SPEC.values(labeled_share=1.0))
    pairs = algorithm.source(PreparedPairs(prepared), tmp_path, Progress())
    assert with_labels(pairs.draw(12, generator()))

    class Other:
        """Another kind of source, whose labels are complete."""

    other = Other()
    assert algorithm.source(other, tmp_path, Progress()) is other
