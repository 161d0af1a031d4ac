"""Pairs of two contrasts: the curve, what stays as it is, and who is paired with whom."""

import json

import pytest
import torch

from DeepRegLib.errors import InputError
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.contrast import Contrast, CrossPairs, RemappedPairs
from DeepRegLib.training.pairs import PreparedPairs
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.subjects import find_subjects

FRAME = ModelFrame(4.0, (16, 32, 16))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def prepared(people, tmp_path_factory):
    subjects = find_subjects(people.folder, person=r"(.+)_\d")
    folder = tmp_path_factory.mktemp("contrast")
    return prepare(subjects, FRAME, folder, reference="ann_1", alignment="none")


def part(prepared, *names):
    return prepared.only([s for s in prepared.subjects if s.name in names])


def ramp():
    return torch.linspace(0, 1, 11).view(1, 1, 1, 1, 11)


def test_the_curve_goes_straight_from_node_to_node():
    contrast = Contrast(curve=(0.0, 1.0, 0.5), bias=0.0, noise=0.0)
    made = contrast(ramp(), 3.0, generator()).flatten()
    expected = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert made.tolist() == pytest.approx(expected, abs=1e-6)


def test_no_rising_or_falling_curve_leads_to_the_usual_contrast():
    made = Contrast(bias=0.0, noise=0.0)(ramp(), 3.0, generator()).flatten()
    steps = made.diff()
    assert made[0] == 0.0 and (steps > 0.05).any() and (steps < -0.05).any()
    # Fluid, gray and white matter of a T1 image: dark, bright, dark.
    fluid, gray, white = (
        float(Contrast(bias=0, noise=0)(torch.full((1, 1, 1, 1, 1), v), 3.0, generator()))
        for v in (0.2, 0.55, 0.8)
    )
    assert gray > fluid + 0.3 and gray > white + 0.3


def test_what_is_random():
    images = torch.rand(2, 1, 12, 16, 10, generator=generator(1))
    images[:, :, :4] = 0.0
    plain = Contrast(bias=0.0, noise=0.0)
    assert torch.equal(plain(images, 3.0, generator(1)), plain(images, 3.0, generator(2)))
    for changed in (Contrast(bias=0.3, noise=0.0), Contrast(bias=0.0, noise=0.1),
                    Contrast(bias=0.0, noise=0.0, spread=0.2)):  # fmt: skip
        one, same, other = (changed(images, 3.0, generator(s)) for s in (1, 1, 2))
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert not one[:, :, :4].any(), "where nothing is shown there is nothing"
        assert one.min() >= 0.0 and one.max() <= 1.0
    # The curve varies from image to image.
    twice = images[:1].repeat(2, 1, 1, 1, 1)
    made = Contrast(bias=0.0, noise=0.0, spread=0.2)(twice, 3.0, generator())
    assert (made[0] - made[1]).abs().max() > 0.01


def test_only_the_moving_images_are_remapped(prepared):
    train, held = part(prepared, "ann_1", "ann_2"), part(prepared, "bob_1", "cyd_1")
    inner = PreparedPairs(train, held, augmentation=Augmentation.usual())
    source = RemappedPairs(inner)
    plain, made = inner.draw(2, generator(3)), source.draw(2, generator(3))
    assert torch.equal(plain.fixed, made.fixed)
    assert torch.equal(plain.moving_labels, made.moving_labels)
    assert (plain.moving - made.moving).abs().mean() > 0.02
    again = source.draw(2, generator(3))
    assert torch.equal(made.moving, again.moving)
    assert source.frame == inner.frame and source.structures() == inner.structures()
    assert source.labeled().draw(1, generator()).fixed_labels is not None
    assert json.dumps(source.describe()["contrast_of_moving"])
    for one, other, before in zip(source.validation(), source.validation(), inner.validation()):
        assert torch.equal(one.moving, other.moving) and torch.equal(one.fixed, before.fixed)
        assert not torch.equal(one.moving, before.moving)


def who(prepared, image):
    for index, subject in enumerate(prepared.subjects):
        if torch.equal(prepared.image(index)[0], image):
            return subject.name
    return "nobody"


def test_pairs_of_two_contrasts_show_two_people(prepared):
    fixed, moving = part(prepared, "ann_1", "bob_1"), part(prepared, "ann_2", "bob_1", "cyd_1")
    source = CrossPairs(fixed, moving)
    batch = source.draw(60, generator())
    drawn = {(who(prepared, f), who(prepared, m)) for f, m in zip(batch.fixed, batch.moving)}
    expected = {("ann_1", "bob_1"), ("ann_1", "cyd_1"), ("bob_1", "ann_2"), ("bob_1", "cyd_1")}
    assert drawn == expected
    # Labels belong to their images.
    for image, labels in ((batch.fixed, batch.fixed_labels), (batch.moving, batch.moving_labels)):
        assert image[labels > 0].mean() > 5 * image[labels == 0].mean()
    assert source.frame == prepared.frame and source.structures() == prepared.structures()
    assert source.validation() == [] and source.labeled() is source
    assert json.dumps(source.describe())


def test_pairs_of_two_contrasts_for_validation(prepared):
    fixed, moving = part(prepared, "ann_1"), part(prepared, "bob_1")
    held = (part(prepared, "ann_2"), part(prepared, "bob_1", "cyd_1"))
    source = CrossPairs(fixed, moving, held, Augmentation.usual(), most_validation=5)
    first, second = source.validation(), source.validation()
    assert [who(prepared, b.moving[0]) for b in first] == ["bob_1", "cyd_1"]
    assert all(torch.equal(a.moving, b.moving) for a, b in zip(first, second))
    assert not torch.equal(source.draw(1, generator(1)).fixed, source.draw(1, generator(2)).fixed)


def test_what_does_not_fit_is_refused(prepared, people, tmp_path):
    with pytest.raises(InputError, match="different people"):
        CrossPairs(part(prepared, "ann_1"), part(prepared, "ann_2"))
    subjects = find_subjects(people.folder, person=r"(.+)_\d")[:1]
    other = prepare(subjects, ModelFrame(4.0, (32, 32, 16)), tmp_path, alignment="none")
    with pytest.raises(InputError, match="different grids"):
        CrossPairs(part(prepared, "bob_1"), other)
    with pytest.raises(InputError, match="at least two intensities"):
        Contrast(curve=(0.0,))
    with pytest.raises(InputError, match="no negative"):
        Contrast(noise=-0.1)
