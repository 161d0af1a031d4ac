"""What a training is asked to learn from, as nodes of the scene or as files, and the worker's job.

As with a registration, `collect_training` copies what it needs out of the nodes (in the main
thread), and `CollectedTraining.save` writes it to files (in any thread).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry.grid import Grid
from ..job import ArrayFile, Job
from .frames import grid_in
from .resample import resampled_array
from .segments import segment_names, segmentation_labels
from .volumes import grid_of, volume_array


@dataclass(frozen=True, eq=False)
class TrainingRequest:
    """Images and choices of one training.

    Args:
        algorithm: Key of a system that learns.
        volumes: Volumes to learn from, each with its segmentation, its label map, or None.
        data: In place of volumes: folder of images, table of them, or BIDS data set.
        options: Further options of `training.options.TrainingOptions`, by name; ``generated``, a
            folder of label maps, can take the place of volumes and `data`.
    """

    algorithm: str
    volumes: Sequence[tuple[slicer.vtkMRMLVolumeNode, slicer.vtkMRMLNode | None]] = ()
    data: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CollectedTraining:
    """What a job needs, out of the scene: arrays with their grids, and parameters."""

    arrays: Mapping[str, tuple[NDArray, Grid]]
    parameters: Mapping[str, Any]

    def save(self, folder: str | Path) -> Job:
        """Writes the arrays into the private folder of the job and describes them."""
        arrays = {}
        for name, (array, grid) in self.arrays.items():
            file = f"{name.replace('_', '-')}.npy"
            np.save(Path(folder) / file, array, allow_pickle=False)
            rows = tuple(tuple(map(float, row)) for row in grid.voxel_to_ras)
            arrays[name] = ArrayFile(file, rows)
        return Job("train", str(folder), arrays, {}, dict(self.parameters))


def collect_training(request: TrainingRequest) -> CollectedTraining:
    """Copies out of the scene what a training needs; changes nothing.

    Linear parent transforms of the volumes count; non-linear ones are refused.

    Raises:
        InputError: If there are too few volumes, or one cannot be used.
    """
    parameters = {**request.options, "algorithm": request.algorithm}
    if request.data or request.options.get("generated"):
        return CollectedTraining({}, {**parameters, "data": request.data})
    if len(request.volumes) < 2:
        raise InputError("A training needs two volumes at least; choose more.")
    order = _order([labels for _, labels in request.volumes])
    if order is not None:
        parameters["structure_names"] = {str(n): name for n, name in enumerate(order, start=1)}
    arrays: dict[str, tuple[NDArray, Grid]] = {}
    names: dict[str, str] = {}
    for number, (volume, labels) in enumerate(request.volumes, start=1):
        grid = grid_in(volume)
        arrays[f"image_{number}"] = volume_array(volume), grid
        names[f"image_{number}"] = _unique(volume.GetName(), names.values())
        if labels is not None:
            arrays[f"labels_{number}"] = _labels(labels, volume, order), grid
            names[f"labels_{number}"] = f"labels of {names[f'image_{number}']}"
    return CollectedTraining(arrays, {**parameters, "names": names})


def _order(nodes: Sequence[slicer.vtkMRMLNode | None]) -> list[str] | None:
    """Names of all segments, in the order of their numbers; None for label maps.

    Raises:
        InputError: If there are segmentations and label maps, whose numbers do not fit.
    """
    given = [node for node in nodes if node is not None]
    segmentations = [node for node in given if node.IsA("vtkMRMLSegmentationNode")]
    if not segmentations:
        return None
    if len(segmentations) < len(given):
        raise InputError(
            "Some volumes have a segmentation and others a label map, whose structures cannot be "
            "told to be the same; choose segmentations for all, or label maps for all."
        )
    return sorted({name for node in segmentations for name in segment_names(node).values()})


def _labels(
    node: slicer.vtkMRMLNode, volume: slicer.vtkMRMLVolumeNode, order: Sequence[str] | None
) -> NDArray[np.integer[Any]]:
    """Samples structures on the grid of a volume, as both lie on screen."""
    if order is None:
        grid = grid_of(volume)
        same_frame = node.GetParentTransformNode() is volume.GetParentTransformNode()
        if same_frame and grid_of(node).matches(grid):
            return volume_array(node)
        return resampled_array(node, grid, volume, labels=True)
    labels, names = segmentation_labels(node, grid_of(volume), volume)
    table = np.zeros(max(names) + 1, np.int32)
    for value, name in names.items():
        table[value] = order.index(name) + 1
    return table[labels]


def _unique(name: str, taken: Any) -> str:
    """Returns a name that is not taken, with a number if needed."""
    known, number, wished = set(taken), 1, name or "image"
    while (name := wished if number == 1 else f"{wished} ({number})") in known:
        number += 1
    return name
