"""Registration in k-space: the fixed image is bent until the raw data of the scan is explained.

The moving side is under-sampled Cartesian raw data of magnetic resonance: either a file of complex
samples (`raw`), or samples that are simulated from the moving volume (`acceleration`). No image is
made of them before the registration, as its aliasing would be registered along; instead the fixed
image is bent, transformed to k-space, and compared with the samples that there are. A velocity is
optimized by Adam at several resolutions, whose data is the middle of k-space.

With the deformation, the fixed image tells what was not sampled: the motion-compensated
reconstruction is a volume beside the result.

There is no single publication of this system. It is the data term of compressed sensing with a bent
reference in place of sparsity. One receiver channel (combine coils first); the phase of measured
data is taken from its fully sampled center; the gray values of both images differ by a factor and
an offset only, so that they show the same contrast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..registration.base import ImagePair, Progress, Result
from ..registration.kspace import cartesian_mask
from ..registration.raw_data import read_raw
from ..registration.raw_engine import RawEngine, raw_settings
from ..registration.raw_scan import Scan, measured_scan, simulated_scan
from ..spec import AlgorithmSpec, Parameter, Reference

SPEC = AlgorithmSpec(
    key="raw_domain",
    title="Registration to raw MR data",
    family="optimisation",
    summary="Bends the fixed image until it explains the under-sampled raw data of the moving one.",
    transform="dense",
    stages=("rigid", "affine"),
    references=(
        Reference(
            authors="Küstner, Pan, Qi, Cruz, Gilliam, Blu, Yang, Gatidis, Botnar, Prieto",
            title="LAPNet: non-rigid registration derived in k-space for magnetic resonance "
            "imaging",
            venue="IEEE Transactions on Medical Imaging 40(12):3686-3697",
            year=2021,
            doi="10.1109/TMI.2021.3096131",
        ),
        Reference(
            authors="Lustig, Donoho, Pauly",
            title="Sparse MRI: the application of compressed sensing for rapid MR imaging",
            venue="Magnetic Resonance in Medicine 58(6):1182-1195",
            year=2007,
            doi="10.1002/mrm.21391",
        ),
        Reference(
            authors="Arsigny, Commowick, Pennec, Ayache",
            title="A log-Euclidean framework for statistics on diffeomorphisms",
            venue="MICCAI 2006, LNCS 4190:924-931",
            year=2006,
            doi="10.1007/11866565_113",
        ),
    ),
    parameters=(
        Parameter(
            name="raw",
            default="",
            help="File of the raw data (.npz with 'kspace'); empty simulates it from the moving "
            "volume.",
        ),
        Parameter(
            name="acceleration",
            default=4.0,
            minimum=1.0,
            maximum=64.0,
            help="How many times fewer samples than voxels are simulated.",
        ),
        Parameter(
            name="center",
            default=0.08,
            minimum=0.0,
            maximum=1.0,
            help="Share of each phase-encoding axis that is whole around frequency zero.",
            advanced=True,
        ),
        Parameter(
            name="pattern",
            default="points",
            choices=("points", "lines"),
            help="Which samples are left out: along two axes of a 3-D scan, or along one of "
            "slices.",
            advanced=True,
        ),
        Parameter(
            name="seed",
            default=0,
            minimum=0,
            maximum=1000000,
            help="Decides which samples are drawn.",
            advanced=True,
        ),
        Parameter(
            name="smoothness",
            default=0.1,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the squared gradient of the velocity; larger is smoother.",
        ),
        Parameter(
            name="emphasis",
            default=0.5,
            minimum=0.0,
            maximum=2.0,
            help="Power of the frequency that samples are weighted by; 0 weights all alike.",
            advanced=True,
        ),
        Parameter(
            name="factors",
            default=(4.0, 2.0, 1.0),
            minimum=1.0,
            maximum=64.0,
            help="Voxel size of each level in units of the finest.",
            advanced=True,
        ),
        Parameter(
            name="iterations",
            default=(60, 60, 40),
            minimum=0,
            maximum=10000,
            presets={"fast": (40, 30, 15), "accurate": (100, 100, 80)},
            help="Iterations at each level.",
            advanced=True,
        ),
        Parameter(
            name="step",
            default=0.3,
            minimum=0.001,
            maximum=4.0,
            unit="voxel",
            help="Length of the first steps of Adam, in voxels of the velocity.",
            advanced=True,
        ),
        Parameter(
            name="trust",
            default=0.0,
            minimum=0.0,
            maximum=1000.0,
            help="Weight of the bent fixed image beside a sample, in the reconstruction; for noisy "
            "data.",
            advanced=True,
        ),
    ),
)


class Algorithm:
    """Registration to raw data."""

    def __init__(self, **values: Any) -> None:
        self._values = values
        self._engine = RawEngine(raw_settings(values))

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair; see `registration.base.Registration`.

        Raises:
            FileFormatError: If the file of the raw data cannot be read.
            InputError: If it does not fit the moving volume.
            ParameterError: If so few samples cannot be simulated.
        """
        progress.update(0.0)
        return self._engine.register(pair, self._scan(pair, progress), progress)

    def _scan(self, pair: ImagePair, progress: Progress) -> Scan:
        values = self._values
        file = str(values["raw"]).strip()
        if file:
            if pair.moving_mask is not None:
                progress.message("Raw data cannot be masked; the mask of the moving image is left "
                                 "out.")  # fmt: skip
            return measured_scan(pair, read_raw(file, pair.moving.grid), Path(file).name)
        mask = cartesian_mask(
            pair.moving.grid.shape, float(values["acceleration"]), float(values["center"]),
            str(values["pattern"]), seed=int(values["seed"]),
        )  # fmt: skip
        return simulated_scan(pair, mask)
