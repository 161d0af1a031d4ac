"""What a finished run leaves in the scene: all of it, or, if anything fails, nothing.

Everything is made ready before the first node is touched. Nodes that the user chose for the results
get their new content at the very end, and their old content back if that fails.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from ..errors import FileFormatError, InputError
from ..geometry.grid import Grid
from ..job import ArrayFile, JobEvent, TransformFile
from .cards import add_quality_table, attach_card, fill_quality_table
from .console import console_call
from .extras import MAP_ROLE as MAP_ROLE
from .extras import (
    AddMap,
    forget_other_maps,
    is_of_moving,
    map_roles,
    place_extra,
    undo_of,
)
from .request import RegistrationRequest
from .scene import scene_transaction
from .trajectory import (
    WITHOUT,
    Steps,
    can_play,
    forget_steps,
    place_steps,
    steps_of,
    undo_of_steps,
)
from .transforms import add_content, replace_transform, warp_content
from .volumes import add_moved_volume, replace_volume

TABLE_ROLE = "DeepReg.QualityTable"
INVERSE_ROLE = "DeepReg.Inverse"


@dataclass(frozen=True, eq=False)
class Wanted:
    """Which results go into the scene.

    Args:
        moved: Whether to add the moved volume.
        inverse: Whether to add the inverse transform.
        table: Whether to add the quality card as a table.
        moved_node: Volume to overwrite with the moved one; a new one if None.
        transform_node: Transform to overwrite; a new one if None, or if it is of another kind.
        inverse_node: The same for the inverse.
        moved_name: Name of a new moved volume, with ``{moving}`` and ``{fixed}``.
        transform_name: Name of a new transform.
    """

    moved: bool = True
    inverse: bool = False
    table: bool = True
    moved_node: slicer.vtkMRMLVolumeNode | None = None
    transform_node: slicer.vtkMRMLTransformNode | None = None
    inverse_node: slicer.vtkMRMLTransformNode | None = None
    moved_name: str = "{moving} registered to {fixed}"
    transform_name: str = "{moving} to {fixed}"


@dataclass(eq=False)
class Outcome:
    """The nodes of a finished run, and what it says of itself.

    Args:
        transform: Node to put above the moving volume and all that belongs to it.
        moved: Moving volume on the fixed grid; None if it was not wanted.
        inverse: The way back; None if it was not wanted.
        maps: Further volumes by name, such as ``jacobian``.
        segmentations: Label maps by name: ``segmentation`` in the space of the fixed volume,
            ``moving_segmentation`` in that of the moving volume.
        steps: Sequence browser that plays how the result was found; see `trajectory`.
        table: Quality card as a table.
        quality: Quality card; see `DeepRegLib.metrics.report`.
        provenance: Algorithm, parameters, versions, and Python that repeats the run.
        history: Objective values: stage, level, iteration, value.
        seconds: Seconds of each stage.
        remarks: Sentences on what is missing.
    """

    transform: slicer.vtkMRMLTransformNode
    moved: slicer.vtkMRMLVolumeNode | None = None
    inverse: slicer.vtkMRMLTransformNode | None = None
    maps: dict[str, slicer.vtkMRMLVolumeNode] = field(default_factory=dict)
    segmentations: dict[str, slicer.vtkMRMLSegmentationNode] = field(default_factory=dict)
    steps: slicer.vtkMRMLSequenceBrowserNode | None = None
    table: slicer.vtkMRMLTableNode | None = None
    quality: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def with_moving(self) -> list[slicer.vtkMRMLTransformableNode]:
        """What lies in the space of the moving volume, and goes along with it."""
        found = {**self.maps, **self.segmentations}
        return [node for kind, node in found.items() if is_of_moving(kind)]


@dataclass(frozen=True, eq=False)
class Loaded:
    """The files of a finished job, read, with the transforms as nodes hold them."""

    event: JobEvent
    arrays: Mapping[str, tuple[NDArray, Grid]]
    transforms: Mapping[str, vtk.vtkAbstractTransform]


def load(event: JobEvent, folder: str | Path) -> Loaded:
    """Reads the files of a finished job; may run in any thread, touches no node.

    Raises:
        FileFormatError: If a file is missing or damaged.
    """
    folder = Path(folder)
    arrays = {name: _read(folder, file) for name, file in event.arrays.items()}
    transforms = {}
    for name, file in event.transforms.items():
        # The inverse's field need not be at rest at the rim of the moving image: it is not faded.
        fade = 0 if name == "inverse" else None
        transforms[name] = warp_content(*read_transform(folder, file), fade)
    return Loaded(event, arrays, transforms)


def read_transform(
    folder: str | Path, described: TransformFile
) -> tuple[NDArray, NDArray | None, Grid | None]:
    """Reads a transform of a job: matrix, deformation (3, *shape) in RAS mm, and its grid."""
    linear = np.array(described.linear)
    if described.field is None:
        return linear, None, None
    vectors, grid = _read(Path(folder), described.field)
    return linear, vectors, grid


def place(
    scene: slicer.vtkMRMLScene,
    request: RegistrationRequest,
    loaded: Loaded,
    wanted: Wanted,
    add_map: AddMap | None = None,
) -> Outcome:
    """Adds the results of a finished job to the scene at once; see `placing`."""
    steps = placing(scene, request, loaded, wanted, add_map)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def placing(
    scene: slicer.vtkMRMLScene,
    request: RegistrationRequest,
    loaded: Loaded,
    wanted: Wanted,
    add_map: AddMap | None = None,
) -> Generator[None, None, Outcome]:
    """Adds the results of a finished job to the scene, all or nothing, in short steps.

    Between the steps an application can attend to its events. If a step fails, or the generator is
    closed early, everything is taken back.

    Args:
        scene: Scene of the request's nodes.
        request: What was asked for.
        loaded: What came back.
        wanted: Which results to add, and to which nodes.
        add_map: Adds a map with its colors: (scene, name, array, grid, kind, fixed) -> node; a
            plain volume if None.

    Raises:
        InputError: If a volume of the request is no longer in the scene, or a chosen node cannot
            take a result.
        GeometryError: If a result does not fit.
    """
    for node in (request.fixed, request.moving):
        if node.GetScene() is not scene:
            raise InputError(
                f"'{node.GetName()}' was deleted while the registration ran; its result was not "
                "added. Load the volume again and repeat the registration."
            )
    _check_free(wanted, request)
    names = {"moving": request.moving.GetName(), "fixed": request.fixed.GetName()}
    data = loaded.event.data
    with results_transaction(scene, wanted):
        volumes = request.fixed, request.moving
        name = wanted.transform_name.format(**names)
        content = loaded.transforms["transform"]
        transform = _place_warp(scene, name, content, volumes, wanted.transform_node)
        outcome = Outcome(
            transform,
            quality=dict(data.get("quality", {})),
            provenance={**data.get("provenance", {}), "console": console_call(request)},
            history=list(data.get("history", [])),
            seconds=dict(data.get("seconds", {})),
        )
        yield
        if wanted.moved:
            outcome.moved = _place_moved(scene, request, loaded, wanted, names)
            yield
        if wanted.inverse:
            name = "{fixed} to {moving}".format(**names)
            content = loaded.transforms["inverse"]
            outcome.inverse = _place_warp(scene, name, content, volumes[::-1], wanted.inverse_node)
            yield
        for name in loaded.arrays:
            if name.startswith("extra_"):
                _place_extra(scene, request, loaded, outcome, name, add_map)
                yield
        if steps := steps_of(outcome.provenance):
            _place_steps(scene, request, outcome, steps)
            yield
        if wanted.table:
            outcome.table = _place_table(scene, transform, outcome.quality)
        attach_card(transform, outcome.quality, outcome.provenance)
        forget_other_maps(transform, {**outcome.maps, **outcome.segmentations})
        if outcome.steps is None:
            forget_steps(transform)
    return outcome


def _check_free(wanted: Wanted, request: RegistrationRequest) -> None:
    """Refuses to overwrite a transform that the fixed volume hangs under, or an input volume."""
    above = request.fixed.GetParentTransformNode()
    while above is not None:
        for node in (wanted.transform_node, wanted.inverse_node):
            if node is above:
                raise InputError(
                    f"The transform '{node.GetName()}' is above the fixed volume and cannot take "
                    "the result; choose another one, or let a new one be made."
                )
        above = above.GetParentTransformNode()
    if wanted.moved_node in (request.fixed, request.moving) and wanted.moved_node is not None:
        raise InputError(
            f"The result would overwrite the input volume '{wanted.moved_node.GetName()}'; choose "
            "another volume for it, or let a new one be made."
        )


def _place_warp(
    scene: slicer.vtkMRMLScene,
    name: str,
    content: vtk.vtkAbstractTransform,
    volumes: tuple[slicer.vtkMRMLVolumeNode, slicer.vtkMRMLVolumeNode],
    chosen: slicer.vtkMRMLTransformNode | None,
) -> slicer.vtkMRMLTransformNode:
    made = add_content(scene, name, content, *volumes)
    return replace_transform(scene, made, chosen)


def _place_moved(
    scene: slicer.vtkMRMLScene,
    request: RegistrationRequest,
    loaded: Loaded,
    wanted: Wanted,
    names: Mapping[str, str],
) -> slicer.vtkMRMLVolumeNode:
    array, grid = loaded.arrays["moved"]
    made = add_moved_volume(
        scene, wanted.moved_name.format(**names), array, grid, request.moving, request.fixed
    )
    return replace_volume(scene, made, wanted.moved_node)


def _place_extra(
    scene: slicer.vtkMRMLScene,
    request: RegistrationRequest,
    loaded: Loaded,
    outcome: Outcome,
    name: str,
    add_map: AddMap | None,
) -> None:
    kind, content = name.removeprefix("extra_"), loaded.arrays[name]
    node = place_extra(
        scene, request, outcome.transform, kind, content, outcome.provenance, add_map
    )
    if node.IsA("vtkMRMLSegmentationNode"):
        outcome.segmentations[kind] = node
    else:
        outcome.maps[kind] = node


def _place_steps(
    scene: slicer.vtkMRMLScene, request: RegistrationRequest, outcome: Outcome, steps: Steps
) -> None:
    if can_play():
        outcome.steps = place_steps(scene, request, outcome.transform, steps)
    else:
        outcome.remarks.append(WITHOUT)


def _place_table(
    scene: slicer.vtkMRMLScene, transform: slicer.vtkMRMLTransformNode, quality: Mapping[str, Any]
) -> slicer.vtkMRMLTableNode:
    table = transform.GetNodeReference(TABLE_ROLE)
    if table is not None:
        fill_quality_table(table, quality)
        return table
    table = add_quality_table(scene, f"{transform.GetName()} quality", quality)
    transform.SetNodeReferenceID(TABLE_ROLE, table.GetID())
    return table


@contextmanager
def results_transaction(scene: slicer.vtkMRMLScene, wanted: Wanted) -> Iterator[None]:
    """Takes everything back if the block fails: new nodes, and the content of chosen ones."""
    with scene_transaction(scene), _undoing(wanted):
        yield


@contextmanager
def _undoing(wanted: Wanted) -> Iterator[None]:
    """Gives the kept nodes their old content back if the block fails: chosen ones, and maps."""
    transforms = [n for n in (wanted.transform_node, wanted.inverse_node) if n is not None]
    held = wanted.transform_node
    roles = {} if held is None else map_roles(held)
    results = [] if held is None else [held.GetNodeReference(role) for role in roles]
    undo = [undo_of(node) for node in (wanted.moved_node, *results) if node is not None]
    undo += [] if held is None else [undo_of_steps(held)]
    old = [(n, n.GetTransformFromParent(), n.GetTransformNodeID()) for n in transforms]
    try:
        yield
    except BaseException:
        for restore in undo:
            restore()
        for node, content, above in old:
            node.SetAndObserveTransformFromParent(content)
            node.SetAndObserveTransformNodeID(above)
        if held is not None:
            for role in {*map_roles(held), *roles}:
                held.SetNodeReferenceID(role, roles.get(role))
        raise


def _read(folder: Path, described: ArrayFile) -> tuple[NDArray, Grid]:
    try:
        array = np.load(folder / described.file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(
            f"The result file '{described.file}' cannot be read ({error}); run the registration "
            "again."
        ) from error
    if described.voxel_to_ras is None:
        raise FileFormatError(f"The result file '{described.file}' says nothing of its grid.")
    array = array.astype(described.pixel_type) if described.pixel_type else array
    return array, Grid(array.shape[-3:], np.array(described.voxel_to_ras))
