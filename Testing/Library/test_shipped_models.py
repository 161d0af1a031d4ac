"""The models that come with DeepReg: their cards, their size, and that they have learned."""

import pytest
import shipped
import torch

from DeepRegLib import models, registry
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.networks.model_file import load_weights
from DeepRegLib.registration.base import Progress

pytestmark = pytest.mark.skipif(not shipped.MODELS, reason="no models in this copy")
#: Largest size of one file and of all, bytes.
ONE, ALL = 8 << 20, 60 << 20


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=shipped.MODELS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_all_are_small():
    assert sum(path.stat().st_size for path in shipped.MODELS) < ALL


def test_the_card_tells_what_a_user_has_to_know(path):
    assert path.stat().st_size < ONE
    card = models.read_card(path)
    assert card.name == path.stem and card.algorithm in registry.specs()
    assert "brain" in card.anatomy and card.contrast and "generated" in card.data
    assert "Apache-2.0" in card.terms and "not for diagnosis" in card.terms
    figures = card.figures
    assert figures["dice"] > figures["dice_before"]
    assert card.training["steps"] > 100


def test_it_is_found_without_a_name(path, monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    algorithm = models.read_card(path).algorithm
    assert models.find_model(algorithm).bundled


def test_it_undoes_a_known_deformation(path):
    """On oblique, anisotropic, different grids, and on a brain that it never saw."""
    pair, *_ = shipped.known_pair()
    algorithm = models.read_card(path).algorithm
    system = registry.create(algorithm, model=str(path))
    result = system.register(pair, Progress())
    before, after = shipped.error_mm(Transform()), shipped.error_mm(result.transform)
    assert before > 3.0
    assert after < shipped.LEFT_BY.get(algorithm, shipped.LEFT) * before, (before, after)


def test_its_weights_are_numbers(path):
    weights = load_weights(path)
    assert weights and all(torch.isfinite(value).all() for value in weights.values())
