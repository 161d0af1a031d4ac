"""Aligned pairs for learned metrics: aligned as files are, changed alike, without labels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pairs import phantom, voxel_points
from support import make_grid

from DeepRegLib.errors import InputError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.io.images import write_image
from DeepRegLib.networks.model_file import load_weights
from DeepRegLib.networks.patch_metric import PatchMetric
from DeepRegLib.registration.base import Image
from DeepRegLib.registration.model_frame import ModelFrame
from DeepRegLib.training.augment import Augmentation
from DeepRegLib.training.generated import GeneratedPairs, Recipe
from DeepRegLib.training.metric_pairs import AlignedPairs, aligned_pairs, common_changes
from DeepRegLib.training.options import TrainingOptions
from DeepRegLib.training.pairs import PreparedPairs
from DeepRegLib.training.prepared import PreparedSet
from DeepRegLib.training.session import train
from DeepRegLib.training.subjects import Subject

SHAPE = (16, 24, 20)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def prepared_set(entries, groups):
    """A set of subjects whose prepared images are given, without a folder."""
    grid = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
    subjects = [Subject(name, f"{name}.nii", group=g) for name, g in zip(entries, groups)]
    cache = SimpleNamespace(get=entries.get, folder="nowhere")
    return PreparedSet(ModelFrame(2.0, SHAPE), grid, subjects, cache, list(entries))


def entry(image, shift_mm=(0.0, 0.0, 0.0), labels=None):
    linear = torch.eye(4, dtype=torch.float64)
    linear[:3, 3] = torch.tensor(shift_mm, dtype=torch.float64)
    found = {"image": image[0, 0], "linear": linear, "overlap": torch.tensor(1.0)}
    return found if labels is None else {**found, "labels": labels}


def smooth(seed=0):
    image = gaussian_smooth(torch.rand(1, 1, *SHAPE, generator=generator(seed)), 1.5)
    return (image - image.min()) / (image.max() - image.min())


def pairs_of_one_person(**changes):
    """Two images of one person; the second was aligned with the reference 2 voxels apart."""
    image = smooth()
    apart = torch.roll(image, 2, 3)  # shows at y what the first shows at y - 2
    entries = {
        "t1": entry(image),
        "t2": entry(1.0 - apart, (0.0, -4.0, 0.0), torch.ones(SHAPE, dtype=torch.uint8)),
    }
    prepared = prepared_set(entries, ("ann", "ann"))
    augmentation = Augmentation(**changes) if changes else None
    return image, PreparedPairs(prepared, prepared, "within", augmentation=augmentation)


def test_images_of_a_person_are_aligned_as_their_files_are():
    """A point p of the reference is at p in the first scan and at p - 4 mm in the second."""
    image, given = pairs_of_one_person()
    pairs = AlignedPairs(given)
    batch = pairs.draw(12, generator())
    inside = (..., slice(None), slice(3, -3), slice(None))
    first = [torch.equal(f, image[0]) for f in batch.fixed]
    assert any(first) and not all(first)
    for fixed, moving in zip(batch.fixed, batch.moving):
        assert torch.allclose(fixed[inside], 1.0 - moving[inside], atol=1e-5)
    assert batch.fixed_labels is None and batch.moving_labels is None
    held = pairs.validation()
    assert len(held) == 2 and held[0].fixed_labels is None
    assert torch.allclose(held[0].fixed[inside], 1.0 - held[0].moving[inside], atol=1e-5)
    raw = given.draw(12, generator())
    assert any(not torch.allclose(f[inside], 1.0 - m[inside], atol=0.05)
               for f, m in zip(raw.fixed, raw.moving))  # fmt: skip


def test_random_changes_are_the_same_for_both_images():
    changes = {"rotation_deg": 15.0, "shift_mm": 6.0, "misalignment": 1.0, "bend_mm": 4.0,
               "shift_voxels": 3, "noise": 0.1}  # fmt: skip
    _, given = pairs_of_one_person(**changes)
    batch = AlignedPairs(given).draw(3, generator())
    near = (batch.fixed + batch.moving - 1.0).abs()[..., 4:-4, 6:-6, 5:-5]
    assert float(near.median()) < 0.15 and not torch.equal(batch.fixed[0], batch.fixed[1])
    kept = common_changes(Augmentation(**changes))
    assert (kept.misalignment, kept.bend_mm, kept.shift_voxels) == (0.0, 0.0, 0)
    assert (kept.rotation_deg, kept.noise) == (15.0, 0.1) and common_changes(None) is None
    told = AlignedPairs(given).describe()
    assert told["aligned"] and told["augmentation"]["bend_mm"] == 0.0


def test_pairs_of_different_people_are_refused():
    entries = {"a": entry(smooth(1)), "b": entry(smooth(2))}
    pairs = PreparedPairs(prepared_set(entries, ("ann", "bob")))
    with pytest.raises(InputError, match="two images of each person"):
        aligned_pairs(pairs)


def test_generated_pairs_come_with_their_displacement():
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    labels[4:12, 5:18, 4:15] = 2
    labels[6:10, 8:14, 7:12] = 3
    entries = {n: entry(smooth(), labels=labels) for n in ("a", "b")}
    prepared = prepared_set(entries, ("a", "b"))
    given = GeneratedPairs(prepared, prepared, recipe=Recipe(two_people=1.0), validation_pairs=2)
    pairs = aligned_pairs(given)
    for batch in [pairs.draw(1, generator(s)) for s in range(4)] + list(pairs.validation()):
        assert batch.truth is not None and batch.fixed_labels is None
    assert given.draw(1, generator()).truth is None
    validated_elsewhere = SimpleNamespace(_train=given, frame=given.frame)
    assert aligned_pairs(validated_elsewhere).draw(1, generator()).truth is not None


def test_a_metric_is_trained_from_a_table_of_two_contrasts(tmp_path, monkeypatch):
    """From files to a model, by the trainer of all systems."""
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path / "models"))
    rows = ["image,name,group"]
    for person in range(2):
        grid = make_grid("oblique", (24, 28, 22), (3.0, 2.6, 3.4))
        matrix = grid.voxel_to_ras.copy()
        matrix[:3, 3] -= grid.center_ras
        grid = Grid(grid.shape, matrix)
        values = phantom(voxel_points(grid) * (1.0 + 0.05 * person))
        for kind, data in (("t1", values), ("t2", values * (110.0 - values) / 30.0)):
            name = f"p{person}_{kind}"
            write_image(
                Image.from_array(data.astype(np.float32), grid), tmp_path / f"{name}.nii.gz"
            )
            rows.append(f"{name}.nii.gz,{name},p{person}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    options = {
        "algorithm": "deep_metric", "data": str(tmp_path / "pairs.csv"), "pairing": "within",
        "alignment": "none", "spacing": 4.0, "share": 0.5, "cache": str(tmp_path / "cache"),
        "parameters": {"channels": (4, 4, 4, 4, 4), "patches": 4, "shifts": (2, 6)},
        "settings": {"steps": 4, "validate_every": 2, "device": "cpu"}, "name": "contrasts",
    }  # fmt: skip
    trained = train(TrainingOptions.of(options))
    assert trained.ended == "complete" and trained.card.algorithm == "deep_metric"
    assert trained.card.training["data"]["aligned"] is True and "dice" not in trained.card.figures
    assert any("loss_apart" in row for row in trained.history)
    weights = load_weights(trained.path)
    assert set(weights) == set(PatchMetric((4, 4, 4, 4, 4)).state_dict())
