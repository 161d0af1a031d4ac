"""Times every fused GPU kernel against the torch path that it replaces, and their memory.

    python Benchmarks/gpu_kernels.py [--sizes 64 128 192 256] [--repeats 20]

Prints JSON and keeps it as results/gpu_kernels.json. Without a CUDA device it says so and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DeepRegLib import kernels
from DeepRegLib.geometry.field import compose_displacements
from DeepRegLib.geometry.jacobian import axis_gradient
from DeepRegLib.geometry.sampling import (
    apply_matrix,
    gaussian_kernel,
    gaussian_smooth,
    sample,
    voxel_coordinates,
)
from DeepRegLib.losses.lncc import LNCC
from DeepRegLib.losses.mutual_information import MutualInformation

SIGMA, BINS = 1.7, 32
#: A small rotation, stretch and shift, as an affine start gives.
MATRIX = np.array([[0.98, 0.1, 0, 2], [-0.1, 1.02, 0, 1], [0, 0, 1, -3], [0, 0, 0, 1]])

Call = Callable[[], Any]


def inputs(size: int, device: torch.device) -> dict[str, Tensor]:
    """Smooth images with a dark background, as most of a head is, and a smooth field."""
    generator = torch.Generator(device=device).manual_seed(size)

    def noise(channels: int) -> Tensor:
        return torch.rand(1, channels, size, size, size, device=device, generator=generator)

    def image() -> Tensor:
        return ((gaussian_smooth(noise(1), 2.0) - 0.5) * 8).clamp(0, 1)

    return {
        "fixed": image(),
        "moving": image(),
        "slope": noise(1) - 0.5,
        "mask": (gaussian_smooth(noise(1), 4.0) > 0.49).float(),
        "field": (gaussian_smooth(noise(3), 4.0) - 0.5) * 60,
        "update": noise(3) - 0.5,
        "scale": torch.full((), 0.7, device=device),
    }


def torch_force(moved: Tensor, slope: Tensor) -> Tensor:
    return torch.cat([axis_gradient(moved, a).mul_(slope).sum(1, keepdim=True) for a in range(3)],
                     dim=1)  # fmt: skip


def kernel_mutual_information(fixed: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    joint = kernels.joint_histogram(fixed, moved, BINS)
    assert joint is not None
    value, table = MutualInformation(BINS)._derivative(joint / moved.numel())
    slope = kernels.histogram_slope(fixed, moved, table * ((BINS - 5) / moved.numel()))
    assert slope is not None
    return value.float(), slope


def cases(t: dict[str, Tensor]) -> dict[str, tuple[Call, Call]]:
    """Name -> (kernel, torch path), which give the same numbers."""
    f, m, mask, u, v = t["fixed"], t["moving"], t["mask"], t["field"], t["update"]
    weights = [gaussian_kernel(SIGMA)] * 3
    shape, device = f.shape[2:], f.device
    identity = voxel_coordinates(shape, device)
    lncc, mi = LNCC(2), MutualInformation(BINS)
    return {
        "sample_linear": (lambda: kernels.sample_linear(m, identity), lambda: sample(m, identity)),
        "warp": (lambda: kernels.warp(m, u), lambda: sample(m, identity + u)),
        "warp_affine": (
            lambda: kernels.warp(m, u, MATRIX),
            lambda: sample(m, apply_matrix(MATRIX, identity + u)),
        ),
        "compose": (
            lambda: kernels.compose(u, v, t["scale"]),
            lambda: compose_displacements(u, v * t["scale"]),
        ),
        "force": (lambda: kernels.force(m, t["slope"]), lambda: torch_force(m, t["slope"])),
        "gaussian": (lambda: kernels.convolve(v, weights), lambda: gaussian_smooth(v, SIGMA)),
        "max_norm": (lambda: kernels.max_norm(v), lambda: v.square().sum(1).max().sqrt()),
        "lncc": (lambda: kernels.lncc(f, m), lambda: lncc.value_and_gradient(f, m)),
        "lncc_mask": (
            lambda: kernels.lncc(f, m, mask),
            lambda: lncc.value_and_gradient(f, m, mask),
        ),
        "mutual_information": (
            lambda: kernel_mutual_information(f, m),
            lambda: mi.value_and_gradient(f, m),
        ),
    }


def kernel_step(t: dict[str, Tensor]) -> Callable[[Tensor], tuple[Tensor]]:
    """One iteration of greedy registration, as a function of the displacement."""
    weights = [gaussian_kernel(SIGMA)] * 3

    def step(u: Tensor) -> tuple[Tensor]:
        moved = kernels.warp(t["moving"], u)
        both = None if moved is None else kernels.lncc(t["fixed"], moved)
        assert moved is not None and both is not None
        force = kernels.force(moved, both[1], (-1.0, -1.0, -1.0))
        update = None if force is None else kernels.convolve(force, weights)
        length = None if update is None else kernels.max_norm(update)
        assert update is not None and length is not None
        composed = kernels.compose(u, update, 1.0 / length.clamp(min=1e-30))
        assert composed is not None
        return (composed,)

    return step


@contextlib.contextmanager
def torch_only() -> Iterator[None]:
    """Switches the kernels off, also where the library would take them by itself."""
    before = os.environ.get("DEEPREG_TRITON")
    os.environ["DEEPREG_TRITON"] = "0"
    try:
        yield
    finally:
        os.environ.pop("DEEPREG_TRITON")
        if before is not None:
            os.environ["DEEPREG_TRITON"] = before


def measure(call: Call, repeats: int) -> dict[str, float]:
    """Median milliseconds of the GPU, and MiB on top of what was there before."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return {"ms": statistics.median(times), "mib": peak / 2**20}


def difference(got: Any, expected: Any) -> float:
    """Largest difference relative to the largest number, over all results."""
    if isinstance(expected, tuple):
        return max(difference(g, e) for g, e in zip(got, expected))
    got, expected = got.double(), expected.double()
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def compare(size: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """All cases at one size; a kernel that does not run here is left out with a word."""
    t = inputs(size, device)
    rows: dict[str, Any] = {}
    for name, (fused, plain) in cases(t).items():
        result = fused()
        if result is None:
            rows[name] = "does not run here"
            continue
        with torch_only():
            far, slow = difference(result, plain()), measure(plain, repeats)
        fast = measure(fused, repeats)
        rows[name] = {
            "difference": far, "torch": slow, "kernel": fast, "faster": slow["ms"] / fast["ms"],
        }  # fmt: skip
    if "does not run here" in rows.values():
        return rows
    step = kernel_step(t)
    graph = kernels.StepGraph(step)
    rows["step"] = {
        "kernels": measure(lambda: step(t["field"]), repeats),
        "graph": measure(lambda: graph(t["field"]), repeats),
        "captured": graph.captured,
    }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 192, 256])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so there are no GPU kernels to time.")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    if not kernels.available(torch.ones(1, device=device)):
        print("Triton is missing, switched off, or does not support this GPU: nothing to time.")
        return
    # Only for the record's commit, machine and versions: it loads the readers of images too.
    from common import save

    figures: dict[str, Any] = {"gpu": torch.cuda.get_device_name(device), "sizes": {}}
    with torch.no_grad():
        for size in options.sizes:
            figures["sizes"][str(size)] = compare(size, options.repeats, device)
            torch.cuda.empty_cache()
    print(json.dumps(figures, indent=1))
    save("gpu_kernels", figures)


if __name__ == "__main__":
    main()
