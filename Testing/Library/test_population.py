"""Modes of a population, its atypical members, tables of codes, and the command `population`."""

import argparse
import csv
import json

import numpy as np
import pairs
import pytest
import torch
from support import make_grid, smooth_displacement

from DeepRegLib import population
from DeepRegLib.cli import population as command
from DeepRegLib.errors import DeepRegError, FileFormatError, InputError, ParameterError
from DeepRegLib.geometry.field import Field, compose_displacements
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import write_image
from DeepRegLib.io.itk_transform import read_transform, write_transform
from DeepRegLib.training.field_modes import FieldModes, count_for

SHAPE = (14, 18, 12)
GRID = make_grid("oblique", SHAPE, (2.0, 1.5, 3.0))


def two_modes(count=9, noise=0.0, seed=0):
    """Fields that vary along two directions about a mean, with their coefficients."""
    first, second, mean = (smooth_displacement(SHAPE, 1.0, seed=s) for s in (1, 2, 3))
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(count, 2, generator=generator) * torch.tensor([1.0, 0.5])
    fields = mean + weights[:, :1, None, None, None] * first
    fields = fields + weights[:, 1:, None, None, None] * second
    fields = fields + noise * torch.randn(fields.shape, generator=generator)
    return fields, weights


def make(fields, **values):
    names = tuple(f"p{i}" for i in range(len(fields)))
    return FieldModes(names, fields, GRID, **values)


def call(*words):
    """Runs the command as the command line does, with what it refuses as an exception."""
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug")
    command.add(parser.add_subparsers(required=True), common)
    chosen = parser.parse_args(["population", *map(str, words)])
    return chosen.execute(chosen)


def rows(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_modes_are_those_of_a_plain_decomposition_in_mm():
    fields, _ = two_modes(noise=0.05)
    modes = make(fields)
    scale = torch.tensor(GRID.spacing_mm).view(1, 3, 1, 1, 1)
    flat = ((fields - fields.mean(0, keepdim=True)) * scale).flatten(1).double()
    _, sizes, directions = torch.linalg.svd(flat, full_matrices=False)
    variances = (sizes**2 / (len(fields) - 1))[:-1]
    assert torch.allclose(modes.variances.double(), variances, rtol=1e-3)
    for k in range(3):
        mine = (modes.mode(k) * scale).flatten().double()
        expected = directions[k] * variances[k].sqrt()
        sign = torch.sign(mine @ expected)
        assert torch.allclose(mine, sign * expected, atol=2e-3)
    assert modes.explained() == pytest.approx((variances.cumsum(0) / variances.sum()).tolist(),
                                              rel=1e-3)  # fmt: skip
    rms = (flat.square().sum() / (len(fields) - 1) / GRID.size).sqrt().item()
    assert modes.size_mm() == pytest.approx(rms, rel=1e-3)


def test_two_directions_give_two_modes_and_all_coefficients():
    fields, weights = two_modes()
    modes = make(fields)
    assert modes.count_for(0.95) == 2 and modes.summary()["modes_for_95_percent"] == 2
    assert modes.coefficients.shape == (9, len(modes.variances))
    centered = weights - weights.mean(0)
    for column in range(2):
        # The found directions are mixtures of the two; together they tell the weights.
        known = modes.coefficients[:, :2]
        fitted = known @ torch.linalg.lstsq(known, centered[:, column : column + 1]).solution
        assert torch.allclose(fitted[:, 0], centered[:, column], atol=1e-3)
    assert torch.allclose(modes.coefficients[:, :2].var(0), torch.ones(2), atol=1e-3)
    for index in range(len(fields)):
        again = modes.transform(modes.coefficients[index, :2].tolist())
        assert torch.allclose(again.field.displacement[0], fields[index], atol=2e-3)
    assert torch.allclose(modes.transform([]).field.displacement, fields.mean(0, keepdim=True))


def test_outside_the_object_nothing_counts_but_modes_go_on():
    fields, _ = two_modes()
    inside = torch.zeros(1, 1, *SHAPE, dtype=torch.bool)
    inside[:, :, 3:11, 4:14, 3:9] = True
    noisy = fields + ~inside * torch.randn(fields.shape, generator=torch.Generator().manual_seed(4))
    modes = make(noisy, inside=inside)
    assert modes.count_for(0.99) == 2 < make(noisy).count_for(0.99)
    assert modes.mode(0)[(~inside).expand(1, 3, *SHAPE)].abs().max() > 0.1


def test_inverses_undo_deformations():
    fields, _ = two_modes()
    for kind in ("displacement", "velocity"):
        modes = make(fields, kind=kind)
        there, back = (
            modes.along(0, [1.0], inverse=inverse)[0].field.displacement
            for inverse in (False, True)
        )
        assert there.norm(dim=1).max() > 0.5
        inner = (slice(None), slice(None), *(slice(3, -3),) * 3)
        miss = compose_displacements(there, back)[inner].norm(dim=1).mean()
        negated = compose_displacements(there, -there)[inner].norm(dim=1).mean()
        assert miss < 0.05 and negated > 2 * miss, kind


def test_velocities_give_deformations_that_can_be_inverted():
    velocities, _ = two_modes()
    velocities = 2.5 * velocities
    plain, modes = make(velocities), make(velocities, kind="velocity")
    far = [
        jacobian_determinant(m.along(0, [5.0])[0].field.displacement).min() for m in (plain, modes)
    ]
    assert far[0] < 0 < far[1]
    with pytest.raises(ParameterError, match="displacement or velocity"):
        make(velocities, kind="momentum")


def test_who_is_unlike_the_others_ranks_first():
    fields, _ = two_modes(count=10, noise=0.02)
    odd = fields.clone()
    odd[6] += smooth_displacement(SHAPE, 1.0, seed=8)[0]
    ranking = make(odd).ranking()
    assert ranking[0].name == "p6" and ranking[0].residual_mm > 3 * ranking[1].residual_mm
    # A field is no part of what it is compared with: nobody is explained perfectly.
    assert min(one.residual_mm for one in ranking) > 0.01
    far = fields.clone()
    far[2] = fields.mean(0) + 12.0 * (fields[2] - fields.mean(0))
    distances = {one.name: one.deviation for one in make(far).ranking()}
    assert max(distances, key=distances.get) == "p2"
    with pytest.raises(InputError, match="At least 4"):
        make(fields[:3]).ranking()


def test_comparisons_take_fewer_voxels_where_there_are_many(monkeypatch):
    fields, _ = two_modes(count=8, noise=0.0)
    fields[5] += smooth_displacement(SHAPE, 1.0, seed=8)[0]
    whole = make(fields).ranking()
    monkeypatch.setattr("DeepRegLib.training.field_modes._COMPARED", 9)
    small = make(fields).ranking()
    assert [small[0].name, whole[0].name] == ["p5", "p5"]
    assert small[0].residual_mm == pytest.approx(whole[0].residual_mm, rel=0.25)


def test_what_has_no_modes_is_refused():
    fields, _ = two_modes()
    with pytest.raises(InputError, match="at least 3 fields"):
        make(fields[:2])
    with pytest.raises(InputError, match="finite"):
        make(torch.full_like(fields, torch.nan))
    with pytest.raises(ParameterError, match="none of number 10"):
        make(fields).mode(9)
    with pytest.raises(ParameterError, match="between 0 and 1"):
        count_for([0.5, 1.0], 0.0)
    same = make(fields[:1].expand(5, -1, -1, -1, -1).clone())
    assert same.size_mm() < 1e-3
    assert same.transform([]).field.displacement.shape == (1, 3, *SHAPE)


def test_fields_of_transforms_lie_on_one_grid(tmp_path):
    # Deformations on unlike grids, and linear parts that do not count.
    fixed = pairs.fixed_grid()
    linear = pairs.known_matrix()
    sizes = (1.0, 2.0, -1.5, 0.5)
    named = []
    for number, size in enumerate(sizes):
        grid = fixed if number % 2 else fixed.padded(3)
        inner = smooth_displacement(fixed.shape, 1.0, seed=5) * size
        if grid is not fixed:
            inner = torch.nn.functional.pad(inner, [3] * 6)
        named.append((f"n{number}", Transform(linear, Field(inner, grid))))
    modes = population.read_fields(named, pairs.make_image(fixed))
    assert modes.grid.matches(fixed) and modes.names == ("n0", "n1", "n2", "n3")
    expected = torch.cat([smooth_displacement(fixed.shape, 1.0, seed=5) * s for s in sizes])
    assert torch.allclose(modes.fields, expected, atol=1e-4)
    assert modes.inside is not None and 0.1 < modes.inside.float().mean() < 0.9
    assert modes.count_for(0.999) == 1
    whole = population.read_fields(named, fixed, linear=True)
    assert whole.inside is None and whole.mean.norm(dim=1).mean() > 0.5
    coarse = population.read_fields(named, fixed, spacing_mm=6.0)
    assert coarse.grid.size < 0.3 * fixed.size and coarse.size_mm() > 0.1
    with pytest.raises(InputError, match="None of the transforms deforms"):
        population.read_fields([(str(i), Transform(linear)) for i in range(4)], fixed)


def test_velocities_are_logarithms():
    fields, _ = two_modes()
    named = [(f"p{i}", Transform(np.eye(4), Field(f[None], GRID))) for i, f in enumerate(fields)]
    modes = population.read_fields(named, GRID, kind="velocity")
    again = modes.transform(modes.coefficients[0].tolist()).field.displacement
    inner = (slice(None), slice(None), *(slice(3, -3),) * 3)
    miss = (again[inner] - fields[:1][inner]).norm(dim=1).mean()
    # Taken for displacements, the velocities are farther from the truth.
    assert miss < 0.1 and (modes.fields[:1] - fields[:1])[inner].norm(dim=1).mean() > 3 * miss


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder as `batch` writes it, and the fixed image."""
    folder = tmp_path_factory.mktemp("population")
    grid = pairs.fixed_grid()
    write_image(pairs.make_image(grid), folder / "fixed.nii.gz")
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        place = folder / "results" / f"case_{number}"
        place.mkdir(parents=True)
        size = float(torch.randn(1, generator=generator))
        field = size * smooth_displacement(grid.shape, 1.0, seed=1)
        field = field + 0.1 * smooth_displacement(grid.shape, 1.0, seed=20 + number)
        if number == 4:
            field = field + smooth_displacement(grid.shape, 2.0, seed=9)
        transform = Transform(pairs.known_matrix(), Field(field, grid))
        write_transform(transform, place / "transform.h5", grid)
        said = {"values": {"latent_code": [size, 2.0], "atypicality_mm": 0.1 * number},
                "model": {"name": "brains"}}  # fmt: skip
        content = {"quality": {}, "provenance": {"learned": {"rigid": {}, "cvae": said}}}
        (place / "report.json").write_text(json.dumps(content))
    return folder


def test_transforms_are_found_by_their_folders(results, tmp_path):
    found = population.find_transforms([results / "results"])
    assert [name for name, _ in found] == [f"case_{i}" for i in range(6)]
    for name in ("b.h5", "a.nii.gz", "notes.txt2"):
        (tmp_path / name).write_bytes(b"")
    assert [n for n, _ in population.find_transforms([tmp_path])] == ["a", "b"]
    assert population.find_transforms(["x/one.h5", "x/two.nii.gz"])[1][0] == "two"
    with pytest.raises(FileFormatError, match="called 'one'"):
        population.find_transforms(["x/one.h5", "y/one.h5"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match="no transforms"):
        population.find_transforms([tmp_path / "empty"])


def test_command_modes(results, tmp_path, capsys):
    out = tmp_path / "modes"
    words = ("modes", results / "results", "--fixed", results / "fixed.nii.gz", "--output", out)
    assert call(*words, "--modes", "2", "--deviations=-2,0,2") == 0
    assert "6 deformations" in capsys.readouterr().out
    told = json.loads((out / "modes.json").read_text())
    assert told["fields"] == 6 and told["names"][0] == "case_0" and told["size_mm"] > 0.1
    assert told["variance_explained"] == sorted(told["variance_explained"])
    assert len(told["files"]) == 6 and told["files"][0] == {
        "mode": 1, "deviation": -2.0, "file": "mode_1_step_1.h5"}  # fmt: skip
    table = rows(out / "coefficients.csv")
    assert [row["name"] for row in table] == told["names"]
    values = np.array([[float(row["mode_1"]), float(row["mode_2"])] for row in table])
    assert values.std(0, ddof=1) == pytest.approx([1.0, 1.0], abs=0.01)
    # The middle is the mean, and both ends lie on either side of it.
    grid = pairs.fixed_grid()
    low, mean, high = (
        read_transform(out / f"mode_1_step_{k}.h5", grid).field.on_grid(grid).displacement
        for k in (1, 2, 3)
    )
    assert torch.allclose(low + high, 2 * mean, atol=1e-3) and (high - low).abs().max() > 0.5
    with pytest.raises(DeepRegError, match="new or empty"):
        call(*words)
    with pytest.raises(DeepRegError, match="cannot be written here"):
        call(*words[:-1], tmp_path / "other", "--transform-type", ".png")


def test_command_atypical(results, tmp_path, capsys):
    out = tmp_path / "ranking.csv"
    words = ("atypical", results / "results", "--fixed", results / "fixed.nii.gz")
    assert call(*words, "--output", out) == 0
    table = rows(out)
    assert table[0]["name"] == "case_4" and [row["rank"] for row in table] == list("123456")
    assert float(table[0]["residual_mm"]) > 2 * float(table[1]["residual_mm"])
    assert "case_4" in capsys.readouterr().out.splitlines()[0]
    with pytest.raises(DeepRegError, match=r"ends in \.csv"):
        call(*words, "--output", tmp_path / "ranking.txt")


def test_command_codes(results, tmp_path):
    out = tmp_path / "codes.csv"
    assert call("codes", results / "results", "--output", out) == 0
    table = rows(out)
    assert list(table[0]) == ["name", "algorithm", "model", "atypicality_mm", "code_1", "code_2"]
    assert table[3]["name"] == "case_3" and float(table[3]["atypicality_mm"]) == 0.1 * 3
    assert {row["model"] for row in table} == {"brains"} and float(table[0]["code_2"]) == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["provenance"]["learned"]["cvae"]["model"].update(name="other"), "different"),
        (lambda c: c["provenance"]["learned"]["cvae"].update(model=None), "without a trained"),
        (lambda c: c["provenance"].update(learned={}), "no latent code"),
        (lambda c: c.pop("provenance"), "no provenance"),
    ],
)
def test_codes_that_cannot_be_compared_are_refused(results, tmp_path, change, message):
    first = results / "results" / "case_0" / "report.json"
    content = json.loads((results / "results" / "case_1" / "report.json").read_text())
    change(content)
    second = tmp_path / "second.json"
    second.write_text(json.dumps(content))
    with pytest.raises(DeepRegError, match=message):
        population.read_codes([first, second])


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    def fails(path):
        raise FileFormatError("no")

    place = tmp_path / "made"
    with pytest.raises(FileFormatError):
        population.write_folder(place, [("a.csv", population.table_writer([{"x": 1}])),
                                        ("b.csv", fails)])  # fmt: skip
    assert not place.exists()
    population.write_folder(place, [("a.csv", population.table_writer([{"x": 1}, {"y": 2}]))])
    assert rows(place / "a.csv") == [{"x": "1", "y": ""}, {"x": "", "y": "2"}]
