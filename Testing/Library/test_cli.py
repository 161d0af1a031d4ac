import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pairs
import pytest
import SimpleITK as sitk
import torch
from support import smooth_displacement

from DeepRegLib import pipeline, registry
from DeepRegLib.cli import main
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image, read_labels, to_sitk, write_image
from DeepRegLib.io.itk_transform import read_transform, write_transform
from DeepRegLib.io.landmarks import Landmarks, read_landmarks, write_landmarks
from DeepRegLib.registration.base import Result

ROOT = Path(__file__).parents[2]
QUICK = ("--algorithm", "rigid", "--set", "initialization=stored", "--set", "sizes=12,24",
         "--set", "samples=3000", "--device", "cpu", "--threads", "1")  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images, label maps, landmarks and a transform of a pair, in one folder."""
    folder = tmp_path_factory.mktemp("data")
    pair, matrix = pairs.make_pair(), pairs.known_matrix()
    back = np.linalg.inv(matrix)
    write_image(pair.fixed, folder / "fixed.nrrd")
    write_image(pair.moving, folder / "moving.nii.gz")
    write_image(pairs.make_labels(pairs.fixed_grid()), folder / "fixed_labels.nrrd")
    write_image(pairs.make_labels(pairs.moving_grid(), back), folder / "moving_labels.nrrd")
    points = pairs.body_points(6)
    mapped = points @ matrix[:3, :3].T + matrix[:3, 3]
    labels = [f"P{i}" for i in range(6)]
    write_landmarks(Landmarks(points, labels), folder / "fixed.mrk.json")
    write_landmarks(Landmarks(mapped, labels), folder / "moving.mrk.json")
    write_transform(Transform(matrix), folder / "truth.tfm", pair.fixed.grid)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path


def call(*words):
    """Runs the command line in this process; returns its exit code."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def refused(capsys, *words):
    """Runs a command that must be refused; returns its one sentence."""
    code = call(*words)
    told = capsys.readouterr()
    assert code == 2, told.err
    assert told.out == "" and told.err.count("\n") == 1 and "Traceback" not in told.err
    assert len(told.err.strip()) > 20 and told.err.strip().endswith((".", "?", "'"))
    return told.err


def test_register_writes_everything_and_prints_the_card(files, out, capsys):
    code = call(
        "register", files / "fixed.nrrd", files / "moving.nii.gz", *QUICK,
        "--output-image", out / "moved.nrrd", "--output-transform", out / "t.tfm",
        "--output-inverse", out / "back.h5", "--report", out / "report.json",
        "--fixed-labels", files / "fixed_labels.nrrd", "--moving-labels", files / "moving_labels.nrrd",
        "--fixed-landmarks", files / "fixed.mrk.json", "--moving-landmarks", files / "moving.mrk.json",
    )  # fmt: skip
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "GREEN" in told.out and "Dice" in told.out and told.err == ""
    assert sorted(p.name for p in out.iterdir()) == [
        "back.h5",
        "moved.nrrd",
        "report.json",
        "t.tfm",
    ]
    fixed = read_image(files / "fixed.nrrd")
    moved = read_image(out / "moved.nrrd")
    assert moved.grid.matches(fixed.grid) and moved.pixel_type == "float32"
    found = read_transform(out / "t.tfm")
    assert pairs.error_mm(found, pairs.known_matrix()) < 0.5
    back = read_transform(out / "back.h5")
    np.testing.assert_allclose(back.linear @ found.linear, np.eye(4), atol=1e-6)
    report = json.loads((out / "report.json").read_text())
    assert report["quality"]["tre_mean_after_mm"] < 0.5
    assert report["provenance"]["stages"][0]["parameters"]["samples"] == 3000
    assert "fixed_mask" not in report["provenance"]["python"]
    # ITK resamples with the written transform to the same image.
    itk = sitk.Resample(
        to_sitk(read_image(files / "moving.nii.gz")), to_sitk(fixed),
        sitk.ReadTransform(str(out / "t.tfm")), sitk.sitkLinear, report["provenance"]["fill"],
    )  # fmt: skip
    body = fixed.numpy() > 20
    assert np.abs(sitk.GetArrayFromImage(itk) - moved.numpy())[body].max() < 0.05


def test_a_deformable_result_goes_to_displacement_images(files, out, monkeypatch, capsys):
    """Transform and inverse undo each other and ITK agrees, also for a field."""
    grid = pairs.fixed_grid()
    truth = Transform(pairs.known_matrix(), Field(smooth_displacement(grid.shape, 1.0), grid))

    class Fake:
        def register(self, pair, progress):
            return Result(truth)

    monkeypatch.setattr(registry, "create", lambda key, **values: Fake())
    arguments = [
        "register",
        files / "fixed.nrrd",
        files / "moving.nii.gz",
        "--algorithm",
        "affine+greedy",
    ]
    code = call(*arguments, "--output-transform", out / "t.nrrd", "--output-inverse", out / "back.nii.gz",
                "--output-image", out / "moved.mha", "--quiet", "--device", "cpu")  # fmt: skip
    told = capsys.readouterr()
    assert code == 0 and told.out == told.err == ""
    found, back = read_transform(out / "t.nrrd"), read_transform(out / "back.nii.gz")
    points = pairs.body_points()
    there = found.map_points_ras(points)
    np.testing.assert_allclose(there, truth.map_points_ras(points), atol=1e-3)
    assert np.linalg.norm(back.map_points_ras(there) - points, axis=1).mean() < 0.1
    assert "cannot hold a deformation" in refused(
        capsys, *arguments, "--output-transform", out / "t.tfm"
    )


BAD = {
    "same volume": (["{fixed}", "{fixed}"], "same volume"),
    "missing": (["{fixed}", "nowhere.nrrd"], "no file 'nowhere.nrrd'"),
    "cut short": (["{fixed}", "{cut}"], "cut short"),
    "not an image": (["{fixed}", "{text}"], "not an image"),
    "empty file": (["{fixed}", "{empty}"], "empty file"),
    "time series": (["{fixed}", "{series}"], "4 dimensions"),
    "colour": (["{fixed}", "{colour}"], "3 components"),
    "nan": (["{fixed}", "{nan}"], "NaN"),
    "constant": (["{fixed}", "{constant}"], "everywhere"),
    "wrong unit": (["{fixed}", "{metres}"], "too small for millimeters"),
    "micrometres": (["{micro}", "{moving}"], "too large for millimeters"),
    "empty mask": (["{fixed}", "{moving}", "--fixed-mask", "{nomask}"], "mask is empty"),
    "mask elsewhere": (["{fixed}", "{moving}", "--moving-mask", "{far}"], "outside its image"),
    "mask of fractions": (["{fixed}", "{moving}", "--moving-mask", "{moving}"], "whole numbers"),
    "labels of fractions": (["{fixed}", "{moving}", "--fixed-labels", "{fixed}"], "whole numbers"),
    "one landmark list": (["{fixed}", "{moving}", "--fixed-landmarks", "{points}"], "both lists"),
    "landmarks unlike": (["{fixed}", "{moving}", "--fixed-landmarks", "{points}",
                          "--moving-landmarks", "{fewer}"], "one to one"),
    "not landmarks": (["{fixed}", "{moving}", "--fixed-landmarks", "{text}",
                       "--moving-landmarks", "{points}"], "not a landmark file"),
    "not a transform": (["{fixed}", "{moving}", "--initial-transform", "{text}"], "not a transform"),
    "algorithm": (["{fixed}", "{moving}", "--algorithm", "magic"], "no algorithm 'magic'"),
    "no stage": (["{fixed}", "{moving}", "--algorithm", "rigid++greedy"], "is not an algorithm"),
    "parameter": (["{fixed}", "{moving}", "--set", "speed=3"], "parameter 'speed'"),
    "value": (["{fixed}", "{moving}", "--algorithm", "rigid", "--set", "samples=many"],
              "a whole number"),
    "range": (["{fixed}", "{moving}", "--algorithm", "rigid", "--set", "samples=-3"], "from 1000"),
    "no value": (["{fixed}", "{moving}", "--set", "samples"], "NAME=VALUE"),
    "twice": (["{fixed}", "{moving}", "--set", "a=1", "--set", "a=2"], "set twice"),
    "preset": (["{fixed}", "{moving}", "--preset", "warp9"], "invalid choice"),
    "device": (["{fixed}", "{moving}", "--device", "abacus"], "device must be"),
    "threads": (["{fixed}", "{moving}", "--threads", "0"], "number from 1"),
    "option": (["{fixed}", "{moving}", "--speed"], "Unrecognized"),
    "no folder": (["{fixed}", "{moving}", "--report", "{out}/no/where.json"], "does not exist"),
    "suffix": (["{fixed}", "{moving}", "--output-image", "{out}/moved.xyz"], "'.xyz'"),
    "onto an input": (["{fixed}", "{moving}", "--output-image", "{fixed}"], "is an input"),
    "one file twice": (["{fixed}", "{moving}", "--output-transform", "{out}/t.h5",
                        "--output-inverse", "{out}/t.h5"], "named twice"),
    "an output is a folder": (["{fixed}", "{moving}", "--output-image", "{folder}"], "is a folder"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bad_files(files):
    """One file for each way in which an input can be unfit."""
    fixed, moving = read_image(files / "fixed.nrrd"), read_image(files / "moving.nii.gz")
    names = {"fixed": files / "fixed.nrrd", "moving": files / "moving.nii.gz",
             "points": files / "fixed.mrk.json"}  # fmt: skip

    def save(name, image, suffix=".nrrd"):
        names[name] = files / f"bad_{name}{suffix}"
        sitk.WriteImage(image, str(names[name]))

    names["cut"] = files / "bad_cut.nii.gz"
    whole = (files / "moving.nii.gz").read_bytes()
    names["cut"].write_bytes(whole[: len(whole) // 2])
    names["text"], names["empty"] = files / "bad_text.txt", files / "bad_empty.nrrd"
    names["text"].write_text("No image.")
    names["empty"].write_bytes(b"")
    image = to_sitk(moving)
    save("series", sitk.JoinSeries([image, image]))
    save("colour", sitk.Compose([image] * 3))
    array = moving.numpy().copy()
    array[3, 4, 5] = np.nan
    save("nan", _with_array(image, array))
    save("constant", _with_array(image, np.full_like(array, 5.0)))
    save("metres", _scaled(image, 0.001))
    save("micro", _scaled(to_sitk(fixed), 1000.0))
    save("nomask", _with_array(to_sitk(fixed), np.zeros(fixed.grid.shape, np.uint8)))
    far = _with_array(image, np.ones(moving.grid.shape, np.uint8))
    far.SetOrigin([x + 5000.0 for x in far.GetOrigin()])
    save("far", far)
    few = Landmarks(np.zeros((2, 3)), ["a", "b"])
    names["fewer"] = files / "bad_fewer.fcsv"
    write_landmarks(few, names["fewer"])
    names["folder"] = files / "bad_folder.nrrd"
    names["folder"].mkdir()
    return names


def _with_array(like, array):
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(like)
    return image


def _scaled(image, factor):
    image = sitk.Image(image)
    image.SetSpacing([s * factor for s in image.GetSpacing()])
    image.SetOrigin([x * factor for x in image.GetOrigin()])
    return image


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(case, bad_files, out, capsys, monkeypatch):
    """Also the computing must not have begun."""
    monkeypatch.setattr(registry, "create", lambda *a, **k: pytest.fail("It ran."))
    words, expected = BAD[case]
    words = [word.format(out=out, **bad_files) for word in words]
    if "--output-image" not in words:
        words += ["--output-image", str(out / "moved.nrrd")]
    before = (bad_files["fixed"]).read_bytes()
    assert expected in refused(capsys, "register", *words)
    assert not list(out.iterdir()) and bad_files["fixed"].read_bytes() == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(files, out, capsys):
    out.chmod(0o500)
    told = refused(capsys, "register", files / "fixed.nrrd", files / "moving.nii.gz",
                   "--output-image", out / "moved.nrrd")  # fmt: skip
    assert "cannot be written to" in told
    out.chmod(0o700)


def test_if_one_output_fails_none_remains(files, out, capsys, monkeypatch):
    (out / "moved.nrrd").write_text("old")

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("DeepRegLib.io.itk_transform.sitk.WriteTransform", broken)
    code = call("register", files / "fixed.nrrd", files / "moving.nii.gz", *QUICK, "--quiet",
                "--output-image", out / "moved.nrrd", "--output-transform", out / "t.tfm",
                "--report", out / "r.json")  # fmt: skip
    told = capsys.readouterr()
    assert code == 2 and "No space left" in told.err and str(out / "t.tfm") in told.err
    assert ".deepreg-" not in told.err and told.err.count("\n") == 1
    assert [p.name for p in out.iterdir()] == ["moved.nrrd"]
    assert (out / "moved.nrrd").read_text() == "old"


def test_a_failing_rename_brings_the_old_files_back(out, monkeypatch):
    from DeepRegLib import outputs
    from DeepRegLib.errors import FileFormatError

    (out / "a").write_text("old a")
    (out / "c").write_text("old c")
    real = os.replace

    def fails_at_c(source, target):
        if Path(target) == out / "c" and Path(source).name == "c":
            raise OSError(13, "Permission denied")
        real(source, target)

    writers = [(out / name, lambda p: p.write_text("new")) for name in "abc"]
    monkeypatch.setattr(outputs.os, "replace", fails_at_c)
    with pytest.raises(FileFormatError, match="no result was kept"):
        outputs.write_together(writers)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"a": "old a", "c": "old c"}


def test_internal_errors_and_interruption(files, out, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "check_pair", lambda pair: 1 / 0)
    words = ["register", files / "fixed.nrrd", files / "moving.nii.gz", *QUICK]
    assert call(*words) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError" in told and "--debug FILE" in told and told.count("\n") == 1
    assert call(*words, "--debug", out / "details.txt") == 1
    assert "details.txt" in capsys.readouterr().err
    assert "check_pair" in (out / "details.txt").read_text()

    def interrupted(pair):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "check_pair", interrupted)
    assert call(*words, "--output-image", out / "moved.nrrd") == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (out / "moved.nrrd").exists()


def test_warp_carries_images_labels_and_landmarks_alike(files, out, capsys):
    """The landmark lies on the same feature in the moved image as in the moving one."""
    common = ["--transform", files / "truth.tfm", "--reference", files / "fixed.nrrd"]
    assert call("warp", files / "moving.nii.gz", *common, "--output", out / "moved.nrrd") == 0
    assert call("warp", files / "moving_labels.nrrd", *common, "--output", out / "labels.nrrd",
                "--interpolation", "nearest") == 0  # fmt: skip
    for suffix in (".mrk.json", ".fcsv", ".csv"):
        target = out / f"points{suffix}"
        assert call("warp", files / "moving.mrk.json", "--transform", files / "truth.tfm",
                    "--output", target) == 0  # fmt: skip
        np.testing.assert_allclose(
            read_landmarks(target).points_ras, pairs.body_points(6), atol=1e-3
        )
    assert capsys.readouterr().err == ""
    fixed, moved = read_image(files / "fixed.nrrd"), read_image(out / "moved.nrrd")
    body = fixed.numpy() > 20
    assert np.abs(fixed.numpy() - moved.numpy())[body].mean() < 2.0
    labels, truth = read_labels(out / "labels.nrrd"), read_labels(files / "fixed_labels.nrrd")
    assert labels.pixel_type == "int16" and (labels.data == truth.data).float().mean() > 0.97


def test_a_landmark_on_a_feature_stays_on_it_through_a_deformation(files, out):
    """Direction check: a bright spot in the moving image, carried as image and as landmark."""
    grid, moving = pairs.fixed_grid(), pairs.moving_grid()
    truth = Transform(pairs.known_matrix(), Field(smooth_displacement(grid.shape, 1.5), grid))
    write_transform(truth, out / "t.h5", grid)
    spot = moving.to_ras([14.0, 11.0, 15.0])
    distance = np.linalg.norm(pairs.voxel_points(moving) - spot, axis=-1)
    image = np.exp(-(distance**2) / (2 * 5.0**2)).astype(np.float32)
    write_image(read_image(files / "moving.nii.gz").from_array(image, moving), out / "spot.nrrd")
    write_landmarks(Landmarks(spot[None], ["spot"]), out / "spot.fcsv")
    common = ["--transform", out / "t.h5", "--reference", files / "fixed.nrrd"]
    assert call("warp", out / "spot.nrrd", *common, "--output", out / "seen.nrrd") == 0
    assert call("warp", out / "spot.fcsv", *common, "--output", out / "seen.fcsv") == 0
    seen = read_image(out / "seen.nrrd").numpy() ** 2
    center = (pairs.voxel_points(grid) * seen[..., None]).sum((0, 1, 2)) / seen.sum()
    carried = read_landmarks(out / "seen.fcsv").points_ras[0]
    assert np.linalg.norm(carried - center) < 0.5
    assert np.linalg.norm(carried - spot) > 3.0  # it did move


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{d}/moving.nii.gz", "--output", "{o}/a.nrrd"], "needs --reference"),
        (["{d}/moving.nii.gz", "--reference", "{d}/fixed.nrrd", "--output", "{o}/a.csv"], "'.csv'"),
        (["{d}/moving.mrk.json", "--output", "{o}/a.nrrd"], "'.nrrd'"),
        (["{d}/moving.mrk.json", "--output", "{o}/a.csv", "--fill", "1"], "neither"),
        (["{d}/moving.mrk.json", "--output", "{d}/moving.mrk.json"], "is an input"),
    ],
)  # fmt: skip
def test_warp_refuses(words, expected, files, out, capsys):
    words = [word.format(d=files, o=out) for word in words]
    told = refused(capsys, "warp", *words, "--transform", files / "truth.tfm")
    assert expected in told and not list(out.iterdir())


def test_evaluate_measures_what_is_given(files, out, capsys):
    report = out / "report.json"
    assert call("warp", files / "moving_labels.nrrd", "--transform", files / "truth.tfm", "--reference",
                files / "fixed.nrrd", "--interpolation", "nearest", "--output", out / "l.nrrd") == 0  # fmt: skip
    assert call("evaluate", "--fixed-labels", files / "fixed_labels.nrrd", "--moved-labels",
                out / "l.nrrd", "--fixed-landmarks", files / "fixed.mrk.json", "--moving-landmarks",
                files / "moving.mrk.json", "--transform", files / "truth.tfm",
                "--report", report) == 0  # fmt: skip
    assert "dice_mean" in capsys.readouterr().out
    figures = json.loads(report.read_text())
    assert set(figures["dice_per_label"]) == {"1", "2", "3"} and figures["dice_mean"] > 0.85
    assert figures["hd95_mean_mm"] < 5.0 and figures["tre_mean_mm"] < 1e-3
    assert figures["folds_percent"] == 0.0 and "inverse_mean_mm" not in figures
    grid = pairs.fixed_grid()
    bent = Transform(np.eye(4), Field(smooth_displacement(grid.shape, 1.0), grid))
    write_transform(bent, out / "bent.nrrd", grid)
    assert call("evaluate", "--transform", out / "bent.nrrd", "--report", report) == 0
    figures = json.loads(report.read_text())
    assert figures["sdlogj"] > 0.01 and figures["inverse_mean_mm"] < 0.2
    assert "dice_mean" not in figures


def test_evaluate_refuses(files, out, capsys):
    assert "nothing to measure" in refused(capsys, "evaluate")
    assert "nothing to measure" in refused(capsys, "evaluate", "--reference", files / "fixed.nrrd")
    assert "in couples" in refused(
        capsys, "evaluate", "--fixed-labels", files / "fixed_labels.nrrd"
    )
    assert "different voxels" in refused(
        capsys, "evaluate", "--fixed-labels", files / "fixed_labels.nrrd",
        "--moved-labels", files / "moving_labels.nrrd",
    )  # fmt: skip


def test_list(capsys):
    assert call("list") == 0
    table = capsys.readouterr().out
    assert all(key in table for key in registry.specs())
    assert call("list", "rigid") == 0
    assert "samples = 100000" in capsys.readouterr().out
    assert call("list", "--json") == 0
    assert {spec["key"] for spec in json.loads(capsys.readouterr().out)} == set(registry.specs())
    assert "no algorithm 'x'" in refused(capsys, "list", "x")


def test_as_a_program(files, out):
    """Exit codes of a real process, and nothing but the sentence on its error stream."""
    python = [sys.executable, "-m", "DeepRegLib"]
    done = subprocess.run([*python, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "register" in done.stdout and done.stderr == ""
    done = subprocess.run([*python, "register", "a.nrrd"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    words = [
        "register",
        files / "fixed.nrrd",
        files / "nowhere.nrrd",
        "--output-image",
        out / "m.nrrd",
    ]
    done = subprocess.run([*python, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert not list(out.iterdir())


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
