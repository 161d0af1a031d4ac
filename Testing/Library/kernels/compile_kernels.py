"""Compiles every kernel for a GPU that is not there; started by test_kernels_compile.py.

The operations are called with tensors of the CPU and a driver that only names an architecture:
each launch then ends after the compilation, whose machine code is listed as JSON.
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class Driver:
    """What the compiler asks of a driver."""

    def __init__(self, backend, arch, lanes):
        self.target = GPUTarget(backend, arch, lanes)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def __getattr__(self, name):
        raise AttributeError(f"the stand-in for a driver has no {name}")


def compile_all(backend, arch, lanes, form):
    triton.runtime.driver.set_active(Driver(backend, arch, lanes))
    from DeepRegLib.kernels import dispatch, operations

    torch.version.hip = "stand-in" if backend == "hip" else None
    compiled, run = {}, JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.setdefault(self.__name__, []).append(len(kernel.asm[form]))
        return kernel

    JITFunction.run = compile_only
    operations.available = lambda *tensors: True
    call_all(operations)
    return {"compiled": compiled, "failed": sorted(dispatch._switched_off)}


def call_all(operations):
    for shape, channels in (((7, 10, 13), 3), ((1, 1, 1), 1)):
        image, field = torch.rand(2, channels, *shape), torch.rand(2, 3, *shape)
        mask, matrix = torch.rand(2, 1, *shape), torch.eye(4)
        operations.sample_linear(image.half(), field, matrix)
        operations.warp(image, field)
        operations.warp_with_inside(image.bfloat16(), field, matrix)
        operations.compose(field, field, torch.tensor(0.5))
        operations.compose(field, field)
        operations.force(image, image)
        operations.convolve(image, [[0.25, 0.5, 0.25], None, [0.1, 0.2, 0.4, 0.2, 0.1]])
        operations.max_norm(field)
        operations.lncc(image, image)
        operations.lncc(image, image, mask, 1, True)
        operations.joint_histogram(image, image, 32)
        operations.joint_histogram(image, image, 32, image)
        operations.histogram_slope(image, image, torch.rand(32, 32), image)


backend, arch, lanes, form = sys.argv[1:]
print(json.dumps(compile_all(backend, int(arch) if arch.isdigit() else arch, int(lanes), form)))
