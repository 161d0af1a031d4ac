"""A population of registrations, as nodes of the scene, and a transform that moves along its modes.

As with a registration, the nodes are read in the main thread (`collecting_population`), and the
files are written and read in any thread (`request.Collected.save`, `load_population`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer

from ..errors import InputError
from ..job import JobEvent
from .extras import undo_of
from .frames import Start, initial_steps
from .modes import Modes, keep_modes, mode_nodes, remove_orphans, undo_of_modes
from .outcome import load
from .preflight import Finding, volume_faults
from .preflight_regions import Remark
from .request import Collected
from .scene import add_node, scene_transaction
from .volumes import add_moved_volume, grid_of, replace_volume, volume_array

#: Attribute of a transform along modes: what is known of the population, as JSON.
REPORT_ATTRIBUTE = "DeepReg.Population"
#: Roles by which it refers to the fixed volume, and to the copy of it that it deforms.
FIXED_ROLE, SHOWN_ROLE = "DeepReg.Population.Fixed", "DeepReg.Population.Shown"
#: Least number of transforms, and of those that can be compared with each other.
LEAST, LEAST_COMPARED = 3, 4
#: Most points at which a transform is sampled: the voxels of the fields whose modes are found.
_MOST_POINTS = 64**3


@dataclass(frozen=True, eq=False)
class PopulationRequest:
    """Nodes and choices of a population.

    Args:
        fixed: Their common fixed volume.
        transforms: Transforms of any kind, each of which aligns a volume with the fixed one when
            put above it.
        folder: In place of them: a folder of transform files, or one that ``batch`` wrote.
        modes: Number of modes.
        linear: Whether the linear parts of the transforms count, too.
        model: Model of ``coop_ae`` that judges the deformations; empty for the newest, None for
            no model.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    fixed: slicer.vtkMRMLVolumeNode
    transforms: Sequence[slicer.vtkMRMLTransformNode] = ()
    folder: str = ""
    modes: int = 3
    linear: bool = False
    model: str | None = None
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class Population:
    """What a population left in the scene.

    Args:
        transform: What is put under it is made to look like the subjects; at first like their mean.
        shown: Copy of the fixed volume under it.
        modes: Moves the transform.
        report: Figures, ``subjects`` (the most atypical first), and the name of the ``fixed``
            volume; see `DeepRegLib.job.Job`.
    """

    transform: slicer.vtkMRMLGridTransformNode
    shown: slicer.vtkMRMLVolumeNode
    modes: Modes
    report: Mapping[str, Any]

    def move(self, *coefficients: float) -> None:
        """Moves the transform along the modes, by so many standard deviations each."""
        self.modes.move(self.transform, coefficients)


def collecting_population(request: PopulationRequest) -> Generator[None, None, Collected]:
    """Copies out of the scene what is needed, in short steps; changes nothing.

    What is wrong with the nodes is raised by the first step.

    Raises:
        InputError: If a node is missing, empty or of the wrong kind.
    """
    fixed = request.fixed
    for finding in population_findings(fixed, request.transforms, request.folder):
        if finding.level == "error":
            raise InputError(finding.text)
    arrays: dict[str, Any] = {"fixed": (volume_array(fixed), grid_of(fixed))}
    parameters: dict[str, Any] = {
        "modes": request.modes, "linear": request.linear, "device": request.device,
        "model": request.model,
    }  # fmt: skip
    if request.folder:
        parameters["folder"] = request.folder
        yield
        return Collected(arrays, None, parameters, "population")
    names = {f"transform_{n}": name for n, name in enumerate(_names(request.transforms), start=1)}
    yield
    starts: dict[str, Start] = {}
    for key, node in zip(names, request.transforms):
        starts[key] = yield from initial_steps(fixed, fixed, node, _MOST_POINTS)
        yield
    parameters["names"] = names
    return Collected(arrays, None, parameters, "population", starts=starts)


def population_findings(
    fixed: slicer.vtkMRMLVolumeNode | None,
    transforms: Sequence[slicer.vtkMRMLTransformNode] = (),
    folder: str = "",
    translate: Callable[[str], str] = str,
) -> list[Finding]:
    """Says what speaks against a population, before it is examined; changes nothing.

    Args:
        fixed: The common fixed volume.
        transforms: Transforms of the population.
        folder: Folder of transform files in place of them.
        translate: Translates the templates of the sentences.
    """
    return [
        Finding(level, code, translate(text).format(**values))  # type: ignore[arg-type]
        for text, level, code, values in _remarks(fixed, transforms, folder)
    ]


def load_population(event: JobEvent, folder: str | Path) -> tuple[JobEvent, Modes]:
    """Reads the files of a finished job; may run in any thread, touches no node.

    Raises:
        FileFormatError: If a file is missing or damaged.
    """
    arrays = load(event, folder).arrays
    mean, grid = arrays["mean"]
    count = int(event.data["modes"])
    return event, Modes(mean, [arrays[f"mode_{k + 1}"][0] for k in range(count)], grid)


def place_population(
    scene: slicer.vtkMRMLScene, request: PopulationRequest, event: JobEvent, modes: Modes
) -> Population:
    """Adds the transform along the modes and a copy of the fixed volume under it.

    Those of an earlier population with the same fixed volume are used again. The modes themselves
    become hidden nodes, so that a scene that is opened again has them (`kept_modes`). If anything
    fails the scene is as it was.

    Args:
        scene: Scene of the request's nodes.
        request: What was asked for.
        event: What the worker said.
        modes: See `load_population`.

    Raises:
        InputError: If the fixed volume is no longer in the scene.
    """
    fixed = request.fixed
    if fixed.GetScene() is not scene:
        raise InputError(
            f"'{fixed.GetName()}' was deleted in the meantime; the result was not added. Load the "
            "volume again and repeat it."
        )
    report = {**event.data, "fixed": fixed.GetName()}
    before = _earlier(scene, fixed)
    undo = [] if before is None else _undoing(before)
    replaced = [] if before is None else mode_nodes(before)
    try:
        with scene_transaction(scene):
            node = before
            if node is None:
                node = add_node(scene, slicer.vtkMRMLGridTransformNode(), f"{fixed.GetName()} mode")
            shown = _add_shown(scene, fixed, node)
            keep_modes(scene, modes, node, fixed)
            node.SetNodeReferenceID(FIXED_ROLE, fixed.GetID())
            node.SetNodeReferenceID(SHOWN_ROLE, shown.GetID())
            node.SetAttribute(REPORT_ATTRIBUTE, json.dumps(report))
            above = fixed.GetParentTransformNode()
            node.SetAndObserveTransformNodeID(None if above is None else above.GetID())
            modes.move(node, ())
    except BaseException:
        for restore in undo:
            restore()
        raise
    for old in replaced:
        scene.RemoveNode(old)
    remove_orphans(scene)
    return Population(node, shown, modes, report)


def population_report(node: slicer.vtkMRMLTransformNode | None) -> dict[str, Any] | None:
    """Returns what is known of the population of a transform; None for other transforms."""
    text = None if node is None else node.GetAttribute(REPORT_ATTRIBUTE)
    try:
        report = json.loads(text) if text else None
    except json.JSONDecodeError:
        # Cut off or written by hand: the transform is one like any other then.
        return None
    return report if isinstance(report, dict) and "subjects" in report else None


def _remarks(
    fixed: slicer.vtkMRMLVolumeNode | None,
    transforms: Sequence[slicer.vtkMRMLTransformNode],
    folder: str,
) -> Iterator[Remark]:
    if fixed is None:
        yield "Select the common fixed volume.", "error", "fixed-missing", {}
        return
    # The second volume is of no interest here.
    faults = [f for f in volume_faults(fixed, fixed) if f[2] != "volume-same"]
    if faults or folder:
        yield from faults
        return
    values: dict[str, object] = {"count": len(transforms), "fixed": fixed.GetName()}
    if len(transforms) < LEAST:
        text = "Modes need at least three transforms; check more of them."
        yield text, "error", "transforms-few", values
    elif len(transforms) < LEAST_COMPARED:
        text = "Three transforms have modes; at least four can be compared with each other."
        yield text, "note", "transforms-three", values
    for node in transforms:
        other = node.GetNodeReference(node.GetFixedNodeReferenceRole())
        if other is not None and other is not fixed:
            values = {"transform": node.GetName(), "other": other.GetName(), **values}
            text = "'{transform}' belongs to the fixed volume '{other}', not to '{fixed}'."
            yield text, "warning", "transform-of-another", values


def _names(transforms: Sequence[slicer.vtkMRMLTransformNode]) -> list[str]:
    """Returns how the subjects are called: as their volumes, or as the transforms."""
    movings = [node.GetNodeReference(node.GetMovingNodeReferenceRole()) for node in transforms]
    names = [t.GetName() if m is None else m.GetName() for t, m in zip(transforms, movings)]
    if len(set(names)) == len(names):
        return names
    own = [node.GetName() for node in transforms]
    return own if len(set(own)) == len(own) else [f"{n} ({i})" for i, n in enumerate(own, start=1)]


def _earlier(
    scene: slicer.vtkMRMLScene, fixed: slicer.vtkMRMLVolumeNode
) -> slicer.vtkMRMLGridTransformNode | None:
    """Returns the transform of an earlier population with the same fixed volume."""
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLGridTransformNode")):
        node = scene.GetNthNodeByClass(number, "vtkMRMLGridTransformNode")
        if node.GetAttribute(REPORT_ATTRIBUTE) and node.GetNodeReference(FIXED_ROLE) is fixed:
            return node
    return None


def _add_shown(
    scene: slicer.vtkMRMLScene,
    fixed: slicer.vtkMRMLVolumeNode,
    node: slicer.vtkMRMLTransformNode,
) -> slicer.vtkMRMLVolumeNode:
    """Adds a copy of the fixed volume, which itself stays where it is, under a transform."""
    name = f"{fixed.GetName()} along modes"
    made = add_moved_volume(scene, name, volume_array(fixed), grid_of(fixed), fixed)
    shown = replace_volume(scene, made, node.GetNodeReference(SHOWN_ROLE))
    shown.SetAndObserveTransformNodeID(node.GetID())
    return shown


def _undoing(node: slicer.vtkMRMLTransformNode) -> list[Callable[[], None]]:
    """Returns what gives the nodes of an earlier population their content back."""
    content, above = node.GetTransformToParent(), node.GetTransformNodeID()
    report, shown = node.GetAttribute(REPORT_ATTRIBUTE), node.GetNodeReference(SHOWN_ROLE)

    def restore() -> None:
        node.SetAndObserveTransformToParent(content)
        node.SetAndObserveTransformNodeID(above)
        node.SetAttribute(REPORT_ATTRIBUTE, report)
        node.SetNodeReferenceID(SHOWN_ROLE, None if shown is None else shown.GetID())

    found = [restore, undo_of_modes(node)]
    return found if shown is None else [*found, undo_of(shown)]
