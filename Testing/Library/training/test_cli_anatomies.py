"""The command `anatomies`: from a folder of images to a model, to anatomies and to pairs."""

import argparse
import csv
import json

import numpy as np
import pytest
import torch
from pairs import label_phantom, phantom, voxel_points
from support import make_grid

from DeepRegLib.cli import anatomies
from DeepRegLib.errors import DeepRegError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.io.images import read_image, read_labels, write_image
from DeepRegLib.io.itk_transform import read_transform
from DeepRegLib.registration.base import Image
from DeepRegLib.training.anatomies import write_anatomies
from DeepRegLib.training.shape_model_file import load_anatomies
from DeepRegLib.training.subjects import find_subjects


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Four phantoms of unlike shape on an oblique, anisotropic grid, with label maps."""
    folder = tmp_path_factory.mktemp("people")
    grid = make_grid("oblique", (26, 30, 22), (3.0, 2.6, 3.6))
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 3] -= grid.center_ras
    grid = Grid(grid.shape, matrix)
    points = voxel_points(grid)
    for number in range(4):
        waves = 3.0 * np.sin(points[..., [1, 2, 0]] / 12.0 + 1.5 * number)
        image = phantom(points + waves).astype(np.float32)
        labels = label_phantom(points + waves)
        write_image(Image.from_array(image, grid), folder / f"p{number}.nii.gz")
        write_image(Image.from_array(labels, grid), folder / f"p{number}_seg.nii.gz")
    return folder


def call(*words):
    """Runs the command as the command line does, with what it refuses as an exception."""
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug")
    anatomies.add(parser.add_subparsers(required=True), common)
    chosen = parser.parse_args(["anatomies", *map(str, words)])
    return chosen.execute(chosen)


@pytest.fixture(scope="module")
def model(people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    path = folder / "phantoms.safetensors"
    before = torch.get_num_threads()
    assert call("fit", people, "--output", path, "--spacing", "4", "--alignment", "none",
                "--rounds", "0", "--locality", "0,40", "--cache", folder / "cache", "--device",
                "cpu", "--threads", "1", "--quiet") == 0  # fmt: skip
    torch.set_num_threads(before)
    return path


def rows(path):
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_fit_and_show(model, capsys):
    made = load_anatomies(model)
    assert made.subjects == 4 and made.grid.spacing_mm == pytest.approx((4.0, 4.0, 4.0))
    assert made.locality_mm == (0.0, 40.0) and made.about["names"] == ["p0", "p1", "p2", "p3"]
    assert set(made.labels.unique().tolist()) == {0, 1, 2, 3}
    assert call("show", model) == 0
    told = capsys.readouterr().out
    assert "from 4 images, registered by svf" in told and "everywhere, 40 mm" in told
    assert call("show", model, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["subjects"] == 4 and content["rounds"] == 0 and content["size_mm"] > 0.3


def test_sampled_anatomies_are_images_to_train_with(model, tmp_path, capsys):
    folder = tmp_path / "new"
    assert call("sample", model, "--count", 3, "--output", folder, "--seed", 4, "--fields") == 0
    assert "3 anatomies" in capsys.readouterr().out
    subjects = find_subjects(folder / "anatomies.csv")
    assert [s.name for s in subjects] == ["anatomy_001", "anatomy_002", "anatomy_003"]
    made = load_anatomies(model).sample(3, seed=4)
    for number, subject in enumerate(subjects):
        image, labels = read_image(subject.image), read_labels(subject.labels)
        # Files count their axes in the other order; what lies at a place is the same.
        again = image.grid.voxel_to_voxel(made.grid)
        assert np.allclose(np.abs(np.linalg.det(again[:3, :3])), 1.0)
        moved = on_grid(image, made.grid)
        assert torch.allclose(moved, made.images[number : number + 1], atol=1e-3)
        nearest = on_grid(Image(labels.data.float(), labels.grid), made.grid)
        assert torch.equal(nearest.round().long(), made.labels[number : number + 1])
    assert (folder / "template.nii.gz").exists() and (folder / "template_labels.nii.gz").exists()
    # The transform brings the template onto the anatomy.
    template = read_image(folder / "template.nii.gz")
    one = read_image(subjects[0].image)
    transform = read_transform(folder / "anatomy_001_to_template.nii.gz")
    after = (transform.warp(template.data, template.grid, one.grid) - one.data).abs().mean()
    assert after < 0.8 * (template.data - one.data).abs().mean()


def on_grid(image, grid):
    from DeepRegLib.geometry.transform import Transform

    return Transform().warp(image.data.float(), image.grid, grid)


def test_the_transform_of_a_pair_is_exact(model, tmp_path, capsys):
    folder = tmp_path / "pairs"
    assert call("pairs", model, "--count", 2, "--output", folder, "--shared-texture", "1") == 0
    assert "2 pairs" in capsys.readouterr().out
    found = rows(folder / "pairs.csv")
    assert [row["name"] for row in found] == ["pair_001", "pair_002"]
    for row in found:
        fixed, moving = (read_image(folder / row[name]) for name in ("fixed", "moving"))
        transform = read_transform(folder / row["transform"])
        moved = transform.warp(moving.data, moving.grid, fixed.grid)
        before = (moving.data - fixed.data).abs().mean()
        assert (moved - fixed.data).abs().mean() < 0.35 * before
        labels = [read_labels(folder / row[f"{name}_labels"]) for name in ("fixed", "moving")]
        carried = transform.warp(labels[1].data, moving.grid, fixed.grid, "nearest")
        assert (carried == labels[0].data).float().mean() > 0.97


def test_modes(model, tmp_path, capsys):
    folder = tmp_path / "modes"
    assert call("modes", model, "--output", folder, "--modes", 2, "--deviations", "1.5") == 0
    names = [line.rsplit("/", 1)[-1] for line in capsys.readouterr().out.split()]
    assert names == ["template.nii.gz", "mode_1_minus.nii.gz", "mode_1_plus.nii.gz",
                     "mode_2_minus.nii.gz", "mode_2_plus.nii.gz"]  # fmt: skip
    ends = [read_image(folder / name).data for name in names[1:3]]
    assert (ends[0] - ends[1]).abs().mean() > 1e-3


def test_what_does_not_fit_is_refused_before_the_work(model, people, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    kept = tmp_path / "model.safetensors"
    kept.write_text("mine")
    for words, sentence in (
        (("sample", model, "--output", full), "new or empty"),
        (("pairs", model, "--output", tmp_path / "no" / "folder"), "does not exist"),
        (("sample", model, "--output", tmp_path / "a", "--count", "0"), "from 1"),
        (("pairs", model, "--output", tmp_path / "a", "--shared-texture", "2"), "from 0 to 1"),
        (("sample", tmp_path / "none", "--output", tmp_path / "a"), "no file"),
        (("fit", people, "--output", tmp_path / "m.pt"), "ends in .safetensors"),
        (("fit", people, "--output", kept), "--overwrite"),
        (("fit", people, "--output", tmp_path / "b.safetensors", "--locality", "-3"), "locality"),
        (("fit", people, "--output", tmp_path / "b.safetensors", "--engine", "vxm"), "engine"),
        (("fit", people, "--output", tmp_path / "b.safetensors", "--spacing", "x"), "spacing"),
        (("fit", tmp_path / "nowhere", "--output", tmp_path / "b.safetensors"), "no '"),
    ):
        with pytest.raises(DeepRegError, match=sentence):
            call(*words)
    assert kept.read_text() == "mine" and (full / "file").read_text() == "mine"
    assert not (tmp_path / "a").exists() and not (tmp_path / "b.safetensors").exists()


def test_a_folder_is_there_whole_or_not_at_all(model, tmp_path, monkeypatch):
    made, written = load_anatomies(model), []

    def fails(image, path):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.write_bytes(b"x")

    monkeypatch.setattr("DeepRegLib.training.anatomies.write_image", fails)
    with pytest.raises(DeepRegError, match="No space"):
        write_anatomies(made, tmp_path / "new", 3)
    assert list(tmp_path.iterdir()) == []
