"""Grids and fields that the tests share: non-cubic, anisotropic, oblique, in four orientations."""

import numpy as np
import torch

from DeepRegLib.geometry.affine import rotation_from_vector
from DeepRegLib.geometry.field import fade_window
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.sampling import gaussian_smooth

ORIENTATIONS = {
    "RAS": np.diag([1.0, 1.0, 1.0]),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    # Tensor axes k, j, i of a volume as Slicer gives it, left-handed in this order.
    "SAR": np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    "oblique": rotation_from_vector(torch.tensor([0.3, -0.5, 0.4], dtype=torch.float64)).numpy(),
}


def make_grid(orientation: str, shape=(13, 17, 11), spacing=(1.5, 0.8, 3.0), origin=(5, -40, 22)):
    matrix = np.eye(4)
    matrix[:3, :3] = ORIENTATIONS[orientation] * np.array(spacing)
    matrix[:3, 3] = origin
    return Grid(shape, matrix)


def smooth_displacement(shape, amplitude=1.0, seed=0, sigma=3.0):
    """A smooth random displacement (1, 3, *shape) in voxels that vanishes at the border."""
    noise = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian_smooth(noise, sigma) * fade_window(shape, 5)
    return smooth * (amplitude / smooth.abs().max())
