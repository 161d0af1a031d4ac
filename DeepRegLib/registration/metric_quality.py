"""How good a metric of patches is: does it tell aligned patches from others, and where is it least?

Both need a pair of images that is aligned, of a person that the metric was not trained with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.sampling import sample, voxel_coordinates
from ..networks.patch_metric import PatchMetric
from ..networks.patch_sampling import draw_patches, near_object


@dataclass(frozen=True, eq=False)
class ShiftProfiles:
    """The dissimilarity at places of the fixed image, as the moving one is shifted along an axis.

    Args:
        shifts: Shifts in voxels, (S,).
        values: Dissimilarity, (places, S).
    """

    shifts: Tensor
    values: Tensor

    @property
    def least_at(self) -> Tensor:
        """Shift at which each place is least dissimilar, (places,)."""
        return self.shifts[self.values.argmin(dim=1)]

    def share_within(self, voxels: float = 1.0) -> float:
        """Returns the share of the places whose least value is within a distance of no shift."""
        return float((self.least_at.abs() <= voxels).float().mean())


def separation(
    network: PatchMetric, fixed: Tensor, moving: Tensor, count: int = 512, least: int = 2,
    most: int = 16,
) -> float:  # fmt: skip
    """Returns the area under the ROC curve of aligned patches against shifted ones.

    The probability that a pair of patches that is apart is more dissimilar than an aligned one.

    Args:
        network: The metric.
        fixed: (B, 1, *shape), 0 to 1.
        moving: The same of the other modality, aligned.
        count: Patches of either kind, from torch's global generator.
        least: Least shift in voxels.
        most: Largest shift.
    """
    drawn = draw_patches(fixed, moving, count, least, most)
    with torch.no_grad():
        aligned = network(drawn.fixed, drawn.aligned).flatten()
        apart = network(drawn.fixed, drawn.apart).flatten()
    return area_under_curve(apart, aligned)


def area_under_curve(high: Tensor, low: Tensor) -> float:
    """Returns the probability that one of `high` is above one of `low`; ties count half."""
    difference = high[:, None] - low[None]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def shift_profiles(
    network: PatchMetric, fixed: Tensor, moving: Tensor, axis: int, most: int = 8, count: int = 100,
    region: int = 1,
) -> ShiftProfiles:  # fmt: skip
    """Returns how the dissimilarity changes as the moving image is shifted along an axis.

    Args:
        network: The metric.
        fixed: (1, 1, *shape), 0 to 1.
        moving: The same of the other modality, aligned.
        axis: Tensor axis, 0 to 2.
        most: Largest shift in voxels, to either side.
        count: Places, drawn evenly from the object by torch's global generator.
        region: Patches along each axis whose mean is a value, at distances of two voxels.
    """
    shifts = torch.arange(-most, most + 1, dtype=torch.float32)
    shape = fixed.shape[2:]
    where = voxel_coordinates(shape, fixed.device)
    maps = []
    with torch.no_grad():
        for shift in shifts.tolist():
            moved_to = where.clone()
            moved_to[:, axis] += shift
            scores = network.everywhere(fixed, sample(moving, moved_to), 2)
            maps.append(
                torch.nn.functional.avg_pool3d(
                    scores, region, 1, region // 2, count_include_pad=False
                )
            )
    stack = torch.cat(maps, dim=1)[0]
    inside = near_object(fixed)[0, 0, ::2, ::2, ::2].nonzero()
    chosen = inside[torch.randint(len(inside), (count,), device=inside.device)]
    values = stack[:, chosen[:, 0], chosen[:, 1], chosen[:, 2]].T
    return ShiftProfiles(shifts, values)
