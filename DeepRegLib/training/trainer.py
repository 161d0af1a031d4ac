"""The one training loop of all systems that learn."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import Cancelled, InputError, OutOfMemoryError, ParameterError
from ..memory import is_out_of_memory
from ..networks.half import half_type
from ..pipeline import choose_device
from ..registration.base import Progress
from ..registration.source import BatchSource
from ..registration.trainable import Batch, Trainable
from .checkpoint import Checkpoint, copied, differences
from .distributed import World, local_device
from .events import Clock, History, sentence
from .record import Record
from .schedule import Part, plan
from .settings import TrainingSettings
from .step import Stepper, Supply, Taken
from .validation import own_random_numbers, score, structures_of, untouched, validate

#: So many steps in a row whose loss or gradient is no number end a training.
_MOST_BAD = 20
#: What may differ when a training goes on.
_FREE = ("device", "checkpoint_every_s")
_GO_ON, _STOP, _CANCEL = range(3)


@dataclass(eq=False)
class TrainingResult:
    """What a training gave.

    Args:
        network: The network with the best weights, on the CPU, in evaluation mode.
        history: Rows of the curves (see `events.History`).
        figures: Validation of the best weights (see `validation`); empty without pairs for it.
        steps: Steps done.
        seconds: Time of all its runs.
        ended: ``complete``, ``early`` (no gain any more), ``stopped`` (by the user) or ``diverged``
            (the loss was no number for many steps).
    """

    network: nn.Module
    history: list[dict[str, Any]]
    figures: dict[str, float]
    steps: int
    seconds: float
    ended: str


@dataclass
class _Standing:
    """Where a training stands between two steps, as JSON holds it.

    Args:
        stage: Number of the stage.
        done: Its steps so far.
        steps: Steps so far, of all stages.
        taken: Those that changed the weights.
        bad: Steps in a row without a number for a loss.
        stale: Validations in a row without a gain.
        score: What the best weights scored.
        figures: Their validation.
        baseline: Figures of the pairs as they come.
        ended: Why the training ended; empty while it runs.
    """

    stage: int = 0
    done: int = 0
    steps: int = 0
    taken: int = 0
    bad: int = 0
    stale: int = 0
    score: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)
    ended: str = ""


class Trainer:
    """Trains the network of a system, stage by stage, and keeps the weights that validate best.

    Every stage begins with the best weights so far and an optimizer made anew; what it does not
    train is frozen. A network whose later parts have not learned yet is validated as well, so
    these must leave alone what comes before them (last layer zero at first).

    Every random number depends on the seed and the number of the batch. A training that goes on
    from the checkpoint in `folder` leads to the very same weights as one without interruption.

    Args:
        algorithm: The system.
        source: Its pairs.
        settings: How to train.
        folder: Gets the checkpoint and the curves (``history.json``, ``.csv``, ``.png``).
        progress: Gets events; `stop` keeps the best so far, `cancel` keeps a checkpoint only.
        span: Part of the whole run that the training is, for the progress.
        world: Processes that share the batches of each step.

    Raises:
        ParameterError: If the system, the pairs and the settings do not fit each other.
        FileFormatError: If the folder cannot be written to.
    """

    def __init__(
        self,
        algorithm: Trainable,
        source: BatchSource,
        settings: TrainingSettings,
        folder: Path,
        progress: Progress | None = None,
        *,
        span: tuple[float, float] = (0.0, 1.0),
        world: World | None = None,
    ) -> None:
        self._algorithm, self._source, self._settings = algorithm, source, settings
        self._progress, self._world = progress or Progress(), world or World()
        chosen, remark = choose_device(settings.device)
        self._device = local_device(chosen)
        self._half, other = half_type(settings.precision, self._device)
        self._remarks = [text for text in (remark, other) if text]
        self._parts = plan(algorithm.stages(), settings.steps)
        _check_shape(source.frame.shape, algorithm.multiple)
        self._folder, self._name = folder, type(algorithm).__module__.rpartition(".")[2]
        self._record = Record(folder, self._progress, span, settings.steps, self._name, self._world)
        self._standing = _Standing()
        self._best: dict[str, Tensor] = {}
        self._pairs: list[Batch] = []
        self._value: float | None = None
        self._saved_at = 0.0

    def run(self) -> TrainingResult:
        """Trains, from the checkpoint on if there is one.

        Raises:
            Cancelled: If the user cancelled; a checkpoint is kept.
            InputError: If no step at all gave a loss that is a number.
            ParameterError: If the checkpoint is of a training with other settings.
            OutOfMemoryError: If the device has too little memory.
        """
        for remark in self._remarks:
            self._record.say(remark)
        supply = Supply(self._source, self._settings, self._device, self._world)
        try:
            with own_random_numbers(self._device, self._settings.seed):
                return self._run(supply)
        except Exception as error:
            if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
                raise
            size = " x ".join(map(str, self._source.frame.shape))
            raise OutOfMemoryError(
                f"There is too little memory to train on {self._settings.batch} pairs of {size} "
                "voxels at once; take a smaller batch (and accumulate more), or larger voxels."
            ) from error
        finally:
            supply.close()

    def _run(self, supply: Supply) -> TrainingResult:
        network = self._algorithm.build().to(self._device)
        if self._world.leads:
            self._pairs = list(self._source.validation())
        loaded = self._resume(network)
        self._world.wait()
        self._saved_at = time.monotonic()
        if loaded is None:
            self._standing.baseline = untouched(self._pairs, structures_of(self._algorithm))
            self._record.history.add("baseline", 0, "", self._standing.baseline)
            self._validate(network)
        while not self._standing.ended:
            stepper = Stepper(
                self._algorithm, network, self._parts[self._standing.stage], self._settings,
                supply, self._device, self._world, self._half,
            )  # fmt: skip
            if loaded is not None:
                stepper.load(loaded.optimizer, loaded.content["scaler"])
                loaded = None
            self._train(network, stepper, self._parts[self._standing.stage])
            self._finish_stage(network)
        self._save(network, None)
        self._record.write_curves(draw=True)
        return self._result(network)

    def _train(self, network: nn.Module, stepper: Stepper, part: Part) -> None:
        """Goes through the steps of a stage, or what is left of them."""
        now = self._standing
        self._record.stage(part.stage.name, part.first, part.count)
        while now.done < part.count and not now.ended:
            if self._asked_to_stop(network, stepper, part):
                now.ended = "stopped"
                if now.done % self._settings.validate_every:
                    self._validate(network)
                break
            taken = stepper.step(now.done)
            now.done += 1
            now.steps += 1
            self._note(taken, part)
            if now.done % self._settings.validate_every == 0 or now.done == part.count:
                self._validate(network)
                if self._gains_no_more():
                    break
            if time.monotonic() - self._saved_at >= self._settings.checkpoint_every_s:
                self._save(network, stepper)

    def _finish_stage(self, network: nn.Module) -> None:
        """Puts the best weights in, and goes to the next stage."""
        now = self._standing
        if self._best:
            network.load_state_dict(self._best)
        self._world.share(network)
        early = now.done < self._parts[now.stage].count
        now.stage, now.done, now.stale, now.bad = now.stage + 1, 0, 0, 0
        if now.stage == len(self._parts) and not now.ended:
            now.ended = "early" if early else "complete"

    def _note(self, taken: Taken, part: Part) -> None:
        """Notes a step: its figures, or that it was left out."""
        now = self._standing
        self._value = taken.figures["loss"]
        if taken.finite:
            now.taken += 1
            now.bad = 0
            steps = self._settings.steps
            if self._record.history.step(now.steps, steps, part.stage, taken.figures):
                self._record.tell(now.steps)
            return
        now.bad += 1
        if now.bad == 1:
            self._record.say(f"Step {now.steps} was left out: its loss or gradient is no number.")
        if now.bad >= _MOST_BAD:
            now.ended = "diverged"
            self._record.say(
                f"The loss was no number for {now.bad} steps in a row, so the training ends; the "
                "best weights so far are kept. Try a smaller learning rate."
            )

    def _validate(self, network: nn.Module) -> None:
        """Validates, keeps the weights if they are the best, and tells."""
        now = self._standing
        figures = validate(self._algorithm, network, self._pairs, self._device)
        value = score(figures)
        gain = value is not None and (now.score is None or value > now.score)
        now.stale = 0 if gain or not self._pairs else now.stale + 1
        # Of equals the later: figures of few structures come in steps, and training goes on.
        if gain or not self._pairs or (value is not None and value == now.score):
            now.score = value
            now.figures = {**figures, **now.baseline}
            self._best = copied(network.state_dict())
        # Only the first process has pairs to validate; the others follow it.
        stale = now.stale if self._world.leads else 0
        now.stale = self._world.largest(stale, self._device)
        if figures:
            stage = self._parts[now.stage].stage.name
            self._record.history.add("validation", now.steps, stage, figures)
            text = sentence(now.steps, self._settings.steps, {**figures, **now.baseline})
            self._record.tell(now.steps, text)
            self._record.write_curves()

    def _gains_no_more(self) -> bool:
        """Tells whether a stage ends because several validations showed no gain."""
        patience = self._settings.patience
        if patience == 0 or self._standing.stale < patience:
            return False
        self._record.say(f"No gain in {patience} validations; the stage ends early.")
        return True

    def _asked_to_stop(self, network: nn.Module, stepper: Stepper, part: Part) -> bool:
        """Reports; returns whether the user asked to stop and keep the best so far."""
        wish, cancelled = _GO_ON, None
        if self._world.leads:
            try:
                self._progress.update(self._standing.done / part.count, self._value)
                wish = _STOP if self._progress.stop_requested else _GO_ON
            except Cancelled as error:
                wish, cancelled = _CANCEL, error
        wish = self._world.largest(wish, self._device)
        if wish == _CANCEL:
            self._save(network, stepper)
            self._record.write_curves()
            raise Cancelled(
                f"The training was cancelled after {self._standing.steps} steps."
            ) from cancelled
        return wish == _STOP

    def _resume(self, network: nn.Module) -> Checkpoint | None:
        """Goes on from the checkpoint in the folder; None if there is none."""
        found = Checkpoint.load(self._folder)
        if found is None:
            return None
        other = differences(found.content["begun"], self._identity())
        if other:
            raise ParameterError(
                f"The training in '{self._folder}' was begun with {', '.join(other)}; go on with "
                "the same, or begin anew."
            )
        network.load_state_dict(found.network)
        self._best = found.best
        self._standing = _Standing(**found.content["standing"])
        self._record.history = History(**found.content["history"])
        self._record.clock = Clock(found.content["seconds"], self._standing.steps)
        self._record.say(f"Going on after step {self._standing.steps} of {self._settings.steps}.")
        return found

    def _identity(self) -> dict[str, Any]:
        """Returns what decides about the course of a training."""
        settings = {k: v for k, v in asdict(self._settings).items() if k not in _FREE}
        frame = self._source.frame
        return {
            "algorithm": self._name, **dict(self._algorithm.values), **settings,
            "spacing_mm": frame.spacing_mm, "shape": list(frame.shape),
            "processes": self._world.size, "data": self._source.describe(),
        }  # fmt: skip

    def _save(self, network: nn.Module, stepper: Stepper | None) -> None:
        """Writes a checkpoint."""
        self._saved_at = time.monotonic()
        optimizer, scaler = stepper.state() if stepper is not None else ({}, {})
        content = {
            "begun": self._identity(), "standing": asdict(self._standing), "scaler": scaler,
            "history": asdict(self._record.history), "seconds": self._record.clock.seconds(),
        }  # fmt: skip
        self._record.save(Checkpoint(network.state_dict(), self._best, optimizer, content))

    def _result(self, network: nn.Module) -> TrainingResult:
        now = self._standing
        if now.taken == 0 and now.ended != "stopped":
            raise InputError(
                "The training came to nothing: the loss was no number in any step. Look at the "
                "images, and try a smaller learning rate."
            )
        return TrainingResult(
            network.requires_grad_(True).cpu().eval(), self._record.history.rows, now.figures,
            now.steps, self._record.clock.seconds(), now.ended,
        )  # fmt: skip


def _check_shape(shape: tuple[int, int, int], multiple: int) -> None:
    if any(n % multiple for n in shape):
        better = " ".join(str(-(-n // multiple) * multiple) for n in shape)
        raise ParameterError(
            f"The network needs a shape of multiples of {multiple}, not {' '.join(map(str, shape))}"
            f"; take {better}."
        )
