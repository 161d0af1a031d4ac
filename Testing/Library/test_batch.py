"""Many pairs from a table: results for each, one summary, failures told, interrupted ones go on."""

import csv
import json
import os
import shutil

import numpy as np
import pairs
import pytest

from DeepRegLib import batch
from DeepRegLib.batch import BatchSettings, read_pairs, register_many, run_tasks
from DeepRegLib.cli import main
from DeepRegLib.errors import FileFormatError, InputError, ParameterError
from DeepRegLib.io.images import read_image, write_image
from DeepRegLib.io.itk_transform import read_transform

QUICK = BatchSettings(
    "rigid", settings={"initialization": "stored", "sizes": "12,24", "samples": "3000"},
    device="cpu", image=".nrrd", threads=1,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A table with two good pairs and one whose moving image is empty."""
    pair = pairs.make_pair()
    write_image(pair.fixed, tmp_path / "fixed.nrrd")
    write_image(pair.moving, tmp_path / "moving.nii.gz")
    write_image(pairs.make_labels(pairs.fixed_grid()), tmp_path / "labels.nrrd")
    (tmp_path / "broken.nrrd").write_text("no image")
    (tmp_path / "pairs.csv").write_text(
        "Fixed;moving;name;fixed_labels\n"
        "fixed.nrrd;moving.nii.gz;first;labels.nrrd\n"
        "fixed.nrrd;broken.nrrd;second;\n"
        "moving.nii.gz;fixed.nrrd;;\n"
    )
    return tmp_path


@pytest.fixture
def here(monkeypatch):
    """Does the work in this process: to start others takes longer than to register.

    Gives the processes and threads that were asked for.
    """
    asked = []

    def run_here(tasks, work, together, threads):
        asked.append((together, threads))
        for task in tasks:
            yield task, work(task)

    monkeypatch.setattr(batch, "run_tasks", run_here)
    return asked


def summary(folder):
    with (folder / "summary.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_pair_gets_its_folder_and_a_failure_does_not_stop_the_others(folder):
    told = []
    rows = register_many(read_pairs(folder / "pairs.csv"), folder / "out", QUICK, together=2,
                         report=told.append)  # fmt: skip
    assert [row["name"] for row in rows] == ["first", "second", "fixed_to_moving"]
    assert {row["name"] for row in told} == {row["name"] for row in rows}
    first, second, third = rows
    assert "broken.nrrd" in second["error"] and not (folder / "out" / "second").exists()
    for row, fixed in ((first, "fixed.nrrd"), (third, "moving.nii.gz")):
        assert row["error"] == "" and row["verdict"] in ("green", "amber", "red")
        own = folder / "out" / row["name"]
        moved = read_image(own / "moved.nrrd")
        assert moved.grid.matches(read_image(folder / fixed).grid)
        report = json.loads((own / "report.json").read_text(encoding="utf-8"))
        assert report["quality"]["ncc_after"] == pytest.approx(row["ncc_after"])
    forward, back = (read_transform(folder / "out" / n / "transform.h5")
                     for n in ("first", "fixed_to_moving"))  # fmt: skip
    np.testing.assert_allclose(forward.linear @ back.linear, np.eye(4), atol=1.5)
    written = summary(folder / "out")
    assert [row["name"] for row in written] == ["first", "second", "fixed_to_moving"]
    assert float(written[0]["ncc_after"]) == pytest.approx(first["ncc_after"])
    assert written[1]["error"] == second["error"] and written[1]["verdict"] == ""


def test_what_is_there_from_the_same_files_and_settings_is_taken_over(folder, here):
    table = [p for p in read_pairs(folder / "pairs.csv") if p.name != "second"]
    out = folder / "out"
    register_many(table, out, QUICK)
    before = {p.name: (out / p.name / "report.json").stat().st_mtime_ns for p in table}

    def run_again(**changes):
        told = []
        settings = {**vars(QUICK), **changes.pop("settings", {})}
        rows = register_many(table, out, BatchSettings(**settings), report=told.append, **changes)
        assert all(row["error"] == "" for row in rows) and len(summary(out)) == 2
        return {row["name"] for row in told}

    assert run_again() == set()
    assert before == {p.name: (out / p.name / "report.json").stat().st_mtime_ns for p in table}
    (out / "first" / "report.json").unlink()  # interrupted while it was written
    assert run_again() == {"first"}
    os.utime(folder / "labels.nrrd", ns=(1, 1))
    assert run_again() == {"first"}
    assert run_again(settings={"preset": "fast"}) == {"first", "fixed_to_moving"}
    assert run_again(settings={"preset": "fast"}, again=True) == {"first", "fixed_to_moving"}


def _half_dies(number):
    if number == 3:
        os._exit(9)
    return number * 10


def test_a_process_that_dies_takes_only_those_beside_it_along():
    found = dict(run_tasks(range(8), _half_dies, 1, 1))
    assert sorted(found) == list(range(8))
    assert "ended unexpectedly" in found[3]
    assert all(found[n] == n * 10 for n in range(8) if n != 3)


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("fixed,image\nfixed.nrrd,moving.nii.gz\n", FileFormatError, "'image' is none"),
        ("fixed\nfixed.nrrd\n", FileFormatError, "columns fixed and moving"),
        ("fixed,moving\n", InputError, "no pairs"),
        ("fixed,moving\nfixed.nrrd,\n", InputError, "Line 2 .* no moving"),
        ("fixed,moving\nfixed.nrrd,gone.nrrd\n", InputError, "Line 2 .*gone.nrrd"),
        ("fixed,moving,name\nfixed.nrrd,moving.nii.gz,A\nmoving.nii.gz,fixed.nrrd,a\n",
         InputError, "called 'A'"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_refused(folder, text, error, sentence):
    (folder / "bad.csv").write_text(text)
    with pytest.raises(error, match=sentence):
        read_pairs(folder / "bad.csv")


def test_what_does_not_fit_is_refused_before_anything_runs(folder, monkeypatch):
    monkeypatch.setattr(batch, "run_tasks", lambda *a: pytest.fail("it ran"))
    table = read_pairs(folder / "pairs.csv")
    for settings in (BatchSettings("greedi"), BatchSettings("rigid", settings={"radius": 2})):
        with pytest.raises(ParameterError):
            register_many(table, folder / "out", settings)
    with pytest.raises(ParameterError, match="at once"):
        register_many(table, folder / "out", QUICK, together=0)
    assert not (folder / "out").exists()
    (folder / "file").write_text("")
    with pytest.raises(FileFormatError, match="cannot be made"):
        register_many(table, folder / "file" / "out", QUICK)


def test_the_command(folder, here, capsys):
    words = ["batch", folder / "pairs.csv", "--out", folder / "out", "--algorithm", "rigid",
             "--set", "initialization=stored", "--set", "sizes=12,24", "--set", "samples=3000",
             "--device", "cpu", "--threads", "1", "--together", "2", "--image-type", "none"]  # fmt: skip
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().out
    assert "2 of 3 pairs are registered;" in said and "second: " in said
    assert not (folder / "out" / "first" / "moved.nii.gz").exists()
    assert (folder / "out" / "first" / "transform.h5").exists()
    shutil.copy(folder / "moving.nii.gz", folder / "healed.nii.gz")
    table = (folder / "pairs.csv").read_text().replace("broken.nrrd", "healed.nii.gz")
    (folder / "pairs.csv").write_text(table)
    assert main([str(word) for word in words]) == 0
    assert "3 of 3 pairs are registered (2 were there already)" in capsys.readouterr().out
    assert here == [(2, 1), (2, 1)]


def test_an_interrupted_command_says_what_is_kept(folder, capsys, monkeypatch):
    def interrupted(tasks, work, together, threads):
        yield tasks[0], {"name": tasks[0][0].name, "verdict": "green", "sentence": "Good.",
                         "error": ""}  # fmt: skip
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "run_tasks", interrupted)
    words = ["batch", str(folder / "pairs.csv"), "--out", str(folder / "out"), "--quiet"]
    assert main(words) == 130
    said = capsys.readouterr().err
    assert "after 1 pairs" in said and "goes on" in said and "nothing was written" not in said
    assert [row["name"] for row in summary(folder / "out")] == ["first"]
