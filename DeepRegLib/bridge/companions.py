"""Companions of a registration: what belongs to the moving volume goes along with it.

Segmentations, markups, models, further volumes and transforms are carried in one of two ways.

- *Under the transform*: their parent becomes the result, as for the moving volume. A node whose
  parent was that of the moving volume goes directly under it. If both lay differently but every
  transform in between is linear, a linear node between the two holds the difference, so that what
  lay together on screen stays together. Across a non-linear difference no exact parent exists that
  could also be edited or saved alone, so such a node is refused; hardened copies can do it.
- *Hardened copies*: see `copies.py`. The originals are not touched.

Points of the moving image go to the fixed image: that is the "to parent" side of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

import numpy as np
import slicer
import vtk

from ..errors import InputError
from ..geometry.grid import Matrix
from .copies import copy_refusal, hardened_copy, is_empty
from .scene import add_node, scene_transaction
from .vtk_arrays import from_vtk_matrix, to_vtk_matrix

FormerParent = Union[slicer.vtkMRMLTransformNode, None, Literal["current"]]
_SAME = 1e-9


@dataclass(frozen=True, eq=False)
class _Context:
    """What all companions of one run share."""

    transform: slicer.vtkMRMLTransformNode | None
    moving: slicer.vtkMRMLVolumeNode
    fixed: slicer.vtkMRMLVolumeNode | None
    former: slicer.vtkMRMLTransformNode | None
    harden: bool


def carry_along(
    scene: slicer.vtkMRMLScene,
    transform: slicer.vtkMRMLTransformNode,
    moving: slicer.vtkMRMLVolumeNode,
    companions: Sequence[slicer.vtkMRMLTransformableNode],
    *,
    harden: bool = False,
    fixed: slicer.vtkMRMLVolumeNode | None = None,
    former_parent: FormerParent = "current",
    copy_name: str = "{name} registered",
    frame_name: str = "{frame} to {moving}",
) -> list[slicer.vtkMRMLTransformableNode]:
    """Carries nodes along with the moving volume, all or nothing.

    Args:
        scene: Scene of all nodes.
        transform: Result of the run: the node that the moving volume is put under.
        moving: Moving volume.
        companions: What belongs to it: segmentations, markups, models, volumes, transforms.
        harden: Makes hardened copies and leaves the originals; else they go under the transform.
        fixed: Fixed volume, whose frame and grid the copies get; that noted on the transform if
            omitted.
        former_parent: Parent transform of the moving volume *before* it was put under the result
            (None: the world); ``current`` if it still has that parent.
        copy_name: Name of a copy, with ``{name}``; a number is added if it is taken.
        frame_name: Name of a linear node that is put in between, with ``{frame}`` (the former
            parent of the companion) and ``{moving}``.

    Returns:
        The companions, or their copies, in the order given.

    Raises:
        InputError: If one of them cannot be carried; then nothing has changed.

    Example:
        ``carry_along(scene, outcome.transform, mr, [tumor, nerves], harden=True)``
    """
    fixed = _noted_fixed(transform, fixed)
    context = _Context(transform, moving, fixed, _former(moving, former_parent), harden)
    faults = _faults(companions, context)
    for node in companions:
        if not faults and node.GetScene() is not scene:
            faults.append(f"'{node.GetName()}' is no longer in the scene; choose it again.")
    if faults:
        raise InputError(" ".join(faults))
    with scene_transaction(scene):
        if harden:
            return _copies(scene, companions, context, copy_name)
        return _put_under(scene, companions, context, frame_name)


def check_companions(
    companions: Sequence[slicer.vtkMRMLTransformableNode],
    moving: slicer.vtkMRMLVolumeNode,
    fixed: slicer.vtkMRMLVolumeNode | None = None,
    *,
    harden: bool = False,
    transform: slicer.vtkMRMLTransformNode | None = None,
    former_parent: FormerParent = "current",
) -> list[str]:
    """Returns a sentence for each companion that `carry_along` would refuse; changes nothing.

    Args:
        companions: What is to be carried along.
        moving: Moving volume.
        fixed: Fixed volume.
        harden: As for `carry_along`.
        transform: Result, if there is one already.
        former_parent: As for `carry_along`.
    """
    former = _former(moving, former_parent)
    return _faults(companions, _Context(transform, moving, fixed, former, harden))


def _put_under(
    scene: slicer.vtkMRMLScene,
    companions: Sequence[slicer.vtkMRMLTransformableNode],
    context: _Context,
    frame_name: str,
) -> list[slicer.vtkMRMLTransformableNode]:
    # All relations are read before the first parent changes: companions can be above each other.
    before = [(node, node.GetTransformNodeID()) for node in companions]
    relations = [relation(node, context) for node in companions]
    between: dict[str | None, slicer.vtkMRMLTransformNode] = {}
    try:
        for (node, parent_id), matrix in zip(before, relations):
            assert isinstance(matrix, np.ndarray)
            above: Any = context.transform
            if not _is_identity(matrix):
                if parent_id not in between:
                    between[parent_id] = _frame_node(scene, node, matrix, context, frame_name)
                above = between[parent_id]
            node.SetAndObserveTransformNodeID(above.GetID())
    except BaseException:
        for node, parent_id in before:
            node.SetAndObserveTransformNodeID(parent_id)
        raise
    return list(companions)


def _frame_node(
    scene: slicer.vtkMRMLScene,
    node: slicer.vtkMRMLTransformableNode,
    matrix: Matrix,
    context: _Context,
    frame_name: str,
) -> slicer.vtkMRMLLinearTransformNode:
    """Adds the linear node between the result and companions of another parent."""
    parent = node.GetParentTransformNode()
    frame = "World" if parent is None else parent.GetName()
    made = slicer.vtkMRMLLinearTransformNode()
    made.SetMatrixTransformToParent(to_vtk_matrix(matrix))
    add_node(scene, made, frame_name.format(frame=frame, moving=context.moving.GetName()))
    _put_below(made, context)
    return made


def _copies(
    scene: slicer.vtkMRMLScene,
    companions: Sequence[slicer.vtkMRMLTransformableNode],
    context: _Context,
    copy_name: str,
) -> list[slicer.vtkMRMLTransformableNode]:
    made = []
    for node in companions:
        place = relation(node, context)
        carrier = context.transform
        helper = None
        if not (isinstance(place, np.ndarray) and _is_identity(place)):
            helper = carrier = _helper(scene, place, context)
        name = copy_name.format(name=node.GetName())
        made.append(hardened_copy(scene, node, carrier, context.fixed, name))
        if helper is not None:
            scene.RemoveNode(helper)
    return made


def _helper(
    scene: slicer.vtkMRMLScene, place: Matrix | vtk.vtkGeneralTransform, context: _Context
) -> slicer.vtkMRMLTransformNode:
    """Adds a node, for a moment, that takes a companion into the frame of the moving volume."""
    helper = slicer.vtkMRMLTransformNode()
    helper.SetHideFromEditors(True)
    if isinstance(place, np.ndarray):
        helper.SetMatrixTransformToParent(to_vtk_matrix(place))
    else:
        helper.SetAndObserveTransformToParent(place)
    add_node(scene, helper, "DeepReg companion frame")
    _put_below(helper, context)
    return helper


def _put_below(node: slicer.vtkMRMLTransformNode, context: _Context) -> None:
    assert context.transform is not None
    node.SetAndObserveTransformNodeID(context.transform.GetID())


def relation(
    node: slicer.vtkMRMLTransformableNode, context: _Context
) -> Matrix | vtk.vtkGeneralTransform:
    """Returns what takes local points of a companion to local points of the moving volume.

    As both lay before the run. For a node that is under the result already, it is how it lies
    there.

    Returns:
        A 4 x 4 matrix if it is linear, else the transform.
    """
    source, target = node.GetParentTransformNode(), context.former
    if context.transform is not None and context.transform in _chain(source):
        target = context.transform
    # Up to the first common transform only: what is above it, linear or not, does not matter.
    ways = _chain(source), _chain(target)
    common = next((n for n in ways[0] if n in ways[1]), None)
    steps = [way[: way.index(common)] if common in way else way for way in ways]
    if all(step.IsLinear() for way in steps for step in way):
        up, down = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(source, common, up)
        slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(common, target, down)
        return from_vtk_matrix(down) @ from_vtk_matrix(up)
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, general)
    return general


def _faults(companions: Sequence[slicer.vtkMRMLTransformableNode], context: _Context) -> list[str]:
    faults = []
    for number, node in enumerate(companions):
        fault = _plain_fault(node, context)
        if not fault and any(node is other for other in companions[:number]):
            fault = f"'{node.GetName()}' is chosen twice; remove one of the two."
        if not fault:
            fault = _unknown_frame(node, context)
        if not fault:
            fault = copy_refusal(node) if context.harden else _frame_fault(node, context)
        if fault:
            faults.append(fault)
    if context.harden and context.fixed is None and context.transform is not None and companions:
        faults.append("Hardened copies need the fixed volume; choose it.")
    return faults


def _plain_fault(node: slicer.vtkMRMLTransformableNode | None, context: _Context) -> str:
    if node is None:
        return "A companion is missing; remove the empty entry or choose a node."
    name = node.GetName()
    if node is context.moving:
        return f"'{name}' is the moving volume itself, which is moved anyway; remove it."
    if node is context.fixed:
        return f"'{name}' is the fixed volume, which stays where it is; remove it."
    if node is context.transform:
        return f"'{name}' is the result of the registration itself; remove it."
    if not node.IsA("vtkMRMLTransformableNode"):
        return f"'{name}' has no place in space and cannot be moved; remove it."
    if is_empty(node):
        return f"'{name}' is empty; fill it, or remove it."
    return ""


def _frame_fault(node: slicer.vtkMRMLTransformableNode, context: _Context) -> str:
    """Says why a node cannot go under the transform."""
    name = node.GetName()
    fixed_parent = None if context.fixed is None else context.fixed.GetParentTransformNode()
    if node in [*_chain(context.transform), *_chain(fixed_parent)]:
        return (
            f"'{name}' is above the fixed volume or the result, and cannot be put under the "
            "result; remove it."
        )
    if not isinstance(relation(node, context), np.ndarray):
        return (
            f"Between '{name}' and the moving volume '{context.moving.GetName()}' lies a "
            "non-linear transform; put both under the same one, or make hardened copies."
        )
    return ""


def _unknown_frame(node: slicer.vtkMRMLTransformableNode, context: _Context) -> str:
    """Says so if the moving volume is under the result and its former place is not known."""
    transform = context.transform
    if transform is None or transform not in _chain(context.former):
        return ""
    if transform in _chain(node.GetParentTransformNode()):
        return ""
    return (
        f"'{context.moving.GetName()}' is under '{transform.GetName()}' already, so where "
        f"'{node.GetName()}' lay beside it is not known; give former_parent, the transform that "
        "the moving volume was under before (None if there was none)."
    )


def _former(
    moving: slicer.vtkMRMLVolumeNode, former_parent: FormerParent
) -> slicer.vtkMRMLTransformNode | None:
    if isinstance(former_parent, str):
        return moving.GetParentTransformNode()
    return former_parent


def _noted_fixed(
    transform: slicer.vtkMRMLTransformNode, fixed: slicer.vtkMRMLVolumeNode | None
) -> slicer.vtkMRMLVolumeNode | None:
    if fixed is not None:
        return fixed
    return transform.GetNodeReference(transform.GetFixedNodeReferenceRole())


def _chain(node: slicer.vtkMRMLTransformNode | None) -> list[slicer.vtkMRMLTransformNode]:
    """Returns a transform and all above it, from the nearest on."""
    chain = []
    while node is not None:
        chain.append(node)
        node = node.GetParentTransformNode()
    return chain


def _is_identity(matrix: Matrix) -> bool:
    return bool(np.abs(matrix - np.eye(4)).max() < _SAME)
