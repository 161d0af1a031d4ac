"""When kernels run, when torch does, and what a failing kernel leads to. Needs no Triton."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from DeepRegLib import kernels
from DeepRegLib.errors import GeometryError
from DeepRegLib.kernels import dispatch, operations

ROOT = Path(__file__).resolve().parents[3]
SHAPE = (4, 5, 6)
IMAGE, FIELD = torch.rand(1, 1, *SHAPE), torch.rand(1, 3, *SHAPE)
CALLS = {
    "sample_linear": lambda: kernels.sample_linear(IMAGE, FIELD),
    "warp": lambda: kernels.warp(IMAGE, FIELD, np.eye(4)),
    "warp_with_inside": lambda: kernels.warp_with_inside(IMAGE, FIELD),
    "compose": lambda: kernels.compose(FIELD, FIELD, torch.tensor(0.5)),
    "force": lambda: kernels.force(IMAGE, IMAGE),
    "lncc": lambda: kernels.lncc(IMAGE, IMAGE, IMAGE),
    "joint_histogram": lambda: kernels.joint_histogram(IMAGE, IMAGE, 16, IMAGE),
    "histogram_slope": lambda: kernels.histogram_slope(IMAGE, IMAGE, torch.rand(16, 16)),
    "convolve": lambda: kernels.convolve(IMAGE, [[0.2, 0.6, 0.2], None, None]),
    "max_norm": lambda: kernels.max_norm(FIELD),
}


@pytest.fixture(autouse=True)
def _ordinary(monkeypatch, no_switched_off_kernels):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("DEEPREG_TRITON", raising=False)


@pytest.fixture
def supported(monkeypatch):
    """As on a machine with a GPU and Triton."""
    monkeypatch.setattr(dispatch, "_device_supported", lambda device: device.type == "cpu")
    monkeypatch.setattr(dispatch, "_triton_imports", lambda: True)


@pytest.fixture
def broken(supported, monkeypatch):
    """Kernels whose modules fail to load, as without a C compiler; yields the names asked for."""
    asked = []

    def module(name):
        asked.append(name)
        raise RuntimeError("Failed to find C compiler.\nSecond line")

    monkeypatch.setattr(operations, "module", module)
    return asked


@pytest.mark.parametrize("name", CALLS)
def test_the_cpu_takes_torch(name):
    assert not kernels.available(IMAGE)
    assert CALLS[name]() is None


def test_every_public_operation_is_tried_here():
    assert set(CALLS) == set(kernels.__all__) - {"available", "StepGraph"}


def test_what_the_kernels_cannot_read_takes_torch(supported):
    assert kernels.available(IMAGE, FIELD)
    assert kernels.available(IMAGE.half(), FIELD.bfloat16())
    assert not kernels.available()
    assert not kernels.available(IMAGE, FIELD.double())
    assert not kernels.available(IMAGE.int())
    assert not kernels.available(IMAGE, FIELD.to("meta"))
    assert not kernels.available(IMAGE[:, :, :0])
    assert not kernels.available(torch.rand(1).expand(1, 1, 2048, 1024, 1024))
    assert kernels.available(torch.rand(1).expand(4, 64, 1024, 1024, 1024))


def test_autograd_takes_torch(supported):
    followed = IMAGE.clone().requires_grad_(True)
    assert not kernels.available(FIELD, followed)
    with torch.no_grad():
        assert kernels.available(FIELD, followed)


def test_the_environment_switches_off(supported, monkeypatch):
    monkeypatch.setenv("DEEPREG_TRITON", "0")
    assert not kernels.available(IMAGE)
    monkeypatch.setenv("DEEPREG_TRITON", "1")
    assert kernels.available(IMAGE)


def test_without_triton_nothing_runs_and_nothing_is_said(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(dispatch, "_device_supported", lambda device: True)
    dispatch._triton_imports.cache_clear()
    try:
        with caplog.at_level(logging.DEBUG):
            assert all(call() is None for call in CALLS.values())
    finally:
        dispatch._triton_imports.cache_clear()
    assert not caplog.records


@pytest.mark.parametrize(("capability", "runs"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_old_gpus_take_torch(monkeypatch, capability, runs):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(dispatch, "_capability", lambda index: capability)
    assert dispatch._device_supported(torch.device("cuda", 0)) is runs
    assert not dispatch._device_supported(torch.device("mps"))
    assert not dispatch._device_supported(torch.device("cpu"))


@pytest.mark.parametrize("name", CALLS)
def test_a_failing_kernel_switches_itself_off_once(name, broken, caplog):
    with caplog.at_level(logging.WARNING):
        assert CALLS[name]() is None
        assert CALLS[name]() is None
    assert len(broken) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Failed to find C compiler." in record.getMessage()
    assert "Second line" not in record.getMessage()


def test_other_kernels_go_on(broken):
    assert kernels.force(IMAGE, IMAGE) is None
    assert kernels.max_norm(FIELD) is None
    assert broken == ["triton_sampling", "triton_smoothing"]


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, MemoryError, GeometryError])
def test_lack_of_memory_and_wrong_input_are_no_defects_of_a_kernel(error):
    def fail():
        raise error("no")

    with pytest.raises(error):
        dispatch.attempt("something", fail)
    assert dispatch.attempt("something", lambda: 3) == 3


def test_the_package_imports_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import DeepRegLib.kernels as k;"
        "print([n for n in sys.modules if 'kernels.triton_' in n])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
