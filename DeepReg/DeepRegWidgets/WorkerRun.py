"""One job of the worker process, from its files to its end, without ever blocking the application.

Files are written and read in a thread; everything else happens in the worker process, or in short
steps of the main thread.
"""

from __future__ import annotations

import threading
import time

import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib.errors import Cancelled, DeepRegError
from DeepRegLib.job import private_folder

_POLL_MS = 30
_LEND_SECONDS = 0.015


class WorkerRun:
    """A job in progress; a subclass says what happens with its result.

    Args:
        worker: Process that computes; see `Worker.sharedWorker`.
        onEvent: Called with each event of the worker (`DeepRegLib.job.JobEvent`).
        onDone: Called with the outcome.
        onError: Called with the exception; `Cancelled` if the user cancelled.
    """

    def __init__(self, worker, onEvent=None, onDone=None, onError=None):
        self._worker = worker
        self._onEvent, self._onDone, self._onError = onEvent, onDone, onError
        self._folder = None
        self._background = None
        self._step = self._steps = None
        self._timer = None
        self.finished = False
        self.outcome = None
        self.error: Exception | None = None

    def wait(self):
        """Steps until the end while the application stays alive, and returns the outcome.

        Raises:
            DeepRegError: What ended the run.
        """
        while not self.finished:
            self.step()
            slicer.app.processEvents()
            time.sleep(0.01)
        if self.error is not None:
            raise self.error
        return self.outcome

    def step(self) -> None:
        """Does what can be done now, without waiting."""
        if self.finished:
            return
        # Qt's event loop holds Python's lock in Slicer; this lets other threads have it.
        if self._background is not None and not self._background.done:
            self._background.join(_LEND_SECONDS)
        else:
            time.sleep(0.001)
        try:
            self._step()
        except Exception as error:
            self._fail(error)

    def stopAndKeep(self) -> None:
        """Ends the run soon, with the best so far."""
        if not self.finished:
            self._worker.stop_and_keep()

    def cancel(self) -> None:
        """Ends the run at once; the scene stays as it is."""
        if self.finished:
            return
        self._worker.cancel()
        self._fail(Cancelled(_("Cancelled; nothing was changed.")))

    def _checkFree(self) -> None:
        if self._worker.busy:
            raise DeepRegError(
                _("Something else is running in DeepReg; wait for its end, or cancel it first.")
            )

    def _begin(self, save, byTimer) -> None:
        """Has ``save(folder)`` write the files and describe the job, and submits it then."""
        self._save(save)
        self._startTimer(byTimer)

    def _beginInSteps(self, steps, byTimer) -> None:
        """Has a generator read the nodes, step by step, and goes on with what it returns."""
        next(steps)  # What is wrong with the nodes is told before anything has begun.
        self._steps = steps
        self._step = self._read
        self._startTimer(byTimer)

    def _read(self) -> None:
        try:
            next(self._steps)
        except StopIteration as end:
            self._steps = None
            self._save(end.value.save)

    def _save(self, save) -> None:
        self._worker.poll()  # What a cancelled job left behind is not for this one.
        self._folder = private_folder()
        folder = self._folder.name
        self._background = Background(lambda: save(folder))
        self._step = self._submitWhenSaved

    def _startTimer(self, byTimer) -> None:
        if byTimer:
            # With a parent it outlives its last call, from which the run may end.
            self._timer = qt.QTimer(slicer.app)
            self._timer.setInterval(_POLL_MS)
            self._timer.connect("timeout()", self.step)
            self._timer.start()

    def _submitWhenSaved(self) -> None:
        if self._background.done:
            self._worker.submit(self._background.result())
            self._step = self._listen

    def _listen(self) -> None:
        for event in self._worker.poll():
            if event.kind == "error":
                raise event.exception()
            if event.kind == "preview":
                self._preview(event)
                continue
            if self._onEvent is not None:
                self._onEvent(event)
            if event.kind == "done":
                self._take(event)
                return

    def _preview(self, event) -> None:
        """Shows what there is so far."""

    def _take(self, event) -> None:
        """Goes on with the result of the job."""
        raise NotImplementedError

    def _tell(self) -> None:
        self._end()
        if self._onDone is not None:
            self._onDone(self.outcome)

    def _fail(self, error: Exception) -> None:
        if self._worker.busy:
            self._worker.cancel()
        self.error = error
        self._end()
        if self._onError is not None:
            self._onError(error)

    def _end(self) -> None:
        self.finished = True
        if self._timer is not None:
            self._timer.stop()
            self._timer.disconnect("timeout()", self.step)
            self._timer.deleteLater()
            self._timer = None
        if self._background is not None:
            self._background.join()
        self._background = None
        self._step = self._steps = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class Background:
    """Something done in a thread: files, never nodes."""

    def __init__(self, function):
        self._function, self._value, self._error = function, None, None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, seconds=None) -> None:
        """Waits until the files are closed, for so long at most."""
        self._thread.join(seconds)

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def result(self):
        """Returns what the function returned, or raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            # Raised again in the main thread, by result().
            self._error = error
