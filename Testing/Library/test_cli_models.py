"""The command "models": the list, descriptions, and the check."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from model_files import card, folders, network, noise, saved

from DeepRegLib import registry
from DeepRegLib.cli import main
from DeepRegLib.networks.model_file import save_model

ROOT = Path(__file__).parents[2]
LEARNED = [key for key, spec in registry.specs().items() if spec.needs.training]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return folders(tmp_path, monkeypatch)


def call(*words):
    try:
        return main(["models", *map(str, words)])
    except SystemExit as end:
        return end.code


def test_the_command_lists_and_describes(folder, capsys):
    assert call() == 0
    assert "no trained models" in capsys.readouterr().out
    saved(folder / "good.safetensors")
    noise(folder / "bad.safetensors")
    assert call() == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split() == ["NAME", "ALGORITHM", "SPACING", "FROM", "FOR"]
    good = next(line for line in listed if line.startswith("good"))
    assert good.split() == ["good", "tiny", "3", "mm", "you", "brain,", "T1"]
    assert any("no safetensors file" in line for line in listed if line.startswith("bad"))
    assert call("good") == 0
    shown = capsys.readouterr().out
    for text in ("64 x 80 x 64", "generated", "CC0", "dice = 0.81", "channels = 4", "seed = 1"):
        assert text in shown
    assert call("--json") == 0
    content = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert content["good"]["card"]["spacing_mm"] == 3.0 and content["bad"]["card"] is None


@pytest.mark.parametrize("word", ["--check", None])
def test_the_command_refuses_with_a_sentence(folder, capsys, word):
    noise(folder / "bad.safetensors")
    words = [word] if word else []
    for name, said in (("none", "no model 'none'"), ("bad", "no safetensors file")):
        assert call(*words, name) == 2
        captured = capsys.readouterr()
        assert said in captured.err and captured.out == "" and captured.err.count("\n") == 1


def test_a_model_of_an_unknown_algorithm_is_described_but_fails_the_check(folder, capsys):
    path = saved(folder / "good.safetensors")
    assert call(path) == 0
    assert call("--check", "good") == 2
    assert "no algorithm 'tiny'" in capsys.readouterr().err


def test_a_model_for_an_algorithm_that_takes_none_fails_the_check(folder, capsys):
    saved(folder / "good.safetensors", algorithm="greedy")
    assert call("--check", "good") == 2
    assert "takes no model" in capsys.readouterr().err


@pytest.mark.skipif(not LEARNED, reason="there is no system that learns yet")
def test_a_model_of_a_system_passes_the_check_and_a_misfit_does_not(folder, capsys):
    key = LEARNED[0]
    system, spec = registry.create(key), registry.spec(key)
    values = {p.name: p.default for p in spec.parameters if p.training}
    network_ = system.build()
    save_model(folder / "m.safetensors", network_, card(algorithm=key, parameters=values))
    assert call("--check", "m") == 0
    assert "fits" in capsys.readouterr().out
    save_model(folder / "m.safetensors", network(), card(algorithm=key, parameters=values))
    assert call("--check", "m") == 2
    assert "does not fit the network" in capsys.readouterr().err


def test_listing_models_needs_nothing_heavy(folder):
    saved(folder / "good.safetensors")
    code = (
        "import sys; from DeepRegLib.cli import main; code = main(['models']); "
        "print(code, sorted(set(sys.modules) & {'torch', 'numpy', 'safetensors'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
