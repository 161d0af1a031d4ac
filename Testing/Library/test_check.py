"""Checking a registration: geometry, figures, verdict, files, and the command.

These tests need a registry that knows the systems of `DeepRegLib/estimators`.
"""

import argparse
import json
from dataclasses import replace

import numpy as np
import pairs
import pytest
import SimpleITK as sitk
import torch
from estimator_doubles import write_judge

from DeepRegLib import check, models, worker_jobs
from DeepRegLib.check import LEAST, Checked, check_registration, files_beside
from DeepRegLib.cli import check as command
from DeepRegLib.errors import Cancelled, FileFormatError, InputError, ParameterError, WorkerError
from DeepRegLib.estimators.error_map import Algorithm
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image, write_image
from DeepRegLib.io.itk_transform import write_transform
from DeepRegLib.job import ArrayFile, Job, JobEvent, TransformFile
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.trainable import Prediction


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of models with one that was never trained."""
    where = tmp_path / "models"
    where.mkdir()
    monkeypatch.setenv("DEEPREG_MODELS", str(where))
    monkeypatch.setattr(models, "SHIPPED", ())
    write_judge(where, spacing_mm=4.0, shape=(16, 20, 18))
    return where


@pytest.fixture
def brightness(monkeypatch):
    """In place of the network: the absolute difference of the images, times 10 mm."""

    def predict(self, network, fixed, moving, spacing_mm):
        return Prediction(maps={"error_mm": (10.0 * (fixed - moving).abs()).clamp(max=6.0)})

    monkeypatch.setattr(Algorithm, "predict", predict)


def constant(monkeypatch, number):
    def predict(self, network, fixed, moving, spacing_mm):
        return Prediction(maps={"error_mm": torch.full_like(fixed, number)})

    monkeypatch.setattr(Algorithm, "predict", predict)


def test_the_error_lies_on_the_fixed_grid(brightness):
    """With the true transform next to nothing remains; without it, there is a difference."""
    pair = pairs.make_pair()
    right = check_registration(pair.fixed, pair.moving, Transform(pairs.known_matrix()))
    before = check_registration(pair.fixed, pair.moving)
    assert right.error.grid is pair.fixed.grid and right.error.data.dtype == torch.float32
    assert right.figures["mean_mm"] < 0.4 * before.figures["mean_mm"]
    # The transform back is no transform there.
    back = check_registration(pair.fixed, pair.moving, np.linalg.inv(pairs.known_matrix()))
    assert back.figures["mean_mm"] > before.figures["mean_mm"]
    points = pairs.voxel_points(pair.fixed.grid)
    outside = np.linalg.norm(points / [26.0, 32.0, 29.0], axis=-1) > 2.0
    assert outside.any() and (right.error.numpy()[outside] == 0).all()
    assert right.moved.grid.matches(pair.fixed.grid)


def test_a_deformation_is_applied_to_the_moving_image(brightness):
    """A field that shifts as the true matrix does gives the same map as the matrix."""
    pair = pairs.make_pair(pairs.known_matrix(turn=(0.0, 0.0, 0.0)))
    linear = Transform(pairs.known_matrix(turn=(0.0, 0.0, 0.0)))
    grid = pair.fixed.grid.padded(6)
    field = Transform(np.eye(4), Field.from_ras_mm(linear.displacement_ras_mm(grid), grid))
    one, other = (check_registration(pair.fixed, pair.moving, t) for t in (linear, field))
    assert torch.allclose(one.error.data, other.error.data, atol=1e-2)


def test_figures_and_histogram(monkeypatch):
    pair = pairs.make_pair(np.eye(4))

    def predict(self, network, fixed, moving, spacing_mm):
        half = torch.zeros_like(fixed)
        half[:, :, half.shape[2] // 2 :] = 4.0  # to the patient's right of the middle
        return Prediction(maps={"error_mm": half})

    monkeypatch.setattr(Algorithm, "predict", predict)
    found = check_registration(pair.fixed, pair.moving, threshold_mm=1.0)
    assert found.figures["mean_mm"] == pytest.approx(2.0, abs=0.3)
    assert found.figures["share_above_percent"] == pytest.approx(50.0, abs=8.0)
    assert found.figures["p95_mm"] == pytest.approx(4.0, abs=0.01)
    edges, shares = found.histogram["edges_mm"], found.histogram["shares"]
    assert len(edges) == len(shares) + 1 and edges[0] == 0.0 and edges[-1] == 6.0
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares[1:-1]) == shares[int(4.0 / 6.0 * len(shares))]
    points = pairs.voxel_points(pair.fixed.grid)
    inside = np.linalg.norm(points / [20.0, 24.0, 22.0], axis=-1) < 1.0
    values = found.error.numpy()
    assert np.allclose(values[inside & (points[..., 0] > 6.0)], 4.0, atol=1e-3)
    # 0 stands outside; whoever shows the map hides what is 0.
    assert np.allclose(values[inside & (points[..., 0] < -6.0)], LEAST * 6.0, atol=1e-3)
    assert (values[np.linalg.norm(points / [20.0, 24.0, 22.0], axis=-1) > 3.0] == 0.0).all()


@pytest.mark.parametrize(
    ("number", "verdict", "words"),
    [(1.0, "green", "are aligned: the estimated error is 1.0 mm"), (3.0, "red", "not aligned")],
)
def test_verdicts(monkeypatch, number, verdict, words):
    constant(monkeypatch, number)
    pair = pairs.make_pair(np.eye(4))
    found = check_registration(pair.fixed, pair.moving)
    assert found.verdict == verdict and words in found.sentence
    assert "off by about 0.8 mm" in found.sentence and verdict.upper() in str(found)
    assert found.provenance["model"]["name"] == "judge"


def test_the_mask_tells_where_errors_count(monkeypatch):
    pair = pairs.make_pair(np.eye(4))
    constant(monkeypatch, 3.0)
    mask = np.zeros(pair.fixed.grid.shape, np.uint8)
    middle = tuple(n // 2 for n in mask.shape)
    mask[middle[0] - 1 : middle[0] + 2, middle[1], middle[2]] = 1
    found = check_registration(pair.fixed, pair.moving, fixed_mask=mask)
    assert found.figures["judged_voxels"] == 3 and (found.error.numpy() > 0).sum() == 3
    assert "in 100 % of the mask" in found.sentence
    with pytest.raises(InputError, match="mask holds no voxel"):
        check_registration(pair.fixed, pair.moving, fixed_mask=0 * mask)


def test_images_that_do_not_meet_cannot_be_judged(monkeypatch):
    constant(monkeypatch, 1.0)
    pair = pairs.make_pair(np.eye(4))
    away = np.eye(4)
    away[:3, 3] = 500.0
    with pytest.raises(InputError, match="direction"):
        check_registration(pair.fixed, pair.moving, away)
    away[:3, 3] = (55.0, 0.0, 0.0)
    found = check_registration(pair.fixed, pair.moving, away)
    assert found.verdict == "red" and "inside the moving" in found.sentence


def test_it_needs_a_model(folder):
    (folder / "judge.safetensors").unlink()
    pair = pairs.make_pair()
    with pytest.raises(ParameterError, match="no trained model for 'error_map'"):
        check_registration(pair.fixed, pair.moving)


def test_the_network_itself_answers():
    pair = pairs.make_pair()
    found = check_registration(pair.fixed, pair.moving, step=4)
    assert isinstance(found, Checked) and np.isfinite(found.error.numpy()).all()
    again = check_registration(pair.fixed, pair.moving, step=4)
    assert torch.equal(found.error.data, again.error.data)


def test_the_volume_comes_in_the_type_of_the_fixed_image(monkeypatch):
    constant(monkeypatch, 1.0)
    array = pairs.make_pair(np.eye(4)).fixed.numpy()
    found = check_registration(array, array)
    assert isinstance(found.volume, np.ndarray) and found.volume.shape == array.shape


def run(*words):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    chosen = parser.parse_args(["check", *map(str, words)])
    return chosen.execute(chosen)


def test_the_command_takes_an_itk_transform_and_writes_three_files(
    tmp_path, monkeypatch, capsys, brightness
):
    """The transform was made elsewhere: an ITK file, LPS."""
    pair = pairs.make_pair()
    write_image(pair.fixed, tmp_path / "fixed.nrrd")
    write_image(pair.moving, tmp_path / "moving.nrrd")
    write_transform(Transform(pairs.known_matrix()), tmp_path / "t.tfm", pair.fixed.grid)
    words = ("--fixed", tmp_path / "fixed.nrrd", "--moving", tmp_path / "moving.nrrd")
    code = run(*words, "--transform", tmp_path / "t.tfm", "--out", tmp_path / "error.nii.gz")
    told = capsys.readouterr().out
    assert code == 0 and "Error, mean" in told
    written = read_image(tmp_path / "error.nii.gz")
    assert written.grid.matches(pair.fixed.grid)
    report = json.loads((tmp_path / "error.json").read_text())
    assert report["verdict"] in ("green", "amber", "red") and len(report["histogram"]["shares"]) > 5
    assert report["mean_mm"] == pytest.approx(float(written.numpy()[written.numpy() > 0].mean()),
                                              rel=0.5)  # fmt: skip
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "error.png")))
    assert picture.ndim == 3 and picture.shape[2] == 3 and len(np.unique(picture)) > 50
    assert run(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["mean_mm"] > report["mean_mm"]


@pytest.mark.parametrize(
    ("words", "error"),
    [(("--threshold", "0"), ParameterError), (("--step", "3"), ParameterError),
     (("--out", "nowhere/error.nrrd"), FileFormatError), (("--threads", "0"), ParameterError),
     (("--out", "error.png"), FileFormatError)],
)  # fmt: skip
def test_the_command_refuses_what_does_not_fit(tmp_path, words, error):
    pair = pairs.make_pair()
    write_image(pair.fixed, tmp_path / "fixed.nrrd")
    with pytest.raises(error):
        run("--fixed", tmp_path / "fixed.nrrd", "--moving", tmp_path / "fixed.nrrd", *words)


def test_an_input_is_not_replaced(tmp_path):
    pair = pairs.make_pair()
    path = tmp_path / "fixed.nrrd"
    write_image(pair.fixed, path)
    with pytest.raises(FileFormatError, match="input"):
        run("--fixed", path, "--moving", path, "--out", path)


def test_files_beside():
    names = [path.name for path in files_beside("a/error.v2.nii.gz")]
    assert names == ["error.v2.json", "error.v2.png"]


def test_the_worst_place():
    from DeepRegLib.pictures.error import worst_place

    grid = pairs.fixed_grid()
    error = np.zeros(grid.shape)
    assert np.allclose(worst_place(error, grid), grid.center_ras)
    error[15:19, 20:24, 5:8] = 4.0
    voxel = grid.to_voxel(worst_place(error, grid))
    assert np.abs(voxel - [16.5, 21.5, 6.0]).max() < 4.0


def test_the_threshold_is_a_length():
    pair = pairs.make_pair()
    with pytest.raises(ParameterError, match="threshold"):
        check_registration(pair.fixed, pair.moving, threshold_mm=0.0)
    assert check.THRESHOLD_MM == 2.0


# The worker --------------------------------------------------------------------------------------


def job_of(folder, pair, transform=None, **parameters):
    """A job as the panel hands it over: arrays, a matrix, and a displacement in RAS mm."""
    arrays, transforms = {}, {}
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        np.save(folder / f"{name}.npy", image.numpy())
        arrays[name] = ArrayFile(f"{name}.npy", image.grid.voxel_to_ras.tolist())
    if transform is not None:
        field = None
        if transform.field is not None:
            np.save(folder / "u.npy", transform.field.to_ras_mm()[0].numpy())
            field = ArrayFile("u.npy", transform.field.grid.voxel_to_ras.tolist())
        transforms["transform"] = TransformFile(transform.linear.tolist(), field)
    return Job("check", str(folder), arrays, transforms, {"device": "cpu", **parameters})


def test_the_worker_checks_as_the_library_does(tmp_path, brightness):
    pair = pairs.make_pair()
    grid = pair.fixed.grid.padded(4)
    points = torch.from_numpy(pairs.voxel_points(grid))
    bend = 2.0 * torch.sin(points[..., [1, 2, 0]] / 15.0).permute(3, 0, 1, 2)[None].float()
    transform = Transform(pairs.known_matrix(), Field.from_ras_mm(bend, grid))
    events = []
    done = worker_jobs.run(
        job_of(tmp_path, pair, transform, threshold_mm=1.0, step=4), Progress(events.append)
    )
    found = check_registration(pair.fixed, pair.moving, transform, threshold_mm=1.0, step=4)
    described = done.arrays["error_mm"]
    error = np.load(tmp_path / described.file)
    np.testing.assert_allclose(error, found.error.numpy(), atol=1e-4)
    assert np.allclose(described.voxel_to_ras, pair.fixed.grid.voxel_to_ras)
    assert done.kind == "done" and done.data["verdict"] == found.verdict
    for name in ("mean_mm", "median_mm", "p95_mm", "share_above_percent"):
        assert done.data[name] == pytest.approx(found.figures[name], abs=1e-3)
    assert JobEvent.from_line(done.to_line()).data["histogram"] == found.histogram
    shares = [e.fraction for e in events if e.kind == "progress"]
    assert shares == sorted(shares) and len(shares) > 2
    assert any("judge" in e.text for e in events if e.kind == "message")


def test_the_worker_refuses_what_does_not_fit(tmp_path):
    pair = pairs.make_pair()
    with pytest.raises(ParameterError, match="check job has no parameter 'speed'"):
        worker_jobs.run(job_of(tmp_path, pair, speed=3), Progress())
    with pytest.raises(ParameterError, match="nobody"):
        worker_jobs.run(job_of(tmp_path, pair, model="nobody"), Progress())
    job = replace(job_of(tmp_path, pair), arrays={})
    with pytest.raises(WorkerError, match="check job needs the array 'fixed'"):
        worker_jobs.run(job, Progress())


def test_a_check_can_be_cancelled(tmp_path):
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        worker_jobs.run(job_of(tmp_path, pairs.make_pair()), progress)
