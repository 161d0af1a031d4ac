"""Fused GPU kernels in Triton, used where they can run; torch does the same work elsewhere."""

from .dispatch import available
from .graphs import StepGraph
from .operations import (
    compose,
    convolve,
    force,
    histogram_slope,
    joint_histogram,
    lncc,
    max_norm,
    sample_linear,
    warp,
    warp_with_inside,
)

__all__ = [
    "StepGraph",
    "available",
    "compose",
    "convolve",
    "force",
    "histogram_slope",
    "joint_histogram",
    "lncc",
    "max_norm",
    "sample_linear",
    "warp",
    "warp_with_inside",
]
