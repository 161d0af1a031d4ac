"""The worker's jobs ``population`` and ``transport``."""

import numpy as np
import pairs
import pytest
import torch
from support import smooth_displacement

from DeepRegLib import models, worker_jobs
from DeepRegLib.algorithms import coop_ae, cvae
from DeepRegLib.errors import Cancelled, InputError, ParameterError, WorkerError
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.inputs import to_array
from DeepRegLib.io.itk_transform import write_transform
from DeepRegLib.job import ArrayFile, Job, JobEvent, TransformFile
from DeepRegLib.models import ModelCard
from DeepRegLib.networks.model_file import save_model
from DeepRegLib.population import read_fields
from DeepRegLib.population_latent import judge_fields, transport
from DeepRegLib.registration.base import Progress
from DeepRegLib.worker_files import write_transform as save_transform

SMALL = {
    "cvae": {"encoder": (4, 8, 4), "decoder": (8, 8), "final": 8, "cells": (3, 3, 3), "latent": 5},
    "coop_ae": {"encoder": (4, 8), "decoder": (8, 8), "final": (8,), "autoencoder": (4, 8),
                "cells": (3, 3, 3), "latent": 5},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of models with one of each kind that was never trained."""
    where = tmp_path / "models"
    where.mkdir()
    monkeypatch.setenv("DEEPREG_MODELS", str(where))
    monkeypatch.setattr(models, "SHIPPED", ())
    for part in (cvae, coop_ae):
        key = part.SPEC.key
        system = part.Algorithm(**part.SPEC.values(**SMALL[key]))
        torch.manual_seed(0)
        network = system.build()
        heads = network.decoder.heads if key == "cvae" else [network.autoencoder.head]
        for head in heads:
            torch.nn.init.normal_(head.convolution.weight, 0.0, 0.1)
        values = {p.name: system.values[p.name] for p in part.SPEC.parameters if p.training}
        card = ModelCard(f"small_{key}", key, values, 4.0, (16, 16, 16))
        save_model(where / f"small_{key}.safetensors", network, card)
    return where


def array(folder, name, image):
    np.save(folder / f"{name}.npy", to_array(image))
    return ArrayFile(f"{name}.npy", image.grid.voxel_to_ras.tolist())


def people(count=6):
    """Transforms with different linear parts that bend along two directions."""
    grid = pairs.fixed_grid()
    first, second = (smooth_displacement(grid.shape, 1.2, seed=s, sigma=3.0) for s in (1, 2))
    drawn = torch.randn(count, 2, generator=torch.Generator().manual_seed(5)).tolist()
    made = []
    for number, (a, b) in enumerate(drawn):
        matrix = pairs.known_matrix(shift=(number, -1.0, 2.0))
        made.append(
            (f"person {number}", Transform(matrix, Field(a * first + 0.4 * b * second, grid)))
        )
    return made


def population_job(folder, named, fixed, **parameters):
    transforms = {
        f"transform_{n}": save_transform(folder, f"transform_{n}", transform)
        for n, (_, transform) in enumerate(named, start=1)
    }
    names = {f"transform_{n}": name for n, (name, _) in enumerate(named, start=1)}
    return Job("population", str(folder), {"fixed": array(folder, "fixed", fixed)}, transforms,
               {"names": names, **parameters})  # fmt: skip


def loaded(folder, event, name):
    return np.load(folder / event.arrays[name].file)


def test_mean_and_modes_add_up_to_the_deformations(tmp_path):
    """What a panel adds up from the arrays is what the library says along the modes."""
    named, fixed = people(), pairs.make_image(pairs.fixed_grid())
    events = []
    job = population_job(tmp_path, named, fixed, modes=2)
    done = worker_jobs.run(job, Progress(events.append))
    modes = read_fields(named, fixed)
    assert done.data["subjects"][0]["name"] == modes.ranking()[0].name
    assert done.data["subjects"][0]["residual_mm"] == pytest.approx(
        modes.ranking()[0].residual_mm, abs=1e-4
    )
    assert done.data["modes"] == 2 and set(done.arrays) == {"mean", "mode_1", "mode_2"}
    assert np.allclose(done.arrays["mode_1"].voxel_to_ras, modes.grid.voxel_to_ras)
    coefficients = (1.5, -2.0)
    added = loaded(tmp_path, done, "mean") + sum(
        c * loaded(tmp_path, done, f"mode_{k}") for k, c in enumerate(coefficients, start=1)
    )
    wanted = modes.transform(coefficients).field.faded(1).to_ras_mm()[0].numpy()
    np.testing.assert_allclose(added, wanted, atol=1e-4)
    assert np.abs(added[:, 0]).max() == 0.0 and np.abs(added).max() > 1.0, "at rest at the rim"
    # Two directions hold all: each subject is where its coefficients say.
    for row in done.data["subjects"]:
        index = modes.names.index(row["name"])
        own = modes.transform(row["coefficients"]).field.displacement[0]
        assert torch.allclose(own, modes.fields[index], atol=5e-3)
    shares = [e.fraction for e in events if e.kind == "progress"]
    assert shares == sorted(shares) and len(set(shares)) > 4
    assert JobEvent.from_line(done.to_line()).data["variance_explained"][1] > 0.999


def test_a_folder_of_files_in_place_of_arrays(tmp_path):
    named, fixed = people(), pairs.make_image(pairs.fixed_grid())
    there = tmp_path / "results"
    there.mkdir()
    for name, transform in named:
        write_transform(transform, there / f"{name}.h5", fixed.grid)
    job = Job("population", str(tmp_path), {"fixed": array(tmp_path, "fixed", fixed)}, {},
              {"folder": str(there)})  # fmt: skip
    done = worker_jobs.run(job, Progress())
    assert sorted(row["name"] for row in done.data["subjects"]) == [name for name, _ in named]
    assert done.data["modes"] == 2, "the others hold nothing"
    with pytest.raises(WorkerError, match="needs transforms"):
        worker_jobs.run(Job("population", str(tmp_path), job.arrays), Progress())


def test_few_subjects_have_modes_but_no_ranking(tmp_path):
    named, fixed = people(3), pairs.make_image(pairs.fixed_grid())
    done = worker_jobs.run(population_job(tmp_path, named, fixed, modes=5), Progress())
    assert done.data["modes"] == 2, "there are no more"
    assert [row["name"] for row in done.data["subjects"]] == [name for name, _ in named]
    assert all("residual_mm" not in row for row in done.data["subjects"])
    with pytest.raises(InputError, match="at least 3"):
        worker_jobs.run(population_job(tmp_path, named[:2], fixed), Progress())
    with pytest.raises(ParameterError, match="at least 1"):
        worker_jobs.run(population_job(tmp_path, named, fixed, modes=-1), Progress())
    with pytest.raises(ParameterError, match="no parameter 'mode'"):
        worker_jobs.run(population_job(tmp_path, named, fixed, mode=1), Progress())


def test_a_model_judges_too(tmp_path, folder):
    named, fixed = people(4), pairs.make_image(pairs.fixed_grid())
    job = population_job(tmp_path, named, fixed, model="", device="cpu")
    rows = worker_jobs.run(job, Progress()).data["subjects"]
    judged = judge_fields(named, fixed, device="cpu")
    assert [row["name"] for row in rows] == [row["name"] for row in judged]
    assert rows[0]["atypicality_mm"] == pytest.approx(judged[0]["atypicality_mm"], abs=1e-4)
    assert rows[0]["model"] == "small_coop_ae" and "residual_mm" in rows[0]


def transport_job(folder, images, starts, **parameters):
    arrays = {name: array(folder, name, image) for name, image in images.items()}
    transforms = {name: TransformFile(matrix.tolist()) for name, matrix in starts.items()}
    return Job("transport", str(folder), arrays, transforms, {"device": "cpu", **parameters})


def test_the_worker_transports_as_the_library_does(tmp_path, folder):
    matrix, linear = pairs.known_matrix(), pairs.known_matrix(scale=1.05)
    pair = pairs.make_pair(matrix)
    other = pairs.make_image(pairs.moving_grid(), np.linalg.inv(linear))
    images = {"fixed": pair.fixed, "moving": pair.moving, "subject": other}
    starts = {"initial": matrix, "subject_transform": linear}
    job = transport_job(tmp_path, images, starts, strength=0.5)
    done = worker_jobs.run(job, Progress())
    wanted = transport(pair.fixed, pair.moving, other, strength=0.5, initial_transform=matrix,
                       subject_transform=linear, device="cpu")  # fmt: skip
    deformed = loaded(tmp_path, done, "deformed")
    np.testing.assert_allclose(deformed, to_array(wanted.deformed), atol=1e-3)
    described = done.transforms["transform"].field
    vectors = np.load(tmp_path / described.file)
    np.testing.assert_allclose(vectors, wanted.transform.field.to_ras_mm()[0].numpy(), atol=1e-4)
    assert np.allclose(described.voxel_to_ras, other.grid.voxel_to_ras)
    told = done.data
    assert told["model"] == "small_cvae" and told["strength"] == 0.5
    assert told["code"] == pytest.approx(wanted.code)
    lengths = np.linalg.norm(vectors, axis=0)
    assert 0.0 < told["mean_mm"] < told["largest_mm"] <= lengths.max() + 1e-4
    assert 0.0 <= told["folds_percent"] <= 100.0


def test_what_does_not_fit_is_refused(tmp_path, folder):
    pair = pairs.make_pair()
    images = {"fixed": pair.fixed, "moving": pair.moving, "subject": pair.moving}
    for words, error, said in (
        ({"model": "unknown"}, ParameterError, "unknown"),
        ({"alignment": "elastic"}, ParameterError, "alignment is affine"),
    ):
        with pytest.raises(error, match=said):
            worker_jobs.run(transport_job(tmp_path, images, {}, **words), Progress())
    del images["subject"]
    with pytest.raises(WorkerError, match="array 'subject'"):
        worker_jobs.run(transport_job(tmp_path, images, {}), Progress())
    stopped = Progress()
    stopped.cancel()
    with pytest.raises(Cancelled):
        job = population_job(tmp_path, people(4), pair.fixed)
        worker_jobs.run(job, stopped)
