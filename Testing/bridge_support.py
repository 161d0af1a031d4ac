"""Takes requests of nodes through the worker's job, in one process."""

from __future__ import annotations

from DeepRegLib import worker_jobs
from DeepRegLib.bridge import outcome
from DeepRegLib.job import private_folder
from DeepRegLib.registration.base import Progress


def exhausted(steps):
    """What a generator returns at its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def worked(steps, load=outcome.load):
    """What is read of the files of a job, whose nodes `steps` collects."""
    collected = exhausted(steps)
    with private_folder() as folder:
        return load(worker_jobs.run(collected.save(folder), Progress()), folder)
