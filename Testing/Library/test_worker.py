"""The worker as a real process, through the client that the panel uses."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pairs
import pytest
import torch

from DeepRegLib import client
from DeepRegLib.client import WorkerProcess
from DeepRegLib.errors import Cancelled, DeepRegError, InputError, WorkerError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.job import ArrayFile, Job, JobEvent, TransformFile, private_folder

ROOT = Path(__file__).parents[2]
QUICK = {"initialization": "stored", "sizes": [12, 24], "samples": 3000}
#: A run of about a minute, for what happens in the middle.
LONG = {"initialization": "search", "sizes": [24, 24, 24, 24], "samples": 400000, "rotations": 2000}


@pytest.fixture(scope="module")
def worker():
    """One process for all tests that leave it alive."""
    with WorkerProcess(environment={"OMP_NUM_THREADS": "1"}) as process:
        yield process


@pytest.fixture
def folder():
    with private_folder() as path:
        yield Path(path)


def save(folder, name, array, grid=None):
    np.save(folder / f"{name}.npy", array, allow_pickle=False)
    return ArrayFile(f"{name}.npy", None if grid is None else grid.voxel_to_ras.tolist())


def register_job(folder, settings, arrays=None, **parameters):
    pair = pairs.make_pair()
    files = {
        "fixed": save(folder, "fixed", pair.fixed.numpy(), pair.fixed.grid),
        "moving": save(folder, "moving", np.rint(pair.moving.numpy()).astype(np.int16),
                       pair.moving.grid),
        **(arrays or {}),
    }  # fmt: skip
    wanted = {"algorithm": "rigid", "device": "cpu", "settings": settings, **parameters}
    return Job("register", str(folder), files, parameters=wanted)


def load(folder, described):
    return np.load(folder / described.file, allow_pickle=False)


def test_register(worker, folder):
    mask = np.ones(pairs.fixed_grid().shape, np.uint8)
    arrays = {"fixed_mask": save(folder, "fixed_mask", mask, pairs.fixed_grid())}
    job = register_job(folder, QUICK, arrays, preview_seconds=0)
    worker.submit(job)
    seen = []
    done = worker.wait(120, seen.append)
    assert not worker.busy and worker.alive
    assert {event.kind for event in seen} >= {"ready", "stage", "progress", "preview"}
    assert all(event.job == job.id for event in seen if event.kind != "ready")
    linear = np.array(done.transforms["transform"].linear)
    assert pairs.error_mm(Transform(linear), pairs.known_matrix()) < 0.6
    np.testing.assert_allclose(
        np.array(done.transforms["inverse"].linear) @ linear, np.eye(4), atol=1e-9
    )
    moved = load(folder, done.arrays["moved"])
    assert moved.shape == pairs.fixed_grid().shape and moved.dtype == np.int16
    fixed = load(folder, job.arrays["fixed"])
    assert np.abs(moved - fixed)[fixed > 20].mean() < 2.5
    assert done.data["quality"]["verdict"] == "green"
    assert done.data["provenance"]["algorithm"] == "rigid"
    assert not list(folder.glob("*.part"))


def test_a_failed_job_does_not_end_the_worker(worker, folder):
    grid = pairs.fixed_grid()
    for arrays, parameters, expected in (
        ({}, {"algorithm": "magic"}, "no algorithm"),
        ({}, {"speed": 3}, "no parameter 'speed'"),
        (
            {"moving": save(folder, "flat", np.zeros(grid.shape, np.float32), grid)},
            {},
            "everywhere",
        ),
        ({"moving": ArrayFile("absent.npy", grid.voxel_to_ras.tolist())}, {}, "cannot be read"),
    ):
        worker.submit(register_job(folder, QUICK, arrays, **parameters))
        with pytest.raises(InputError, match=expected):
            worker.wait(120)
    assert worker.alive and not worker.busy


def test_arrays_with_pickles_are_refused(worker, folder):
    (folder / "evil.npy").write_bytes(b"\x80\x04K\x01.")
    grid = pairs.fixed_grid()
    job = register_job(folder, QUICK, {"moving": ArrayFile("evil.npy", grid.voxel_to_ras.tolist())})
    worker.submit(job)
    with pytest.raises(InputError, match="cannot be read"):
        worker.wait(120)


def test_warp_and_evaluate(worker, folder):
    matrix = pairs.known_matrix()
    fixed, moving = pairs.fixed_grid(), pairs.moving_grid()
    labels = pairs.make_labels(moving, np.linalg.inv(matrix)).numpy()
    transforms = {"transform": TransformFile(matrix.tolist())}
    worker.submit(Job(
        "warp", str(folder), {"image": save(folder, "labels", labels, moving)}, transforms,
        {"shape": list(fixed.shape), "voxel_to_ras": fixed.voxel_to_ras.tolist(),
         "interpolation": "nearest"},
    ))  # fmt: skip
    moved = worker.wait(60).arrays["image"]
    points = pairs.body_points(5)
    mapped = points @ matrix[:3, :3].T + matrix[:3, 3]
    worker.submit(Job("warp", str(folder), {"points": save(folder, "points", mapped)}, transforms))
    carried = load(folder, worker.wait(60).arrays["points"])
    np.testing.assert_allclose(carried, points, atol=1e-9)
    arrays = {
        "fixed_labels": save(folder, "truth", pairs.make_labels(fixed).numpy(), fixed),
        "moved_labels": moved, "fixed_landmarks": save(folder, "p", points),
        "moving_landmarks": save(folder, "q", mapped),
    }  # fmt: skip
    worker.submit(Job("evaluate", str(folder), arrays, transforms))
    figures = worker.wait(60).data
    assert figures["dice_mean"] > 0.85 and figures["tre_mean_mm"] < 1e-6


def test_stop_and_keep(worker, folder):
    worker.submit(register_job(folder, LONG))
    wait_for_progress(worker)
    worker.stop_and_keep()
    done = worker.wait(60)  # the whole job would take hours
    assert done.data["provenance"]["stopped_early"] and "moved" in done.arrays


def test_cancel_and_crash(folder):
    """Both end the process; the next job starts another."""
    with WorkerProcess(environment={"OMP_NUM_THREADS": "1"}) as worker:
        worker.submit(register_job(folder, LONG))
        with pytest.raises(WorkerError, match="busy"):
            worker.submit(register_job(folder, QUICK))
        wait_for_progress(worker)
        first = worker._process
        worker.cancel()
        assert first.poll() is not None
        with pytest.raises(Cancelled):
            worker.wait(5)
        assert not worker.busy and not worker.alive and not list(folder.glob("moved*"))
        job = register_job(folder, LONG)
        worker.submit(job)
        wait_for_progress(worker)
        worker._process.kill()  # as the system does when memory runs out
        with pytest.raises(WorkerError, match="memory ran out"):
            worker.wait(10)
        assert not worker.busy and not worker.alive


def wait_for_progress(worker):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if any(event.kind == "progress" for event in worker.poll()):
            return
        time.sleep(0.02)
    pytest.fail("The job reported no progress.")


def fake_worker(code):
    return WorkerProcess(arguments=("-c", code))


def test_a_crash_shows_the_last_words(folder):
    job = Job("warp", str(folder))
    code = (
        "import sys; sys.stdin.readline(); sys.stderr.write('CUDA driver error 999'); sys.exit(3)"
    )
    with fake_worker(code) as worker:
        worker.submit(job)
        with pytest.raises(WorkerError, match=r"exit code 3.*CUDA driver error 999"):
            worker.wait(20)


def test_an_answer_that_is_no_event_ends_the_process(folder):
    code = "import sys, time; sys.stdin.readline(); print('hello', flush=True); time.sleep(60)"
    with fake_worker(code) as worker:
        worker.submit(Job("warp", str(folder)))
        with pytest.raises(WorkerError, match="line of JSON"):
            worker.wait(20)
        assert not worker.alive


def test_a_job_is_not_waited_for_for_ever(folder):
    with fake_worker("import time; time.sleep(60)") as worker:
        worker.submit(Job("warp", str(folder)))
        with pytest.raises(WorkerError, match="did not finish"):
            worker.wait(0.2)
        worker.cancel()


def test_an_interpreter_that_is_absent(folder):
    worker = WorkerProcess(python="/nowhere/python")
    with pytest.raises(WorkerError, match="could not be started"):
        worker.submit(Job("warp", str(folder)))


@pytest.mark.skipif(not hasattr(client.os, "killpg"), reason="process groups are of POSIX")
def test_cancel_ends_the_children_too(folder, tmp_path):
    """PythonSlicer is a launcher: the real work is done by its child."""
    mark = tmp_path / "alive"
    child = f"import time\nfor _ in range(300): open({str(mark)!r}, 'w').close(); time.sleep(0.05)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with fake_worker(code) as worker:
        worker.submit(Job("warp", str(folder)))
        end = time.monotonic() + 20
        while not mark.exists() and time.monotonic() < end:
            time.sleep(0.02)
        worker.cancel()
        time.sleep(0.15)
        mark.unlink()
        time.sleep(0.3)
        assert not mark.exists()


def test_the_worker_ends_with_its_input_and_keeps_its_output_clean(folder):
    """What a library prints goes to the log; requests that are none are answered by an error."""
    lines = ["nonsense\n", '{"job": {"version": 7}}\n', Job("evaluate", str(folder)).to_line()]
    code = (
        "import DeepRegLib.worker_jobs as w, DeepRegLib.worker as m, sys\n"
        "old = w.greeting\n"
        "def greeting(): print('a library prints'); return old()\n"
        "w.greeting = greeting\n"
        "sys.exit(m.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input="".join(lines),
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0 and "a library prints" in done.stderr
    events = [JobEvent.from_line(line) for line in done.stdout.splitlines()]
    assert [e.kind for e in events] == ["ready", "error", "error", "error"]
    assert "line of JSON" in events[1].text and "different versions" in events[2].text
    assert "nothing to measure" in events[3].text and events[3].error == "input"
    assert "torch" in events[0].data["versions"]
    json.loads(done.stdout.splitlines()[0])


def test_previews_are_thinned_out(tmp_path):
    from DeepRegLib.geometry.field import Field
    from DeepRegLib.worker_jobs import write_preview

    grid = pairs.fixed_grid().resized((110, 120, 90))
    field = Field.from_ras_mm(torch.full((1, 3, *grid.shape), 2.0), grid)
    described = write_preview(tmp_path, "preview-1", Transform(np.eye(4), field))
    vectors = np.load(tmp_path / described.field.file, allow_pickle=False)
    assert vectors.dtype == np.float32 and vectors[0].size <= 1_000_000
    np.testing.assert_allclose(vectors, 2.0, atol=1e-4)
    assert np.shape(described.field.voxel_to_ras) == (4, 4)


def test_maps_and_a_coarse_transform(worker, folder):
    settings = {"greedy.iterations": "20,10", "greedy.factors": "2,1"}
    job = register_job(
        folder, settings, algorithm="greedy", preset="fast", maps=["jacobian"], grid_spacing_mm=9.0
    )
    worker.submit(job)
    done = worker.wait(120)
    jacobian = load(folder, done.arrays["extra_jacobian"])
    assert jacobian.shape == pairs.fixed_grid().shape and jacobian.std() > 0.01
    field = done.transforms["transform"].field
    coarse = Grid(load(folder, field).shape[1:], np.array(field.voxel_to_ras))
    fixed = pairs.fixed_grid()
    np.testing.assert_allclose(coarse.spacing_mm, 9.0, rtol=1e-6)
    # It reaches the outermost voxels of the fixed image and rests there.
    ends = np.array([[0.0] * 3, np.array(fixed.shape) - 1.0])
    inside = coarse.to_voxel(fixed.to_ras(ends))
    assert (inside[0] >= -1e-6).all() and (inside[1] <= np.array(coarse.shape) - 1 + 1e-6).all()
    vectors = load(folder, field)
    assert np.abs(vectors[:, 0]).max() == 0.0 and np.abs(vectors[:, :, :, -1]).max() == 0.0


def test_an_unknown_map_is_refused(worker, folder):
    worker.submit(register_job(folder, QUICK, maps=["weather"]))
    with pytest.raises(DeepRegError, match="no map 'weather'"):
        worker.wait(120)
