"""Registration by a network: models, fits to a pair, cancel, provenance."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from learned_doubles import Nodes, Tiny, make, only_tiny, put_model

from DeepRegLib.errors import Cancelled, FileFormatError, ParameterError
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.registration import learned
from DeepRegLib.registration.base import Image, ImagePair, Progress


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of models; the registry knows the double alone."""
    return only_tiny(tmp_path, monkeypatch)


def test_a_model_is_found_used_and_named(folder):
    network = Nodes((2, 3, 2), 2.0)
    with torch.no_grad():
        network.nodes.copy_(torch.tensor([0.5, -1.0, 0.25]).view(1, 3, 1, 1, 1))
    put_model(folder, network=network, parameters={"nodes": [2, 3, 2], "factor": 2.0})
    events = []
    pair = pairs.make_pair()
    result = make().register(pair, Progress(events.append))
    middle = result.transform.map_points_ras([[0.0, 0.0, 0.0]])
    # The parameters of the model hold (factor 2), and its voxels of 4 mm.
    np.testing.assert_allclose(middle, [[4.0, -8.0, 2.0]], atol=1e-3)
    about = result.provenance["model"]
    assert about["name"] == "brain" and about["data"] == "generated images"
    assert about["terms"] == "CC0" and about["figures"] == {"dice": 0.8}
    assert result.provenance["values"] == {"code": [1.5]} and result.history == []
    assert result.provenance["pair_steps"] == 0 and result.provenance["windows"] == 1
    assert any("'brain' (brain, T1)" in e.text for e in events if e.kind == "message")
    fractions = [e.fraction for e in events if e.kind == "progress"]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) >= 2


def test_a_value_that_the_model_decides_is_said_to_have_no_use(folder):
    put_model(folder)
    for factor, expected in ((5.0, True), (1.0, False)):
        events = []
        make(factor=factor).register(pairs.make_pair(), Progress(events.append))
        assert any("own 'factor'" in event.text for event in events) == expected


def test_models_that_do_not_fit_the_system_are_refused(folder):
    pair = pairs.make_pair()
    with pytest.raises(ParameterError, match="no model 'none'"):
        make(model="none").register(pair, Progress())
    put_model(folder, "other", algorithm="large")
    with pytest.raises(ParameterError, match="belongs to 'large'"):
        make(model="other").register(pair, Progress())
    put_model(folder, "later", parameters={"nodes": [4, 4, 4], "depth": 3})
    with pytest.raises(FileFormatError, match="parameter 'depth'"):
        make(model="later").register(pair, Progress())
    put_model(folder, "odd", parameters={"nodes": "many"})
    with pytest.raises(FileFormatError, match="'odd' does not fit"):
        make(model="odd").register(pair, Progress())
    put_model(folder, "small", network=Nodes((2, 2, 2), 1.0))
    with pytest.raises(FileFormatError, match="does not fit the network"):
        make(model="small").register(pair, Progress())


def test_without_a_model_the_network_is_fitted_to_the_pair(monkeypatch):
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 60)
    shift = np.eye(4)
    shift[:3, 3] = [4.0, -3.0, 2.5]
    pair, events = pairs.make_pair(shift), []
    result = make(pair_steps=3).register(pair, Progress(events.append, preview_seconds=0.0))
    assert any("no trained model for 'tiny'" in e.text for e in events)
    before, after = pairs.error_mm(Transform(), shift), pairs.error_mm(result.transform, shift)
    assert after < 0.35 * before, (before, after)
    values = [entry["value"] for entry in result.history]
    assert len(values) == 60 and values[-1] < 0.6 * values[0]
    assert {"level", "iteration", "value"} <= set(result.history[0])
    assert result.provenance["model"] is None
    previews = [e.transform for e in events if e.kind == "preview"]
    assert pairs.error_mm(previews[-1], shift) < pairs.error_mm(previews[0], shift)


def test_random_weights_are_the_same_each_time():
    pair, found = pairs.make_pair(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(make().register(pair, Progress()).transform.field.displacement)
    assert torch.equal(*found)


def test_a_network_is_fitted_from_the_start_that_is_given(monkeypatch):
    """The fit makes up for what the start leaves, on top of it."""
    monkeypatch.setattr(learned, "_SCRATCH_STEPS", 60)
    matrix = pairs.known_matrix()
    start = matrix.copy()
    start[:3, 3] += [2.5, -2.0, 2.0]
    pair = pairs.make_pair(matrix, initial=Transform(start))
    result = make().register(pair, Progress())
    assert pairs.error_mm(result.transform, matrix) < 0.5 * pairs.error_mm(Transform(start), matrix)


def test_what_is_fitted_to_a_pair_never_reaches_the_next(folder):
    put_model(folder)
    path = folder / "brain.safetensors"
    content, state = path.read_bytes(), torch.get_rng_state()
    one, other = pairs.make_pair(), pairs.make_pair(pairs.known_matrix(shift=(-6.0, 2.0, 1.0)))
    alone = make(pair_steps=4).register(other, Progress())
    system = make(pair_steps=4)
    values = dict(system.values)
    system.register(one, Progress())
    after = system.register(other, Progress())
    assert torch.equal(after.transform.field.displacement, alone.transform.field.displacement)
    plain = make().register(other, Progress())
    assert not torch.equal(plain.transform.field.displacement, after.transform.field.displacement)
    assert path.read_bytes() == content and dict(system.values) == values
    assert torch.equal(torch.get_rng_state(), state)


def test_cancel_and_stop(folder):
    pair = pairs.make_pair()
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        make().register(pair, progress)

    def stop_at(count):
        seen = []

        def listen(event):
            seen.append(event)
            if sum(e.kind == "progress" for e in seen) >= count:
                progress.stop()

        progress = Progress(listen)
        return make(pair_steps=50).register(pair, progress), seen

    # Before the first step, random weights are nothing to keep.
    result, seen = stop_at(1)
    assert result.transform.is_linear and len([e for e in seen if e.kind == "progress"]) <= 2
    result, _ = stop_at(5)
    assert not result.transform.is_linear and 1 <= len(result.history) < 10
    put_model(folder)
    result, _ = stop_at(1)
    assert not result.transform.is_linear and result.history == []


def test_labels_are_only_measured_unless_the_system_asks(folder):
    put_model(folder)
    seen = []

    class Curious(Tiny):
        def training_loss(self, network, batch):
            seen.append(batch.fixed_labels)
            return super().training_loss(network, batch)

    pair = replace(pairs.make_pair(), fixed_labels=pairs.make_labels(pairs.fixed_grid()),
                   moving_labels=pairs.make_labels(pairs.moving_grid()))  # fmt: skip
    make(Curious, pair_steps=1).register(pair, Progress())
    assert all(labels is None for labels in seen)
    Curious.fits_labels = True
    seen.clear()
    make(Curious, pair_steps=1).register(pair, Progress())
    assert all(set(labels.unique().tolist()) == {0, 1, 2, 3} for labels in seen)


def test_two_slices_stay_in_their_plane(folder):
    network = Nodes((4, 4, 4), 1.0)
    with torch.no_grad():
        network.nodes.copy_(torch.tensor([0.5, -1.0, 0.7]).view(1, 3, 1, 1, 1))
    put_model(folder, network=network)
    whole, events = pairs.make_pair(), []
    flat = [
        Image(image.data[:, :, :, :, image.grid.shape[2] // 2 :][..., :1],
              image.grid.cropped((0, 0, image.grid.shape[2] // 2), (*image.grid.shape[:2], 1)))
        for image in (whole.fixed, whole.fixed)
    ]  # fmt: skip
    result = make().register(ImagePair(*flat), Progress(events.append))
    vectors = result.transform.field.displacement[0]
    assert vectors[2].abs().max() == 0.0 and vectors[:2].abs().max() > 0.1
    assert any("slice" in event.text for event in events)
    volume = make().register(ImagePair(flat[0], whole.moving), Progress())
    assert volume.transform.field.displacement[0, 2].abs().max() > 0.1
