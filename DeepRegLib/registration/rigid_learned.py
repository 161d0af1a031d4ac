"""Systems that learn to find a rigid map: where they start, and what they share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..geometry.affine import about_point
from ..geometry.transform import Transform
from .base import ImagePair, Progress, Result
from .initialize import moments
from .learned import LearnedRegistration, masked
from .model_frame import ModelFrame


class RigidLearned(LearnedRegistration):
    """Registers pairs by a rigid map that a network finds.

    Convention:
        Six parameters: a shift in mm along R, A and S and a rotation vector in degrees, about the
        middle of the model's grid, which is the middle of the fixed image's object.
    """

    #: A map of the whole image is not put together from windows.
    in_tiles = False

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair, from `pair.initial` or with the centers of mass on each other."""
        if pair.initial is None:
            pair = replace(pair, initial=mass_start(pair))
        return self.finished(super().register(pair, progress), pair)

    def finished(self, result: Result, pair: ImagePair) -> Result:
        """Returns a result as users get it; `pair.initial` is where it started."""
        return result


def mass_start(pair: ImagePair) -> Transform:
    """Returns the shift that puts the centers of both objects on each other.

    What a mask leaves out has no part in it.
    """
    fixed = masked(pair.fixed, pair.fixed_mask)
    moving = masked(pair.moving, pair.moving_mask)
    return Transform(about_point(np.eye(3), moments(fixed)[0], moments(moving)[0]))


def object_center_ras(pair: ImagePair) -> NDArray[np.float64]:
    """Returns the middle of the fixed image's object in RAS mm, which is that of a model's grid."""
    fixed = masked(pair.fixed, pair.fixed_mask)
    # The middle does not depend on voxel size and shape of the model.
    return ModelFrame(min(fixed.grid.spacing_mm), (1, 1, 1)).grid(fixed, 1).center_ras
