"""The worker process: runs jobs that arrive on standard input, and tells events on standard output.

Jobs run in the main thread, one after the other; a second thread listens for stop and cancel. The
process ends when its input does. Results appear in the job's folder by renaming, never in part.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from .allocator import hand_back_freed_memory
from .errors import Cancelled, DeepRegError, OutOfMemoryError, WorkerError
from .job import Job, JobEvent, parse_request

#: Shortest time between two progress events; a panel cannot show more.
_SECONDS_BETWEEN_EVENTS = 0.05


def main() -> int:
    """Runs the worker until its input ends; returns the exit code of the process."""
    sender = _Sender(_claim_stdout())
    _lower_priority()
    try:
        from . import worker_jobs
    except Exception as error:
        traceback.print_exc()
        sender.send(JobEvent("error", text=f"The library could not be loaded: {error}",
                             error="internal"))  # fmt: skip
        return 1
    sender.send(JobEvent("ready", data=worker_jobs.greeting()))
    worker = Worker(sender, sys.stdin)
    try:
        worker.loop()
    except BrokenPipeError:
        return 0  # The panel is gone, so nobody waits for the rest.
    return 0


def _lower_priority() -> None:
    """Lets the application in front go first, if it asked for that (see `client`)."""
    wanted = os.environ.get("DEEPREG_NICE", "")
    if wanted.isdigit() and hasattr(os, "nice"):
        os.nice(int(wanted))


class Worker:
    """Takes requests from a stream and runs them one by one.

    Args:
        sender: Where events go.
        requests: Stream of request lines.
    """

    def __init__(self, sender: _Sender, requests: TextIO) -> None:
        from .registration.base import Progress

        self._make_progress = Progress
        self._sender = sender
        self._requests = requests
        self._inbox: queue.Queue[tuple[Job, Any] | None] = queue.Queue()
        self._latest: Any = None

    def loop(self) -> None:
        """Runs jobs until the requests end."""
        threading.Thread(target=self._listen, daemon=True).start()
        while (item := self._inbox.get()) is not None:
            self._run(*item)

    def _listen(self) -> None:
        for line in self._requests:
            if not line.strip():
                continue
            try:
                request = parse_request(line)
            except WorkerError as error:
                self._sender.send(JobEvent("error", text=str(error), error="input"))
                continue
            if isinstance(request, Job):
                # Made here, so that a stop that follows at once finds it.
                self._latest = self._progress_of(request)
                self._inbox.put((request, self._latest))
            elif self._latest is not None:
                self._latest.stop() if request == "stop" else self._latest.cancel()
        self._inbox.put(None)

    def _progress_of(self, job: Job) -> Any:
        seconds = job.parameters.get("preview_seconds")
        return self._make_progress(_Listener(self._sender, job), seconds)

    def _run(self, job: Job, progress: Any) -> None:
        from . import worker_jobs

        try:
            done = worker_jobs.run(job, progress)
        except BrokenPipeError:
            raise
        except Exception as error:
            done = _failure(job, error)
        self._sender.send(done)
        # The error's traceback held tensors until here.
        gc.collect()
        worker_jobs.free_device_memory()
        hand_back_freed_memory()


class _Sender:
    """Writes events, whole lines from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, event: JobEvent) -> None:
        with self._lock:
            self._stream.write(event.to_line())
            self._stream.flush()


class _Listener:
    """Turns events of a running registration into events of its job."""

    def __init__(self, sender: _Sender, job: Job) -> None:
        self._sender, self._job = sender, job
        self._last = 0.0
        self._previews: list[str] = []
        self._count = 0

    def __call__(self, event: Any) -> None:
        files: Mapping[str, Any] = {}
        if event.kind == "progress":
            now = time.monotonic()
            told = bool(getattr(event, "data", None))  # points of a curve are never left out
            if not told and now - self._last < _SECONDS_BETWEEN_EVENTS and event.fraction < 1.0:
                return
            self._last = now
        elif event.kind == "preview":
            files = {"transform": self._preview(event.transform)}
        self._sender.send(JobEvent(
            event.kind, self._job.id, event.stage, event.fraction, event.value, event.text,
            transforms=dict(files), data=dict(getattr(event, "data", {})),
        ))  # fmt: skip

    def _preview(self, transform: Any) -> Any:
        """Writes a preview; those before the last two have been read or never will be."""
        from . import worker_jobs

        self._count += 1
        name = f"preview-{self._count}"
        described = worker_jobs.write_preview(Path(self._job.folder), name, transform)
        self._previews.append(f"{name}.npy")
        while len(self._previews) > 2:
            # Windows does not delete what the panel still has open; the folder goes later.
            with contextlib.suppress(OSError):
                (Path(self._job.folder) / self._previews.pop(0)).unlink()
        return described


def _failure(job: Job, error: Exception) -> JobEvent:
    """Tells an error; those that no message was written for go to the log with their traceback."""
    if isinstance(error, Cancelled):
        return JobEvent("error", job.id, text=str(error), error="cancelled")
    if isinstance(error, (OutOfMemoryError, MemoryError)):
        text = str(error) or "The computer has too little memory; crop or resample the images."
        return JobEvent("error", job.id, text=text, error="memory")
    if isinstance(error, DeepRegError) and not isinstance(error, WorkerError):
        return JobEvent("error", job.id, text=str(error), error="input")
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    sys.stderr.write(details)
    sys.stderr.flush()
    text = f"DeepReg failed unexpectedly ({type(error).__name__}: {error}); please report it."
    return JobEvent("error", job.id, text=text, error="internal", data={"traceback": details})


def _claim_stdout() -> TextIO:
    """Keeps standard output for events; whatever libraries print goes to the log instead."""
    sys.stdout.flush()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return events
