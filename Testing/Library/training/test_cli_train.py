import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DeepRegLib import models
from DeepRegLib.cli import main
from DeepRegLib.errors import FileFormatError
from DeepRegLib.networks.model_file import load_weights
from DeepRegLib.training import session
from DeepRegLib.training.checkpoint import FILE
from DeepRegLib.training.options import TrainingOptions, unfinished

ROOT = Path(__file__).parents[3]
#: A network of a few weights, on images that are aligned already.
TINY = ("--algorithm", "vxm", "--set", "encoder=4", "--set", "decoder=4", "--set", "final=2",
        "--alignment", "none", "--spacing", "2.5", "--shape", "16", "16", "16", "--device", "cpu",
        "--validate-every", "2")  # fmt: skip


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    """Six ellipsoids with two labels, on an anisotropic grid."""
    folder = tmp_path_factory.mktemp("brains")
    generator = np.random.default_rng(0)
    for index in range(6):
        where = np.meshgrid(*[np.arange(n) for n in (15, 18, 12)], indexing="ij")
        center = np.array([7.0, 8.5, 5.5]) + generator.uniform(-1, 1, 3)
        radii = generator.uniform((5, 6, 4), (6, 7, 5))
        away = sum(((w - c) / r) ** 2 for w, c, r in zip(where, center, radii))
        labels = (away < 1).astype(np.uint8) + (away < 0.4)
        image = 90.0 * (labels == 1) + 160.0 * (labels == 2)
        for name, array in ((f"b{index}.nii.gz", image), (f"b{index}_seg.nii.gz", labels)):
            file = sitk.GetImageFromArray(array)
            file.SetSpacing((3.0, 2.0, 2.5))
            file.SetOrigin((5.0, -7.0, 3.0))
            sitk.WriteImage(file, str(folder / name))
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The user's folder of models."""
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path / "models"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "models"
    torch.set_num_threads(before)


def call(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def refused(capsys, *words):
    """Runs a training that must be refused; returns its one sentence."""
    code = call("train", *words)
    told = capsys.readouterr()
    assert code == 2, told.err
    assert told.out == "" and "Traceback" not in told.err
    return told.err.splitlines()[-1]


def test_a_folder_of_images_becomes_a_model(brains, folder, capsys):
    code = call("train", *TINY, "--data", brains, "--steps", "4", "--name", "my_model",
                "--anatomy", "ellipsoid", "--terms", "free", "--accumulate", "2")  # fmt: skip
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "Step 4 of 4: Dice" in told.err and "before" in told.err
    assert str(folder / "my_model.safetensors") in told.out and "--set model=my_model" in told.out
    card = models.read_card(folder / "my_model.safetensors")
    assert card == models.find_model("vxm").card and card.name == "my_model"
    assert card.spacing_mm == 2.5 and card.shape == (16, 16, 16) and card.anatomy == "ellipsoid"
    assert card.terms == "free" and "4 images" in card.data
    assert set(card.parameters) == {
        "similarity",
        "radius",
        "smoothness",
        "encoder",
        "decoder",
        "final",
    }
    assert card.parameters["encoder"] == [4] and card.training["accumulate"] == 2
    assert card.training["steps_done"] == 4 and card.training["ended"] == "complete"
    assert {"dice", "dice_before", "folds_percent", "sdlogj"} <= set(card.figures)
    files = {file.name for file in (folder / "training" / "my_model").iterdir()}
    assert files == {"history.json", "history.csv", "history.png", "options.json"}
    assert call("models", "--check", "my_model") == 0
    # Without a name the next one is numbered.
    for name in ("vxm", "vxm-2"):
        assert call("train", *TINY, "--data", brains, "--steps", "1", "--quiet") == 0
        assert (folder / f"{name}.safetensors").exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "Which algorithm"),
        (("--algorithm", "magic"), "no algorithm 'magic'"),
        (("--algorithm", "greedy", "--data", "."), "without being trained; .*vxm"),
        (("--algorithm", "vxm"), "Give images to train on"),
        (("--algorithm", "vxm", "--data", "nowhere"), "no 'nowhere'"),
        (
            ("--algorithm", "vxm", "--data", ".", "--set", "pair_steps=3"),
            "when a pair is registered",
        ),
        (("--algorithm", "vxm", "--data", ".", "--set", "speed=3"), "no parameter 'speed'"),
        (("--algorithm", "vxm", "--data", ".", "--set", "smoothness=-1"), "'smoothness' takes"),
        (("--algorithm", "vxm", "--data", ".", "--shape", "16", "20", "16"), "take 16 32 16"),
        (("--algorithm", "vxm", "--data", ".", "--shape", "16", "2", "16"), "'shape' takes"),
        (("--algorithm", "vxm", "--data", ".", "--steps", "0"), "'steps' takes"),
        (("--algorithm", "vxm", "--data", ".", "--pairing", "some"), "pairing is one of all"),
        (("--algorithm", "vxm", "--data", ".", "--name", "../evil"), "name of small letters"),
        (("--algorithm", "vxm", "--data", ".", "--device", "abacus"), "device must be"),
        (("--algorithm", "vxm", "--generated", ".", "--recipe", "speed=1"), "recipe .* no 'speed'"),
        (("--algorithm", "vxm", "--data", ".", "--threads", "0"), "--threads takes"),
        (("--resume",), "no unfinished training"),
        (("--resume", "--name", "x"), "no unfinished training 'x'"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(words, expected, capsys, folder):
    sentence = refused(capsys, *words)
    assert sentence.endswith((".", "'")) and len(sentence) > 20
    assert re.search(expected, sentence), sentence
    assert not list(folder.glob("*.safetensors"))


def test_too_few_images(brains, tmp_path, capsys):
    few = tmp_path / "few"
    few.mkdir()
    assert "no images" in refused(capsys, *TINY, "--data", few)
    (few / "b0.nii.gz").write_bytes((brains / "b0.nii.gz").read_bytes())
    assert "at least two images" in refused(capsys, *TINY, "--data", few)
    (few / "b1.nii.gz").write_bytes((brains / "b1.nii.gz").read_bytes())
    assert call("train", *TINY, "--data", few, "--steps", "1") == 0
    assert "too few people" in capsys.readouterr().err


def test_an_older_model_is_not_replaced_unasked(brains, folder, capsys):
    folder.mkdir()
    (folder / "mine.safetensors").write_bytes(b"precious")
    words = (*TINY, "--data", brains, "--steps", "1", "--name", "mine")
    assert "There is a model 'mine' already" in refused(capsys, *words)
    assert (folder / "mine.safetensors").read_bytes() == b"precious"
    assert call("train", *words, "--overwrite", "--quiet") == 0
    assert models.read_card(folder / "mine.safetensors").name == "mine"


def test_an_interrupted_training_goes_on(brains, folder, tmp_path, capsys):
    words = [*TINY, "--data", str(brains), "--steps", "60", "--seed", "3", "--threads", "1"]
    words += ["--checkpoint-every-s", "0", "--cache", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "DeepRegLib", "train", *words, "--name", "cut"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    end = time.monotonic() + 120
    while not (folder / "training" / "cut" / FILE).exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "cancelled after" in told and "resumed under the name 'cut'" in told
    assert unfinished() == unfinished("vxm") == ["cut"] and unfinished("icnet") == []
    assert "begun and not finished" in refused(capsys, *words, "--name", "cut")
    assert "begun with seed=3" in refused(capsys, "--resume", "--seed", "4")
    assert call("train", "--resume", "--device", "cpu") == 0
    assert "Going on after step" in capsys.readouterr().err
    assert call("train", *words, "--name", "whole", "--quiet") == 0
    one, other = (load_weights(folder / f"{name}.safetensors") for name in ("whole", "cut"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert unfinished() == []


def test_a_model_that_cannot_be_written_is_not_lost(brains, folder, monkeypatch, capsys):
    def full(path, network, card):
        raise FileFormatError(f"The model '{path}' cannot be written (No space left on device).")

    words = (*TINY, "--data", brains, "--steps", "2", "--name", "full")
    with monkeypatch.context() as patch:
        patch.setattr(session, "save_model", full)
        assert "No space left" in refused(capsys, *words)
    assert unfinished() == ["full"]
    assert call("train", "--resume", "--quiet") == 0
    assert models.read_card(folder / "full.safetensors").training["steps_done"] == 2


def test_images_are_generated_from_label_maps(brains, folder, tmp_path, capsys):
    maps = tmp_path / "maps"
    maps.mkdir()
    for file in brains.glob("*_seg.nii.gz"):
        (maps / file.name.replace("_seg", "")).write_bytes(file.read_bytes())
    recipe = (
        "--recipe",
        "contrast=same",
        "--recipe",
        "freesurfer=no",
        "--recipe",
        "widths_mm=8,16",
    )
    code = call("train", *TINY, "--generated", maps, *recipe, "--steps", "2", "--name", "made")
    assert code == 0, capsys.readouterr().err
    card = models.read_card(folder / "made.safetensors")
    assert "generated from 5 label maps" in card.data
    assert card.training["data"]["recipe"]["contrast"] == "same"
    assert card.training["data"]["recipe"]["widths_mm"] == [8.0, 16.0]
    # Real images, where there are any, validate.
    code = call("train", *TINY, "--generated", maps, *recipe, "--data", brains, "--steps", "2",
                "--name", "both", "--quiet")  # fmt: skip
    assert code == 0, capsys.readouterr().err
    card = models.read_card(folder / "both.safetensors")
    assert "generated from 6 label maps" in card.data
    assert card.training["data"]["validated_on"]["validation_subjects"] == 6
    assert card.figures["dice_before"] > 0.5


def test_options_are_kept_and_checked(brains):
    options = TrainingOptions.of({"algorithm": "vxm", "spacing": "2", "shape": ["16", 32, 48],
                                  "settings": {"steps": 5}})  # fmt: skip
    assert options.spacing == 2.0 and options.shape == (16, 32, 48) and options.settings.steps == 5
    again = TrainingOptions.of(json.loads(json.dumps({**vars(options), "settings": {"steps": 5}})))
    assert again == options
    for odd in ({"data": 3}, {"parameters": "x"}, {"speed": 1}, {"algorithm": ""}):
        with pytest.raises(ValueError, match=r"option|algorithm"):
            TrainingOptions.of({"algorithm": "vxm", **odd})
