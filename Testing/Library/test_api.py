import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pairs
import pytest
import SimpleITK as sitk
import torch

import DeepRegLib
from DeepRegLib import api
from DeepRegLib.errors import FileFormatError, InputError, ParameterError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.io.images import from_sitk, read_image, to_sitk, write_image
from DeepRegLib.io.itk_transform import read_transform, transform_to_sitk, write_transform
from DeepRegLib.io.landmarks import Landmarks, write_landmarks
from DeepRegLib.registration.base import Image, Progress

ROOT = Path(__file__).parents[2]
QUICK = {"preset": "fast", "device": "cpu", "initialization": "stored", "sizes": (12, 24),
         "samples": 3000}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair():
    return pairs.make_pair()


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, DeepRegLib as d; assert d.__version__ and 'register' in dir(d);"
        "assert not {'torch', 'numpy', 'SimpleITK'} & set(sys.modules), 'heavy';"
        "assert callable(d.register) and 'torch' in sys.modules;"
        "assert 'rigid' in d.list_algorithms()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        DeepRegLib.nonsense
    for name in DeepRegLib.__all__:
        assert getattr(DeepRegLib, name) is not None


def test_all_kinds_of_input_give_the_same_and_come_back_as_they_were(pair, tmp_path):
    whole = np.rint(pair.moving.numpy()).astype(np.int16)
    moving = Image.from_array(whole, pair.moving.grid)
    moving = Image(moving.data.float(), moving.grid, "int16")
    write_image(pair.fixed, tmp_path / "fixed.nrrd")
    write_image(moving, tmp_path / "moving.nii.gz")
    fixed = {"file": tmp_path / "fixed.nrrd", "sitk": to_sitk(pair.fixed),
             "array": (pair.fixed.numpy(), pair.fixed.grid), "own": pair.fixed}  # fmt: skip
    given = {"file": str(tmp_path / "moving.nii.gz"), "sitk": to_sitk(moving),
             "array": (whole, moving.grid), "own": moving}  # fmt: skip
    found = {}
    for kind in fixed:
        found[kind] = DeepRegLib.register(fixed[kind], given[kind], "rigid", **QUICK)
        assert pairs.error_mm(found[kind].transform, pairs.known_matrix()) < 0.5
    for kind in ("sitk", "array", "own"):
        np.testing.assert_allclose(found[kind].transform.linear, found["file"].transform.linear,
                                   atol=1e-3)  # fmt: skip
    assert isinstance(found["sitk"].moved, sitk.Image)
    assert found["sitk"].moved.GetPixelID() == sitk.sitkInt16
    assert found["sitk"].moved.GetSize() == to_sitk(pair.fixed).GetSize()
    assert (
        found["array"].moved.dtype == np.int16
        and found["array"].moved.shape == pair.fixed.grid.shape
    )
    assert isinstance(found["own"].moved, Image) and isinstance(found["file"].moved, Image)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(found["sitk"].moved), found["own"].moved.numpy().round()
    )
    assert "GREEN" in str(found["own"])
    # The provenance repeats the run as it stands.
    code = found["file"].provenance["python"]
    space = {}
    exec(code, space)
    np.testing.assert_array_equal(space["result"].transform.linear, found["file"].transform.linear)


def test_save_writes_all_or_nothing(pair, tmp_path):
    result = DeepRegLib.register(pair.fixed, pair.moving, "rigid", **QUICK)
    with pytest.raises(FileFormatError, match="does not exist"):
        result.save(output_image=tmp_path / "a.nrrd", report=tmp_path / "no" / "r.json")
    with pytest.raises(FileFormatError, match="named twice"):
        result.save(output_transform=tmp_path / "a.h5", output_inverse=tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())
    result.save(tmp_path / "a.nrrd", tmp_path / "t.tfm", tmp_path / "i.nrrd", tmp_path / "r.json")
    assert len(list(tmp_path.iterdir())) == 4
    assert read_image(tmp_path / "a.nrrd").grid.matches(pair.fixed.grid)
    points = pairs.body_points()
    there = read_transform(tmp_path / "t.tfm").map_points_ras(points)
    back = read_transform(tmp_path / "i.nrrd").map_points_ras(there)
    np.testing.assert_allclose(back, points, atol=1e-2)
    assert json.loads((tmp_path / "r.json").read_text())["quality"]["verdict"] == "green"


def test_starts_masks_labels_and_landmarks(pair, tmp_path):
    """All kinds of start lead to the same; labels and landmarks appear on the card."""
    matrix = pairs.known_matrix()
    truth = DeepRegLib.Transform(matrix)
    write_transform(truth, tmp_path / "t.tfm", pair.fixed.grid)
    points = pairs.body_points(5)
    mapped = points @ matrix[:3, :3].T + matrix[:3, 3]
    labels = list("abcde")
    write_landmarks(Landmarks(mapped[::-1], labels[::-1]), tmp_path / "moving.csv")
    moving_labels = pairs.make_labels(pair.moving.grid, np.linalg.inv(matrix))
    for start in (matrix, truth, tmp_path / "t.tfm", transform_to_sitk(truth, pair.fixed.grid)):
        result = DeepRegLib.register(
            pair.fixed, pair.moving, "rigid", **QUICK, iterations=0, initial_transform=start,
            fixed_mask=np.ones(pair.fixed.grid.shape, bool),
            fixed_labels=pairs.make_labels(pair.fixed.grid), moving_labels=to_sitk(moving_labels),
            fixed_landmarks=Landmarks(points, labels), moving_landmarks=tmp_path / "moving.csv",
        )  # fmt: skip
        np.testing.assert_allclose(result.transform.linear, matrix, atol=1e-6)
        assert result.quality["tre_mean_after_mm"] < 1e-3
        assert result.quality["dice_after"] > 0.85 and result.quality["dice_labels"] == 3


def test_progress_takes_a_function_a_bar_or_an_object(pair, capsys):
    seen = []
    for progress in (seen.append, True, Progress(seen.append), None, False):
        DeepRegLib.register(pair.fixed, pair.moving, "rigid", **QUICK, progress=progress)
    assert {event.kind for event in seen} >= {"stage", "progress"}
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="progress takes"):
        DeepRegLib.register(pair.fixed, pair.moving, "rigid", **QUICK, progress=3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"fixed": 5}, "must be a file"),
        ({"fixed": np.zeros((4, 4))}, "three axes"),
        ({"fixed": np.ones((4, 4, 4), complex)}, "three axes of numbers"),
        ({"fixed": (np.zeros((4, 4, 4)), Grid((5, 4, 4), np.eye(4)))}, "grid that belongs"),
        ({"fixed": np.full((8, 8, 8), np.nan)}, "fixed image.*NaN"),
        ({"moving": sitk.Image([8, 8, 8, 3], sitk.sitkFloat32)}, "4 dimensions"),
        ({"fixed_mask": np.full((22, 28, 20), 0.5)}, "fixed mask.*whole numbers"),
        ({"fixed_mask": np.zeros((3, 3, 3))}, "grid that belongs"),
        ({"moving_landmarks": np.zeros((4, 3))}, "both lists"),
        ({"fixed_landmarks": np.zeros((4, 2)), "moving_landmarks": np.zeros((4, 3))}, r"\(N, 3\)"),
    ],
)
def test_unfit_arguments_are_named(pair, arguments, expected):
    with pytest.raises(InputError, match=expected):
        DeepRegLib.register(**{"fixed": pair.fixed, "moving": pair.moving, **arguments}, **QUICK)


def test_parameters_are_checked(pair):
    with pytest.raises(ParameterError, match="'speed'"):
        DeepRegLib.register(pair.fixed, pair.moving, "rigid", speed=3)
    result = DeepRegLib.register(pair.fixed, pair.moving, "rigid+affine", **QUICK,
                                 **{"affine.iterations": 3})  # fmt: skip
    stages = result.provenance["stages"]
    assert [s["parameters"]["iterations"] for s in stages] == [50, 3]
    assert "'affine.iterations': 3" in result.provenance["python"]


def test_warp(pair):
    matrix = pairs.known_matrix()
    moved = DeepRegLib.warp(to_sitk(pair.moving), matrix, pair.fixed)
    assert isinstance(moved, sitk.Image)
    body = pair.fixed.numpy() > 20
    assert np.abs(from_sitk(moved).numpy() - pair.fixed.numpy())[body].mean() < 2.0
    labels = pairs.make_labels(pair.moving.grid, np.linalg.inv(matrix))
    unasked = DeepRegLib.warp((labels.numpy(), labels.grid), matrix, pair.fixed.grid)
    assert unasked.dtype == np.int16 and set(np.unique(unasked)) == {0, 1, 2, 3}
    coarse = np.round(pair.moving.numpy()).astype(np.uint8)  # few whole numbers, but no label map
    assert len(np.unique(coarse)) < 256
    smooth = DeepRegLib.warp((coarse, pair.moving.grid), matrix, pair.fixed.grid)
    nearest = DeepRegLib.warp((coarse, pair.moving.grid), matrix, pair.fixed.grid, "nearest")
    assert (smooth != nearest).mean() > 0.1
    moved = DeepRegLib.warp((labels.numpy(), labels.grid), matrix, pair.fixed.grid, "nearest")
    assert moved.dtype == np.int16 and set(np.unique(moved)) == {0, 1, 2, 3}
    gray = DeepRegLib.warp(pair.moving, matrix, pair.fixed.grid, "nearest", fill=-7.0)
    assert gray.data.min() == -7.0


def test_warp_points():
    matrix = pairs.known_matrix()
    points = pairs.body_points(4)
    mapped = points @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(api.warp_points(mapped, matrix), points, atol=1e-9)
    named = api.warp_points(Landmarks(mapped, list("abcd")), matrix)
    assert named.labels == list("abcd")


def test_evaluate():
    matrix = pairs.known_matrix()
    figures = DeepRegLib.evaluate(transform=matrix, inverse=np.linalg.inv(matrix))
    assert figures["inverse_max_mm"] < 1e-9 and figures["sdlogj"] == 0.0
    figures = DeepRegLib.evaluate(
        fixed_landmarks=np.zeros((2, 3)), moving_landmarks=np.ones((2, 3))
    )
    assert figures["tre_mean_mm"] == pytest.approx(3**0.5)
    with pytest.raises(ParameterError, match="nothing to measure"):
        DeepRegLib.evaluate()
    with pytest.raises(ParameterError, match="its transform"):
        DeepRegLib.evaluate(inverse=matrix)
