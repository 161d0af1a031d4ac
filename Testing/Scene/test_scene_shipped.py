"""Every model that comes with DeepReg, from volume nodes through the worker to nodes."""

import numpy as np
import pytest
import shipped
import slicer
import vtk

from DeepRegLib import models
from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.outcome import Wanted, load, place
from DeepRegLib.bridge.request import RegistrationRequest, collect
from DeepRegLib.bridge.vtk_arrays import map_points
from DeepRegLib.client import WorkerProcess
from DeepRegLib.job import private_folder

pytestmark = pytest.mark.skipif(not shipped.MODELS, reason="no models in this copy")


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """One worker for all models, which knows none of the user's own."""
    pytest.importorskip("torch", reason="needs PyTorch")
    environment = {"OMP_NUM_THREADS": "1", "DEEPREG_MODELS": str(tmp_path_factory.mktemp("own"))}
    with WorkerProcess(environment=environment) as worker:
        yield worker


def _volumes(scene, system):
    """Both brains as nodes; oblique, anisotropic, on different grids."""
    pair, *_ = shipped.pair_for(system)
    return [
        mrml.add_volume(scene, name, image.data[0, 0].numpy(), image.grid)
        for name, image in (("Fixed", pair.fixed), ("Moving", pair.moving))
    ]


@pytest.mark.parametrize("path", shipped.MODELS, ids=lambda path: path.stem)
def test_a_model_brings_a_volume_onto_another(scene, worker, path):
    card = models.read_card(path)
    fixed, moving = _volumes(scene, card.algorithm)
    request = RegistrationRequest(
        fixed, moving, f"+{card.algorithm}", "fast", {"model": card.name}, "cpu"
    )
    with private_folder() as folder:
        worker.submit(collect(request).save(folder))
        outcome = place(scene, request, load(worker.wait(120), folder), Wanted())
    assert outcome.provenance["learned"][card.algorithm]["model"]["name"] == card.name
    _, points, goal = shipped.pair_for(card.algorithm)
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, outcome.transform, general)
    found = map_points(general, points)
    before = np.linalg.norm(points - goal, axis=1).mean()
    left = np.linalg.norm(found - goal, axis=1).mean() / before
    assert left < shipped.LEFT_BY.get(card.algorithm, shipped.LEFT)
