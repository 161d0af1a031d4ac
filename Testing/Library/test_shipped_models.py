"""The models that come with DeepReg: their cards, their size, and that they have learned."""

import numpy as np
import pytest
import shipped
import torch

from DeepRegLib import models, registry
from DeepRegLib.check import check_registration
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.networks.model_file import load_weights
from DeepRegLib.registration.base import Progress

pytestmark = pytest.mark.skipif(not shipped.EVERY, reason="no models in this copy")
#: Largest size of one file and of all, bytes.
ONE, ALL = 8 << 20, 60 << 20


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=shipped.EVERY, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_all_are_small():
    assert sum(path.stat().st_size for path in shipped.EVERY) < ALL


def test_the_card_tells_what_a_user_has_to_know(path):
    assert path.stat().st_size < ONE
    card = models.read_card(path)
    assert card.name == path.stem and registry.spec(card.algorithm).needs.training
    assert "brain" in card.anatomy and card.contrast and "generated" in card.data
    assert "Apache-2.0" in card.terms and "not for diagnosis" in card.terms
    figures = card.figures
    if "dice" in figures:
        assert figures["dice"] > figures["dice_before"]
    else:  # of estimates
        assert figures["correlation"] > 0.5 and figures["rmse_mm"] < figures["deviation_mm"]
    assert card.training["steps"] > 100


def test_it_is_found_without_a_name(path, monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPREG_MODELS", str(tmp_path))
    algorithm = models.read_card(path).algorithm
    assert models.find_model(algorithm).bundled


@pytest.mark.parametrize("path", shipped.MODELS, ids=lambda path: path.stem)
def test_it_undoes_a_known_misalignment(path):
    """On oblique, anisotropic, different grids, and on a brain that it never saw."""
    system = shipped.system_of(path)
    pair, *_ = shipped.pair_for(system)
    result = registry.create(system, model=str(path)).register(pair, Progress())
    before, after = (shipped.error_mm(t, system) for t in (Transform(), result.transform))
    assert before > 3.0
    assert after < shipped.LEFT_BY.get(system, shipped.LEFT) * before, (before, after)


@pytest.mark.parametrize("path", shipped.JUDGES, ids=lambda path: path.stem)
def test_it_tells_where_a_brain_is_bent(path):
    """The estimated error is larger where it is, and goes with the deformation."""
    pair, points, goal = shipped.known_pair()
    found = check_registration(pair.fixed, pair.moving, model=str(path), device="cpu")
    n, m, p = np.rint(pair.fixed.grid.to_voxel(points)).astype(int).T
    said, true = found.error.numpy()[n, m, p], np.linalg.norm(goal - points, axis=1)
    judged = said > 0.0
    assert judged.mean() > 0.9
    assert np.corrcoef(said[judged], true[judged])[0, 1] > 0.5
    undone = check_registration(pair.fixed, pair.moving, shipped.unbent(), model=str(path))
    assert undone.figures["mean_mm"] < 0.5 * found.figures["mean_mm"]


def test_its_weights_are_numbers(path):
    weights = load_weights(path)
    assert weights and all(torch.isfinite(value).all() for value in weights.values())
