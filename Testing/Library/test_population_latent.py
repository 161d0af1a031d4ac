"""Deformations that are carried to other subjects, drawn ones, and the judge of a population."""

import argparse
import csv
from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from support import smooth_displacement

from DeepRegLib import models, population_latent
from DeepRegLib.algorithms import coop_ae, cvae
from DeepRegLib.cli import population as command
from DeepRegLib.errors import DeepRegError, InputError, ParameterError
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import transform_points
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.geometry.velocity import exponential
from DeepRegLib.io.images import read_image, write_image
from DeepRegLib.io.itk_transform import read_transform, write_transform
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.operations import warp_image
from DeepRegLib.population_latent import LatentModel, judge_fields, transport
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.compose import stage_values

SMALL = {
    "cvae": {"encoder": (4, 8, 4), "decoder": (8, 8), "final": 8, "cells": (3, 3, 3), "latent": 5},
    "coop_ae": {"encoder": (4, 8), "decoder": (8, 8), "final": (8,), "autoencoder": (4, 8),
                "cells": (3, 3, 3), "latent": 5},
}  # fmt: skip
FRAME = (4.0, (16, 16, 16))


def call(*words):
    """Runs the command as the command line does, with what it refuses as an exception."""
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug")
    command.add(parser.add_subparsers(required=True), common)
    chosen = parser.parse_args(["population", *map(str, words)])
    return chosen.execute(chosen)


def put(folder, part, spread=0.2):
    """Writes a model whose network moves voxels."""
    key = part.SPEC.key
    system = part.Algorithm(**part.SPEC.values(**SMALL[key]))
    torch.manual_seed(0)
    network = system.build()
    heads = network.decoder.heads if key == "cvae" else [network.autoencoder.head]
    for head in heads:
        torch.nn.init.normal_(head.convolution.weight, 0.0, spread)
    values = {p.name: system.values[p.name] for p in part.SPEC.parameters if p.training}
    card = ModelCard(f"small_{key}", key, values, *FRAME)
    save_model(folder / f"small_{key}.safetensors", network, card)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    place = tmp_path / "models"
    place.mkdir()
    monkeypatch.setenv("DEEPREG_MODELS", str(place))
    monkeypatch.setattr(models, "SHIPPED", ())
    put(place, cvae)
    put(place, coop_ae)
    return place


def known(latent, shape, length=1.5):
    """Makes a decoder say a known deformation, whatever the code and the image."""
    velocity = smooth_displacement(shape, length, seed=3, sigma=3.0)
    found = exponential(velocity), exponential(-velocity)
    latent.system.decode = lambda network, code, moving: found
    return found


def test_a_code_acts_in_the_space_of_the_subject():
    # The subject lies elsewhere and is turned and larger: L from the fixed space to its own.
    matrix = pairs.known_matrix(scale=1.1)
    fixed = pairs.make_image(pairs.fixed_grid())
    subject = pairs.make_image(pairs.moving_grid(), np.linalg.inv(matrix))
    latent = LatentModel("", "cpu")
    grid = latent.frame.grid(fixed, latent.system.multiple)
    there, _ = known(latent, grid.shape)
    done = latent.decode([0.0] * 5, subject, fixed, matrix)
    points = pairs.body_points()
    moved = Field(there, grid).map_points_ras(points)
    assert np.linalg.norm(moved - points, axis=1).mean() > 1.0
    found = done.transform.map_points_ras(transform_points(matrix, points))
    miss = np.linalg.norm(found - transform_points(matrix, moved), axis=1)
    assert miss.mean() < 0.15 and miss.max() < 0.8
    assert done.transform.field.grid.matches(subject.grid)
    np.testing.assert_allclose(done.transform.linear, np.eye(4))
    # There and back.
    again = done.inverse.map_points_ras(found)
    assert np.linalg.norm(again - transform_points(matrix, points), axis=1).mean() < 0.2
    expected = warp_image(subject, done.transform, subject.grid)
    assert torch.equal(done.deformed.data, expected.data)
    assert done.deformed.grid.matches(subject.grid)


def test_transport_encodes_one_pair_and_decodes_for_another_subject():
    matrix = pairs.known_matrix()
    pair = pairs.make_pair(matrix)
    other = pairs.make_image(pairs.moving_grid(), np.linalg.inv(pairs.known_matrix(scale=1.05)))
    latent = LatentModel("small_cvae", "cpu")
    code = latent.encode(replace(pair, initial=Transform(matrix)))
    linear = pairs.known_matrix(scale=1.05)
    words = {"initial_transform": matrix, "subject_transform": linear, "device": "cpu"}
    done = transport(pair.fixed, pair.moving, other, **words)
    assert done.code == pytest.approx(code)
    expected = latent.decode(code, other, pair.fixed, linear)
    assert torch.equal(done.transform.field.displacement, expected.transform.field.displacement)
    half = transport(pair.fixed, pair.moving, other, strength=0.5, **words)
    assert half.code == pytest.approx([0.5 * v for v in code])
    assert not torch.equal(half.deformed.data, done.deformed.data)
    # The image of the subject has a say in what the code means.
    same = transport(pair.fixed, pair.moving, pair.moving, **{**words, "subject_transform": matrix})
    apart = same.transform.field.displacement - done.transform.field.displacement
    assert apart.abs().max() > 1e-3


def test_the_subject_is_aligned_by_itself(monkeypatch):
    quick = {"initialization": "stored", "samples": 3000, "sizes": (12, 24)}
    monkeypatch.setattr(
        population_latent, "stage_values", lambda keys: stage_values(keys, "fast", quick)
    )
    shift = np.eye(4)
    shift[:3, 3] = [6.0, -5.0, 4.0]
    fixed = pairs.make_image(pairs.fixed_grid())
    subject = pairs.make_image(pairs.moving_grid(), np.linalg.inv(shift))
    events = []

    def given(alignment, **words):
        return transport(fixed, fixed, subject, alignment=alignment, device="cpu",
                         initial_transform=np.eye(4), progress=Progress(events.append),
                         **words).transform.field.displacement  # fmt: skip

    exact = given("none", subject_transform=shift)
    aligned, loose = given("rigid"), given("none")
    fractions = [event.fraction for event in events if event.kind == "progress"]
    assert fractions and max(fractions) == 1.0
    assert (aligned - exact).norm(dim=1).mean() < 0.5 * (loose - exact).norm(dim=1).mean()


def test_drawn_codes_deform_without_folds_and_repeat(folder):
    put(folder, cvae, 0.03)  # of a size that a trained decoder has
    image = pairs.make_image(pairs.fixed_grid())
    latent = LatentModel(device="cpu")
    three, again = latent.sample(image, 3, seed=4), latent.sample(image, 2, seed=4)
    assert [one.code for one in again] == [one.code for one in three[:2]]
    assert three[0].code != latent.sample(image, 1, seed=5)[0].code
    for one in three:
        u = one.transform.field.displacement
        assert u.norm(dim=1).max() > 0.1 and jacobian_determinant(u).min() > 0
    wide = latent.sample(image, 1, seed=4, spread=2.0)[0]
    assert wide.code == pytest.approx([2.0 * value for value in three[0].code])
    with pytest.raises(ParameterError, match="at least 1"):
        latent.sample(image, 0)
    with pytest.raises(InputError, match="have 5 numbers"):
        latent.decode([1.0, 2.0], image)


def test_the_judge_reads_any_transform_and_leaves_out_its_linear_part():
    fixed = pairs.make_image(pairs.fixed_grid())
    grid = pairs.fixed_grid()
    sizes = {"still": 0.0, "small": 0.5, "large": 3.0}
    named = [
        (name, Transform(pairs.known_matrix(), Field(smooth_displacement(grid.shape, n or 1e-6), grid)))
        for name, n in sizes.items()
    ]  # fmt: skip
    found = judge_fields(named, fixed, device="cpu")
    assert [row["rank"] for row in found] == [1, 2, 3] and found[0]["name"] == "large"
    assert found[0]["atypicality_mm"] > found[-1]["atypicality_mm"]
    assert len([key for key in found[0] if key.startswith("code_")]) == 5
    plain = [(name, Transform(np.eye(4), t.field)) for name, t in named]
    assert judge_fields(plain, fixed, device="cpu") == found


def test_without_a_model_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path / "none"))
    with pytest.raises(ParameterError, match="no trained model for 'cvae'"):
        LatentModel(device="cpu")


def test_command_transport(tmp_path):
    matrix = pairs.known_matrix()
    pair = pairs.make_pair(matrix)
    names = [tmp_path / f"{name}.nii.gz" for name in ("fixed", "moving", "subject")]
    for image, name in zip((pair.fixed, pair.moving, pair.moving), names):
        write_image(image, name)
    image, transform, inverse = (tmp_path / n for n in ("out.nii.gz", "out.h5", "back.h5"))
    outputs = (
        "--output-image",
        image,
        "--output-transform",
        transform,
        "--output-inverse",
        inverse,
    )
    assert call("transport", *names, *outputs, "--alignment", "none", "--device", "cpu",
                "--strength", "0.7", "--quiet") == 0  # fmt: skip
    expected = transport(pair.fixed, pair.moving, pair.moving, alignment="none", strength=0.7,
                         device="cpu")  # fmt: skip
    assert read_image(image).grid.matches(pair.moving.grid)
    there = read_transform(transform, pair.moving.grid).field.displacement
    assert torch.allclose(there, expected.transform.field.displacement, atol=2e-3)
    points = pairs.body_points()
    back = read_transform(inverse, pair.moving.grid)
    again = back.map_points_ras(read_transform(transform).map_points_ras(points))
    assert np.linalg.norm(again - points, axis=1).mean() < 0.2
    with pytest.raises(DeepRegError, match="Nothing would be kept"):
        call("transport", *names)
    with pytest.raises(DeepRegError, match="is an input"):
        call("transport", *names, "--output-image", names[2])


def test_command_sample_and_the_model_as_a_judge(tmp_path, capsys):
    grid = pairs.fixed_grid()
    write_image(pairs.make_image(grid), tmp_path / "image.nii.gz")
    out = tmp_path / "drawn"
    assert call("sample", tmp_path / "image.nii.gz", "--output", out, "--count", "4", "--seed", "3",
                "--device", "cpu") == 0  # fmt: skip
    with (out / "samples.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["name"] for row in table] == [f"sample_{k:03d}" for k in range(1, 5)]
    first = LatentModel(device="cpu").sample(read_image(tmp_path / "image.nii.gz"), 1, 3)[0]
    assert [float(table[0][f"code_{k}"]) for k in range(1, 6)] == pytest.approx(first.code)
    there = read_transform(out / table[0]["transform"], grid).field.displacement
    assert torch.allclose(there, first.transform.field.displacement, atol=2e-3)
    assert read_image(out / table[0]["image"]).grid.matches(grid)
    files = sorted(out.glob("*.h5"))
    ranking = tmp_path / "ranking.csv"
    assert call("atypical", *files, "--fixed", tmp_path / "image.nii.gz", "--output", ranking,
                "--model", "newest", "--device", "cpu") == 0  # fmt: skip
    with ranking.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 and rows[0]["model"] == "small_coop_ae"
    assert "4 deformations" in capsys.readouterr().out


def test_codes_of_a_table_of_pairs(tmp_path):
    pair = pairs.make_pair(np.eye(4))
    for image, name in ((pair.fixed, "a"), (pair.moving, "b")):
        write_image(image, tmp_path / f"{name}.nii.gz")
    write_transform(Transform(np.eye(4)), tmp_path / "start.tfm", pair.fixed.grid)
    (tmp_path / "pairs.csv").write_text("name,fixed,moving\none,a.nii.gz,b.nii.gz\n"
                                        "two,b.nii.gz,a.nii.gz\n")  # fmt: skip
    for key in ("+cvae", "+coop_ae"):
        out = tmp_path / f"{key[1:]}.csv"
        assert call("codes", tmp_path / "pairs.csv", "--algorithm", key, "--output", out,
                    "--device", "cpu") == 0  # fmt: skip
        with out.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["name"] for row in rows] == ["one", "two"]
        assert rows[0]["algorithm"] == key[1:] and float(rows[0]["code_1"]) is not None
        assert rows[0]["code_5"] != rows[1]["code_5"] and "code_6" not in rows[0]
        assert ("atypicality_mm" in rows[0]) == (key == "+coop_ae")
