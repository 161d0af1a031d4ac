"""Keeps a worker process and talks to it. Standard library only; neither torch nor Qt.

Example:
    >>> worker = WorkerProcess(python="PythonSlicer")  # doctest: +SKIP
    >>> worker.submit(job)  # doctest: +SKIP
    >>> for event in worker.poll():  # from a timer  # doctest: +SKIP
    ...     show(event)
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import WorkerError
from .job import Job, JobEvent

#: Lines of the worker's log that a crash report shows.
_SHOWN_LINES = 6
#: Priority of a worker in the background on POSIX systems: 0 is usual, 19 the lowest.
_BACKGROUND_NICE = 10
_KILLED = (-9, 9, 137)


class WorkerProcess:
    """One worker process, started when needed and kept warm between jobs.

    Events arrive in a thread and wait in a queue, so that a panel can fetch them from a timer. A
    job always ends with one event ``done`` or ``error``, also if the process dies.

    Args:
        python: Interpreter to run, such as PythonSlicer; the running one by default.
        environment: Variables to add to the environment of the process.
        arguments: Arguments of the interpreter.
        background: Compute at a low priority, so that the application in front stays quick.
    """

    def __init__(
        self,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = ("-m", "DeepRegLib", "worker"),
        background: bool = False,
    ) -> None:
        self._command = [python or sys.executable, *arguments]
        self._environment = dict(environment or {})
        self._background = background
        self._events: queue.Queue[JobEvent] = queue.Queue()
        self._lock = threading.RLock()
        self._process: subprocess.Popen[str] | None = None
        self._job = ""
        self._log: collections.deque[str] = collections.deque(maxlen=200)

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return bool(self._job)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def pid(self) -> int | None:
        """Number of the process; None if it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def log(self) -> list[str]:
        """Last lines that the worker wrote to its log."""
        return list(self._log)

    def start(self) -> None:
        """Starts the process if it does not run; also done by `submit`.

        Raises:
            WorkerError: If the interpreter cannot be started.
        """
        with self._lock:
            if self.alive:
                return
            self._log.clear()
            try:
                process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
                    env=worker_environment(self._variables()), **_own_group(self._background),
                )  # fmt: skip
            except OSError as error:
                raise WorkerError(
                    f"The worker process could not be started ({error}); check that "
                    f"'{self._command[0]}' can be run."
                ) from error
            self._process = process
            logger = threading.Thread(target=self._read_log, args=(process,), daemon=True)
            reader = threading.Thread(target=self._read, args=(process, logger), daemon=True)
            logger.start()
            reader.start()

    def submit(self, job: Job) -> None:
        """Gives the worker a job.

        Raises:
            WorkerError: If a job is running already, or the process cannot be reached.
        """
        with self._lock:
            if self._job:
                raise WorkerError("The worker is busy; cancel its job first, or wait for its end.")
            self.start()
            self._job = job.id
            try:
                self._send(job.to_line())
            except WorkerError:
                self._job = ""
                raise

    def stop_and_keep(self) -> None:
        """Asks the running job to end with the best so far."""
        with self._lock:
            if self._job:
                self._send('{"stop":true}\n')

    def cancel(self) -> None:
        """Ends the running job at once, with its process; the next job starts a new one."""
        with self._lock:
            job, self._job = self._job, ""
            process, self._process = self._process, None
        if process is not None:
            kill_tree(process)
        if job:
            self._events.put(JobEvent("error", job, text="Cancelled; nothing was changed.",
                                      error="cancelled"))  # fmt: skip

    def close(self, seconds: float = 5.0) -> None:
        """Ends the process: politely if it is idle, at once otherwise."""
        with self._lock:
            process, self._process = self._process, None
            idle, self._job = not self._job, ""
        if process is None:
            return
        if idle and process.stdin is not None:
            # Where that does not end it, the next line does.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                process.stdin.close()
                process.wait(seconds)
        kill_tree(process)

    def poll(self) -> list[JobEvent]:
        """Returns the events that have arrived since the last call, without waiting."""
        found = []
        while True:
            try:
                found.append(self._events.get_nowait())
            except queue.Empty:
                return found

    def wait(
        self, seconds: float | None = None, listener: Callable[[JobEvent], None] | None = None
    ) -> JobEvent:
        """Waits for the end of the running job.

        Args:
            seconds: Longest time to wait; for ever if None.
            listener: Called with each event before the last.

        Returns:
            The event ``done``.

        Raises:
            DeepRegError: The error that ended the job; WorkerError if the time is over.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                raise WorkerError(f"The worker did not finish within {seconds:g} s.") from None
            if event.kind == "error":
                raise event.exception()
            if event.kind == "done":
                return event
            if listener is not None:
                listener(event)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, line: str) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise WorkerError("The worker process has ended; submit the job again.")
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except (OSError, ValueError) as error:
            raise WorkerError("The worker process has ended; submit the job again.") from error

    def _variables(self) -> dict[str, str]:
        # The worker lowers its own priority, as its process may be a launcher's child.
        nice = {"DEEPREG_NICE": str(_BACKGROUND_NICE)} if self._background else {}
        return {**nice, **self._environment}

    def _read(self, process: subprocess.Popen[str], logger: threading.Thread) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                event = JobEvent.from_line(line)
            except WorkerError as error:
                kill_tree(process)
                self._ended(process, str(error))
                return
            with self._lock:
                if self._process is not process:
                    return  # Cancelled: what still trickles in is void.
                if event.is_last and event.job == self._job:
                    self._job = ""
                self._events.put(event)
        code = process.wait()
        logger.join(2.0)
        self._ended(process, _why(code))

    def _ended(self, process: subprocess.Popen[str], why: str) -> None:
        with self._lock:
            if self._process is not process:
                return
            self._process = None
            job, self._job = self._job, ""
        if job:
            lines = [line for line in self.log if line.strip()][-_SHOWN_LINES:]
            text = why + (" Its last words: " + " | ".join(lines) if lines else "")
            self._events.put(JobEvent("error", job, text=text, error="crash"))

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._log.append(line.rstrip())


def worker_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment in which another interpreter finds this library.

    Args:
        more: Variables to add.
    """
    home = str(Path(__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([home, known] if known else [home])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1", **(more or {})}


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Ends a process that `WorkerProcess` started, with all its children."""
    if os.name == "nt":
        subprocess.run(
            ["taskkill", "/T", "/F", "/PID", str(process.pid)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, **_own_group(),
        )  # fmt: skip
    else:
        # The process leads a session of its own, so its group has its number. A launcher may have
        # ended and left its child behind; or the whole group has just ended by itself.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _own_group(background: bool = False) -> dict[str, Any]:
    if os.name == "nt":
        low = getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0) if background else 0
        return {"creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0) | low}
    return {"start_new_session": True}


def _why(code: int) -> str:
    """Says in a sentence why a process ended."""
    # A launcher tells of its killed child by an exit code.
    if code in _KILLED:
        return (
            "The system ended the worker process, most likely because memory ran out; crop the "
            "images, or register them at a larger voxel size."
        )
    if code < 0:
        names = {int(s): s.name for s in signal.Signals}
        return f"The worker process crashed ({names.get(-code, -code)}); the scene is unharmed."
    return f"The worker process ended unexpectedly (exit code {code}); the scene is unharmed."
