import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pairs
import pytest
import torch
from support import make_grid, smooth_displacement

from DeepRegLib import job, models, pipeline, registry
from DeepRegLib.errors import Cancelled, InputError, OutOfMemoryError, ParameterError
from DeepRegLib.geometry.field import Field, rim_motion
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.itk_transform import read_transform, write_transform
from DeepRegLib.memory import PeakMemory, is_out_of_memory
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.operations import background_value, carry_points_ras, warp_image
from DeepRegLib.registration.base import Image, Progress, Result


class Fake:
    """Stands in for an algorithm: gives a set transform, or fails as often as it is told."""

    def __init__(self, transform=None, failures=(), make=None):
        self.transform, self.failures, self.make = transform, list(failures), make
        self.grids, self.initials = [], []

    def __call__(self, key, **values):
        return self

    def register(self, pair, progress):
        self.grids.append(pair.fixed.grid)
        self.initials.append(pair.initial)
        if self.failures:
            raise self.failures.pop(0)
        progress.update(0.5, 1.0)
        found = self.transform if self.make is None else self.make(pair)
        return Result(found, history=[{"level": 0, "iteration": 0, "value": 1.0}])


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair():
    return pairs.make_pair()


@pytest.fixture
def fake(monkeypatch):
    def install(**options):
        algorithm = Fake(**options)
        monkeypatch.setattr(registry, "create", algorithm)
        return algorithm

    return install


def events_of(run, *arguments, **options):
    seen = []
    result = run(*arguments, progress=Progress(seen.append), **options)
    return result, seen


def test_the_known_transform_gives_everything_else(pair, fake):
    matrix = pairs.known_matrix()
    fake(transform=Transform(matrix))
    result, seen = events_of(pipeline.run, pair, "rigid", "fast", {"samples": 5000}, "cpu")
    np.testing.assert_allclose(result.inverse.linear @ matrix, np.eye(4), atol=1e-12)
    assert result.moved.grid is pair.fixed.grid
    body = pair.fixed.data > 20
    assert (result.moved.data - pair.fixed.data)[body].abs().mean() < 2.0
    assert result.quality["ncc_after"] > 0.97 > result.quality["ncc_before"]
    assert result.quality["verdict"] == "green" and result.quality["peak_memory_mb"] > 10
    made = result.provenance
    assert made["algorithm"] == "rigid" and made["stages"][0]["parameters"]["samples"] == 5000
    assert set(made["stages"][0]["parameters"]) == {
        p.name for p in registry.spec("rigid").parameters
    }
    assert made["device"] == "cpu" and made["resolution"] == "full" and not made["stopped_early"]
    assert {"DeepRegLib", "torch", "numpy"} <= set(made["versions"])
    compile(made["python"], "snippet", "exec")
    assert "'rigid'" in made["python"] and "samples=5000" in made["python"]
    json.dumps({**result.quality, **made}, allow_nan=False)
    assert [e.stage for e in seen if e.kind == "stage"] == ["rigid", "finish"]
    assert max(e.fraction for e in seen) == 1.0


def test_inputs_stay_as_they_are(pair, fake):
    before = pair.fixed.data.clone(), pair.moving.data.clone()
    fake(transform=Transform(pairs.known_matrix()))
    pipeline.run(pair, "rigid", device="cpu")
    assert torch.equal(pair.fixed.data, before[0]) and torch.equal(pair.moving.data, before[1])


def test_a_field_ends_on_the_fixed_grid_and_rests_at_the_rim(pair, fake):
    coarse = pair.fixed.grid.resized((11, 14, 10))
    moves = Field(torch.full((1, 3, *coarse.shape), 0.4), coarse)
    fake(transform=Transform(np.eye(4), moves))
    result = pipeline.run(pair, "rigid+affine+greedy", device="cpu")
    field = result.transform.field
    assert field.grid.matches(pair.fixed.grid)
    assert rim_motion(field.displacement) == 0.0
    assert result.quality["folds_percent"] == 0.0
    assert field.displacement[0, :, 11, 14, 10].numpy() == pytest.approx([0.8, 0.8, 0.8], abs=1e-4)
    assert result.inverse.field.grid.matches(pair.moving.grid)
    assert result.quality["inverse_mean_mm"] < 0.3


@pytest.mark.parametrize(
    "failure",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
    ],
)
def test_too_little_memory_leads_to_a_coarser_grid(pair, fake, failure):
    algorithm = fake(
        failures=[failure],
        make=lambda p: Transform(
            np.eye(4), Field(smooth_displacement(p.fixed.grid.shape, 0.6), p.fixed.grid)
        ),
    )
    result, seen = events_of(pipeline.run, pair, "affine+greedy", device="cpu")
    assert [g.shape for g in algorithm.grids][:2] == [(22, 28, 20), (13, 14, 14)]
    assert result.provenance["resolution"] == "half"
    assert any("half the resolution" in e.text for e in seen if e.kind == "message")
    assert result.transform.field.grid.matches(pair.fixed.grid)
    assert result.moved.grid is pair.fixed.grid
    # The motion is the same in mm.
    coarse = Field(smooth_displacement((13, 14, 14), 0.6), algorithm.grids[1])
    middle = [[2.0, 3.0, -1.0]]
    np.testing.assert_allclose(
        result.transform.map_points_ras(middle), coarse.map_points_ras(middle), atol=0.15
    )


def test_the_ladder_ends_with_a_sentence(pair, fake):
    fake(failures=[MemoryError()] * 9)
    with pytest.raises(OutOfMemoryError, match="22 x 28 x 20 voxels.*crop"):
        pipeline.run(pair, "rigid", device="cpu")


def test_a_gpu_falls_back_on_itself_and_then_on_the_cpu():
    rungs = pipeline._rungs(torch.device("cuda", 0))
    assert [(r.device.type, r.coarse) for r in rungs] == [
        ("cuda", False), ("cuda", True), ("cpu", False), ("cpu", True)
    ]  # fmt: skip
    assert all(r.sentence.endswith(".") for r in rungs[1:])


def test_other_errors_are_not_taken_for_memory(pair, fake):
    fake(failures=[RuntimeError("the tensors have different shapes")])
    with pytest.raises(RuntimeError, match="different shapes"):
        pipeline.run(pair, "rigid", device="cpu")
    assert not is_out_of_memory(ValueError("out of memory"))


def test_finishing_falls_back_on_the_cpu(pair, fake, monkeypatch):
    fake(transform=Transform(pairs.known_matrix()))
    calls = []

    def fails_once(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return warp_image(*arguments)

    monkeypatch.setattr(pipeline, "warp_image", fails_once)
    # No GPU here: a second name of the CPU stands for it.
    monkeypatch.setattr(
        pipeline, "_climb_down",
        lambda *a: (Result(Transform(pairs.known_matrix())),
                    pipeline._Rung(torch.device("cpu", 0), False, "")),
    )  # fmt: skip
    result, seen = events_of(pipeline.run, pair, "rigid", device="cpu")
    assert len(calls) == 2 and any("finishing on the CPU" in e.text for e in seen)
    assert result.moved is not None


def test_cancel_and_stop(pair, fake):
    fake(transform=Transform(pairs.known_matrix()))
    progress = Progress(lambda event: progress.cancel())
    with pytest.raises(Cancelled):
        pipeline.run(pair, "rigid+affine", device="cpu", progress=progress)
    progress = Progress(lambda event: progress.stop())
    result = pipeline.run(pair, "rigid+affine", device="cpu", progress=progress)
    assert result.provenance["stopped_early"] and list(result.seconds) == ["rigid"]


def test_bad_requests_end_before_anything_runs(pair, fake):
    algorithm = fake(transform=Transform())
    for arguments, error in (
        (("nothing",), ParameterError),
        (("rigid", "quick"), ParameterError),
        (("rigid", "fast", {"speed": 1}), ParameterError),
        (("rigid", "fast", {"samples": -1}), ParameterError),
        (("rigid", "fast", {}, "gpu"), ParameterError),
        (("rigid", "fast", {}, "cuda:x"), ParameterError),
    ):
        with pytest.raises(error):
            pipeline.run(pair, *arguments)
    with pytest.raises(InputError, match="same volume"):
        pipeline.run(type(pair)(pair.fixed, pair.fixed), "rigid")
    assert not algorithm.grids


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_devices_without_a_gpu():
    assert pipeline.choose_device("auto")[0].type == "cpu"
    with pytest.raises(ParameterError, match="doctor"):
        pipeline.choose_device("cuda")


def test_a_gpu_that_does_not_compute_is_not_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def broken(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution")

    monkeypatch.setattr(torch, "ones", broken)
    device, remark = pipeline.choose_device("auto")
    assert device.type == "cpu" and "no kernel image" in remark
    with pytest.raises(ParameterError, match="no kernel image"):
        pipeline.choose_device("cuda")


def test_a_given_displacement_file_keeps_its_linear_part(pair, fake, tmp_path):
    """A displacement image holds the whole motion; faded at the rim, the shift would be lost."""
    shift = np.eye(4)
    shift[:3, 3] = (12.0, -6.0, 5.0)
    grid = pair.fixed.grid
    truth = Transform(shift, Field(smooth_displacement(grid.shape, 1.0), grid))
    write_transform(truth, tmp_path / "start.nrrd", grid)
    start = read_transform(tmp_path / "start.nrrd")
    algorithm = fake(make=lambda p: p.initial)
    given = type(pair)(pair.fixed, pair.moving, initial=start, initial_is_given=True)
    result = pipeline.run(given, "rigid", device="cpu")
    np.testing.assert_allclose(algorithm.initials[0].linear, shift, atol=1e-3)
    points = pairs.body_points()
    np.testing.assert_allclose(
        result.transform.map_points_ras(points), truth.map_points_ras(points), atol=0.02
    )


def test_the_background_is_the_low_end_of_the_values():
    grid = make_grid("RAS", (20, 20, 20))
    ct = torch.full((1, 1, 20, 20, 20), -1000.0)
    ct[..., 5:15, 5:15, 5:15] = 40.0
    ct[0, 0, 0, 0, 0] = -30000.0  # one odd voxel
    assert background_value(Image(ct, grid, "int16")) == -1000.0
    assert background_value(Image(ct.clamp(min=0), grid)) == 0.0
    moved = warp_image(Image(ct, grid, "int16"), Transform(), grid.padded(2))
    assert moved.data[0, 0, 1, 1, 1] == -1000.0 and moved.pixel_type == "int16"


def test_points_of_the_moving_image_go_where_the_moved_image_shows_them():
    grid = make_grid("oblique", (24, 30, 18), (1.5, 1.0, 2.0))
    transform = Transform(pairs.known_matrix(), Field(smooth_displacement(grid.shape, 2.5), grid))
    inside = grid.center_ras + np.random.default_rng(0).uniform(-6, 6, (30, 3))
    moving = transform.map_points_ras(inside)
    moving[3] = np.nan
    back = carry_points_ras(transform, moving)
    assert np.isnan(back[3]).all()
    keep = np.arange(30) != 3
    np.testing.assert_allclose(back[keep], inside[keep], atol=1e-4)


def test_points_where_the_transform_folds_are_refused():
    grid = make_grid("RAS", (16, 16, 16), (1.0, 1.0, 1.0))
    displacement = torch.zeros(1, 3, *grid.shape)
    displacement[0, 0, 8:] = 6.0  # a gap: nothing maps to what lies in it
    transform = Transform(np.eye(4), Field(displacement, grid))
    torn = grid.to_ras([[10.5, 8.0, 8.0]])
    try:
        carried = carry_points_ras(transform, torn)
    except InputError as error:
        assert "folds" in str(error)
    else:
        np.testing.assert_allclose(transform.map_points_ras(carried), torn, atol=0.11)


def test_peak_memory_is_that_of_the_run():
    gc.collect()  # what earlier tests left must not be given back in between
    memory = PeakMemory(torch.device("cpu"))
    before = memory.megabytes()
    block = torch.ones(160 * 2**18)  # 160 MiB
    after = memory.megabytes()
    assert float(block[0]) == 1.0 and (before is None or after > before)


def test_the_provenance_names_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    system = registry.create("vxm")
    values = {p.name: system.values[p.name] for p in registry.spec("vxm").parameters if p.training}
    card = models.ModelCard("m", "vxm", values, 4.0, (16, 16, 16), data="generated", terms="CC0")
    save_model(tmp_path / "m.safetensors", system.build(), card)
    result = pipeline.run(pairs.make_pair(), "+vxm", device="cpu")
    said = result.provenance["learned"]["vxm"]["model"]
    assert (said["name"], said["data"], said["terms"]) == ("m", "generated", "CC0")
    json.dumps(job.plain(pipeline.report(result)))
    assert (
        "learned" not in pipeline.run(pairs.make_pair(), "rigid", "fast", device="cpu").provenance
    )


def test_a_registration_imports_nothing_that_takes_long():
    """Some functions of torch import sympy and a compiler first, more than a second."""
    lines = (
        "import sys; sys.path[:0] = sys.argv[1:]",
        "import pairs; from DeepRegLib import pipeline",
        "pipeline.run(pairs.make_pair(), 'rigid+affine+greedy', 'fast', device='cpu')",
        "print(*({'sympy', 'torch._dynamo', 'torch._inductor', 'scipy'} & set(sys.modules)))",
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(root), str(root / "Testing")],
        capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.split() == [], done.stdout
