"""Registers one pair with DeepRegLib, under the same conditions as the peers.

The variant is ``stages:preset``, such as ``rigid+affine+greedy:balanced``.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from protocol import Job, Outcome, Stopwatch, gpu_peak_memory_mb, main, peak_memory_mb


def run(job: Job) -> Outcome:
    """Registers the pair of a job and inverts the result."""
    import SimpleITK as sitk
    import torch

    # Settings and the algorithms' code are those of the other benchmarks.
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
    from common import DeepRegLib, ImagePair, read_image, register

    from DeepRegLib.allocator import keep_freed_memory
    from DeepRegLib.geometry.inverse import invert
    from DeepRegLib.io.itk_transform import write_displacement

    torch.set_num_threads(job.threads)
    keep_freed_memory()  # as the command line and the panel's process do
    algorithm, _, preset = job.variant.partition(":")
    settings: dict[str, object] = {}
    if job.modality == "different" and not {"greedy", "syn"}.isdisjoint(algorithm.split("+")):
        settings["modality"] = "different"
    if job.aligned:
        settings["initialization"] = "stored"
    pair = ImagePair(read_image(job.fixed), read_image(job.moving)).to(job.device)
    on_gpu = job.device != "cpu"
    if on_gpu:
        register(pair, algorithm, preset or "balanced", **settings)
        torch.cuda.reset_peak_memory_stats()
    watch = Stopwatch(torch.cuda.synchronize if on_gpu else lambda: None)
    with watch.step("registration"):
        result, _ = register(pair, algorithm, preset or "balanced", **settings)
    with watch.step("inverse"):
        inverse, _ = invert(result.transform, pair.moving.grid)
    peak = gpu_peak_memory_mb() if on_gpu else peak_memory_mb()
    result.transform, inverse = result.transform.to("cpu"), inverse.to("cpu")
    forward, back = job.out / "forward.nrrd", job.out / "inverse.nrrd"
    write_displacement(result.transform, forward, pair.fixed.grid)
    write_displacement(inverse, back, pair.moving.grid)
    if result.transform.is_linear:
        (job.out / "linear.txt").write_text(
            "\n".join(" ".join(f"{v:.12g}" for v in row) for row in result.transform.linear)
        )
    settings["stages"] = result.seconds
    name = f"DeepRegLib {DeepRegLib.__version__}, torch {version('torch')}"
    images = [sitk.ReadImage(str(path)) for path in (forward, back)]
    return Outcome(images[0], name, watch.seconds, peak, images[1], settings)


if __name__ == "__main__":
    main(run)
