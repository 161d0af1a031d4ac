"""How a registration came to its result, step by step, as a sequence that Slicer can play.

The transform of the result refers to a sequence browser, whose proxy is a linear transform: what
hangs under that moves while the sequence is played, from the start of the registration to its end.
Nothing hangs under it at first; the moving volume itself may be put there, or `add_walker` makes a
second view of it for the time of the play.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from .request import RegistrationRequest
from .scene import add_node
from .transforms import add_linear_transform
from .volumes import copy_display
from .vtk_arrays import from_vtk_matrix, to_vtk_matrix

#: Role of a transform's reference to the browser of its steps.
STEPS_ROLE = "DeepReg.Steps"
_NAMES_ATTRIBUTE = "DeepReg.StepNames"
#: What plays sequences; a Slicer without the module Sequences has not all of it.
_CLASSES = ("vtkMRMLSequenceNode", "vtkMRMLSequenceBrowserNode")
#: Steps a second: two hundred take no longer than one likes to look on.
_STEPS_PER_SECOND = 12.0
WITHOUT = (
    "The steps of the registration cannot be played, as this Slicer has no module Sequences; they "
    "stand in the provenance of the result."
)

#: Names and matrices (fixed to moving, RAS mm) of the steps, the start first.
Steps = list[tuple[str, NDArray[np.float64]]]


def steps_of(provenance: Mapping[str, Any]) -> Steps:
    """Returns the steps of the last stage that tells any; empty if none does."""
    found: Steps = []
    for told in (provenance.get("learned") or {}).values():
        trajectory = ((told or {}).get("values") or {}).get("trajectory") or {}
        if not isinstance(trajectory, Mapping):
            continue
        names, matrices = trajectory.get("frames"), trajectory.get("transforms_ras")
        if names and matrices and len(names) == len(matrices):
            found = [(str(n), np.array(m, np.float64)) for n, m in zip(names, matrices)]
    return found


def can_play() -> bool:
    """Tells whether this Slicer has the classes of sequences."""
    return all(hasattr(slicer, name) for name in _CLASSES)


def place_steps(
    scene: slicer.vtkMRMLScene,
    request: RegistrationRequest,
    transform: slicer.vtkMRMLTransformNode,
    steps: Steps,
) -> slicer.vtkMRMLSequenceBrowserNode:
    """Adds steps as a sequence with its browser and proxy, or puts them into those of before.

    Args:
        scene: Scene of the request's nodes.
        request: What was asked for.
        transform: Transform of the result, which gets a reference to the browser.
        steps: The steps; the last one is selected.

    Returns:
        The browser.
    """
    browser = _kept(transform) or _added(scene, request, transform, steps)
    sequence = browser.GetMasterSequenceNode()
    proxy = browser.GetProxyNode(sequence)
    _relate(proxy, request)
    _fill(browser, steps, len(steps) - 1)
    transform.SetNodeReferenceID(STEPS_ROLE, browser.GetID())
    return browser


def browser_of(
    transform: slicer.vtkMRMLTransformNode | None,
) -> slicer.vtkMRMLSequenceBrowserNode | None:
    """Returns the browser of a result's steps; None without one, or if a part was deleted."""
    return None if transform is None or not can_play() else _kept(transform)


def proxy_of(browser: slicer.vtkMRMLSequenceBrowserNode) -> slicer.vtkMRMLTransformNode:
    """Returns the transform that changes while the steps are played."""
    return browser.GetProxyNode(browser.GetMasterSequenceNode())


def step_name(browser: slicer.vtkMRMLSequenceBrowserNode) -> str:
    """Returns what led to the selected step, such as ``R+`` or ``turn A-``."""
    number, names = browser.GetSelectedItemNumber(), _names(browser.GetMasterSequenceNode())
    return names[number] if 0 <= number < len(names) else ""


def forget_steps(transform: slicer.vtkMRMLTransformNode) -> None:
    """Lets go of the steps of an earlier result in the same transform; they stay as nodes."""
    transform.RemoveNodeReferenceIDs(STEPS_ROLE)


def undo_of_steps(transform: slicer.vtkMRMLTransformNode) -> Callable[[], None]:
    """Returns what gives a transform the steps back that it has now."""
    id_, browser = transform.GetNodeReferenceID(STEPS_ROLE), browser_of(transform)
    steps, selected, proxy, above, roles = [], 0, None, None, {}
    if browser is not None:
        sequence, selected = browser.GetMasterSequenceNode(), browser.GetSelectedItemNumber()
        nodes = [sequence.GetNthDataNode(n) for n in range(sequence.GetNumberOfDataNodes())]
        steps = [(n, _matrix(node)) for n, node in zip(_names(sequence), nodes)]
        proxy = proxy_of(browser)
        above = proxy.GetTransformNodeID()
        roles = {role: proxy.GetNodeReferenceID(role) for role in _roles(proxy)}

    def restore() -> None:
        if browser is not None and proxy is not None:
            _fill(browser, steps, selected)
            proxy.SetAndObserveTransformNodeID(above)
            for role, node_id in roles.items():
                proxy.SetNodeReferenceID(role, node_id)
        transform.SetNodeReferenceID(STEPS_ROLE, id_)

    return restore


def add_walker(
    scene: slicer.vtkMRMLScene,
    moving: slicer.vtkMRMLVolumeNode,
    proxy: slicer.vtkMRMLTransformNode,
) -> slicer.vtkMRMLVolumeNode:
    """Adds a second, hidden view of a volume that walks with the steps.

    It has the voxels of the moving volume, not a copy of them, and is not saved.
    """
    node = moving.CreateNodeInstance()
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node.CopyOrientation(moving)
    node.SetAndObserveImageData(moving.GetImageData())
    add_node(scene, node, f"{moving.GetName()} step by step")
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetSaveWithScene(False)
    copy_display(moving.GetDisplayNode(), display, moving.IsA("vtkMRMLLabelMapVolumeNode"))
    node.SetAndObserveTransformNodeID(proxy.GetID())
    return node


def _kept(
    transform: slicer.vtkMRMLTransformNode,
) -> slicer.vtkMRMLSequenceBrowserNode | None:
    browser = transform.GetNodeReference(STEPS_ROLE)
    sequence = None if browser is None else browser.GetMasterSequenceNode()
    isWhole = sequence is not None and browser.GetProxyNode(sequence) is not None
    return browser if isWhole else None


def _added(
    scene: slicer.vtkMRMLScene,
    request: RegistrationRequest,
    transform: slicer.vtkMRMLTransformNode,
    steps: Steps,
) -> slicer.vtkMRMLSequenceBrowserNode:
    name = transform.GetName()
    sequence = slicer.vtkMRMLSequenceNode()
    sequence.SetIndexName("Step")
    sequence.SetIndexUnit("")
    add_node(scene, sequence, f"{name} steps")
    proxy = add_linear_transform(
        scene, f"{name} step by step", steps[-1][1], request.fixed, request.moving
    )
    browser = slicer.vtkMRMLSequenceBrowserNode()
    browser.SetPlaybackRateFps(_STEPS_PER_SECOND)
    browser.SetPlaybackLooped(False)
    browser.SetPlaybackItemSkippingEnabled(False)
    browser.SetIndexDisplayMode(browser.IndexDisplayAsIndex)
    add_node(scene, browser, f"{name} steps browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    # The proxy is this very node, with its name and its place under the fixed volume's parent.
    browser.AddProxyNode(proxy, sequence, False)
    browser.SetOverwriteProxyName(sequence, False)
    browser.SetSaveChanges(sequence, False)
    return browser


def _fill(browser: slicer.vtkMRMLSequenceBrowserNode, steps: Steps, selected: int) -> None:
    """Replaces the steps of a browser and selects one of them."""
    sequence, proxy = browser.GetMasterSequenceNode(), proxy_of(browser)
    browser.SetPlaybackActive(False)
    modified = [(node, node.StartModify()) for node in (browser, sequence)]
    sequence.RemoveAllDataNodes()
    step = slicer.vtkMRMLLinearTransformNode()
    for number, (name, matrix) in enumerate(steps):
        step.SetName(name)
        step.SetMatrixTransformFromParent(to_vtk_matrix(matrix))
        sequence.SetDataNodeAtValue(step, str(number))
    # The files of sequences hold no names of their items.
    sequence.SetAttribute(_NAMES_ATTRIBUTE, json.dumps([name for name, _ in steps]))
    browser.SetSelectedItemNumber(selected)
    for node, before in reversed(modified):
        node.EndModify(before)
    if 0 <= selected < len(steps):
        # A scene outside Slicer has no logic that does it.
        proxy.SetMatrixTransformFromParent(to_vtk_matrix(steps[selected][1]))


def _relate(proxy: slicer.vtkMRMLTransformNode, request: RegistrationRequest) -> None:
    """Notes the volumes on the proxy, and puts it under the fixed volume's parent."""
    for role, node in zip(_roles(proxy), (request.fixed, request.moving)):
        proxy.SetNodeReferenceID(role, node.GetID())
    parent = request.fixed.GetParentTransformNode()
    proxy.SetAndObserveTransformNodeID(None if parent is None else parent.GetID())


def _roles(proxy: slicer.vtkMRMLTransformNode) -> tuple[str, str]:
    return proxy.GetFixedNodeReferenceRole(), proxy.GetMovingNodeReferenceRole()


def _names(sequence: slicer.vtkMRMLSequenceNode | None) -> list[str]:
    """Returns a name for each step of a sequence, even if somebody has added or removed some."""
    if sequence is None:
        return []
    try:
        names = json.loads(sequence.GetAttribute(_NAMES_ATTRIBUTE) or "[]")
    except json.JSONDecodeError:
        names = []
    count = sequence.GetNumberOfDataNodes()
    return [str(name) for name in names] if len(names) == count else [""] * count


def _matrix(node: slicer.vtkMRMLLinearTransformNode) -> NDArray[np.float64]:
    found = vtk.vtkMatrix4x4()
    node.GetMatrixTransformFromParent(found)
    return from_vtk_matrix(found)
