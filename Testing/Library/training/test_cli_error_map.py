"""From the shell: an error map is trained like any system, and then checks a registration.

These tests need a registry that knows the systems of `DeepRegLib/estimators`.
"""

import json

import numpy as np
import pytest
import torch

from DeepRegLib import models
from DeepRegLib.cli import main
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image
from DeepRegLib.io.itk_transform import write_transform

TINY = ("--algorithm", "error_map", "--set", "channels=2,3", "--set", "hidden=4,3", "--set",
        "window=1", "--set", "patch=20", "--set", "mixed=2", "--set", "registered_pairs=2",
        "--alignment", "none", "--spacing", "4", "--device", "cpu", "--steps", "6", "--validate-every", "3",
        "--quiet")  # fmt: skip


def call(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(models, "SHIPPED", ())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "models"
    torch.set_num_threads(before)


def test_train_then_check(people, folder, tmp_path, capsys):
    data = ("--data", people.folder, "--images", "*_t1.nii.gz", "--labels", "*_seg.nii.gz")
    assert call("train", *TINY, *data, "--share", "0.5", "--name", "judge") == 0
    told = capsys.readouterr()
    assert "no better than" not in told.err
    card = models.read_card(folder / "judge.safetensors")
    assert card.algorithm == "error_map" and card.parameters["largest_mm"] == 6.0
    assert {"rmse_mm", "correlation", "score"} <= set(card.figures)
    assert card.training["data"]["registered_pairs"] == 2
    history = json.loads((folder / "training" / "judge" / "history.json").read_text())
    assert "loss_error" in json.dumps(history) and "settled" in json.dumps(history)

    fixed, moving = (people.folder / f"{name}_t1.nii.gz" for name in ("ann_1", "ann_2"))
    matrix = people.to_head("ann_2") @ np.linalg.inv(people.to_head("ann_1"))
    transform = tmp_path / "t.tfm"
    write_transform(Transform(matrix), transform, read_image(fixed).grid)
    out = tmp_path / "error.nrrd"
    words = ("--fixed", fixed, "--moving", moving, "--transform", transform, "--out", out)
    assert call("check", *words, "--model", "judge", "--device", "cpu") == 0
    assert "Error, mean" in capsys.readouterr().out
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["provenance"]["model"]["name"] == "judge" and report["inside_percent"] > 80
    assert out.exists() and out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    assert call("models", "--check", "judge") == 0
    assert call("list", "error_map") == 0
    assert "largest_mm" in capsys.readouterr().out
    assert call("list") == 0
    assert "error_map" not in capsys.readouterr().out


def test_it_does_not_register(people, capsys):
    files = [people.folder / f"{name}_t1.nii.gz" for name in ("ann_1", "ann_2")]
    assert call("register", *files, "--algorithm", "error_map") == 2
    assert "registers nothing" in capsys.readouterr().err
