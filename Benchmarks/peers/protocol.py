"""What every runner shares: the job that comes in, the files and figures that go out.

Runs in the environments of the peers, so it needs nothing but numpy and SimpleITK.

Convention:
    A runner is started as ``python run_<peer>.py job.json``. It writes into the folder of the job
    ``forward.nrrd`` (total displacement T(p) - p on the fixed grid, LPS mm, fixed to moving),
    ``inverse.nrrd`` (the same from moving to fixed on the moving grid) where the method has one,
    and ``report.json`` with seconds, peak memory and version, or with ``error``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk


@dataclass(frozen=True)
class Job:
    """One registration.

    Args:
        fixed: Image file.
        moving: Image file.
        variant: Which settings of the peer; each runner knows its own.
        threads: Threads that the peer may use.
        folder: Where the results go.
        modality: ``same`` or ``different``.
        aligned: Whether the stored positions are the place to start from. If not, the peer starts
            with its own way of bringing the images together.
        device: ``cpu`` or ``cuda``. On a GPU everything is run once before it is timed.
    """

    fixed: str
    moving: str
    variant: str
    threads: int
    folder: str
    modality: str = "same"
    aligned: bool = False
    device: str = "cpu"

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return Path(self.folder)


@dataclass
class Outcome:
    """What a runner hands back; `seconds` are those of its steps, without reading and writing.

    A step ``inverse`` is counted apart: some methods find the inverse along the way, others make
    it afterwards, where it can be left out.
    """

    forward: sitk.Image
    version: str
    seconds: dict[str, float]
    peak_memory_mb: float
    inverse: sitk.Image | None = None
    settings: dict[str, Any] = field(default_factory=dict)


class Stopwatch:
    """Adds up the wall seconds of named steps."""

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        """Begins at zero; `wait` waits for a GPU, which works behind the program's back."""
        self.seconds: dict[str, float] = {}
        self._wait = wait

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times what is done inside."""
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def set_threads(threads: int) -> None:
    """Limits the cores, and the threads of ITK, OpenMP and BLAS; before the peer is imported."""
    if hasattr(os, "sched_setaffinity"):
        # Programs that count cores instead of obeying a setting get no more than the others.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in (
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    ):  # fmt: skip
        os.environ[name] = str(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def gpu_peak_memory_mb() -> float:
    """Most GPU memory that torch has held since its peak was reset, in MiB."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


def peak_memory_mb() -> float:
    """Largest resident memory so far, of this process or of a child, in MiB.

    The peak of the process comes from ``VmHWM`` where there is one: ``ru_maxrss`` of a new process
    begins with what its parent held, which would be the memory of the benchmark itself.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        own = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), own)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, children) / 1024.0


def dense(transform: sitk.Transform, grid: sitk.Image) -> sitk.Image:
    """Total displacement of a transform at the voxels of an image, LPS mm."""
    size, origin = grid.GetSize(), grid.GetOrigin()
    return sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat32, size, origin, grid.GetSpacing(), grid.GetDirection()
    )


def chain(*first_to_last: sitk.Transform) -> sitk.Transform:
    """One transform that applies the given ones in this order to a point."""
    # ITK applies the transform that was added last first.
    return sitk.CompositeTransform(list(reversed(first_to_last)))


def field_transform(image: sitk.Image) -> sitk.Transform:
    """A transform from an image of LPS displacements in mm; the image is used up."""
    return sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))


def lps_matrix(transform: sitk.Transform) -> np.ndarray:
    """The 4 x 4 matrix of a linear transform, LPS mm."""
    corners = [transform.TransformPoint(p) for p in np.vstack([np.zeros(3), np.eye(3)]).tolist()]
    matrix = np.eye(4)
    matrix[:3, 3] = corners[0]
    matrix[:3, :3] = (np.array(corners[1:]) - corners[0]).T
    return matrix


def affine_transform(lps: np.ndarray) -> sitk.Transform:
    """A transform from a 4 x 4 matrix, LPS mm."""
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(np.asarray(lps, float)[:3, :3].ravel().tolist())
    affine.SetTranslation(np.asarray(lps, float)[:3, 3].tolist())
    return affine


def main(run: Callable[[Job], Outcome]) -> None:
    """Reads the job, runs it and writes its results; the exit status is 1 after an error."""
    started = time.perf_counter()
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    set_threads(job.threads)
    report: dict[str, Any]
    try:
        outcome = run(job)
        sitk.WriteImage(outcome.forward, str(job.out / "forward.nrrd"))
        if outcome.inverse is not None:
            sitk.WriteImage(outcome.inverse, str(job.out / "inverse.nrrd"))
        apart = outcome.seconds.get("inverse", 0.0)
        report = {
            "version": outcome.version,
            "seconds": sum(outcome.seconds.values()) - apart,
            "seconds_by_step": outcome.seconds,
            "seconds_total": time.perf_counter() - started,
            "peak_memory_mb": outcome.peak_memory_mb,
            "settings": outcome.settings,
        }
        if apart:
            report["inverse_seconds"] = apart
    except Exception as error:  # the table shows what went wrong
        traceback.print_exc()
        report = {"error": f"{type(error).__name__}: {error}".strip()[:1000]}
    (job.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    sys.exit(1 if "error" in report else 0)
