import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from DeepRegLib.errors import Cancelled, InputError, OutOfMemoryError, WorkerError
from DeepRegLib.job import (
    IDENTITY,
    ArrayFile,
    Job,
    JobEvent,
    TransformFile,
    parse_request,
    plain,
    private_folder,
)

ROOT = Path(__file__).parents[2]


def test_a_job_survives_the_way_through_json():
    job = Job(
        "register", "/nowhere", {"fixed": ArrayFile("fixed.npy", IDENTITY, "int16")},
        {"initial": TransformFile(IDENTITY, ArrayFile("start.npy", IDENTITY))},
        {"algorithm": "rigid", "settings": {"sizes": [24, 48]}},
    )  # fmt: skip
    line = job.to_line()
    assert line.endswith("\n") and line.count("\n") == 1
    assert parse_request(line) == job


def test_an_event_survives_the_way_through_json():
    event = JobEvent(
        "done", "7", "greedy", 1.0, 0.25, "Größe", arrays={"moved": ArrayFile("m.npy", IDENTITY)},
        transforms={"inverse": TransformFile()}, data={"quality": {"ncc": 0.5}},
    )  # fmt: skip
    assert JobEvent.from_line(event.to_line()) == event
    assert event.is_last and not JobEvent("progress").is_last


def test_numbers_that_json_lacks_become_null():
    event = JobEvent("progress", value=float("nan"), data={"a": [float("inf"), (1, 2)]})
    read = json.loads(event.to_line(), parse_constant=lambda name: pytest.fail(name))
    assert read["value"] is None and read["data"] == {"a": [None, [1, 2]]}
    assert plain({1: (1.5, "x")}) == {"1": [1.5, "x"]}


@pytest.mark.parametrize("line", ['{"stop": true}', '{"cancel":true}\n'])
def test_short_requests(line):
    assert parse_request(line) in ("stop", "cancel")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nonsense", "line of JSON"),
        ("[1]", "JSON object"),
        ('{"stop": false}', "A request is"),
        ('{"job": 3}', "must be a JSON object"),
        ('{"job": {"operation": "register"}}', "incomplete"),
        ('{"job": {"operation": "dance", "folder": "x"}}', "'dance' was asked for"),
        ('{"job": {"operation": "warp", "folder": "x", "shell": "y"}}', "no entry 'shell'"),
        ('{"job": {"operation": "warp", "folder": 3}}', "folder must be a str"),
        ('{"job": {"version": 2, "operation": "warp", "new": 1}}', "different versions"),
        ('{"job": {"operation": "warp", "folder": "x", "arrays": {"a": {"file": "../b.npy"}}}}',
         "no name of an .npy file"),
        ('{"job": {"operation": "warp", "folder": "x", "arrays": {"a": {"file": "b.npy", '
         '"voxel_to_ras": [[1, 2]]}}}}', "4 x 4 numbers"),
        ('{"job": {"operation": "warp", "folder": "x", "transforms": {"a": {"field": '
         '{"file": "b.npy"}}}}}', "needs a voxel_to_ras"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_sentence(line, expected):
    with pytest.raises(WorkerError, match=expected):
        parse_request(line)


def test_events_are_checked_too():
    for line in ('{"kind": "hello"}', '{"kind": "error"}', '{"kind": "done", "error": "input"}'):
        with pytest.raises(WorkerError):
            JobEvent.from_line(line)


def test_errors_come_back_as_exceptions():
    kinds = {"input": InputError, "memory": OutOfMemoryError, "cancelled": Cancelled,
             "crash": WorkerError, "internal": WorkerError}  # fmt: skip
    for kind, expected in kinds.items():
        error = JobEvent("error", error=kind, text="Why.").exception()
        assert type(error) is expected and str(error) == "Why."


def test_the_folder_of_a_job_is_private():
    with private_folder() as folder:
        if os.name == "posix":
            assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert not os.path.exists(folder)


def test_client_side_imports_neither_torch_nor_numpy():
    code = (
        "import sys, DeepRegLib, DeepRegLib.job, DeepRegLib.client, DeepRegLib.registry, "
        "DeepRegLib.cli, DeepRegLib.doctor; DeepRegLib.registry.specs();"
        "print([m for m in ('torch', 'numpy', 'SimpleITK') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
