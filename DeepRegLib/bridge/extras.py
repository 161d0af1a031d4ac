"""What a result brings along beside the moved volume: maps as volumes, label maps as segmentations.

The transform of the result refers to each of them by a role, so that the next result in the same
transform takes the same nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from ..geometry.grid import Grid
from .overlays import COLOR_ATTRIBUTE, colored_as
from .request import RegistrationRequest
from .scene import place_beside
from .structures import (
    add_segmentation,
    is_label_array,
    replace_segmentation,
    structure_names,
    take_segmentation,
)
from .volumes import add_volume, replace_volume

#: Begin of the roles of a transform's references to the maps of its result.
MAP_ROLE = "DeepReg.Map."
#: Begin of the names of maps that lie in the space of the moving volume.
_OF_MOVING = "moving_"

AddMap = Callable[[slicer.vtkMRMLScene, str, NDArray, Grid, str, slicer.vtkMRMLVolumeNode], Any]


def place_extra(
    scene: slicer.vtkMRMLScene,
    request: RegistrationRequest,
    transform: slicer.vtkMRMLTransformNode,
    kind: str,
    content: tuple[NDArray, Grid],
    provenance: Mapping[str, Any],
    add_map: AddMap | None = None,
) -> slicer.vtkMRMLTransformableNode:
    """Adds a map beside the volume that it belongs to, in the node of an earlier result if any.

    Args:
        scene: Scene of the request's nodes.
        request: What was asked for.
        transform: Transform of the result, which gets a reference to the map.
        kind: Name of the map; ``moving_`` begins those in the space of the moving volume.
        content: Values and grid. Whole numbers are labels and become a segmentation.
        provenance: What the result says of itself, with names of structures if the model knows.
        add_map: Adds a map with its colors; see `outcome.placing`.
    """
    array, grid = np.asarray(content[0]), content[1]
    volume = request.moving if is_of_moving(kind) else request.fixed
    before = transform.GetNodeReference(MAP_ROLE + kind)
    if is_label_array(array):
        title = f"{volume.GetName()} {kind.removeprefix(_OF_MOVING).replace('_', ' ')}"
        names = _names_of_labels(request, provenance, volume, array)
        made = add_segmentation(scene, title, array, grid, volume, names)
        # What lies where the moving volume lay would cover the fixed one in the same views.
        made.GetDisplayNode().SetVisibility(volume is request.fixed)
        node = replace_segmentation(scene, made, before)
    else:
        title = f"{transform.GetName()} {kind.replace('_', ' ')}"
        made = _add_map(scene, title, array, grid, kind, volume, add_map)
        node = replace_map(scene, made, before, kind)
    transform.SetNodeReferenceID(MAP_ROLE + kind, node.GetID())
    return node


def is_of_moving(kind: str) -> bool:
    """Tells whether a map lies in the space of the moving volume."""
    return kind.startswith(_OF_MOVING)


def map_roles(transform: slicer.vtkMRMLTransformNode) -> dict[str, str | None]:
    """Returns the roles by which a transform holds the maps of its result, with the nodes' ids."""
    count = transform.GetNumberOfNodeReferenceRoles()
    roles = [transform.GetNthNodeReferenceRole(n) or "" for n in range(count)]
    return {r: transform.GetNodeReferenceID(r) for r in roles if r.startswith(MAP_ROLE)}


def forget_other_maps(transform: slicer.vtkMRMLTransformNode, kinds: Collection[str]) -> None:
    """Lets go of the maps of an earlier result that the same transform held; they stay as nodes."""
    for role in map_roles(transform):
        if role.removeprefix(MAP_ROLE) not in kinds:
            transform.RemoveNodeReferenceIDs(role)


def undo_of(node: slicer.vtkMRMLTransformableNode) -> Callable[[], None]:
    """Returns what gives a volume or a segmentation the content and the place that it has now."""
    above = node.GetTransformNodeID()
    if node.IsA("vtkMRMLSegmentationNode"):
        segments = node.GetSegmentation()

        def restore_segments() -> None:
            if node.GetSegmentation() is not segments:
                take_segmentation(node, segments)
            node.SetAndObserveTransformNodeID(above)

        return restore_segments
    image, matrix = node.GetImageData(), vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)

    def restore_voxels() -> None:
        node.SetAndObserveImageData(image)
        node.SetIJKToRASMatrix(matrix)
        node.SetAndObserveTransformNodeID(above)

    return restore_voxels


def _names_of_labels(
    request: RegistrationRequest,
    provenance: Mapping[str, Any],
    volume: slicer.vtkMRMLVolumeNode,
    labels: NDArray,
) -> dict[int, str]:
    """Returns the names that the model knows, or else those of the structures compared."""
    present = [int(n) for n in np.unique(labels) if n != 0]
    nodes = [request.fixed_labels, request.moving_labels]
    names: dict[int, str] = {}
    for node in nodes if volume is request.moving else reversed(nodes):
        names |= structure_names(node, present)
    for stage in (provenance.get("learned") or {}).values():
        told = ((stage or {}).get("model") or {}).get("structure_names") or {}
        names |= {int(label): str(name) for label, name in told.items()}
    return names


def _add_map(
    scene: slicer.vtkMRMLScene,
    title: str,
    array: NDArray,
    grid: Grid,
    kind: str,
    volume: slicer.vtkMRMLVolumeNode,
    add_map: AddMap | None,
) -> slicer.vtkMRMLVolumeNode:
    if add_map is not None and colored_as(kind) is not None:
        return add_map(scene, title, array, grid, kind, volume)
    made = add_volume(scene, title, array, grid)
    parent = volume.GetParentTransformNode()
    made.SetAndObserveTransformNodeID(None if parent is None else parent.GetID())
    place_beside(scene, made, volume)
    return made


def replace_map(
    scene: slicer.vtkMRMLScene,
    made: slicer.vtkMRMLVolumeNode,
    before: slicer.vtkMRMLNode | None,
    kind: str,
) -> slicer.vtkMRMLVolumeNode:
    """Gives a map's values and place to a node that was there before, with the scale of colors."""
    shown = made.GetDisplayNode() if colored_as(kind) else None
    scale = None if shown is None else (shown.GetWindow(), shown.GetLevel())
    table = None if shown is None else shown.GetColorNodeID()
    node = replace_volume(scene, made, before)
    if scale is not None:
        # The colors of a map mean millimeters: a kept node gets the scale of its new values.
        display = node.GetDisplayNode()
        display.SetWindowLevel(*scale)
        kept = display.GetColorNode()
        if kept is not None and kept.GetAttribute(COLOR_ATTRIBUTE) is not None:
            # A table of ours from an older scene may lie differently; one of the user's stays.
            display.SetAndObserveColorNodeID(table)
    return node
