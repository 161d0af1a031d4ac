"""Registers one pair with greedy (PICSL), through its Python interface.

Settings: the quick start of the manual (https://greedy.readthedocs.io/en/latest/quick_start.html,
"Affine Registration" and "Deformable Registration"): weighted NCC 2x2x2, image centers,
100x50x10 iterations, stationary velocity (``-sv``). Variants:

- ``wncc-sv``: just that.
- ``ncc``: NCC 4x4x4 for the affine, NCC 2x2x2 and the compositive scheme for the deformation.
- ``nmi-sv``: NMI instead, for pairs of two modalities.
"""

from __future__ import annotations

from importlib.metadata import version

from protocol import (
    Job,
    Outcome,
    Stopwatch,
    affine_transform,
    chain,
    dense,
    field_transform,
    main,
    peak_memory_mb,
)

#: Metric of the affine, metric of the deformation, options of the deformation.
VARIANTS = {
    "wncc-sv": ("WNCC 2x2x2", "WNCC 2x2x2", "-sv"),
    "ncc": ("NCC 4x4x4", "NCC 2x2x2", ""),
    "nmi-sv": ("NMI", "NMI", "-sv"),
}
ITERATIONS = "100x50x10"


def run(job: Job) -> Outcome:
    """Affine registration, then deformable from it."""
    import numpy as np
    import SimpleITK as sitk
    from picsl_greedy import Greedy3D

    affine_metric, metric, options = VARIANTS[job.variant]
    images = [sitk.ReadImage(path, sitk.sitkFloat32) for path in (job.fixed, job.moving)]
    start = "-ia-identity" if job.aligned else "-ia-image-centers"
    common = f"-threads {job.threads} -V 0 -n {ITERATIONS} -i fixed moving"
    affine_line = f"-a -dof 12 -m {affine_metric} {start} {common} -o affine"
    # -wp 0 leaves the field as it is; the default rounds it to a tenth of a voxel.
    warp_line = f"-m {metric} {options} {common} -it affine -wp 0 -o warp -oinv inverse"
    greedy, watch = Greedy3D(), Stopwatch()
    with watch.step("affine"):
        greedy.execute(affine_line, fixed=images[0], moving=images[1], affine=None)
    with watch.step("deformable"):
        greedy.execute(warp_line, warp=None, inverse=None)
    peak = peak_memory_mb()
    # greedy's matrices are in RAS mm, its fields in LPS mm.
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix = flip @ np.asarray(greedy["affine"], float) @ flip
    affine = affine_transform(matrix)
    forward = dense(chain(field_transform(greedy["warp"]), affine), images[0])
    back = chain(affine.GetInverse(), field_transform(greedy["inverse"]))
    return Outcome(
        forward, f"picsl_greedy {version('picsl_greedy')}", watch.seconds, peak,
        dense(back, images[1]), {"affine": affine_line, "deformable": warp_line},
    )  # fmt: skip


if __name__ == "__main__":
    main(run)
