import csv
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from training_doubles import SHAPE, SHIFT, TWO_STAGES, Blobs, Shifter

from DeepRegLib.errors import Cancelled, FileFormatError, InputError, ParameterError
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.trainable import Prediction, Stage
from DeepRegLib.training import validation
from DeepRegLib.training.distributed import World
from DeepRegLib.training.events import TrainingEvent
from DeepRegLib.training.schedule import enter, learning_rate, mixed_seed, plan
from DeepRegLib.training.settings import PARAMETERS, TrainingSettings
from DeepRegLib.training.step import Supply
from DeepRegLib.training.trainer import Trainer

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(**values):
    # The network of a few weights that learns here bears a large step size, but only Adam's.
    return TrainingSettings(**{"steps": 12, "learning_rate": 0.02, "warmup": 2, "batch": 2,
                               "optimizer": "adam", "validate_every": 4, "device": "cpu",
                               **values})  # fmt: skip


def train(folder, algorithm=None, source=None, progress=None, **values):
    return Trainer(
        algorithm or Shifter(), source or Blobs(), settings(**values), folder, progress
    ).run()


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


class Stopping(Progress):
    """Stops or cancels after so many reports."""

    def __init__(self, after, wish="stop"):
        self.events = []
        super().__init__(self.events.append)
        self.after, self.wish = after, wish

    def update(self, fraction, value=None):
        self.after -= 1
        if self.after == 0:
            getattr(self, self.wish)()
        super().update(fraction, value)


def test_a_training_learns_the_shift(tmp_path):
    events = []
    result = train(
        tmp_path, progress=Progress(events.append), steps=60, learning_rate=0.03, validate_every=20
    )
    assert result.ended == "complete" and result.steps == 60
    assert not result.network.training and all(p.requires_grad for p in result.network.parameters())
    figures = result.figures
    assert figures["dice"] > figures["dice_before"] + 0.3
    assert figures["ncc"] > figures["ncc_before"] + 0.2
    assert figures["error_mm"] < 0.6 * figures["error_before_mm"]
    assert figures["error_before_mm"] == pytest.approx(math.hypot(*SHIFT) * 3.0, rel=1e-5)
    training = [row for row in result.history if row["kind"] == "training"]
    assert [row["step"] for row in training] == list(range(1, 61))
    first, last = training[0], training[-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert first["loss"] == pytest.approx(first["loss_image"] + first["loss_size"])
    validated = [row["step"] for row in result.history if row["kind"] == "validation"]
    assert validated == [0, 20, 40, 60]
    assert result.history[0]["kind"] == "baseline"
    check_files(tmp_path, result)
    check_events(events)


def check_files(folder, result):
    saved = json.loads((folder / "history.json").read_text())
    assert len(saved["rows"]) == len(result.history) and saved["steps"] == 60
    with (folder / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(result.history)
    assert float(rows[-1]["dice"]) == pytest.approx(result.history[-1]["dice"])
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")


def check_events(events):
    points = [event.data for event in events if isinstance(event, TrainingEvent)]
    assert [p["step"] for p in points if p["point"]["kind"] == "training"] == list(range(1, 61))
    assert points[-1]["seconds_left"] == 0 and points[20]["seconds_left"] > 0
    fractions = [event.fraction for event in events if event.kind == "progress"]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    told = [event.text for event in events if event.kind == "message"]
    assert any("Dice 0." in text and "before" in text and "Step 40 of 60" in text for text in told)


def test_the_same_seed_gives_the_same_weights_and_leaves_random_numbers_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = train(tmp_path / "a").network
    assert torch.equal(torch.rand(1), expected)
    torch.rand(17)
    assert same(one, train(tmp_path / "b").network)
    assert not same(one, train(tmp_path / "c", seed=1).network)
    # How often is validated does not change what is learned.
    last = train(tmp_path / "d", source=Blobs(0), validate_every=1).network
    assert same(last, train(tmp_path / "e", source=Blobs(0), validate_every=12).network)


def test_accumulated_batches_are_averaged(tmp_path):
    draws = []
    train(tmp_path / "a", source=Blobs(draws=draws), steps=3, accumulate=4)
    assert draws == [mixed_seed(0, number, "pairs") for number in range(12)]
    gradients = []
    for accumulate in (1, 2):

        class Same(Blobs):
            def draw(self, count, generator):
                return super().draw(count, torch.Generator().manual_seed(1))

        result = train(tmp_path / f"b{accumulate}", Shifter(noise=0.0), Same(), steps=1,
                       accumulate=accumulate, clip_norm=0)  # fmt: skip
        gradients.append(result.history[-2]["gradient_norm"])
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)


def test_gradients_are_clipped(tmp_path):
    free = Trainer(Shifter(), Blobs(0), settings(steps=1, clip_norm=0), tmp_path / "a").run()
    norm = free.history[-1]["gradient_norm"]

    class Recorder(Shifter):
        def build(self):
            network = super().build()
            network.register_forward_hook(lambda *_: None)
            self.network = network
            return network

    recorder = Recorder()
    train(tmp_path / "b", recorder, Blobs(0), steps=1, clip_norm=norm / 10)
    clipped = torch.stack([p.grad.norm() for p in recorder.network.parameters()]).norm()
    assert float(clipped) == pytest.approx(norm / 10, rel=1e-3)


def test_stages_train_their_part_only(tmp_path):
    algorithm = Shifter(TWO_STAGES)
    torch.manual_seed(0)
    start = {}

    class Watched(Shifter):
        def build(self):
            network = super().build()
            start.update({n: v.clone() for n, v in network.state_dict().items()})
            return network

    one = train(tmp_path / "a", Watched(TWO_STAGES[:1]), Blobs(0), steps=4)
    after = one.network.state_dict()
    changed = {name for name in after if not torch.equal(after[name], start[name])}
    assert changed == {"head.weight", "head.bias"}, "running means of frozen parts stay, too"
    result = train(tmp_path / "b", algorithm, Blobs(0), steps=16)
    assert [name for name, _ in algorithm.batches] == ["head"] * 4 + ["rest"] * 12
    assert [f for _, f in algorithm.batches[:5]] == [0.0, 0.25, 0.5, 0.75, 0.0]
    assert torch.equal(result.network.head.weight, after["head.weight"])
    assert not torch.equal(result.network.encoder.weight, after["encoder.weight"])


def test_plan_and_step_size():
    parts = plan((Stage("a", 1), Stage("b", 1e-9), Stage("c", 2)), 30)
    assert [(p.stage.name, p.first, p.count) for p in parts] == [
        ("a", 0, 10),
        ("b", 10, 1),
        ("c", 11, 19),
    ]
    assert [p.count for p in plan((Stage("a", 1e-9), Stage("b"), Stage("c", 1e-9)), 3)] == [1, 1, 1]
    with pytest.raises(ParameterError, match="3 stages"):
        plan((Stage("a"), Stage("b"), Stage("c")), 2)
    chosen = settings(learning_rate=1.0, warmup=4, schedule="cosine")
    rates = [learning_rate(chosen, n, 100) for n in range(100)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8]) and rates[4] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True) and 0.01 < rates[-1] < 0.012
    assert learning_rate(settings(learning_rate=1.0, schedule="constant"), 99, 100) == 1.0
    assert learning_rate(settings(warmup=1000), 1, 4) == settings().learning_rate
    halves = [learning_rate(chosen, n, 100, 0.5) for n in range(100)]
    assert halves == pytest.approx([r / 2 for r in rates])


def test_an_unknown_part_of_a_network_is_named():
    network = Shifter().build()
    with pytest.raises(ParameterError, match="trains 'tail'"):
        enter(Stage("x", modules=("tail",)), network)
    assert len(enter(Stage("x"), network)) == len(list(network.parameters()))


def test_half_precision_stays_inside_the_network(tmp_path):
    seen = {}

    class Typed(Shifter):
        def training_loss(self, network, batch):
            u = network(torch.cat([batch.fixed, batch.moving], 1))
            seen.update(inside=network.seen, outside=u.dtype)
            terms = super().training_loss(network, batch)
            seen["loss"] = terms["image"].dtype
            return terms

    result = train(tmp_path / "a", Typed(), precision="bfloat16", steps=2)
    assert seen == {"inside": torch.bfloat16, "outside": torch.float32, "loss": torch.float32}
    assert "forward" not in vars(result.network)
    assert all(p.dtype == torch.float32 for p in result.network.parameters())
    events = []
    train(tmp_path / "b", Typed(), progress=Progress(events.append), precision="float16", steps=1)
    assert seen["inside"] == torch.float32
    assert any("float16 needs a GPU" in event.text for event in events)


def test_early_stop_and_the_best_weights(tmp_path):
    scores = iter([0.1, 0.5, 0.9, 0.3, 0.2, 0.1, 0.0])
    kept = {}

    class Judged(Shifter):
        def predict(self, network, fixed, moving, spacing_mm):
            value = next(scores)
            kept[value] = {n: v.clone() for n, v in network.state_dict().items()}
            shift = torch.tensor(SHIFT).reshape(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
            return Prediction(shift * value)

    result = train(tmp_path, Judged(), Blobs(1), steps=50, validate_every=3, patience=2)
    assert result.ended == "early" and result.steps == 12
    best = result.network.state_dict()
    assert all(torch.equal(best[name], kept[0.9][name]) for name in best)
    assert result.figures["error_mm"] == pytest.approx(
        0.1 * result.figures["error_before_mm"], rel=1e-4
    )


def test_stop_keeps_the_best_so_far(tmp_path):
    progress = Stopping(8)
    result = train(tmp_path, progress=progress, steps=1000)
    assert result.ended == "stopped" and result.steps == 7
    assert result.history[-1]["step"] == 7 and "dice" in result.figures


def test_cancel_keeps_a_checkpoint_only(tmp_path):
    whole = train(tmp_path / "whole").network
    with pytest.raises(Cancelled, match="after 5 steps"):
        train(tmp_path / "cut", progress=Stopping(6, "cancel"))
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    assert same(train(tmp_path / "cut").network, whole)


def test_a_step_without_a_number_is_left_out(tmp_path):
    events = []
    result = train(tmp_path, source=Blobs(fail_at=(3,)), progress=Progress(events.append))
    told = [event.text for event in events if "left out" in event.text]
    assert told == ["Step 3 was left out: its loss or gradient is no number."]
    assert result.ended == "complete" and result.steps == 12
    steps = [row["step"] for row in result.history if row["kind"] == "training"]
    assert 3 not in steps and len(steps) == 11
    validated = [row for row in result.history if row["kind"] == "validation"]
    assert all(math.isfinite(row["ncc"]) for row in validated), "running means stay finite, too"
    assert all(value.isfinite().all() for value in result.network.state_dict().values())


def test_many_steps_without_a_number_end_the_training(tmp_path):
    events = []
    source = Blobs(fail_at=range(9, 10_000))
    result = train(tmp_path / "a", source=source, progress=Progress(events.append), steps=500)
    assert result.ended == "diverged" and result.steps == 28
    assert any("20 steps in a row" in event.text for event in events)
    assert result.figures["dice"] >= max(
        row["dice"] for row in result.history if row["kind"] == "validation"
    )
    assert all(value.isfinite().all() for value in result.network.state_dict().values())
    with pytest.raises(InputError, match="came to nothing"):
        train(tmp_path / "b", source=Blobs(fail_at=range(10_000)), steps=30)


def test_validation_counts_what_is_there(tmp_path):
    pairs = Blobs(2).validation()
    shift = torch.tensor(SHIFT).reshape(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)

    class Known(Shifter):
        def __init__(self, prediction):
            super().__init__()
            self.prediction = prediction

        def predict(self, network, fixed, moving, spacing_mm):
            return self.prediction

    network = Shifter().build().train()
    before = validation.untouched(pairs)
    assert set(before) == {"dice_before", "ncc_before", "error_before_mm"}
    found = validation.validate(Known(Prediction(shift)), network, pairs, torch.device("cpu"))
    assert found["dice"] == 1 and found["ncc"] > 0.96 and found["error_mm"] < 1e-4
    assert found["folds_percent"] == 0 and found["sdlogj"] < 1e-6
    assert network.training and network.norm.training
    pairs[0].fixed_labels[:, :, 0, 0, 0] = 7  # a structure that only one image has does not count
    again = validation.validate(Known(Prediction(shift)), network, pairs, torch.device("cpu"))
    assert again["dice"] == 1
    pairs[1].moving_labels[:, :, :, :, 4] = 8  # where the moving image differs
    pairs[1].fixed_labels[:, :, :, :, 0] = 8
    some = Known(Prediction(shift))
    every = validation.validate(some, network, pairs, torch.device("cpu"))
    some.values = {"structures": (1,)}
    one = validation.validate(some, network, pairs, torch.device("cpu"))
    assert every["dice"] < one["dice"] and validation.structures_of(some) == {1}
    assert validation.untouched(pairs, frozenset({1})) != validation.untouched(pairs)
    pairs = Blobs(2).validation()
    linear = torch.eye(4)
    linear[:3, 3] = torch.tensor(SHIFT)
    moved = validation.validate(
        Known(Prediction(linear=linear)), network, pairs, torch.device("cpu")
    )
    assert moved == pytest.approx(found, abs=1e-4)
    folded = torch.zeros(1, 3, *SHAPE)
    folded[:, 1, :, 8:] = -12.0
    bad = validation.validate(Known(Prediction(folded)), network, pairs, torch.device("cpu"))
    assert bad["folds_percent"] > 5 and bad["dice"] < found["dice"]
    unlabelled = Blobs(1, labels=False).validation()
    figures = validation.validate(
        Known(Prediction(shift)), network, unlabelled, torch.device("cpu")
    )
    assert "dice" not in figures and validation.score(figures) == figures["ncc"]
    assert validation.score({}) is None and validation.score({"dice": math.nan}) is None


def test_settings_are_checked():
    assert TrainingSettings.of({"steps": "200", "learning_rate": "1e-4"}).steps == 200
    assert [p.default for p in PARAMETERS] == [
        getattr(TrainingSettings(), p.name) for p in PARAMETERS
    ]
    for name, value in (("steps", 0), ("schedule", "zigzag"), ("precision", "int8"),
                        ("learning_rate", math.nan), ("batch", 1.5)):  # fmt: skip
        with pytest.raises(ParameterError, match=name):
            TrainingSettings.of({name: value})
    with pytest.raises(ParameterError, match="no setting 'speed'"):
        TrainingSettings.of({"speed": 3})


def test_what_does_not_fit_gets_a_sentence(tmp_path):
    class Deep(Shifter):
        multiple = 16

    with pytest.raises(ParameterError, match="take 16 16 32"):
        train(tmp_path, Deep())
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="cannot be written to"):
        train(tmp_path / "file" / "folder")
    with pytest.raises(ParameterError, match="device"):
        train(tmp_path, device="abacus")


def test_batches_drawn_ahead_are_the_same():
    chosen = settings(accumulate=2, batch=3)
    plain, ahead = (
        Supply(Blobs(draws=[]), chosen, torch.device("cpu"), World(1, 2)) for _ in range(2)
    )
    ahead._thread = ThreadPoolExecutor(1)  # as on a GPU
    assert [plain.numbers(step) for step in range(3)] == [[1, 3], [5, 7], [9, 11]]
    for number, following in ((1, 3), (3, 5), (5, 7), (9, 11)):
        one, other = (supply.batch(number, following) for supply in (plain, ahead))
        assert torch.equal(one.fixed, other.fixed) and torch.equal(one.moving, other.moving)
    ahead.close()


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/Testing"]
import torch
from training_doubles import Blobs, Shifter
from DeepRegLib.training.distributed import joined
from DeepRegLib.training.settings import TrainingSettings
from DeepRegLib.training.trainer import Trainer
torch.set_num_threads(1)
with joined() as world:
    folder = Path(sys.argv[1])
    with world.first():
        (folder / "made").mkdir(exist_ok=not world.leads)
    algorithm = Shifter(normalize=False)
    result = Trainer(algorithm, Blobs(1), TrainingSettings(**{settings}), folder, world=world).run()
    torch.save(result.network.state_dict(), folder / f"weights-{{world.rank}}.pt")
"""


def test_two_processes_train_like_one_that_accumulates(tmp_path):
    chosen = {"steps": 5, "learning_rate": 0.02, "warmup": 0, "validate_every": 2, "device": "cpu"}
    (tmp_path / "two").mkdir()
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(root=str(ROOT), settings=chosen))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launcher, script, tmp_path / "two"], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    one = Trainer(Shifter(normalize=False), Blobs(1), TrainingSettings(**chosen, accumulate=2),
                  tmp_path / "one").run()  # fmt: skip
    first, second = (
        torch.load(tmp_path / "two" / f"weights-{n}.pt", weights_only=True) for n in range(2)
    )
    for name, value in one.network.state_dict().items():
        assert torch.allclose(value, first[name], atol=2e-5), name
        assert torch.equal(first[name], second[name]), name
    # Only the first process writes; the curve is the mean over both.
    rows = json.loads((tmp_path / "two" / "history.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == [row["kind"] for row in one.history]
    assert rows[-2]["loss"] == pytest.approx(one.history[-2]["loss"], rel=1e-3)
