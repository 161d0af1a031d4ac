import importlib.util
import os

import pytest
import torch

#: Odd and different along each axis, so that ragged blocks and mixed-up axes show.
SHAPE = (7, 10, 13)


@pytest.fixture
def device():
    """Where the kernels run: a GPU, or the CPU under Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and Triton's interpreter is off (TRITON_INTERPRET=1)")
    return torch.device("cpu")


@pytest.fixture
def draw(device):
    """Draws uniform numbers of a shape between two bounds, always the same ones."""
    generator = torch.Generator().manual_seed(11)

    def uniform(*shape, low=0.0, high=1.0):
        values = torch.rand(*shape, generator=generator) * (high - low) + low
        return values.to(device)

    return uniform


@pytest.fixture
def no_switched_off_kernels(monkeypatch):
    from DeepRegLib.kernels import dispatch

    monkeypatch.setattr(dispatch, "_switched_off", set())
