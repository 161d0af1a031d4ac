"""Raw data from Python and from the shell."""

import argparse

import numpy as np
import pairs
import pytest
import torch

from DeepRegLib.cli import raw as command
from DeepRegLib.errors import DeepRegError, FileFormatError, InputError, ParameterError
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image, write_image
from DeepRegLib.io.itk_transform import read_transform
from DeepRegLib.raw import as_raw, register_raw, simulate_raw
from DeepRegLib.registration.base import Image
from DeepRegLib.registration.raw_data import read_raw, write_raw

QUICK = {"factors": (4, 2), "iterations": (15, 5)}


def run(*words):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    chosen = parser.parse_args(["raw", *map(str, words)])
    return chosen.execute(chosen)


@pytest.fixture(scope="module")
def pair():
    return pairs.make_pair()


def test_a_scan_is_registered_from_arrays(pair):
    raw = simulate_raw(pair.moving, 3.0)
    kspace = raw.samples[0, 0].numpy()
    found = register_raw(
        pair.fixed, kspace, raw.grid, stages="+raw_domain", preset="fast",
        initial_transform=pairs.known_matrix(), device="cpu", **QUICK,
    )  # fmt: skip
    assert found.reconstruction.grid.matches(pair.moving.grid)
    assert found.registered.transform.field.grid.matches(pair.fixed.grid)
    assert pairs.error_mm(found.registered.transform, pairs.known_matrix()) < 1.0
    truth = pair.moving.data
    errors = [(image.data - truth).square().mean() for image in
              (found.reconstruction, found.zero_filled)]  # fmt: skip
    assert errors[0] < errors[1]
    with pytest.raises(InputError, match="has to be 'raw_domain'"):
        register_raw(pair.fixed, raw, stages="rigid")


def test_what_is_given_becomes_raw_data(pair, tmp_path):
    raw = simulate_raw(pair.moving, 2.0, pattern="lines")
    write_raw(raw, tmp_path / "scan.npz")
    kspace = raw.samples[0, 0].numpy()
    for found in (
        as_raw(raw),
        as_raw(tmp_path / "scan.npz"),
        as_raw(kspace, raw.grid),
        as_raw(kspace, pair.moving),
        as_raw(str(tmp_path / "scan.npz"), raw.grid),
    ):
        assert torch.equal(found.samples, raw.samples) and found.grid.matches(raw.grid)
    with pytest.raises(InputError, match="needs the grid"):
        as_raw(kspace)
    with pytest.raises(DeepRegError):
        as_raw(kspace[1:], raw.grid)


def test_the_shell_simulates_shows_and_registers(pair, tmp_path, capsys):
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        write_image(image, tmp_path / f"{name}.nrrd")
    assert run("simulate", tmp_path / "moving.nrrd", "--acceleration", "4", "--output",
               tmp_path / "scan.npz") == 0  # fmt: skip
    assert "times fewer" in capsys.readouterr().out
    raw = read_raw(tmp_path / "scan.npz")
    assert raw.acceleration == pytest.approx(4.0, rel=0.08)
    assert raw.grid.matches(pair.moving.grid)
    assert run("image", tmp_path / "scan.npz", "--output", tmp_path / "zero.nrrd") == 0
    shown = read_image(tmp_path / "zero.nrrd")
    assert shown.grid.matches(pair.moving.grid)
    assert torch.allclose(shown.data, raw.zero_filled().data, atol=1e-3)
    write_image(Image(shown.data, shown.grid), tmp_path / "start.nrrd")
    code = run(
        "register", tmp_path / "fixed.nrrd", tmp_path / "scan.npz", "--stages", "+raw_domain",
        "--set", "factors=4,2", "--set", "iterations=4,2", "--device", "cpu", "--quiet",
        "--output-image", tmp_path / "image.nrrd", "--output-transform", tmp_path / "t.h5",
    )  # fmt: skip
    assert code == 0 and read_image(tmp_path / "image.nrrd").grid.matches(pair.moving.grid)
    assert isinstance(read_transform(tmp_path / "t.h5", pair.fixed.grid), Transform)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("simulate", "{image}", "--output", "scan.h5"), ParameterError),
        (("simulate", "{image}", "--acceleration", "0", "--output", "scan.npz"), ParameterError),
        (("image", "none.npz", "--output", "zero.nrrd"), FileFormatError),
        (("register", "{image}", "none.npz", "--output-image", "a.txt"), FileFormatError),
    ],
)
def test_the_shell_refuses_what_does_not_fit(pair, tmp_path, monkeypatch, words, error):
    monkeypatch.chdir(tmp_path)
    write_image(pair.moving, tmp_path / "moving.nrrd")
    with pytest.raises(error):
        run(*(word.format(image="moving.nrrd") for word in words))


def test_a_simulation_keeps_what_it_samples(pair):
    whole = simulate_raw(pair.moving, 1.0)
    assert np.allclose(whole.zero_filled().numpy(), pair.moving.numpy().clip(0), atol=3.0)
