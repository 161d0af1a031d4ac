"""Registers one pair with convexAdam on MIND features, with its defaults.

Settings: the defaults of ``convex_adam_pt`` (https://github.com/multimodallearning/convexAdam),
in 32-bit floats because many CPUs compute 16-bit ones slowly or not at all. It has no linear
registration and wants both images on one grid: the moving image that it gets was brought onto the
fixed grid by our affine registration, whose seconds are counted apart. Variant: ``mind``.
"""

from __future__ import annotations

from importlib.metadata import version

from protocol import Job, Outcome, Stopwatch, main, peak_memory_mb


def run(job: Job) -> Outcome:
    """Calls ``convex_adam_pt`` and turns its voxels into millimeters."""
    import numpy as np
    import SimpleITK as sitk
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(job.threads)
    images = [sitk.ReadImage(path, sitk.sitkFloat32) for path in (job.fixed, job.moving)]
    fixed = images[0]
    if images[1].GetSize() != fixed.GetSize():
        raise ValueError("convexAdam wants a moving image on the grid of the fixed one")
    watch = Stopwatch()
    with watch.step("registration"):
        voxels = convex_adam_pt(*images, dtype=torch.float32, device=torch.device("cpu"))
    peak = peak_memory_mb()
    # Shape (z, y, x, 3), component c in voxels along array axis c.
    axes = np.array(fixed.GetDirection()).reshape(3, 3) * np.array(fixed.GetSpacing())
    vectors = np.asarray(voxels, float)[..., ::-1] @ axes.T
    forward = sitk.GetImageFromArray(vectors.astype(np.float32), isVector=True)
    forward.CopyInformation(fixed)
    name = f"convexadam {version('convexadam')}, torch {version('torch')}"
    return Outcome(forward, name, watch.seconds, peak)


if __name__ == "__main__":
    main(run)
