"""Pairs with a known alignment: the truth, who is shown, and the pairs for validation."""

import json

import pytest
import torch
from training_doubles import Blobs

from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.rigid_motion import motion_parameters, rigid_of
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.dealigned import KnownAlignment
from DeepRegLib.training.pairs import PreparedPairs
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.subjects import find_subjects

FRAME = ModelFrame(4.0, (16, 32, 16))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def prepared(people, tmp_path_factory):
    subjects = find_subjects(people.folder, person=r"(.+)_\d")
    folder = tmp_path_factory.mktemp("dealigned")
    return prepare(subjects, FRAME, folder, reference="ann_1", alignment="none")


def pairs(prepared, augmentation=None):
    names = [s for s in prepared.subjects if s.name in ("ann_1", "ann_2")]
    others = [s for s in prepared.subjects if s.name not in ("ann_1", "ann_2")]
    return PreparedPairs(prepared.only(names), prepared.only(others), augmentation=augmentation)


def test_a_pair_is_aligned_and_says_so(prepared):
    still = Augmentation(gamma=0.2)
    batch = KnownAlignment(pairs(prepared, still), (8.0, 8.0), 0.0).draw(3, generator())
    assert batch.truth.shape == (3, 3, *FRAME.shape) and not batch.truth.any()
    assert batch.fixed_labels is None and batch.moving_labels is None
    assert not torch.equal(batch.fixed, batch.moving)


def test_one_person_twice_has_unlike_intensities_in_one_pose(prepared):
    changes = Augmentation(rotation_deg=15.0, scale=0.1, shift_mm=8.0, misalignment=0.5,
                           shift_voxels=3)  # fmt: skip
    same = KnownAlignment(pairs(prepared, changes), (8.0, 8.0), 1.0).draw(2, generator())
    assert torch.allclose(same.fixed, same.moving, atol=1e-5), "what moves one alone is left out"
    plain = pairs(prepared).draw(2, generator())
    assert not torch.allclose(same.fixed, plain.fixed, atol=0.05), "the pose of both varies"
    shaded = Augmentation(gamma=0.3, noise=0.1)
    apart = KnownAlignment(pairs(prepared, shaded), (8.0, 8.0), 1.0).draw(2, generator())
    assert (apart.fixed - apart.moving).abs().max() > 0.02


def test_shares_of_one_person(prepared):
    source = KnownAlignment(pairs(prepared, Augmentation(gamma=1e-6)), (8.0, 8.0), 0.5)
    batch = source.draw(60, generator())
    apart = (batch.fixed - batch.moving).abs().amax(dim=(1, 2, 3, 4)) > 0.05
    assert 0.25 < apart.double().mean() < 0.75


def test_usual_changes_where_none_are_asked_for(prepared):
    said = KnownAlignment(pairs(prepared), (8.0, 8.0)).describe()
    json.dumps(said)
    assert said["augmentation"]["rotation_deg"] == Augmentation.usual().rotation_deg
    assert said["augmentation"]["misalignment"] == 0.0 and said["own_share"] == 0.5


def test_the_same_generator_draws_the_same(prepared):
    source = KnownAlignment(pairs(prepared), (8.0, 8.0))
    one, same, other = (source.draw(2, generator(s)) for s in (1, 1, 2))
    assert torch.equal(one.moving, same.moving) and not torch.equal(one.moving, other.moving)


def test_validation_pairs_are_brought_back_by_their_truth(prepared):
    inner = pairs(prepared)
    held = KnownAlignment(inner, (8.0, 10.0)).validation()
    assert len(held) == len(inner.validation()) == 2
    for before, after in zip(inner.validation(), held):
        assert torch.equal(before.fixed, after.fixed)
        back = sample(after.moving, voxel_coordinates(FRAME.shape) + after.truth)
        middle = (slice(None), slice(None), *(slice(4, -4),) * 3)
        off = (after.moving - before.moving)[middle].square().mean()
        assert (back - before.moving)[middle].square().mean() < 0.25 * off
        center = [(n - 1) / 2 for n in FRAME.shape]
        found = motion_parameters(rigid_of(after.truth, after.fixed), 4.0, center)[0]
        assert found[3:].abs().max() < 11.0 and 1.0 < found[:3].norm() < 17.0
        assert after.moving_labels.dtype == torch.int64
        assert set(after.moving_labels.unique().tolist()) <= {0, 1, 2, 3}
    again = KnownAlignment(inner, (8.0, 10.0)).validation()
    assert all(torch.equal(a.moving, b.moving) for a, b in zip(held, again))


def test_other_sources_keep_their_images_and_their_truth():
    blobs = Blobs()
    source = KnownAlignment(blobs, (8.0, 8.0), 1.0)
    batch = source.draw(2, generator(4))
    plain = blobs.draw(2, generator(4))
    assert torch.equal(batch.moving, plain.moving) and torch.equal(batch.truth, plain.truth)
    assert source.frame == blobs.frame and "augmentation" not in source.describe()


def test_labeled_pairs_alone(prepared):
    source = KnownAlignment(pairs(prepared), (8.0, 8.0), 0.25).labeled()
    assert isinstance(source, KnownAlignment) and source.describe()["own_share"] == 0.25
    assert source.structures() == [1, 2, 3]
