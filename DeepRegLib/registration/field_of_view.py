"""What becomes of a deformation beyond the field of view of the moving image."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry.sampling import apply_matrix, gaussian_smooth, inside_image, voxel_coordinates
from .levels import Lattice, PairLevel

#: Standard deviation of the Gaussian that a deformation fades by, in voxels of the lattice.
_FADED = 2.0


class FieldOfView:
    """Lets a deformation rest where it leads out of the moving image.

    Nothing pulls there, but the smoothing of every step, on coarse levels most, spreads what moves
    the rest over it, and from there back. What is known of such places is the linear map alone.

    Args:
        level: The images.
        lattice: Where the deformation lives.
    """

    def __init__(self, level: PairLevel, lattice: Lattice) -> None:
        self._partial, self._shape = level.partial, level.moving.shape[2:]
        self._to_moving = level.to_moving @ lattice.grid.voxel_to_voxel(lattice.image_grid)

    def rested(self, vectors: Tensor, displacement: Tensor) -> Tensor:
        """Returns vectors that are faded to zero beyond the moving image.

        Args:
            vectors: (1, 3, *lattice.shape), of a displacement or a velocity.
            displacement: Displacement that leads to the moving image, (1, 3, *lattice.shape) in
                voxels of the lattice.

        Returns:
            The vectors, unchanged wherever the displacement leads into the moving image.
        """
        if not self._partial:
            return vectors
        where = voxel_coordinates(displacement.shape[2:], displacement.device) + displacement
        inside = inside_image(apply_matrix(self._to_moving, where), self._shape)
        if bool(inside.all()):
            return vectors
        weight = inside.to(vectors.dtype)
        # One half is what smoothing makes of a straight edge.
        near = gaussian_smooth(weight, _FADED).mul_(2.0).clamp_(max=1.0)
        return vectors * torch.maximum(weight, near)
