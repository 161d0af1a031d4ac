"""What a registration is asked to do, as nodes of the scene, and the job that the worker gets.

The scene is read in two steps, so that a panel stays responsive: `collect` copies what it needs out
of the nodes (in the main thread, quickly), `Collected.save` writes it to files (in any thread).
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
from ..job import ArrayFile, Job, TransformFile
from .frames import Start, initial_transform
from .resample import resampled_array
from .segments import markup_points, segment_names, segmentation_labels, segmentation_mask
from .volumes import grid_of, is_label_map, volume_array

#: Maps that the worker can add to a result, by the name under which they arrive.
MAPS = ("jacobian",)
_IDENTITY_MM = 1e-6


@dataclass(frozen=True, eq=False)
class RegistrationRequest:
    """Nodes and choices of one registration.

    Args:
        fixed: Volume that stays.
        moving: Volume that is brought onto it.
        algorithm: Keys joined by ``+``.
        preset: ``fast``, ``balanced`` or ``accurate``.
        settings: Values by parameter name, or ``key.name`` for one stage only.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        fixed_mask: Label map or segmentation where the fixed image counts.
        fixed_segment: Id or name of one segment of `fixed_mask`; all of them if empty.
        moving_mask: The same for the moving image.
        moving_segment: The same for the moving image.
        fixed_points: Point list on the fixed image, paired with `moving_points` by order.
        moving_points: Point list on the moving image.
        fixed_labels: Label map or segmentation whose structures are compared (Dice).
        moving_labels: The same on the moving image; segments are paired by name.
        initial: Transform to start from; takes the place of the moving volume's parent.
        start_from_scene: Start where both volumes lie on screen (their parent transforms).
        follow_landmarks: Bend the start so that it meets the landmark pairs.
        interpolation: ``auto``, ``linear`` or ``nearest``.
        fill: Value where the moving image has no voxel; found by the library if None.
        grid_spacing_mm: Spacing of the deformation that is returned; the fixed image's if 0.
        maps: Maps to add, of `MAPS`.
        preview_seconds: Shortest time between two previews; none if None.
    """

    fixed: slicer.vtkMRMLVolumeNode
    moving: slicer.vtkMRMLVolumeNode
    algorithm: str = "greedy"
    preset: str = "balanced"
    settings: Mapping[str, object] = field(default_factory=dict)
    device: str = "auto"
    fixed_mask: slicer.vtkMRMLNode | None = None
    fixed_segment: str = ""
    moving_mask: slicer.vtkMRMLNode | None = None
    moving_segment: str = ""
    fixed_points: slicer.vtkMRMLMarkupsNode | None = None
    moving_points: slicer.vtkMRMLMarkupsNode | None = None
    fixed_labels: slicer.vtkMRMLNode | None = None
    moving_labels: slicer.vtkMRMLNode | None = None
    initial: slicer.vtkMRMLTransformNode | None = None
    start_from_scene: bool = True
    follow_landmarks: bool = False
    interpolation: str = "auto"
    fill: float | None = None
    grid_spacing_mm: float = 0.0
    maps: Sequence[str] = ()
    preview_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Collected:
    """What a job needs, out of the scene.

    Args:
        arrays: Arrays with their matrices, by name.
        start: A transform, fixed to moving; None if there is none.
        parameters: Everything else.
        operation: Kind of the job; see `job.Job`.
        start_as: Name of the transform in the job.
        starts: Further transforms of the job, by name.
    """

    arrays: Mapping[str, tuple[NDArray, Grid | None]]
    start: Start | None
    parameters: Mapping[str, Any]
    operation: str = "register"
    start_as: str = "initial"
    starts: Mapping[str, Start] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Job:
        """Writes the arrays into the private folder of the job and describes them."""
        folder = Path(folder)
        arrays = {
            name: ArrayFile(_save(folder, name, array), None if grid is None else _rows(grid))
            for name, (array, grid) in self.arrays.items()
        }
        starts = {**({} if self.start is None else {self.start_as: self.start}), **self.starts}
        transforms = {name: _save_start(folder, name, start) for name, start in starts.items()}
        return Job(self.operation, str(folder), arrays, transforms, dict(self.parameters))


def collect(request: RegistrationRequest) -> Collected:
    """Copies out of the scene what a registration needs; changes nothing.

    Raises:
        InputError: If a node is missing, empty or of the wrong kind.
    """
    fixed, moving = request.fixed, request.moving
    arrays: dict[str, tuple[NDArray, Grid | None]] = {
        "fixed": (volume_array(fixed), grid_of(fixed)),
        "moving": (volume_array(moving), grid_of(moving)),
    }
    for name, mask, segment, volume in (
        ("fixed_mask", request.fixed_mask, request.fixed_segment, fixed),
        ("moving_mask", request.moving_mask, request.moving_segment, moving),
    ):
        if mask is not None:
            arrays[name] = mask_of(mask, segment, volume), grid_of(volume)
    arrays |= _structures(request) | _landmarks(request)
    return Collected(arrays, start_of(request), _parameters(request))


def start_of(request: RegistrationRequest) -> Start | None:
    """Returns where a registration starts; None if nothing speaks for a certain place."""
    if request.initial is None and not request.start_from_scene:
        return None
    start = initial_transform(request.fixed, request.moving, request.initial)
    at_rest = np.abs(start.linear - np.eye(4)).max() < _IDENTITY_MM
    if request.initial is None and at_rest and start.displacement_ras_mm is None:
        return None
    return start


def mask_of(
    mask: slicer.vtkMRMLNode, segment: str, volume: slicer.vtkMRMLVolumeNode
) -> NDArray[np.uint8]:
    """Samples a label map or a segmentation on the grid of a volume, as both lie on screen."""
    if mask.IsA("vtkMRMLSegmentationNode"):
        return segmentation_mask(mask, grid_of(volume), volume, segment or None)
    _check_label_map(mask)
    return (_label_array(mask, volume) > 0).astype(np.uint8)


def _structures(request: RegistrationRequest) -> dict[str, tuple[NDArray, Grid | None]]:
    """Returns both label maps with the same numbers for the same structures."""
    if request.fixed_labels is None or request.moving_labels is None:
        return {}
    nodes: tuple[Any, Any] = (request.fixed_labels, request.moving_labels)
    volumes = (request.fixed, request.moving)
    maps: list[NDArray]
    if all(node.IsA("vtkMRMLSegmentationNode") for node in nodes):
        common = set(segment_names(nodes[0]).values()) & set(segment_names(nodes[1]).values())
        if not common:
            raise InputError(
                f"The segmentations '{nodes[0].GetName()}' and '{nodes[1].GetName()}' have no "
                "segment name in common; give the same structures the same names."
            )
        maps = [_numbered(n, v, sorted(common)) for n, v in zip(nodes, volumes)]
    else:
        for node in nodes:
            _check_label_map(node)
        maps = [_label_array(n, v) for n, v in zip(nodes, volumes)]
    names = ("fixed_labels", "moving_labels")
    return {name: (m, grid_of(v)) for name, m, v in zip(names, maps, volumes)}


def _numbered(
    node: slicer.vtkMRMLSegmentationNode, volume: slicer.vtkMRMLVolumeNode, order: Sequence[str]
) -> NDArray[np.int32]:
    labels, names = segmentation_labels(node, grid_of(volume), volume)
    table = np.zeros(max(names) + 1, np.int32)
    for value, name in names.items():
        table[value] = order.index(name) + 1 if name in order else 0
    return table[labels]


def _landmarks(request: RegistrationRequest) -> dict[str, tuple[NDArray, Grid | None]]:
    if request.fixed_points is None or request.moving_points is None:
        return {}
    fixed, _ = markup_points(request.fixed_points, request.fixed)
    moving, _ = markup_points(request.moving_points, request.moving)
    if len(fixed) == 0 and len(moving) == 0:
        return {}
    if len(fixed) != len(moving):
        raise InputError(
            f"'{request.fixed_points.GetName()}' has {len(fixed)} points, but "
            f"'{request.moving_points.GetName()}' has {len(moving)}; points are paired by their "
            "order, so place the missing ones or delete the odd ones."
        )
    return {"fixed_landmarks": (fixed, None), "moving_landmarks": (moving, None)}


def _parameters(request: RegistrationRequest) -> dict[str, Any]:
    interpolation = request.interpolation
    if interpolation == "auto":
        interpolation = "nearest" if is_label_map(request.moving) else "linear"
    names = {
        "fixed": f"slicer.util.getNode({request.fixed.GetName()!r})",
        "moving": f"slicer.util.getNode({request.moving.GetName()!r})",
    }
    return {
        "algorithm": request.algorithm,
        "preset": request.preset,
        "settings": dict(request.settings),
        "device": request.device,
        "interpolation": interpolation,
        "fill": request.fill,
        "preview_seconds": request.preview_seconds,
        "names": names,
        "maps": list(request.maps),
        "grid_spacing_mm": request.grid_spacing_mm,
        "follow_landmarks": request.follow_landmarks,
    }


def _check_label_map(node: slicer.vtkMRMLNode) -> None:
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        raise InputError(
            f"'{node.GetName()}' is no label map and no segmentation; choose one of these."
        )


def _label_array(labels: slicer.vtkMRMLVolumeNode, volume: slicer.vtkMRMLVolumeNode) -> NDArray:
    grid = grid_of(volume)
    same_frame = labels.GetParentTransformNode() is volume.GetParentTransformNode()
    if same_frame and grid_of(labels).matches(grid):
        return volume_array(labels)
    return resampled_array(labels, grid, volume, labels=True)


def _save_start(folder: Path, name: str, start: Start) -> TransformFile:
    vectors = None
    if start.displacement_ras_mm is not None and start.grid is not None:
        file = _save(folder, name, start.displacement_ras_mm)
        vectors = ArrayFile(file, _rows(start.grid))
    return TransformFile(tuple(tuple(map(float, row)) for row in start.linear), vectors)


def _save(folder: Path, name: str, array: NDArray) -> str:
    file = f"{name.replace('_', '-')}.npy"
    np.save(folder / file, array, allow_pickle=False)
    return file


def _rows(grid: Grid) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in grid.voxel_to_ras)
