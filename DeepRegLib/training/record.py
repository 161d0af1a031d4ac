"""What a training leaves and says: checkpoint, curves, messages; by the first process only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import FileFormatError
from ..registration.base import Progress
from .checkpoint import Checkpoint
from .distributed import World
from .events import Clock, History, TrainingEvent


class Record:
    """Writes files and sends events of one training.

    A disk that fills up ends no training: that is said once, and the training goes on.

    Args:
        folder: Gets the files.
        progress: Gets the events.
        span: Part of the whole run that the training is.
        steps: Steps of the training.
        title: Name for the drawing of the curves.
        world: The processes.

    Raises:
        FileFormatError: If the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        span: tuple[float, float],
        steps: int,
        title: str,
        world: World,
    ) -> None:
        self.history, self.clock = History(), Clock()
        self._folder, self._progress, self._title = folder, progress, title
        self._span, self._steps, self._leads = span, steps, world.leads
        self._complained = False
        if self._leads:
            _check_folder(folder)

    def stage(self, name: str, first: int, count: int) -> None:
        """Tells that a stage begins."""
        if self._leads:
            self._progress.stage(name, self._share(first), self._share(first + count))

    def say(self, text: str) -> None:
        """Passes a sentence on to the user."""
        if self._leads:
            self._progress.message(text)

    def tell(self, done: int, text: str = "") -> None:
        """Sends the latest point of the curves, with a sentence if there is one."""
        if not self._leads:
            return
        row = self.history.rows[-1]
        data = {"point": row, "step": done, "steps": self._steps,
                "seconds_left": self.clock.left(done, self._steps)}  # fmt: skip
        kind = "message" if text else "progress"
        event = TrainingEvent(
            kind, row["stage"], self._share(done), row.get("loss"), text, data=data
        )
        self._progress.tell(event)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint."""
        if self._leads:
            try:
                checkpoint.save(self._folder)
            except OSError as error:
                self._complain(error)

    def write_curves(self, draw: bool = False) -> None:
        """Writes the curves; as a picture only if asked to."""
        if not self._leads:
            return
        about: dict[str, Any] = {"steps": self._steps, "seconds": self.clock.seconds()}
        try:
            self.history.write(self._folder, about)
            if draw:
                self.history.draw(self._folder / "history.png", self._title)
        except OSError as error:
            self._complain(error)

    def _share(self, done: int) -> float:
        low, high = self._span
        return low + (high - low) * done / self._steps

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            self.say(f"'{self._folder}' cannot be written to ({error.strerror or error}); the "
                     "training goes on, but cannot be resumed. Make room on the disk.")  # fmt: skip


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / "probe.part"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise FileFormatError(
            f"The folder '{folder}' cannot be written to ({error.strerror}); a training needs it "
            "for checkpoints."
        ) from error
