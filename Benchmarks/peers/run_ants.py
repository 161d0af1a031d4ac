"""Registers one pair with ANTs, through antspyx.

Settings: those that ``ants.registration`` has built in. ``antsRegistrationSyNQuick[s]`` and
``antsRegistrationSyN[s]`` repeat the scripts of the same names (rigid, affine, SyN; MI or CC with
radius 2), which the ANTs manual recommends
(https://github.com/ANTsX/ANTs/wiki/Anatomy-of-an-antsRegistration-call); ``SyN`` is antspyx's
default (affine and SyN on Mattes mutual information).
"""

from __future__ import annotations

import os
from importlib.metadata import version

from protocol import (
    Job,
    Outcome,
    Stopwatch,
    chain,
    dense,
    field_transform,
    main,
    peak_memory_mb,
)

VARIANTS = {
    "syn-quick": "antsRegistrationSyNQuick[s]",
    "syn-cc": "antsRegistrationSyN[s]",
    "syn-mattes": "SyN",
}


def run(job: Job) -> Outcome:
    """Calls ``ants.registration`` and joins its transforms."""
    # Read when a registration starts; without it no two runs are alike.
    os.environ["ANTS_RANDOM_SEED"] = "1"
    import ants
    import SimpleITK as sitk

    fixed, moving = (ants.image_read(path) for path in (job.fixed, job.moving))
    settings = {"type_of_transform": VARIANTS[job.variant]}
    if job.aligned:
        settings["initial_transform"] = "Identity"
    watch = Stopwatch()
    with watch.step("registration"):
        found = ants.registration(fixed, moving, outprefix=str(job.out / "ants_"), **settings)
    peak = peak_memory_mb()
    grids = [sitk.ReadImage(path) for path in (job.fixed, job.moving)]
    # Given from the last to be applied to the first, as antsApplyTransforms takes them.
    there = [_read(path) for path in found["fwdtransforms"]]
    # In the list of the inverse the matrices are those of the forward direction.
    back = [
        _read(path).GetInverse() if path.endswith(".mat") else _read(path)
        for path in found["invtransforms"]
    ]
    return Outcome(
        dense(chain(*there), grids[0]), f"antspyx {version('antspyx')}", watch.seconds, peak,
        dense(chain(*back), grids[1]), settings,
    )  # fmt: skip


def _read(path: str):
    import SimpleITK as sitk

    if path.endswith(".mat"):
        return sitk.ReadTransform(path)
    return field_transform(sitk.ReadImage(path, sitk.sitkVectorFloat64))


if __name__ == "__main__":
    main(run)
