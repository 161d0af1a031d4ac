"""What all levels of tests share: the data folder, thread limits, and the GPU mark."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Several processes share the cores: threads that wait must not spin. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_configure(config):
    """Several test processes share the cores; each takes one thread."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("MKL_NUM_THREADS", "1")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and this machine has none")


@pytest.fixture(scope="session")
def data_folder():
    """Folder of the real volumes; skips where they are absent."""
    folder = Path(os.environ.get("DEEPREG_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real volumes are absent; set DEEPREG_DATA to their folder")
    return folder
