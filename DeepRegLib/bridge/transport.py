"""A deformation that is carried to another subject, as nodes of the scene.

As with a registration, the nodes are read in the main thread (`collecting_transport`), and the
files are written and read in any thread (`request.Collected.save`, `outcome.load`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import slicer

from ..errors import InputError
from .frames import Start, initial_steps, matrix_between
from .outcome import Loaded
from .preflight import Finding, volume_faults
from .preflight_regions import Remark
from .preflight_start import Start as Place
from .preflight_start import invertible, overlap
from .request import Collected
from .scene import scene_transaction
from .transforms import add_content
from .volumes import add_moved_volume, grid_of, volume_array

#: Attribute of a transform: what is known of the deformation that was carried over, as JSON.
REPORT_ATTRIBUTE = "DeepReg.Transport"
#: Roles by which such a transform refers to the volumes it came from, and to the deformed volume.
FIXED_ROLE, MOVING_ROLE, SUBJECT_ROLE, DEFORMED_ROLE = (
    "DeepReg.Transport.Fixed", "DeepReg.Transport.Moving", "DeepReg.Transport.Subject",
    "DeepReg.Transport.Deformed",
)  # fmt: skip
#: Alignment that takes the volumes as they lie on screen, beside those of the library.
ON_SCREEN = "screen"
_LITTLE_OVERLAP = 0.25


@dataclass(frozen=True, eq=False)
class TransportRequest:
    """Nodes and choices of a deformation to carry over.

    Args:
        fixed: Volume of a subject after a change.
        moving: Volume of the same subject before it.
        subject: Volume of another subject before the change.
        model: Model of ``cvae`` by name or file; the newest if empty.
        strength: Factor of the deformation's code.
        alignment: How moving volume and subject are aligned with the fixed volume beforehand:
            ``affine`` or ``rigid`` (found now), or `ON_SCREEN`.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    fixed: slicer.vtkMRMLVolumeNode
    moving: slicer.vtkMRMLVolumeNode
    subject: slicer.vtkMRMLVolumeNode
    model: str = ""
    strength: float = 1.0
    alignment: str = "affine"
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class Carried:
    """What a deformation that was carried over left in the scene.

    Args:
        transform: Put the subject, and all that belongs to it, under it to see the change.
        volume: The deformed subject, on its own grid.
        report: ``mean_mm``, ``largest_mm``, ``folds_percent``, ``model``, ``code``, ``strength``,
            ``alignment``, and the ``names`` of ``fixed``, ``moving`` and ``subject``.
    """

    transform: slicer.vtkMRMLTransformNode
    volume: slicer.vtkMRMLVolumeNode
    report: Mapping[str, Any]


def collecting_transport(request: TransportRequest) -> Generator[None, None, Collected]:
    """Copies out of the scene what is needed, in short steps; changes nothing.

    What is wrong with the nodes is raised by the first step.

    Raises:
        InputError: If a node is missing, empty or of the wrong kind.
    """
    nodes = {"fixed": request.fixed, "moving": request.moving, "subject": request.subject}
    volumes = (request.fixed, request.moving, request.subject)
    for finding in transport_findings(*volumes, alignment=request.alignment):
        if finding.level == "error":
            raise InputError(finding.text)
    arrays: dict[str, Any] = {n: (volume_array(v), grid_of(v)) for n, v in nodes.items()}
    on_screen = request.alignment == ON_SCREEN
    parameters = {
        "model": request.model, "strength": request.strength, "device": request.device,
        "alignment": "none" if on_screen else request.alignment,
    }  # fmt: skip
    yield
    starts = {}
    if on_screen:
        found: Start = yield from initial_steps(request.fixed, request.moving)
        matrix = matrix_between(request.fixed, request.subject)
        assert matrix is not None, "findings refuse others"
        # The deformation is what is carried over; only the linear part is an alignment.
        starts = {"initial": Start(found.linear), "subject_transform": Start(matrix)}
    return Collected(arrays, None, parameters, "transport", starts=starts)


def transport_findings(
    fixed: slicer.vtkMRMLVolumeNode | None,
    moving: slicer.vtkMRMLVolumeNode | None,
    subject: slicer.vtkMRMLVolumeNode | None,
    alignment: str = "affine",
    translate: Callable[[str], str] = str,
) -> list[Finding]:
    """Says what speaks against carrying a deformation over, before it happens; changes nothing.

    Args:
        fixed: Volume of a subject after a change.
        moving: Volume of the same subject before it.
        subject: Volume of another subject.
        alignment: See `TransportRequest`.
        translate: Translates the templates of the sentences.
    """
    remarks = list(_faults(fixed, moving, subject))
    if not remarks and alignment == ON_SCREEN:
        remarks = [*_place_remarks(fixed, moving), *_place_remarks(fixed, subject)]
        if not any(level == "error" for _, level, _, _ in remarks):
            remarks += _subject_remarks(fixed, subject)
    return [
        Finding(level, code, translate(text).format(**values))  # type: ignore[arg-type]
        for text, level, code, values in remarks
    ]


def place_transport(
    scene: slicer.vtkMRMLScene, request: TransportRequest, loaded: Loaded
) -> Carried:
    """Adds the transform and the deformed subject, all or nothing.

    Both lie where the subject does: under its parent transform.

    Args:
        scene: Scene of the request's nodes.
        request: What was asked for.
        loaded: What came back; see `outcome.load`.

    Raises:
        InputError: If a volume of the request is no longer in the scene.
    """
    nodes = {"fixed": request.fixed, "moving": request.moving, "subject": request.subject}
    for node in nodes.values():
        if node.GetScene() is not scene:
            raise InputError(
                f"'{node.GetName()}' was deleted in the meantime; the result was not added. Load "
                "the volume again and repeat it."
            )
    names = {role: node.GetName() for role, node in nodes.items()}
    report = {**loaded.event.data, "names": names}
    array, grid = loaded.arrays["deformed"]
    subject = request.subject
    with scene_transaction(scene):
        name = "{moving} to {fixed} carried to {subject}".format(**names)
        transform = add_content(scene, name, loaded.transforms["transform"], subject, subject)
        volume = add_moved_volume(
            scene, "{subject} deformed as {fixed}".format(**names), array, grid, subject, subject
        )
        roles = (FIXED_ROLE, MOVING_ROLE, SUBJECT_ROLE, DEFORMED_ROLE)
        for role, node in zip(roles, (*nodes.values(), volume)):
            transform.SetNodeReferenceID(role, node.GetID())
        transform.SetAttribute(REPORT_ATTRIBUTE, json.dumps(report))
    return Carried(transform, volume, report)


def carried_report(node: slicer.vtkMRMLTransformNode | None) -> dict[str, Any] | None:
    """Returns what is known of a deformation that was carried over; None for other transforms."""
    text = None if node is None else node.GetAttribute(REPORT_ATTRIBUTE)
    try:
        report = json.loads(text) if text else None
    except json.JSONDecodeError:
        # Cut off or written by hand: the transform is one like any other then.
        return None
    return report if isinstance(report, dict) and "names" in report else None


def _faults(
    fixed: slicer.vtkMRMLVolumeNode | None,
    moving: slicer.vtkMRMLVolumeNode | None,
    subject: slicer.vtkMRMLVolumeNode | None,
) -> Iterator[Remark]:
    """Says why the volumes cannot be looked at any further."""
    faults = list(volume_faults(fixed, moving))
    if faults:
        yield from faults
    elif subject is None:
        yield "Select the volume of the other subject.", "error", "subject-missing", {}
    elif subject in (fixed, moving):
        text = "'{image}' is of the registered subject; choose a volume of another one."
        yield text, "error", "subject-same", {"image": subject.GetName()}
    else:
        yield from volume_faults(fixed, subject)


def _place_remarks(
    fixed: slicer.vtkMRMLVolumeNode | None, other: slicer.vtkMRMLVolumeNode | None
) -> Iterator[Remark]:
    """Says whether two volumes lie on each other on screen."""
    assert fixed is not None and other is not None
    place = Place(fixed, other, None, from_scene=True)
    values: dict[str, object] = {"fixed": fixed.GetName(), "other": other.GetName()}
    if not invertible(place):
        text = "A transform above the volumes cannot be inverted; choose or make another one."
        yield text, "error", "not-invertible", values
        return
    share = overlap(place)
    if share < _LITTLE_OVERLAP:
        values["percent"] = f"{100 * share:.0f}"
        text = (
            "'{other}' lies {percent} % on '{fixed}' on screen; choose another alignment, or "
            "bring them together first."
        )
        yield text, "error" if share == 0.0 else "warning", "overlap", values


def _subject_remarks(
    fixed: slicer.vtkMRMLVolumeNode | None, subject: slicer.vtkMRMLVolumeNode | None
) -> Iterator[Remark]:
    if subject is not None and matrix_between(fixed, subject) is None:
        text = (
            "'{image}' and the fixed volume are not aligned by a linear transform alone; take the "
            "non-linear transform off, or choose another alignment."
        )
        yield text, "error", "subject-bent", {"image": subject.GetName()}
