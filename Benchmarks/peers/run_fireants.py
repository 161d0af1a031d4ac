"""Registers one pair with FireANTs, on the CPU or a GPU.

Settings: the quick start for brain MRI (https://fireants.readthedocs.io/en/latest/quickstart/):
affine on CC with scales 4, 2, 1, iterations 200, 100, 50, Adam with 3e-3; deformation on CC of
width 5 with iterations 200, 100, 25. Greedy takes a step of 0.5 and smooths the gradient by 1;
SyN takes its own default step 0.1. Without trusted positions the centers of mass are matched
first (the manual's page on moments). Variants: ``greedy``, ``syn``.
"""

from __future__ import annotations

from importlib.metadata import version

from protocol import (
    Job,
    Outcome,
    Stopwatch,
    dense,
    field_transform,
    gpu_peak_memory_mb,
    main,
    peak_memory_mb,
)


def run(job: Job) -> Outcome:
    """Moments or stored positions, affine, deformable."""
    import SimpleITK as sitk
    import torch
    from fireants.io import BatchedImages, Image

    torch.set_num_threads(job.threads)
    images = [
        BatchedImages([Image.load_file(path, device=job.device)])
        for path in (job.fixed, job.moving)
    ]
    on_gpu = job.device != "cpu"
    if on_gpu:
        _register(job, images, Stopwatch())
        torch.cuda.reset_peak_memory_stats()
    watch = Stopwatch(torch.cuda.synchronize if on_gpu else lambda: None)
    registration = _register(job, images, watch)
    peak = gpu_peak_memory_mb() if on_gpu else peak_memory_mb()
    grids = [sitk.ReadImage(path) for path in (job.fixed, job.moving)]
    path = str(job.out / "fireants.nii.gz")
    registration.save_as_ants_transforms(path)
    forward = dense(field_transform(_vectors(path)), grids[0])
    inverse = None
    if job.variant == "greedy":
        # SyN of this version raises NotImplementedError here.
        with watch.step("inverse"):
            registration.save_as_ants_transforms(path, save_inverse=True)
        inverse = dense(field_transform(_vectors(path)), grids[1])
    name = f"fireants {version('fireants')}, torch {version('torch')}, without fused operations"
    return Outcome(forward, name, watch.seconds, peak, inverse)


def _register(job: Job, images, watch: Stopwatch):
    """Runs moments, affine and deformation; returns the deformation."""
    from fireants.registration.affine import AffineRegistration
    from fireants.registration.greedy import GreedyRegistration
    from fireants.registration.moments import MomentsRegistration
    from fireants.registration.syn import SyNRegistration

    kinds = {
        "greedy": (GreedyRegistration, {"optimizer_lr": 0.5}),
        "syn": (SyNRegistration, {"optimizer_lr": 0.1}),
    }
    kind, extra = kinds[job.variant]
    start = None
    with watch.step("affine"):
        if not job.aligned:
            moments = MomentsRegistration(4, *images, moments=1)
            moments.optimize()
            start = moments.get_affine_init()
        affine = AffineRegistration(
            [4, 2, 1], [200, 100, 50], *images, optimizer="Adam", optimizer_lr=3e-3,
            cc_kernel_size=5, init_rigid=start,
        )  # fmt: skip
        affine.optimize()
    with watch.step("deformable"):
        registration = kind(
            [4, 2, 1], [200, 100, 25], *images, cc_kernel_size=5, deformation_type="compositive",
            smooth_grad_sigma=1, optimizer="adam", init_affine=affine.get_affine_matrix().detach(),
            **extra,
        )  # fmt: skip
        registration.optimize()
    return registration


def _vectors(path: str):
    """Reads a displacement image, whichever way its vectors are stored."""
    import SimpleITK as sitk

    image = sitk.ReadImage(path)
    if image.GetNumberOfComponentsPerPixel() == 3:
        return sitk.Cast(image, sitk.sitkVectorFloat64)
    raise ValueError(f"{image.GetNumberOfComponentsPerPixel()} components, {image.GetSize()}")


if __name__ == "__main__":
    main(run)
