"""Prepared subjects lie where their files say, on any grid; what was prepared is kept."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from DeepRegLib.errors import Cancelled, FileFormatError, InputError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.io.images import read_image, read_labels, write_image
from DeepRegLib.registration.base import Image, Progress
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.training.cache import Cache, file_identity, key_of
from DeepRegLib.training.preparation import prepare
from DeepRegLib.training.prepared import compact
from DeepRegLib.training.subjects import Subject, find_subjects

ROOT = Path(__file__).resolve().parents[3]
FRAME = ModelFrame(2.5, (32, 32, 32))


def centroid_ras(labels, value, grid):
    return grid.to_ras((labels == value).nonzero().double().mean(0).numpy())


@pytest.fixture(scope="module")
def subjects(people):
    return find_subjects(people.folder, person=r"(.+)_\d")


@pytest.fixture(scope="module")
def aligned(subjects, tmp_path_factory):
    two = [subject for subject in subjects if subject.name in ("ann_1", "bob_1")]
    return prepare(two, FRAME, tmp_path_factory.mktemp("aligned"), reference="ann_1")


@pytest.fixture(scope="module")
def stored(subjects, tmp_path_factory):
    """Only brought upright."""
    folder = tmp_path_factory.mktemp("stored")
    return prepare(subjects, FRAME, folder, reference="ann_1", alignment="none")


@pytest.mark.parametrize("kind", ["aligned", "stored"])
def test_structures_lie_where_the_files_say(kind, people, request):
    prepared = request.getfixturevalue(kind)
    for index, subject in enumerate(prepared.subjects):
        source = read_labels(subject.labels)
        linear = prepared.linear(index)
        for value in (1, 2, 3):
            there = centroid_ras(source.data[0, 0], value, source.grid)
            here = centroid_ras(prepared.labels(index)[0, 0], value, prepared.grid)
            mapped = linear[:3, :3] @ here + linear[:3, 3]
            # Half a voxel of the frame is 1.25 mm; counting voxels is not exact either.
            assert np.linalg.norm(mapped - there) < 0.6, (subject.name, value)


@pytest.mark.parametrize("kind", ["aligned", "stored"])
def test_images_show_the_object_at_the_same_place(kind, people, request):
    prepared = request.getfixturevalue(kind)
    for index, subject in enumerate(prepared.subjects):
        linear = np.linalg.inv(people.to_head(subject.name)) @ prepared.linear(index)
        image = prepared.image(index)[0, 0].numpy().ravel()

        def likeness(offset, linear=linear, image=image):
            points = people.voxel_points(prepared.grid) + np.array(offset)
            truth = people.phantom(points @ linear[:3, :3].T + linear[:3, 3])
            return np.corrcoef(truth.ravel(), image)[0, 1]

        here = likeness((0, 0, 0))
        assert here > 0.98
        for axis in range(3):
            for side in (-1.25, 1.25):
                offset = np.zeros(3)
                offset[axis] = side
                assert likeness(offset) < here, (subject.name, offset)


def test_axes_run_to_right_anterior_superior(stored):
    # The second structure is at (8, 10, -4) mm of the head, the third at (-9, -12, 6).
    for index in range(len(stored)):
        labels = stored.labels(index)[0, 0]
        two, three = ((labels == v).nonzero().double().mean(0) for v in (2, 3))
        steps = (two - three) * 2.5
        assert (steps.sign() == torch.tensor([1, 1, -1])).all()
        assert torch.linalg.norm(steps - torch.tensor([17.0, 22.0, -10.0])) < 6.5


def test_alignment_finds_the_pose_of_the_head(aligned, people):
    inside = np.random.default_rng(0).uniform(-15, 15, (50, 3))
    reference = people.to_head("ann_1")
    for index, subject in enumerate(aligned.subjects):
        truth = people.to_head(subject.name) @ np.linalg.inv(reference)
        points = inside @ reference[:3, :3].T + reference[:3, 3]
        found = aligned.linear(index)
        error = points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3]
        assert np.linalg.norm(error, axis=1).mean() < 1.0, subject.name


def test_intensities_and_types(aligned):
    for index in range(len(aligned)):
        image, labels = aligned.image(index), aligned.labels(index)
        assert image.shape == labels.shape == (1, 1, 32, 32, 32)
        assert image.dtype == torch.float32 and labels.dtype == torch.int64
        assert 0.0 <= image.min() < 0.05 and 0.9 < image.max() <= 1.0
        assert aligned.overlap(index) > 0.85
    assert aligned.structures() == [1, 2, 3] and aligned.labeled


def test_smallest_shape_that_holds_all(subjects, tmp_path):
    for spacing in (3.0, 1.9):
        prepared = prepare(subjects, spacing, tmp_path, reference="ann_1", alignment="none")
        assert all(n % 16 == 0 for n in prepared.frame.shape)
        masks = [prepared.labels(i)[0, 0] > 0 for i in range(len(prepared))]
        voxels = torch.cat([mask.nonzero() for mask in masks])
        for axis, size in enumerate(prepared.frame.shape):
            middle = (size - 1) / 2
            half = float((voxels[:, axis] - middle).abs().max())
            assert half + 1 <= size / 2, "an object touches the rim"
            assert half + 2 > (size - 16) / 2, "a smaller shape would do"


def test_the_shape_is_that_of_aligned_objects(subjects, tmp_path, monkeypatch):
    """An image that lies far off needs no more room once it is aligned."""
    from DeepRegLib.training import preparation

    image = read_image(subjects[0].image)
    away = np.eye(4)
    away[:3, 3] = (60.0, -45.0, 80.0)
    grid = Grid(image.grid.shape, away @ image.grid.voxel_to_ras)
    write_image(Image(image.data, grid), tmp_path / "far.nii.gz")
    monkeypatch.setattr(preparation._Work, "_align", lambda self, subject, image: (
        away if subject.name == "far" else np.eye(4)))  # fmt: skip
    both = [subjects[0], Subject("far", tmp_path / "far.nii.gz")]
    alone = prepare(both[:1], 3.0, tmp_path / "c")
    together = prepare(both, 3.0, tmp_path / "c")
    assert together.frame == alone.frame and together.overlap(1) > 0.99


def test_too_small_a_shape_grows(subjects, tmp_path):
    said = []
    progress = Progress(lambda event: said.append(event.text))
    frame = ModelFrame(2.5, (16, 32, 32))
    prepared = prepare(subjects[:1], frame, tmp_path, progress, alignment="none")
    assert prepared.frame.shape == (32, 32, 32)
    assert any("more room" in text for text in said)


def test_what_was_prepared_is_kept(subjects, tmp_path, monkeypatch):
    made = []
    from DeepRegLib.training import preparation

    align = preparation._Work._align
    monkeypatch.setattr(
        preparation._Work, "_align",
        lambda self, subject, image: made.append(subject.name) or align(self, subject, image),
    )  # fmt: skip
    first = prepare(subjects[:2], FRAME, tmp_path, alignment="none")
    assert made == ["ann_1", "ann_2"]
    again = prepare(subjects[:3], FRAME, tmp_path, alignment="none", reference="ann_1")
    assert made == ["ann_1", "ann_2", "bob_1"]
    assert torch.equal(first.image(1), again.image(1))
    prepare(subjects[:3], ModelFrame(4.0, (16, 32, 16)), tmp_path, alignment="none",
            reference="ann_1")  # fmt: skip
    assert len(made) == 3  # another grid needs no other alignment
    damaged = sorted(tmp_path.glob("*.safetensors"))
    for path in damaged:
        path.write_bytes(path.read_bytes()[:200])
    mended = prepare(subjects[:2], FRAME, tmp_path, alignment="none")
    assert torch.equal(first.image(1), mended.image(1)) and len(made) == 5


def test_a_changed_file_is_prepared_anew(people, tmp_path):
    source, copy = people.folder / "ann_1_t1.nii.gz", tmp_path / "a.nii.gz"
    copy.write_bytes(source.read_bytes())
    before = file_identity(copy)
    moved = tmp_path / "elsewhere" / "a.nii.gz"
    moved.parent.mkdir()
    copy.rename(moved)
    assert file_identity(moved) == before
    moved.write_bytes((people.folder / "bob_1_t1.nii.gz").read_bytes())
    assert file_identity(moved) != before
    # A change in the middle of a large file shows in its time.
    large = tmp_path / "large.nii"
    large.write_bytes(bytes(300_000))
    os.utime(large, (1, 1))
    before = file_identity(large)
    large.write_bytes(bytes(150_000) + b"x" + bytes(149_999))
    assert file_identity(large) != before


def test_changed_labels_are_prepared_anew(people, tmp_path):
    image, labels = people.folder / "ann_1_t1.nii.gz", tmp_path / "labels.nii.gz"
    labels.write_bytes((people.folder / "ann_1_seg.nii.gz").read_bytes())
    found = [Subject("ann", image, labels)]
    assert prepare(found, FRAME, tmp_path / "c", alignment="none").structures() == [1, 2, 3]
    write_image(replace_labels(read_labels(labels), 3, 4), labels)
    assert prepare(found, FRAME, tmp_path / "c", alignment="none").structures() == [1, 2, 4]


def replace_labels(image, old, new):
    data = torch.where(image.data == old, torch.full_like(image.data, new), image.data)
    return Image(data, image.grid, image.pixel_type)


def test_cancelling_keeps_what_is_done(subjects, tmp_path):
    progress = Progress()
    progress._listener = lambda event: progress.cancel() if event.fraction > 0.3 else None
    with pytest.raises(Cancelled):
        prepare(subjects, FRAME, tmp_path, progress, alignment="none", reference="ann_1")
    assert 1 <= len(list(tmp_path.glob("*.safetensors"))) < 8


def test_what_came_in_between_is_not_made_again(tmp_path):
    class Late(Cache):
        def claim(self, key):
            Cache(tmp_path).put(key, {"x": torch.ones(1)})  # as another process does just before
            return super().claim(key)

    assert Late(tmp_path).fill({"k": lambda: pytest.fail("made twice")}) == 0


def test_two_workers_share_the_work(tmp_path):
    made, counts = [], []

    def make(number):
        time.sleep(0.05)
        made.append(number)
        return {"x": torch.full((3,), float(number))}

    def work():
        tasks = {f"k{i}": lambda i=i: make(i) for i in range(8)}
        counts.append(Cache(tmp_path).fill(tasks))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted(made) == list(range(8)) and sum(counts) == 8 and min(counts) >= 1
    cache = Cache(tmp_path)
    assert [float(cache.get(f"k{i}")["x"][0]) for i in range(8)] == list(range(8))


def test_a_claim_ends_with_its_process(tmp_path):
    code = (
        "import os, sys\n"
        "from DeepRegLib.training.cache import Cache\n"
        "with Cache(sys.argv[1]).claim('k') as mine:\n"
        "    print(mine, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    os._exit(1)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, text=True,
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert run.stdout.readline().strip() == "True"
    cache = Cache(tmp_path)
    with cache.claim("k") as mine:
        assert not mine
    with cache.claim("other") as mine:
        assert mine
    run.communicate("end\n", timeout=30)
    for _ in range(50):
        with cache.claim("k") as mine:
            if mine:
                break
        time.sleep(0.05)
    assert mine


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"subjects": []}, "no subjects"),
        ({"alignment": "elastic"}, "elastic"),
        ({"reference": "nobody"}, "nobody"),
        ({"frame": -1.0}, "voxel size"),
    ],
)
def test_sentences(changes, sentence, subjects, tmp_path):
    given = {"subjects": subjects[:1], "frame": 3.0, "folder": tmp_path, "alignment": "none"}
    with pytest.raises(InputError, match=sentence):
        prepare(**{**given, **changes})


def test_a_missing_file_and_a_missing_subject(subjects, stored, tmp_path):
    gone = Subject("gone", tmp_path / "gone.nii.gz")
    with pytest.raises(FileFormatError, match=r"gone\.nii\.gz"):
        prepare([gone], FRAME, tmp_path)
    with pytest.raises(InputError, match="gone"):
        stored.only([gone])
    train, validation = stored.split(0.3, seed=1)
    assert {s.group for s in train.subjects}.isdisjoint(s.group for s in validation.subjects)
    assert torch.equal(validation.image(0), stored.image(_index(stored, validation.subjects[0])))


def test_a_reference_from_elsewhere(subjects, people, tmp_path):
    reference = people.folder / "cyd_1_t1.nii.gz"
    prepared = prepare(subjects[:1], FRAME, tmp_path, reference=reference, alignment="none")
    expected = FRAME.grid(read_image(reference))
    assert prepared.grid.matches(expected) and len(prepared) == 1


def test_misalignment_is_told(subjects, tmp_path):
    image = read_image(subjects[0].image)
    matrix = image.grid.voxel_to_ras.copy()
    matrix[:3, 3] += 25.0
    write_image(Image(image.data, Grid(image.grid.shape, matrix)), tmp_path / "far.nii.gz")
    said = []
    far = Subject("far", tmp_path / "far.nii.gz")
    prepare([subjects[0], far], FRAME, tmp_path / "c", Progress(lambda e: said.append(e.text)),
            alignment="none")  # fmt: skip
    assert any("far" in text and "alignment" in text for text in said)


def test_small_types_hold_all_labels():
    for top, kind in ((255, torch.uint8), (256, torch.int16), (70000, torch.int32)):
        labels = torch.tensor([0, top])
        assert compact(labels).dtype == kind and compact(labels).to(torch.int64)[1] == top
    assert compact(torch.tensor([-1, 255])).dtype == torch.int16
    assert key_of("a", [1]) != key_of("a", [2])


def _index(prepared, subject):
    return [s.name for s in prepared.subjects].index(subject.name)


@pytest.mark.data
def test_real_brains_keep_their_place(data_folder, tmp_path):
    found = find_subjects(data_folder / "brain_t1_oasis" / "train_2mm")
    assert len(found) == 15
    prepared = prepare(found[:3], 3.0, tmp_path)
    for index, subject in enumerate(prepared.subjects):
        source, linear = read_labels(subject.labels), prepared.linear(index)
        for value in (44, 45):  # white matter of both sides
            there = centroid_ras(source.data[0, 0], value, source.grid)
            here = centroid_ras(prepared.labels(index)[0, 0], value, prepared.grid)
            assert np.linalg.norm(linear[:3, :3] @ here + linear[:3, 3] - there) < 0.3
        assert prepared.overlap(index) > 0.9
