"""Model files: cards, folders, what is refused and with which sentence."""

import json
import os
import struct
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from model_files import card, folders, network, noise, saved
from torch import nn

from DeepRegLib import models, registry
from DeepRegLib.errors import FileFormatError, ParameterError
from DeepRegLib.networks.model_file import fill, load_weights, save_model

ROOT = Path(__file__).parents[2]
LEARNED = [key for key, spec in registry.specs().items() if spec.needs.training]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return folders(tmp_path, monkeypatch)


def rewritten(path, change):
    """Writes a safetensors file again with another header; its length is that of the new one."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


# --- cards ----------------------------------------------------------------------------------------


def test_a_card_comes_back_as_it_was_written(tmp_path):
    save_model(tmp_path / "brain_3mm.safetensors", network(), card())
    read = models.read_card(tmp_path / "brain_3mm.safetensors")
    assert read == card(name="brain_3mm")
    assert read.shape == (64, 80, 64) and isinstance(read.shape, tuple)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Brain 3 mm"}, "small letters"),
        ({"name": "../up"}, "small letters"),
        ({"algorithm": "a b"}, "no key"),
        ({"spacing_mm": 0.0}, "positive voxel size"),
        ({"spacing_mm": float("nan")}, "positive voxel size"),
        ({"spacing_mm": True}, "positive voxel size"),
        ({"shape": (64, 64)}, "three sizes"),
        ({"shape": (64, 64, 0)}, "three sizes"),
        ({"shape": (64, 64, 6.5)}, "three sizes"),
        ({"orientation": "LPS"}, "orientation"),
        ({"intensity": "hounsfield"}, "intensity"),
        ({"parameters": []}, "parameters"),
        ({"figures": {"dice": "good"}}, "figures"),
        ({"data": 7}, "data"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(ParameterError, match=said):
        card(**changes)


def test_what_json_cannot_hold_is_no_part_of_a_card(tmp_path):
    for bad in (float("inf"), {1, 2}):
        with pytest.raises(ParameterError, match="JSON"):
            save_model(tmp_path / "a.safetensors", network(), card(training={"loss": bad}))
    assert list(tmp_path.iterdir()) == []


# --- files ----------------------------------------------------------------------------------------


def test_weights_come_back_and_the_network_is_not_changed_by_saving(tmp_path):
    path, one, other = tmp_path / "a.safetensors", network(seed=1), network(seed=2)
    before = {k: v.clone() for k, v in one.state_dict().items()}
    save_model(path, one, card())
    assert fill(other, path) == models.read_card(path)
    for key, value in before.items():
        assert torch.equal(other.state_dict()[key], value)
        assert torch.equal(one.state_dict()[key], value)
    assert list(load_weights(path)) and [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]


def test_half_precision_halves_the_file_and_keeps_what_it_cannot_hold(tmp_path):
    big = nn.Linear(64, 64)
    with torch.no_grad():
        big.bias[3] = 1e6
    save_model(tmp_path / "full.safetensors", big, card())
    save_model(tmp_path / "half.safetensors", big, card(), half=True)
    full, half = (p.stat().st_size for p in map(tmp_path.joinpath, ("full.safetensors",
                                                                   "half.safetensors")))  # fmt: skip
    assert half < 0.65 * full
    weights = load_weights(tmp_path / "half.safetensors")
    assert weights["bias"][3] == 1e6 and weights["weight"].dtype == torch.float32
    assert (weights["weight"] - big.weight).abs().max() < 1e-3


def test_tied_weights_are_saved(tmp_path):
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    save_model(tmp_path / "a.safetensors", tied, card())
    assert torch.equal(load_weights(tmp_path / "a.safetensors")["1.weight"], tied[0].weight)


def test_a_save_that_fails_leaves_the_file_from_before(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(FileFormatError, match="disk full"):
        save_model(path, network(seed=5), card())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_only_finite_weights_and_proper_names_are_saved(tmp_path):
    diverged = network()
    with torch.no_grad():
        diverged[0].weight[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ParameterError, match="diverged"):
        save_model(tmp_path / "a.safetensors", diverged, card())
    with pytest.raises(ParameterError, match="safetensors"):
        save_model(tmp_path / "a.pt", network(), card())
    with pytest.raises(ParameterError, match="small letters"):
        save_model(tmp_path / "My model.safetensors", network(), card())
    assert list(tmp_path.iterdir()) == []


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def _cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:60])


def _longer(path):
    path.write_bytes(path.read_bytes() + b"more")


def _pickled(path):
    torch.save({"weight": torch.ones(3)}, path)


def _no_card(path):
    safetensors.torch.save_file({"weight": torch.ones(3)}, path)


def _no_json(path):
    rewritten(path, lambda header: header["__metadata__"].update(deepreg="{"))


def _list_as_card(path):
    rewritten(path, lambda header: header["__metadata__"].update(deepreg="[]"))


def _changed_card(**changes):
    def change(header):
        content = json.loads(header["__metadata__"]["deepreg"])
        content = {k: v for k, v in {**content, **changes}.items() if v is not None}
        header["__metadata__"]["deepreg"] = json.dumps(content)

    return lambda path: rewritten(path, change)


def _wrong_offsets(path):
    rewritten(path, lambda header: header["0.weight"].update(data_offsets=[0, 12]))


def _unknown_type(path):
    rewritten(path, lambda header: header["0.weight"].update(dtype="Q7"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "truncated"),
        (_cut_in_the_header, "no safetensors file"),
        (_longer, "truncated or damaged"),
        (noise, "no safetensors file"),
        (_pickled, "no safetensors file"),
        (lambda path: path.write_bytes(b""), "no safetensors file"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
        (_no_card, "no model of DeepReg"),
        (_no_json, "card of the model 'a.safetensors' is damaged"),
        (_list_as_card, "no JSON object"),
        (_changed_card(format=2), "format 2"),
        (_changed_card(spacing_mm=None), "no entry 'spacing_mm'"),
        (_changed_card(spacing_mm=float("nan")), "no number"),
        (_changed_card(orientation="LPS"), "orientation"),
        (_wrong_offsets, "'0.weight'"),
        (_unknown_type, "'0.weight'"),
    ],
)
def test_foreign_and_damaged_files_are_refused_with_a_sentence(tmp_path, damage, said):
    path = saved(tmp_path / "a.safetensors")
    damage(path)
    for read in (models.read_card, load_weights, lambda p: fill(network(), p)):
        with pytest.raises(FileFormatError, match=said) as caught:
            read(path)
        assert str(caught.value).endswith(".") and "Traceback" not in str(caught.value)


def test_entries_of_a_later_version_are_passed_over(tmp_path):
    path = saved(tmp_path / "a.safetensors")
    _changed_card(mood="good")(path)
    assert models.read_card(path) == card(name="a")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: network(channels=5), "shape"),
        (lambda: nn.Sequential(*list(network())[:2]), "2.bias is too much|2.weight is too much"),
        (lambda: nn.Sequential(*network(), nn.Linear(2, 2)), "3.weight is missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_leave_the_network_alone(tmp_path, other, said):
    path, unlike = saved(tmp_path / "a.safetensors"), other()
    before = {k: v.clone() for k, v in unlike.state_dict().items()}
    with pytest.raises(FileFormatError, match=said):
        fill(unlike, path)
    assert all(torch.equal(before[k], v) for k, v in unlike.state_dict().items())


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    weights = {k: v * float("nan") if v.is_floating_point() else v
               for k, v in network().state_dict().items()}  # fmt: skip
    safetensors.torch.save_file(weights, path, models.metadata(card()))
    with pytest.raises(FileFormatError, match="no numbers"):
        fill(network(), path)


# --- folders --------------------------------------------------------------------------------------


def test_the_user_comes_first_and_the_newest_before_the_older(folder):
    shipped = models.SHIPPED[0]
    saved(shipped / "b.safetensors", day=9)
    saved(shipped / "a.safetensors", day=8)
    assert models.find_model("tiny").name == "a" and models.find_model("tiny").bundled
    saved(folder / "x_old.safetensors", day=1)
    saved(folder / "y_new.safetensors", day=2)
    saved(folder / "z_other.safetensors", day=3, algorithm="large")
    names = [file.name for file in models.list_models()]
    assert names == ["z_other", "y_new", "x_old", "a", "b"]
    assert models.find_model("tiny").name == "y_new"
    assert models.find_model("tiny", "b").bundled
    assert [file.name for file in models.list_models("large")] == ["z_other"]


def test_several_folders_are_looked_through(tmp_path, folder, monkeypatch):
    second = tmp_path / "second"
    second.mkdir()
    monkeypatch.setenv("DEEPREG_MODELS", os.pathsep.join([str(folder), "", str(second)]))
    saved(second / "a.safetensors")
    assert models.user_folder() == folder
    assert models.model_folders() == [folder, second, models.SHIPPED[0]]
    assert models.find_model("tiny").path == second / "a.safetensors"


def test_a_damaged_file_is_listed_with_its_problem_and_never_taken(folder):
    noise(folder / "newest.safetensors")
    saved(folder / "good.safetensors")
    bad = next(file for file in models.list_models() if file.name == "newest")
    assert bad.card is None and "no safetensors file" in bad.problem
    assert models.find_model("tiny").name == "good"
    with pytest.raises(FileFormatError, match="no safetensors"):
        models.find_model("tiny", "newest")


def test_what_cannot_be_found_is_said(folder):
    with pytest.raises(ParameterError, match="no trained model for 'tiny'.*own"):
        models.find_model("tiny")
    saved(folder / "good.safetensors")
    saved(folder / "other.safetensors", algorithm="large")
    with pytest.raises(ParameterError, match="no model 'best'.* are: good"):
        models.find_model("tiny", "best")
    with pytest.raises(ParameterError, match="belongs to 'large', not to 'tiny'"):
        models.find_model("tiny", "other")
    with pytest.raises(FileFormatError, match="cannot be read"):
        models.find_model("tiny", "elsewhere/good.safetensors")


def test_a_file_of_any_folder_is_found_by_its_path(tmp_path, folder):
    path = saved(tmp_path / "mine.safetensors")
    assert models.find_model("tiny", str(path)).path == path
    assert not models.find_model("tiny", str(path)).bundled


def test_without_a_variable_the_data_folder_of_the_system_is_meant(tmp_path, monkeypatch):
    monkeypatch.delenv("DEEPREG_MODELS", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for system, parts in (("linux", (".local", "share")),
                          ("darwin", ("Library", "Application Support")),
                          ("win32", ("AppData", "Local"))):  # fmt: skip
        monkeypatch.setattr(sys, "platform", system)
        assert models.user_folder() == tmp_path.joinpath(*parts, "DeepReg", "models")
    assert models.model_folders() == [f for f in models.SHIPPED if f.is_dir()]


# --- those that come with DeepReg -----------------------------------------------------------------


def shipped_files():
    return sorted((ROOT / "Resources" / "Models").glob("*.safetensors"))


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.stem)
def test_a_shipped_model_says_what_it_is_and_fits(path):
    read = models.read_card(path)
    assert read.name == path.stem and read.anatomy and read.contrast and read.data and read.terms
    assert {"dice", "correlation"} & set(read.figures) and path.stat().st_size < 10_000_000
    system = registry.create(read.algorithm)
    system.trained(models.find_model(read.algorithm, str(path)))
