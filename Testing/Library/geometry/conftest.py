import pytest
import torch
from support import ORIENTATIONS, make_grid


@pytest.fixture(params=sorted(ORIENTATIONS))
def grid(request):
    return make_grid(request.param)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)
