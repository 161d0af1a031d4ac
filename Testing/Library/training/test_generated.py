"""Generated pairs: exact labels and displacements, contrasts as asked for, the same again."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from DeepRegLib.errors import InputError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import sample, voxel_coordinates
from DeepRegLib.io.images import write_image
from DeepRegLib.registration.base import Image
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.training.generated import GeneratedPairs, Recipe
from DeepRegLib.training.label_maps import LabelMapLoader, prepare_maps, t1_brightness
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.subjects import Subject

#: FreeSurfer's numbers: white matter, cortex, ventricle and fluid; 507 is outside the brain.
LABELS = (2, 3, 4, 24, 41, 42, 43, 507)
FRAME = ModelFrame(4.0, (32, 32, 32))
STILL = {"two_people": 0.0, "bend_mm": 0.0, "rotation_deg": 0.0, "scale": 0.0, "shift_mm": 0.0,
         "blur_mm": (0.0, 0.0), "bias": 0.0, "gamma": 0.0, "noise": 0.0, "thick": 0.0,
         "width": (0.0, 0.0)}  # fmt: skip


def head(points, size):
    """A head of layers: ventricles, white matter, cortex, fluid, and tissue around."""
    depth = np.linalg.norm(points / (np.array([34.0, 42.0, 37.0]) * size), axis=-1)
    left = points[..., 0] < 0
    labels = np.zeros(points.shape[:-1], np.int16)
    labels[depth < 1.25] = 507
    labels[depth < 1.1] = 24
    labels[depth < 1.0] = np.where(left, 3, 42)[depth < 1.0]
    labels[depth < 0.75] = np.where(left, 2, 41)[depth < 0.75]
    near = np.linalg.norm(np.abs(points) - [9.0, 0.0, 5.0], axis=-1) < 8.0
    labels[near] = np.where(left, 4, 43)[near]
    labels[np.linalg.norm(points - [0.0, 50.0, 20.0], axis=-1) < 4.0] = 24  # far from the brain
    return labels


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Label maps of four people, on unlike grids."""
    folder, subjects = tmp_path_factory.mktemp("maps"), []
    for number, size in enumerate((1.0, 0.97, 1.03, 0.94)):
        spacing = np.array([(2.0, 2.3, 2.1), (2.2, 2.0, 2.4)][number % 2])
        shape = tuple(int(n) for n in np.ceil(120 / spacing))
        matrix = np.diag([*(spacing * [(1, 1, 1), (-1, -1, 1)][number % 2]), 1.0])
        matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
        grid = Grid(shape, matrix)
        points = grid.to_ras(np.moveaxis(np.indices(shape), 0, -1))
        path = folder / f"map{number}.nii.gz"
        write_image(Image.from_array(head(points, size), grid), path)
        subjects.append(Subject(f"map{number}", path))
    return subjects


@pytest.fixture(scope="module")
def prepared(maps, tmp_path_factory):
    return prepare(maps, FRAME, tmp_path_factory.mktemp("prepared"), alignment="none",
                   loader=LabelMapLoader(brain_only=True))  # fmt: skip


@pytest.fixture(scope="module")
def fine(maps, tmp_path_factory):
    found, frame = prepare_maps(maps, FRAME, tmp_path_factory.mktemp("fine"), alignment="none",
                                loader=LabelMapLoader(brain_only=True), finer=2.0)  # fmt: skip
    assert frame == FRAME and found.frame == ModelFrame(2.0, (64, 64, 64))
    return found


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def means(image, labels):
    return {int(v): float(image[labels == v].mean()) for v in labels.unique()}


def test_brain_only_leaves_the_brain_and_the_fluid_around_it(maps, prepared):
    image, labels = LabelMapLoader(brain_only=True)(maps[0])
    whole_image, whole = LabelMapLoader()(maps[0])
    assert set(whole.data.unique().tolist()) == {0, *LABELS}
    assert set(labels.data.unique().tolist()) == {0, *LABELS} - {507}
    assert (image.data[labels.data == 0] == 0).all() and image.data[labels.data > 0].min() > 0
    assert (whole_image.data[whole.data == 507] > 0).all()
    lost = (whole.data == 24) & (labels.data == 0)
    points = whole.grid.to_ras(lost[0, 0].nonzero().numpy())
    assert lost.any() and (np.linalg.norm(points - [0, 50, 20], axis=1) < 15).mean() > 0.9
    kept = labels.data == 24
    assert kept.sum() > 0.5 * (whole.data == 24).sum()
    assert prepared.structures() == [2, 3, 4, 24, 41, 42, 43]


def test_shapes_and_types(prepared):
    pairs = GeneratedPairs(prepared)
    batch = pairs.draw(2, generator())
    for image in (batch.fixed, batch.moving):
        assert image.shape == (2, 1, 32, 32, 32) and image.dtype == torch.float32
        assert image.min() >= 0.0 and 0.9 < image.max() <= 1.0 and torch.isfinite(image).all()
    for labels in (batch.fixed_labels, batch.moving_labels):
        assert labels.shape == (2, 1, 32, 32, 32) and labels.dtype == torch.int64
        assert set(labels.unique().tolist()) <= {0, *pairs.structures()}
    # The fluid may be stripped, so it is no structure to align.
    assert pairs.structures() == [2, 3, 4, 41, 42, 43] and pairs.frame == FRAME
    assert 24 in GeneratedPairs(prepared, recipe=Recipe(fluid=1.0)).structures()


@pytest.mark.parametrize("misalignment", [0.0, 1.0])
def test_the_displacement_is_the_true_one(fine, misalignment):
    pose = {"rotation_deg": 8.0, "scale": 0.1, "shift_mm": 6.0, "misalignment": misalignment}
    recipe = Recipe(**{**STILL, **pose, "bend_mm": 6.0, "contrast": "same", "blur_mm": (3.0, 3.0)})
    recipe = replace(recipe, fluid=1.0, widths_mm=(24.0, 40.0))
    pairs = GeneratedPairs(fine, frame=FRAME, recipe=recipe)
    batch = pairs.draw(2, generator(1))
    where = voxel_coordinates(FRAME.shape) + batch.truth

    def likeness(offset):
        moved = sample(batch.moving, where + torch.tensor(offset).view(1, 3, 1, 1, 1))
        inside = (batch.fixed > 0) | (moved > 0)
        return float(torch.corrcoef(torch.stack([batch.fixed[inside], moved[inside]]))[0, 1])

    here = likeness((0.0, 0.0, 0.0))
    inside = (batch.fixed > 0) | (batch.moving > 0)
    both = torch.stack([batch.fixed[inside], batch.moving[inside]])
    assert here > 0.998 and float(torch.corrcoef(both)[0, 1]) < here - 0.1
    # Beside it the images fit worse, in each direction.
    for axis in range(3):
        for side in (-0.4, 0.4):
            offset = [0.0, 0.0, 0.0]
            offset[axis] = side
            assert likeness(offset) < here - 0.003, offset


def test_two_people_have_no_true_displacement(prepared):
    two = GeneratedPairs(prepared, recipe=Recipe(two_people=1.0)).draw(2, generator())
    assert two.truth is None
    still = GeneratedPairs(prepared, recipe=replace(Recipe(**STILL), two_people=1.0))
    batch = still.draw(4, generator())
    assert all(not torch.equal(f, m) for f, m in zip(batch.fixed_labels, batch.moving_labels))
    alone = prepared.only(prepared.subjects[:1])
    assert (
        GeneratedPairs(alone, recipe=Recipe(two_people=1.0)).draw(1, generator()).truth is not None
    )


def test_without_changes_an_image_is_its_map(prepared):
    recipe = Recipe(**STILL, fluid=1.0)
    batch = GeneratedPairs(prepared, recipe=recipe).draw(3, generator())
    assert torch.equal(batch.fixed_labels, batch.moving_labels)
    assert batch.truth.abs().max() < 1e-3
    sources = [prepared.labels(i) for i in range(len(prepared))]
    for fixed in batch.fixed_labels:
        assert any(torch.equal(fixed[None], source) for source in sources)
    for image, labels in zip(batch.fixed, batch.fixed_labels):
        for value in labels.unique():
            assert image[labels == value].std() < 1e-3


@pytest.mark.parametrize("contrast", ["same", "independent", "t1"])
def test_contrasts(prepared, contrast):
    recipe = Recipe(**STILL, contrast=contrast, fluid=1.0, spread=0.02)
    batch = GeneratedPairs(prepared, recipe=recipe).draw(6, generator())
    differences, orders = [], []
    for f, m, lf, lm in zip(batch.fixed, batch.moving, batch.fixed_labels, batch.moving_labels):
        one, other = means(f, lf), means(m, lm)
        differences.append(max(abs(one[v] - other[v]) for v in one))
        orders.append(one[4] < one[3] < one[2])
        assert one[0] == 0.0
        for right, left in ((41, 2), (42, 3), (43, 4)):
            assert one[right] == pytest.approx(one[left], abs=1e-4)
    if contrast == "same":
        assert max(differences) < 1e-3
    elif contrast == "independent":
        assert min(differences) > 0.05 and not all(orders)
    else:
        assert all(orders) and max(differences) < 0.2


def test_sides_may_differ(prepared):
    recipe = Recipe(**STILL, twins=False, fluid=1.0)
    batch = GeneratedPairs(prepared, recipe=recipe).draw(1, generator())
    found = means(batch.fixed[0], batch.fixed_labels[0])
    assert abs(found[2] - found[41]) > 0.01


def test_the_fluid_is_left_or_stripped(prepared):
    pairs = GeneratedPairs(prepared, recipe=Recipe(**STILL, fluid=0.5))
    batch = pairs.draw(12, generator())
    images = torch.cat([batch.fixed, batch.moving])
    labels = torch.cat([batch.fixed_labels, batch.moving_labels])
    share = [(i[n == 0] > 0).float().mean() > 0.005 for i, n in zip(images, labels)]
    assert 4 <= sum(share) <= 20


def test_finer_maps_make_mixtures_at_the_edges(prepared, fine):
    recipe = Recipe(**STILL, fluid=1.0)
    plain = GeneratedPairs(prepared, recipe=recipe).draw(1, generator())
    pairs = GeneratedPairs(fine, frame=FRAME, recipe=recipe)
    batch = pairs.draw(1, generator())
    assert pairs.frame == FRAME and batch.fixed.shape == plain.fixed.shape
    assert len(batch.fixed.unique()) > 20 * len(plain.fixed.unique())
    agreement = (batch.fixed_labels == plain.fixed_labels)[plain.fixed_labels > 0].float().mean()
    assert agreement > 0.8
    # The image lies on its labels, to a fraction of a voxel.
    inside = (batch.fixed_labels > 0).float()
    likeness = {}
    for axis in range(3):
        for step in (-1, 0, 1):
            likeness[axis, step] = float((inside * batch.fixed.roll(step, 2 + axis)).sum())
        assert likeness[axis, 0] > max(likeness[axis, -1], likeness[axis, 1])
        sides = likeness[axis, -1] / likeness[axis, 1]
        assert 0.95 < sides < 1.05


def test_blur_bias_noise_and_thick_slices_do_something(prepared):
    recipe = Recipe(**STILL, fluid=1.0)
    plain = GeneratedPairs(prepared, recipe=recipe).draw(2, generator()).fixed

    def spread(**changes):
        other = GeneratedPairs(prepared, recipe=replace(recipe, **changes))
        return other.draw(2, generator())

    for changes in (
        {"blur_mm": (3.0, 3.0)},
        {"bias": 0.5},
        {"noise": 0.2},
        {"thick": 1.0, "thickness_mm": 16.0},
        {"width": (0.1, 0.1)},
        {"gamma": 0.5},
    ):
        batch = spread(**changes)
        assert (batch.fixed - plain)[plain > 0].abs().mean() > 0.01, changes
        if "blur_mm" not in changes and "thick" not in changes:
            assert (batch.fixed[plain == 0] == 0).all(), changes


def test_the_generator_decides_everything(prepared):
    pairs = GeneratedPairs(prepared)
    one, other = generator(5), generator(5)
    for _ in range(2):
        a = pairs.draw(2, one)
        torch.manual_seed(1)
        b = pairs.draw(2, other)
        assert torch.equal(a.fixed, b.fixed) and torch.equal(a.moving_labels, b.moving_labels)
    assert not torch.equal(pairs.draw(2, one).fixed, a.fixed)


def test_validation_is_of_other_people_and_stays_the_same(prepared):
    train = prepared.only(prepared.subjects[:2])
    held = prepared.only(prepared.subjects[2:])
    recipe = Recipe(**STILL, fluid=1.0)
    pairs = GeneratedPairs(train, held, recipe=recipe, validation_pairs=3)
    first = pairs.validation()
    pairs.draw(2, generator())
    second = GeneratedPairs(train, held, recipe=recipe, validation_pairs=3).validation()
    assert len(first) == 3 and GeneratedPairs(train).validation() == []
    theirs = [held.labels(i) for i in range(2)]
    for a, b in zip(first, second):
        assert torch.equal(a.fixed, b.fixed) and len(a.fixed) == 1
        assert any(torch.equal(a.fixed_labels, t) for t in theirs)
    said = pairs.describe()
    assert (said["subjects"], said["validation_subjects"]) == (2, 2)
    assert said["recipe"]["contrast"] == "independent"


def test_sentences(prepared, maps, tmp_path):
    with pytest.raises(InputError, match="'sepia'"):
        Recipe(contrast="sepia")
    with pytest.raises(InputError, match="probabilities"):
        Recipe(two_people=1.5)
    bare = prepare([Subject("bare", maps[0].image)], FRAME, tmp_path, alignment="none")
    with pytest.raises(InputError, match="'bare' has no label map"):
        GeneratedPairs(bare)
    empty = Image(torch.zeros(1, 1, 4, 5, 6, dtype=torch.int16), Grid((4, 5, 6), np.eye(4)))
    write_image(replace(empty, pixel_type="int16"), tmp_path / "empty.nrrd")
    with pytest.raises(InputError, match="no labels"):
        LabelMapLoader()(Subject("empty", tmp_path / "empty.nrrd"))


def test_brightness_of_t1():
    white, cortex, right, fluid, nothing = t1_brightness(torch.tensor([2, 3, 42, 4, 0]))
    assert nothing == 0 < fluid < cortex < white and cortex == right
    loader = LabelMapLoader(t1=False)
    assert loader.key != LabelMapLoader().key
