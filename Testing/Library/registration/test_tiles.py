"""Windows of images that do not fit into memory."""

from dataclasses import replace

import pairs
import pytest
import torch
from learned_doubles import Local, make, only_tiny, put_model

from DeepRegLib.geometry.transform import Transform
from DeepRegLib.registration import learned
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.tiles import Tiling, predict_in_tiles
from DeepRegLib.registration.trainable import Batch


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of models; the registry knows the double alone."""
    return only_tiny(tmp_path, monkeypatch)


@pytest.mark.parametrize("shape", [(40, 56, 24), (41, 30, 17)])
def test_windows_say_the_same_as_the_whole(shape):
    """A grid that is no multiple of what the network halves by gets background around it."""
    torch.manual_seed(0)
    system = make(Local)
    network = system.build().eval()
    images = torch.zeros(2, 1, 1, *(-(-n // 8) * 8 for n in shape))
    inside = (..., *(slice(n) for n in shape))
    images[inside] = torch.rand(2, 1, 1, *shape)
    tiling = Tiling.of(shape, 24, 8)
    assert len(tiling.starts) >= 4 and all(s % 8 == 0 for start in tiling.starts for s in start)
    with torch.no_grad():
        whole = system.predict(network, *images, 2.0)
        parts = predict_in_tiles(system, network, Batch(*images[inside], 2.0), tiling)
    for part, reference in ((parts.displacement, whole.displacement),
                            (parts.maps["loud_mm"], whole.maps["loud_mm"])):  # fmt: skip
        torch.testing.assert_close(part, reference[inside], atol=1e-5, rtol=0)
    assert (parts.maps["parts"] == whole.maps["parts"][inside]).float().mean() > 0.999
    assert parts.maps["parts"].dtype == torch.int64
    assert len(parts.values["code"]) == len(tiling.starts)


def test_weights_of_windows_fade_towards_their_cuts_alone():
    tiling = Tiling.of((64, 24, 24), 32, 8)
    first = tiling.weights((0, 0, 0), torch.device("cpu"))[0, 0]
    assert first[0].min() == 1.0 and first[-1].max() == 0.0 and first[-2].max() == 0.0
    middle = tiling.weights(tiling.starts[1], torch.device("cpu"))[0, 0]
    assert middle[0].max() == middle[-1].max() == 0.0 and middle[16].min() == 1.0
    assert (first.diff(dim=0) <= 0).all()


def test_too_little_memory_leads_to_windows(folder, monkeypatch):
    """Both the fit and the answer go on in windows; the answer is that of the whole."""
    monkeypatch.setattr(learned, "_EDGES", (16,))
    put_model(folder, network=make(Local).build(), spacing_mm=3.0, shape=(24, 32, 24))
    pair = pairs.make_pair()
    whole = make(Local).register(pair, Progress())
    assert whole.provenance["windows"] == 1
    events = []
    monkeypatch.setattr(Local, "limit", 17**3)
    result = make(Local).register(pair, Progress(events.append))
    assert result.provenance["windows"] >= 8
    assert any("overlapping windows" in e.text for e in events)
    torch.testing.assert_close(result.transform.field.displacement,
                               whole.transform.field.displacement, atol=1e-4, rtol=0)  # fmt: skip
    fitted = make(Local, pair_steps=3).register(pair, Progress())
    assert len(fitted.history) == 3 and fitted.provenance["windows"] >= 8
    monkeypatch.setattr(Local, "limit", 10)
    with pytest.raises(RuntimeError, match="memory"):
        make(Local).register(pair, Progress())
    monkeypatch.setattr(Local, "limit", 17**3)
    monkeypatch.setattr(Local, "in_tiles", False)
    with pytest.raises(RuntimeError, match="memory"):
        make(Local).register(pair, Progress())


def test_a_fit_that_ran_out_of_memory_begins_again_with_the_weights_of_the_model(
    folder, monkeypatch
):
    seen = []

    class Failing(Local):
        def training_loss(self, network, batch):
            if batch.fixed[0, 0].numel() > 17**3 and len(seen) == 2:
                raise RuntimeError("out of memory")
            seen.append(network[0].weight.detach().clone())
            return super().training_loss(network, batch)

    monkeypatch.setattr(learned, "_EDGES", (16,))
    put_model(folder, network=make(Local).build(), spacing_mm=3.0, shape=(24, 32, 24))
    result = make(Failing, pair_steps=4).register(pairs.make_pair(), Progress())
    assert len(result.history) == 4 and not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_large_grids_are_cut_before_memory_runs_out(folder, monkeypatch):
    monkeypatch.setattr(learned, "_EDGES", (16,))
    monkeypatch.setattr(learned, "_MOST_VOXELS", {"cpu": 5000})
    put_model(folder, network=make(Local).build(), spacing_mm=3.0, shape=(24, 32, 24))
    assert make(Local).register(pairs.make_pair(), Progress()).provenance["windows"] >= 8


def test_other_errors_are_not_taken_for_a_lack_of_memory(folder, monkeypatch):
    def fail(self, fixed):
        raise RuntimeError("a defect")

    monkeypatch.setattr(Local, "_check", fail)
    put_model(folder, network=make(Local).build())
    with pytest.raises(RuntimeError, match="a defect"):
        make(Local).register(pairs.make_pair(), Progress())


@pytest.mark.gpu
def test_the_gpu_gives_the_same(folder):
    put_model(folder, network=make(Local).build(), spacing_mm=3.0, shape=(24, 32, 24))
    pair = replace(pairs.make_pair(), initial=Transform(pairs.known_matrix()))
    for steps in (0, 3):
        here = make(Local, pair_steps=steps).register(pair, Progress())
        there = make(Local, pair_steps=steps).register(pair.to("cuda"), Progress())
        assert there.transform.field.displacement.device.type == "cuda"
        apart = there.transform.field.displacement.cpu() - here.transform.field.displacement
        assert apart.abs().max() < 1e-2
    state = torch.cuda.get_rng_state()
    make(Local, pair_steps=1).register(pair.to("cuda"), Progress())
    assert torch.equal(torch.cuda.get_rng_state(), state)
