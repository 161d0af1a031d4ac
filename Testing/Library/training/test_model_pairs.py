"""Supervised pairs: their displacement brings the moving image onto the fixed one, in any pose."""

import json
from types import SimpleNamespace

import pytest
import torch
from anatomy_doubles import GRID, INNER, LATTICE, SHAPE, make_model

from DeepRegLib.errors import InputError, ParameterError
from DeepRegLib.geometry.field import fade_window
from DeepRegLib.geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from DeepRegLib.networks.blocks import resized_vectors
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.registration.trainable import Batch
from DeepRegLib.training import model_source
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.model_pairs import ModelPairs, RandomPairs, TeacherPairs
from DeepRegLib.training.model_source import PairSettings, images_of, supervised_pairs

POSES = Augmentation(flip=0.5, rotation_deg=8.0, scale=0.08, shift_mm=4.0, misalignment=0.6,
                     shift_voxels=1)  # fmt: skip


class Base:
    """The user's pairs, as far as supervised pairs look at them."""

    frame = ModelFrame(3.0, SHAPE)

    def __init__(self, augmentation=None):
        self.augmentation = augmentation

    def validation(self):
        return ["held"]

    def structures(self):
        return [1, 2]

    def describe(self):
        told = None if self.augmentation is None else vars(self.augmentation).copy()
        return {"text": "people", "subjects": 5, "augmentation": told}

    def draw(self, count, generator):
        image = torch.rand(count, 1, *SHAPE, generator=generator)
        return Batch(image, image, 3.0)


def prepared_base(count=5, labels=True, augmentation=None):
    model = make_model(count)
    train = SimpleNamespace(
        image=lambda i: model.textures[i : i + 1], labels=lambda i: model.labels if labels else None,
        subjects=[SimpleNamespace(name=f"p{i}") for i in range(count)], grid=GRID,
        __len__=lambda: count,
    )  # fmt: skip

    class Train:
        def __init__(self):
            self.__dict__.update(vars(train))

        def __len__(self):
            return count

    base = Base(augmentation)
    base.prepared = lambda: (Train(), None)
    return base


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moved(batch):
    return sample(batch.moving, voxel_coordinates(SHAPE) + batch.truth, padding="fill")


def assert_exact(batch):
    """The truth explains nearly all of what sets the images apart, and its opposite does not."""
    before = (batch.moving - batch.fixed)[INNER].abs().mean()
    after = (moved(batch) - batch.fixed)[INNER].abs().mean()
    turned = Batch(batch.fixed, batch.moving, 3.0, truth=-batch.truth)
    wrong = (moved(turned) - batch.fixed)[INNER].abs().mean()
    assert after < 0.3 * before and wrong > before, (after, before, wrong)


@pytest.mark.parametrize("augmentation", [None, POSES])
def test_truth_of_two_samples(augmentation):
    pairs = ModelPairs(Base(), make_model(), augmentation, shared_texture=1.0)
    batch = pairs.draw(3, generator(1))
    assert batch.fixed.shape == batch.moving.shape == (3, 1, *SHAPE)
    assert batch.truth.shape == (3, 3, *SHAPE) and batch.spacing_mm == 3.0
    assert_exact(batch)
    aligned = sample(batch.moving_labels, voxel_coordinates(SHAPE) + batch.truth, "nearest")
    wrong = (aligned != batch.fixed_labels)[INNER].float().mean()
    assert wrong < 0.6 * (batch.moving_labels != batch.fixed_labels)[INNER].float().mean()


@pytest.mark.parametrize("augmentation", [None, POSES])
def test_truth_of_random_fields(augmentation):
    model = make_model()
    labels = [model.labels] * 5
    pairs = RandomPairs(Base(), model.textures, labels, 5.0, (12.0, 30.0), augmentation)
    assert_exact(pairs.draw(3, generator(2)))


@pytest.mark.parametrize("augmentation", [None, POSES])
def test_truth_of_a_teacher(augmentation):
    model = make_model()
    image = model.template
    noise = gaussian_smooth(torch.randn(1, 3, *LATTICE, generator=generator(5)), 2.0)
    u = noise * fade_window(LATTICE, 3) * (1.0 / noise.norm(dim=1).max())
    fine = resized_vectors(u, SHAPE)
    # The fixed image is the moving one, pulled back through u: u is right by construction.
    fixed = sample(image, voxel_coordinates(SHAPE) + fine, padding="fill")
    pairs = TeacherPairs(Base(), torch.cat([fixed, image]), [], [(0, 1)], u, augmentation)
    batch = pairs.draw(2, generator(3))
    assert_exact(batch)
    assert batch.fixed_labels is None
    if augmentation is None:
        assert torch.allclose(batch.fixed[:1], fixed, atol=1e-5)
        assert torch.allclose(batch.truth[:1], fine, atol=1e-4)


def test_poses_and_flips_are_in_the_truth():
    model = make_model(size=1e-6)  # nothing but poses
    pairs = ModelPairs(Base(), model, Augmentation(flip=1.0), shared_texture=1.0)
    batch = pairs.draw(1, generator())
    assert batch.truth.abs().max() < 1e-3
    plain = ModelPairs(Base(), model, None, shared_texture=1.0).draw(1, generator())
    assert not torch.allclose(batch.fixed, plain.fixed, atol=0.05)
    pairs = ModelPairs(Base(), model, Augmentation(shift_voxels=2), shared_texture=1.0)
    shifts = [pairs.draw(1, generator(seed)).truth.mean((0, 2, 3, 4)) for seed in range(6)]
    assert all((s - s.round()).abs().max() < 1e-3 and s.abs().max() <= 2.001 for s in shifts)
    assert any(s.abs().max() > 0.9 for s in shifts)


def test_textures_of_training_images_are_not_mixed():
    model = make_model(size=1e-6)  # every sample lies where the template does
    own, mixed = (
        ModelPairs(Base(), model, None, shared_texture=0.0, own_texture=share).draw(6, generator())
        for share in (1.0, 0.0)
    )
    assert_exact_textures(own, model, within=1e-3)
    with pytest.raises(AssertionError):
        assert_exact_textures(mixed, model, within=1e-3)
    assert not torch.equal(own.fixed, own.moving)
    same = ModelPairs(Base(), model, None, shared_texture=1.0, own_texture=1.0)
    both = same.draw(2, generator())
    assert torch.allclose(both.fixed, both.moving, atol=1e-3)


def assert_exact_textures(batch, model, within):
    for image in torch.cat([batch.fixed, batch.moving]):
        assert (model.textures - image).abs().amax((1, 2, 3, 4)).min() < within


def test_intensities_change_and_the_truth_stays():
    model = make_model()
    shaded = Augmentation(gamma=0.3, bias=0.2, noise=0.05, bend_mm=5.0)
    plain = ModelPairs(Base(), model).draw(1, generator(4))
    batch = ModelPairs(Base(), model, shaded).draw(1, generator(4))
    assert torch.allclose(batch.truth, plain.truth, atol=1e-4)
    assert not torch.allclose(batch.fixed, plain.fixed, atol=0.01)
    assert torch.equal(batch.moving_labels, plain.moving_labels)


def test_the_generator_decides_everything():
    pairs = ModelPairs(Base(), make_model(), Augmentation.usual())
    torch.manual_seed(1)
    one = pairs.draw(2, generator(7))
    torch.manual_seed(2)
    again, other = pairs.draw(2, generator(7)), pairs.draw(2, generator(8))
    assert torch.equal(one.fixed, again.fixed) and torch.equal(one.truth, again.truth)
    assert not torch.equal(one.fixed, other.fixed)


def test_texture_is_shared_as_often_as_asked():
    model = make_model(size=1e-6)
    for share, low, high in ((0.0, 0, 0), (0.5, 3, 17), (1.0, 20, 20)):
        pairs = ModelPairs(Base(), model, None, share)
        same = sum(
            torch.allclose(batch.fixed, batch.moving, atol=1e-3)
            for batch in (pairs.draw(1, generator(seed)) for seed in range(20))
        )
        assert low <= same <= high


def test_what_a_source_says_of_itself():
    model = make_model()
    sources = [
        ModelPairs(Base(), model),
        RandomPairs(Base(), model.textures, size_mm=3.0),
        TeacherPairs(Base(), model.textures, [], [(0, 1)], torch.zeros(1, 3, *LATTICE)),
    ]
    kinds = set()
    for source in sources:
        told = source.describe()
        json.dumps(told)
        assert told["text"] == "people" and told["images"] == 5
        kinds.add(told["displacements"])
        assert source.frame == Base.frame and source.structures() == [1, 2]
        assert source.validation() == ["held"]
    assert len(kinds) == 3
    assert sources[0].labeled() is sources[0]
    for source in sources[1:]:
        with pytest.raises(InputError, match="no label maps"):
            source.labeled()
    with pytest.raises(InputError, match="make the model from"):
        other = Base()
        other.frame = ModelFrame(3.0, (20, 28, 28))
        ModelPairs(other, model)


def test_label_maps_that_only_some_images_have():
    model = make_model()
    labels = [model.labels, None, None, None, None]
    pairs = RandomPairs(Base(), model.textures, labels, 1.0)
    batch = pairs.draw(8, generator(1))
    unknown = (batch.fixed_labels == -1).flatten(1).all(dim=1)
    assert 0 < int(unknown.sum()) < 8
    assert ((batch.fixed_labels >= 0).flatten(1).all(dim=1) | unknown).all()


def test_random_velocities_have_the_size_asked_for():
    pairs = RandomPairs(Base(), make_model().textures, size_mm=6.0, widths_mm=(16.0, 32.0))
    v = pairs.velocities(40, generator(0))
    assert v.shape == (40, 3, *LATTICE)
    length_mm = (v * 6.0).square().sum(dim=1).mean().sqrt().item()
    assert 4.5 < length_mm < 6.6


class TestSource:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        """No registrations: the model is there, and the teacher finds nothing."""
        self.seen = []

        def fit(images, grid, settings, folder, progress, *, labels, names, device):
            self.seen.append(names)
            progress.update(0.5)
            assert len(images) == len(labels) and grid.shape == SHAPE
            return make_model(len(images))

        def displacements(maker, pairs):
            self.seen.append(len(pairs))
            return torch.zeros(len(pairs), 3, *LATTICE)

        monkeypatch.setattr(model_source, "fit_anatomies", fit)
        monkeypatch.setattr(model_source.FieldMaker, "displacements", displacements)

    def make(self, tmp_path, kind, base=None, **values):
        base = base or prepared_base(augmentation=Augmentation(flip=0.5))
        return supervised_pairs(base, PairSettings(kind, **values), tmp_path, Progress())

    def test_model(self, tmp_path):
        found = self.make(tmp_path, "model", spread=1.5)
        assert isinstance(found, ModelPairs) and found.describe()["spread"] == 1.5
        assert self.seen == [["p0", "p1", "p2", "p3", "p4"]]
        assert found._augmentation == Augmentation(flip=0.5)
        assert found.draw(1, generator()).truth is not None

    def test_random_fields_are_as_large_as_the_shapes_of_the_model(self, tmp_path):
        found = self.make(tmp_path, "random")
        assert isinstance(found, RandomPairs)
        assert found.describe()["size_mm"] == pytest.approx(make_model(5).size_mm(), abs=0.01)
        before = len(self.seen)
        told = self.make(tmp_path, "random", size_mm=2.5).describe()
        assert told["size_mm"] == 2.5 and len(self.seen) == before  # no model is needed for that

    def test_teacher(self, tmp_path):
        found = self.make(tmp_path, "teacher", teacher_pairs=7)
        assert isinstance(found, TeacherPairs) and self.seen == [7]
        assert found.describe()["registered_pairs"] == 7
        self.make(tmp_path, "teacher")
        assert self.seen[-1] == 20
        assert found.draw(2, generator()).moving_labels is not None

    def test_fewer_images(self, tmp_path):
        found = images_of(prepared_base(), 3)
        assert found.names == ["p0", "p1", "p3"] and len(found.images) == len(found.labels) == 3
        assert len(images_of(prepared_base(), 9).images) == 5
        with pytest.raises(InputError, match="at least 3"):
            images_of(prepared_base(), 2)

    def test_pairs_without_subjects(self, tmp_path):
        found, again = images_of(Base()), images_of(Base())
        assert len(found.images) == 16 and torch.equal(found.images[3], again.images[3])
        assert not torch.equal(found.images[0], found.images[1]) and found.labels == [None] * 16
        assert found.grid.spacing_mm == (3.0, 3.0, 3.0)
        assert self.make(tmp_path, "model", Base(), images=4).describe()["images"] == 4

    def test_unknown_kind(self):
        with pytest.raises(ParameterError, match="model, random, teacher"):
            PairSettings("other")
