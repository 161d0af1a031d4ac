"""Every kernel becomes machine code for GPUs that need not be there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
KERNELS = {
    "_sample_kernel", "_force_kernel", "_convolve_kernel", "_longest_kernel", "_products_kernel",
    "_box_kernel", "_factors_kernel", "_gradient_kernel", "_joint_kernel", "_slope_kernel",
}  # fmt: skip
#: Ampere, Hopper, and a GPU of AMD.
TARGETS = [("cuda", "80", "32", "cubin"), ("cuda", "90", "32", "cubin"),
           ("hip", "gfx942", "64", "hsaco")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[1])
def test_kernels_compile(target, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    program = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, program, *target], env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["failed"] == []
    assert set(told["compiled"]) == KERNELS
    assert all(min(sizes) > 0 for sizes in told["compiled"].values())
