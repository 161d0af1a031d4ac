"""The worker's job ``check``: images and a transform in, the estimated error in mm out."""

from __future__ import annotations

from pathlib import Path

from .job import Job, JobEvent
from .registration.base import Progress
from .worker_files import checked, read_pair, read_transform, write_image

_PARAMETERS = ("model", "step", "threshold_mm", "device")


def run(job: Job, progress: Progress) -> JobEvent:
    """Checks a registration, and returns the event ``done``.

    Raises:
        DeepRegError: If something does not fit, or the user cancelled.
    """
    from .check import check_registration  # most jobs are of other kinds

    options = {k: v for k, v in checked(job, _PARAMETERS).items() if v is not None}
    pair = read_pair(job)
    found = check_registration(
        pair.fixed, pair.moving, read_transform(job, "transform"), fixed_mask=pair.fixed_mask,
        progress=progress, **options,
    )  # fmt: skip
    return JobEvent(
        "done", job.id, fraction=1.0,
        arrays={"error_mm": write_image(Path(job.folder), "error_mm", found.error)},
        data=found.report(),
    )  # fmt: skip
