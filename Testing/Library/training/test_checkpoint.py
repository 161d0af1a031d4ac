import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_doubles import SHIFT, TWO_STAGES, Blobs, Shifter

from DeepRegLib.errors import Cancelled, FileFormatError, ParameterError
from DeepRegLib.registration.base import Progress
from DeepRegLib.registration.trainable import Prediction
from DeepRegLib.training import checkpoint
from DeepRegLib.training.checkpoint import FILE, Checkpoint, copied, differences
from DeepRegLib.training.settings import TrainingSettings
from DeepRegLib.training.trainer import Trainer

ROOT = Path(__file__).parents[3]

SCRIPT = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/Testing"]
import torch
from training_doubles import TWO_STAGES, Blobs, Shifter
from DeepRegLib.training.settings import TrainingSettings
from DeepRegLib.training.trainer import Trainer

class Slow(Shifter):
    def training_loss(self, network, batch):
        time.sleep(0.02)
        return super().training_loss(network, batch)

torch.set_num_threads(1)
Slow.__module__ = Shifter.__module__
Trainer(Slow(TWO_STAGES), Blobs(), TrainingSettings(**{settings}), Path(sys.argv[1])).run()
"""


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    torch.set_num_threads(1)
    chosen = {"steps": 24, "learning_rate": 0.02, "warmup": 3, "batch": 2, "accumulate": 2,
              "validate_every": 7, "checkpoint_every_s": 0.0, "device": "cpu"}  # fmt: skip
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(root=str(ROOT), settings=chosen))
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, script, cut],
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    end = time.monotonic() + 120
    while steps_done(cut) < 9:  # in the second stage, between two validations
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and 9 <= steps_done(cut) < 24
    one, other = (
        Trainer(Shifter(TWO_STAGES), Blobs(), TrainingSettings(**chosen), folder).run()
        for folder in (whole, cut)
    )
    weights = other.network.state_dict()
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert one.history == other.history and one.figures == other.figures


def steps_done(folder):
    found = Checkpoint.load(folder)
    return 0 if found is None else found.content["standing"]["steps"]


class Cancelling(Progress):
    """Cancels at a report."""

    def __init__(self, report):
        super().__init__()
        self.left = report

    def update(self, fraction, value=None):
        self.left -= 1
        if self.left == 0:
            self.cancel()
        super().update(fraction, value)


def settings(**values):
    return TrainingSettings(**{"steps": 6, "validate_every": 3, "device": "cpu", "batch": 1,
                               "checkpoint_every_s": 0.0, **values})  # fmt: skip


def test_what_was_saved_comes_back(tmp_path):
    network = Shifter().build()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.rand(1, 2, 4, 4, 4)).sum().backward()
    optimizer.step()
    saved = Checkpoint(network.state_dict(), {"a": torch.ones(2)}, optimizer.state_dict(),
                       {"value": 0.1, "text": "Größe"})  # fmt: skip
    saved.save(tmp_path)
    found = Checkpoint.load(tmp_path)
    assert found.content == saved.content and found.best["a"].tolist() == [1, 1]
    assert all(torch.equal(found.network[n], v) for n, v in network.state_dict().items())
    other = torch.optim.Adam(network.parameters(), lr=0.5)
    other.load_state_dict(found.optimizer)
    for one, two in zip(optimizer.state.values(), other.state.values()):
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert other.param_groups[0]["lr"] == 0.1 and other.param_groups[0]["betas"] == [0.9, 0.999]
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    assert Checkpoint.load(tmp_path / "nowhere") is None


def test_a_damaged_checkpoint_is_refused(tmp_path):
    Checkpoint({"a": torch.ones(100)}).save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:-40], whole[:30]):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(FileFormatError, match="damaged"):
            Checkpoint.load(tmp_path)
    (tmp_path / FILE).write_bytes(whole.replace(b'version\\": 1', b'version\\": 9'))
    with pytest.raises(FileFormatError, match="another version"):
        Checkpoint.load(tmp_path)


def test_other_settings_do_not_go_on(tmp_path):
    algorithm, source = Shifter(), Blobs(1)
    Trainer(algorithm, source, settings(), tmp_path).run()
    with pytest.raises(ParameterError, match=r"begun with steps=6, batch=1; go on"):
        Trainer(algorithm, source, settings(steps=9, batch=2), tmp_path).run()
    with pytest.raises(ParameterError, match=r"begun with noise=0.05"):
        Trainer(Shifter(noise=0.1), source, settings(), tmp_path).run()
    again = Trainer(algorithm, source, settings(checkpoint_every_s=7.0), tmp_path).run()
    assert again.steps == 6 and again.ended == "complete"
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    events = []
    result = Trainer(Shifter(), Blobs(1), settings(), tmp_path, Progress(events.append)).run()
    assert result.ended == "complete" and result.steps == 6
    told = [event.text for event in events if "cannot be written to" in event.text]
    assert len(told) == 1 and "No space left" in told[0]
    assert not list(tmp_path.glob("*.part"))


def test_an_old_checkpoint_survives_a_failed_write(tmp_path, monkeypatch):
    Checkpoint({"a": torch.ones(1)}).save(tmp_path)

    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(OSError, match="No space"):
        Checkpoint({"a": torch.zeros(1)}).save(tmp_path)
    assert Checkpoint.load(tmp_path).network["a"].item() == 1
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_stages_are_gone_on_from_in_one_process(tmp_path):
    whole = Trainer(Shifter(TWO_STAGES), Blobs(1), settings(steps=10), tmp_path / "a").run()
    for steps in (2, 5):
        trainer = Trainer(
            Shifter(TWO_STAGES), Blobs(1), settings(steps=10), tmp_path / "b", Cancelling(steps)
        )
        with pytest.raises(Cancelled, match="cancelled after"):
            trainer.run()
    last = Trainer(Shifter(TWO_STAGES), Blobs(1), settings(steps=10), tmp_path / "b").run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, last.network.state_dict()[name]), name


def test_the_patience_of_a_training_goes_on(tmp_path):
    scores = [0.1, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    kept = {}

    class Judged(Shifter):
        def predict(self, network, fixed, moving, spacing_mm):
            value = scores.pop(0)
            kept[value] = copied(network.state_dict())
            shift = torch.tensor(SHIFT).reshape(1, 3, 1, 1, 1).expand(1, 3, *fixed.shape[2:])
            return Prediction(shift * value)

    chosen = settings(steps=60, patience=3)
    with pytest.raises(Cancelled):
        Trainer(Judged(), Blobs(1), chosen, tmp_path, Cancelling(8)).run()
    assert scores == [0.4, 0.3, 0.2, 0.1, 0.0]
    result = Trainer(Judged(), Blobs(1), chosen, tmp_path).run()
    assert result.ended == "early" and result.steps == 12 and scores == [0.2, 0.1, 0.0]
    for name, value in result.network.state_dict().items():
        assert torch.equal(value, kept[0.9][name]), name
