"""Mends the few voxels in which a deformation folds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.field import fade_window
from ..geometry.jacobian import jacobian_determinant
from ..geometry.sampling import gaussian_smooth

#: Determinants that count as folds, and how often their surroundings are smoothed.
_LEAST_DET, _ATTEMPTS = 0.01, 12


def without_folds(displacement: Tensor) -> Tensor:
    """Returns a displacement whose Jacobian determinant is positive everywhere.

    Steps that are added, and compositions that are interpolated, may fold a few voxels where
    neighbours are pulled against each other. The surroundings of folds are smoothed, wider each
    time; what that does not mend is ended by scaling the whole, which always works because the
    determinant tends to one.

    Args:
        displacement: (1, 3, D, H, W) in voxels; returned as it is if nothing folds.
    """
    shape = displacement.shape[2:]
    still = (fade_window(shape, 1, displacement.device) > 0).float()
    active = [0 if n == 1 else 1 for n in shape]
    for attempt in range(_ATTEMPTS):
        folded = jacobian_determinant(displacement)[:, None] <= _LEAST_DET
        if not folded.any():
            return displacement
        reach = [a * (2 + attempt) for a in active]
        near = folded.float()
        for axis, r in enumerate(reach):
            kernel, pad = [1, 1, 1], [0, 0, 0]
            kernel[axis], pad[axis] = 2 * r + 1, r
            near = F.max_pool3d(near, kernel, stride=1, padding=pad) if 2 * r < shape[axis] else (
                near.amax(2 + axis, keepdim=True).expand(near.shape))  # fmt: skip
        near = gaussian_smooth(near.contiguous(), [1.0 * a for a in active]).mul_(still)
        smooth = gaussian_smooth(displacement, [(0.7 + 0.3 * attempt) * a for a in active])
        displacement = torch.lerp(displacement, smooth, near)
    while bool((jacobian_determinant(displacement) <= _LEAST_DET).any()):
        displacement = displacement * 0.8
    return displacement
