"""The job ``train``, in a real worker process."""

import json
from pathlib import Path

import numpy as np
import pytest

from DeepRegLib import models
from DeepRegLib.client import WorkerProcess
from DeepRegLib.errors import InputError, WorkerError
from DeepRegLib.job import ArrayFile, Job, private_folder

#: An oblique grid in the order of a scene's arrays.
MATRIX = np.array(
    [[0.0, -0.5, 2.9, 7.0], [0.3, 2.4, 0.5, -4.0], [2.0, 0.0, 0.0, 11.0], [0, 0, 0, 1]]
)


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def worker(models_folder):
    environment = {"OMP_NUM_THREADS": "1", "DEEPREG_MODELS": str(models_folder)}
    with WorkerProcess(environment=environment) as process:
        yield process


@pytest.fixture
def folder():
    with private_folder() as path:
        yield Path(path)


def job(folder, count=5, labels=True, **parameters):
    generator = np.random.default_rng(1)
    arrays = {}
    for number in range(1, count + 1):
        where = np.meshgrid(*[np.arange(n) for n in (18, 14, 12)], indexing="ij")
        center = np.array([8.5, 6.5, 5.5]) + generator.uniform(-1, 1, 3)
        away = sum(((w - c) / r) ** 2 for w, c, r in zip(where, center, (7, 5, 4.5)))
        image = np.int16(100 * (away < 1) + 80 * (away < 0.4))
        for name, array in (
            ("image", image),
            ("labels", np.uint8(image > 0) + np.uint8(image > 120)),
        ):
            if name == "image" or labels:
                np.save(folder / f"{name}_{number}.npy", array)
                arrays[f"{name}_{number}"] = ArrayFile(f"{name}_{number}.npy", MATRIX.tolist())
    wanted = {
        "algorithm": "vxm", "alignment": "none", "spacing": 2.5, "shape": [16, 16, 16],
        "parameters": {"encoder": [4], "decoder": [4], "final": [2]},
        "settings": {"steps": 6, "validate_every": 3, "device": "cpu"},
        "names": {f"image_{n}": f"Patient {n}" for n in range(1, count + 1)}, **parameters,
    }  # fmt: skip
    return Job("train", str(folder), arrays, parameters=wanted)


def test_volumes_of_the_scene_become_a_model(worker, folder, models_folder):
    structures = {"1": "Body", "2": "Core"}
    worker.submit(job(folder, name="scene", structure_names=structures))
    seen = []
    done = worker.wait(120, seen.append)
    data = done.data
    assert data["model"] == "scene" and data["ended"] == "complete"
    assert data["path"] == str(models_folder / "scene.safetensors")
    card = models.read_card(data["path"])
    assert card.shape == (16, 16, 16) and card.parameters == data["card"]["parameters"]
    assert card.training["structure_names"] == structures
    assert data["figures"]["dice_before"] > 0.5 and "dice" in data["figures"]
    kinds = [row["kind"] for row in data["history"]]
    assert (
        kinds.count("training") == 6 and kinds.count("validation") == 3 and kinds[0] == "baseline"
    )
    values = [event.value for event in seen if event.kind == "progress" and event.value is not None]
    assert values and any(event.kind == "stage" and event.stage == "train" for event in seen)
    assert any(event.kind == "message" and "Dice" in event.text for event in seen)
    fractions = [event.fraction for event in seen if event.kind == "progress"]
    assert fractions == sorted(fractions) and 0 < fractions[-1] <= 1
    assert (Path(data["curves"]) / "history.json").exists()
    text = json.dumps(card.training)
    assert "Patient" not in text, "a model tells nobody's name"
    # Copies of the volumes are in the job's folder only, which the client removes.
    assert not (models_folder / "prepared").exists()


def test_a_stop_keeps_the_best_and_a_folder_will_do(worker, folder, models_folder):
    images = folder / "images"
    images.mkdir()
    first = job(folder, name="unused")
    from DeepRegLib.worker_training import _write_table

    table = _write_table(first, images)
    parameters = {**first.parameters, "name": "stopped", "data": str(table),
                  "cache": str(folder / "prepared"), "settings": {"steps": 100000, "device": "cpu"}}  # fmt: skip
    parameters.pop("names")
    worker.submit(Job("train", str(folder), parameters=parameters))

    def stop_in_the_middle(event):
        if event.kind == "progress" and event.value is not None:
            worker.stop_and_keep()

    done = worker.wait(120, stop_in_the_middle)
    assert done.data["ended"] == "stopped"
    assert 0 < done.data["card"]["training"]["steps_done"] < 100000
    assert models.read_card(models_folder / "stopped.safetensors").training["ended"] == "stopped"


def test_what_does_not_fit_gets_a_sentence(worker, folder):
    whole = job(folder, name="scene-2")
    for change, expected in (
        ({"algorithm": "greedy"}, "without being trained"),
        ({"algorithm": "magic"}, "no algorithm"),
        ({"speed": 3}, "no option 'speed'"),
        ({"settings": {"steps": -1}}, "'steps' takes"),
        ({"settings": 7}, "'settings'"),
        ({"data": str(folder)}, "Train either on"),
    ):
        worker.submit(
            Job("train", str(folder), whole.arrays, parameters={**whole.parameters, **change})
        )
        with pytest.raises(InputError, match=expected):
            worker.wait(120)
    one = {name: array for name, array in whole.arrays.items() if name.endswith("_1")}
    worker.submit(Job("train", str(folder), one, parameters=whole.parameters))
    with pytest.raises(InputError, match="at least two volumes"):
        worker.wait(120)
    worker.submit(Job("train", str(folder), parameters=whole.parameters))
    with pytest.raises(InputError, match="Give images"):
        worker.wait(120)
    odd = {**whole.arrays, "labels_77": whole.arrays["labels_1"]}
    worker.submit(Job("train", str(folder), odd, parameters=whole.parameters))
    with pytest.raises(WorkerError, match="labels_77"):
        worker.wait(120)
    assert worker.alive
