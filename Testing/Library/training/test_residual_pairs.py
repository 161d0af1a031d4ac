"""Pairs that are registered, but for a known displacement: its direction, its size, its sources."""

from dataclasses import replace

import pytest
import torch
from training_doubles import SHAPE, Blobs

from DeepRegLib.errors import InputError
from DeepRegLib.geometry.field import compose_displacements
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.trainable import Batch
from DeepRegLib.training import residual_pairs
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.residual_pairs import RegisteredPeople, Residual, ResidualPairs

STILL = Augmentation()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mean_difference(batch, displacement):
    moved = sample(batch.moving, voxel_coordinates(batch.shape) + displacement, padding="fill")
    inside = (slice(None), slice(None), *(slice(2, -2),) * 3)
    return (moved - batch.fixed)[inside].abs().mean().item()


@pytest.fixture
def plain(monkeypatch):
    """Intensities stay as they are."""
    monkeypatch.setattr(residual_pairs, "SHADES", STILL)
    return Residual(size_mm=2.0, widths_mm=(24.0, 48.0), present=1.0, blur_voxel=0.0)


class Unknown(Blobs):
    """Pairs without a truth."""

    def draw(self, count, generator):
        return replace(super().draw(count, generator), truth=None)


@pytest.mark.parametrize("source", [Unknown, Blobs])
def test_the_truth_brings_the_moved_image_back(source, plain):
    batch = ResidualPairs(source(), replace(plain, size_mm=4.0)).draw(6, generator(4))
    nothing = torch.zeros_like(batch.truth)
    left = mean_difference(batch, batch.truth)
    assert left < 0.5 * mean_difference(batch, nothing)
    # The other direction, which takes images apart, doubles the error.
    assert mean_difference(batch, -batch.truth) > mean_difference(batch, nothing)
    assert batch.fixed_labels is None and batch.spacing_mm == 3.0


def test_both_directions_undo_each_other():
    apart, missing = Residual().draw(ModelFrame(2.0, (22, 26, 18)), 2, generator(1))
    both = compose_displacements(apart, missing).norm(dim=1)
    assert missing.norm(dim=1).max() > 1.0
    assert both[:, 3:-3, 3:-3, 3:-3].mean() < 0.1 * missing.norm(dim=1).mean()


def test_errors_have_many_sizes_and_spare_some_places():
    frame = ModelFrame(3.0, (24, 32, 28))
    _, missing = Residual().draw(frame, 12, generator(2))
    size = missing.norm(dim=1) * frame.spacing_mm
    means = size.flatten(1).mean(dim=1)
    assert means.max() > 3 * means.min()
    assert size.quantile(0.1) < 1.0 < 2.0 < size.quantile(0.9)
    # In mm: on voxels of twice the size errors are as large.
    _, coarse = Residual().draw(ModelFrame(6.0, (12, 16, 14)), 12, generator(2))
    mean = (coarse.norm(dim=1) * 6.0).mean()
    assert mean.item() == pytest.approx(size.mean().item(), rel=0.4)


def test_a_width_may_be_absent():
    """So that errors of short reach are seen alone, and none at all, too."""
    frame, widths = ModelFrame(3.0, (24, 32, 28)), (12.0, 200.0)
    lengths, roughness = [], []
    for present in (0.0, 0.5, 1.0):
        _, missing = Residual(widths_mm=widths, present=present).draw(frame, 24, generator(2))
        lengths.append(missing.flatten(1).norm(dim=1))
        roughness.append(missing.diff(dim=3).flatten(1).norm(dim=1) / lengths[-1].clamp(min=1e-6))
    assert (lengths[0] == 0).all() and (lengths[2] > 0).all()
    assert 2 <= int((lengths[1] == 0).sum()) <= 12  # six are to be expected
    assert roughness[1].max() > 1.1 * roughness[2].max()


def test_images_of_one_person_differ_in_intensity_alone():
    """Without errors, the moved image is the fixed one in other intensities."""
    batch = ResidualPairs(Unknown(), Residual(0.0, blur_voxel=0.0)).draw(2, generator())
    assert batch.truth.abs().max() == 0
    difference = (batch.moving - batch.fixed).abs()
    assert difference.max() > 0.05
    both = torch.stack([batch.moving.flatten(), batch.fixed.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.95


def test_registered_people_are_taken_apart_on_top(plain):
    """The moving image is first aligned, then taken apart; the truth is the second part alone."""
    single = Blobs()
    batch = single.draw(1, generator(3))
    people = RegisteredPeople(
        torch.cat([batch.fixed, batch.moving]), [(0, 1)],
        # On every other voxel, and in its units.
        batch.truth[:, :, ::2, ::2, ::2] / 2,
    )  # fmt: skip
    source = ResidualPairs(single, replace(plain, registered=1.0), people)
    drawn = source.draw(2, generator(5))
    assert torch.equal(drawn.fixed[:1], batch.fixed)
    # What is missing has the size of the errors, not of the whole motion between both blobs.
    assert drawn.truth.norm(dim=1).mean() < 0.5 * batch.truth.norm(dim=1).mean()
    left = mean_difference(drawn, drawn.truth)
    assert left < 0.6 * mean_difference(drawn, torch.zeros_like(drawn.truth))
    assert source.describe()["registered_pairs"] == 1


def test_draws_repeat_and_validation_stays():
    source = ResidualPairs(Unknown(validation=2))
    one, again = (source.draw(2, generator(7)) for _ in range(2))
    assert torch.equal(one.moving, again.moving) and torch.equal(one.truth, again.truth)
    first, second = source.validation(), source.validation()
    assert len(first) == 2 and isinstance(first[0], Batch)
    assert all(torch.equal(a.moving, b.moving) for a, b in zip(first, second))
    assert first[0].truth.shape == (1, 3, *SHAPE)


def test_it_stands_for_the_pairs():
    source = ResidualPairs(Blobs())
    assert source.frame == Blobs().frame
    told = source.describe()
    assert told["text"] == "blobs" and told["residual"]["size_mm"] == 2.0


@pytest.mark.parametrize("values", [{"size_mm": -1.0}, {"widths_mm": ()}, {"registered": 1.5}])
def test_impossible_errors_are_refused(values):
    with pytest.raises(InputError):
        Residual(**values)


def test_pairs_are_mixed(plain):
    """Pairs of one person and registered ones come together, each with errors of its own."""
    single = Blobs()
    base = single.draw(1, generator(3))
    people = RegisteredPeople(torch.cat([base.fixed, base.moving]), [(0, 1)],
                              base.truth[:, :, ::2, ::2, ::2] / 2)  # fmt: skip
    source = ResidualPairs(single, replace(plain, registered=0.5), people, mixed=10)
    batch = source.draw(2, generator(6))
    assert len(batch.fixed) == len(batch.moving) == len(batch.truth) == 20
    of_people = sum(torch.equal(image, base.fixed[0]) for image in batch.fixed)
    assert 3 < of_people < 17
    assert len({round(u.norm().item(), 3) for u in batch.truth}) == 20
    assert source.describe()["mixed"] == 10
