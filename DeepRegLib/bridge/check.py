"""A registration to check, as nodes of the scene, and the error volume that comes of it.

As with a registration, the nodes are read in the main thread (`collecting_check`), and the files
are written and read in any thread (`request.Collected.save`, `outcome.load`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import slicer

from ..errors import InputError
from ..pictures.color_maps import error_scale_mm
from .extras import replace_map, undo_of
from .frames import Start, initial_steps
from .outcome import Loaded
from .overlays import add_map_volume
from .preflight import Finding, volume_faults
from .preflight_regions import Remark, mask_remarks
from .preflight_start import Start as Place
from .preflight_start import invertible, overlap, resting
from .request import Collected, mask_of
from .scene import scene_transaction
from .segments import segment_names
from .volumes import grid_of, volume_array

#: Attribute of an error volume: what the check said, as JSON.
REPORT_ATTRIBUTE = "DeepReg.Check"
#: Roles by which an error volume refers to what was checked.
FIXED_ROLE, MOVING_ROLE, TRANSFORM_ROLE, MASK_ROLE = (
    "DeepReg.Check.Fixed", "DeepReg.Check.Moving", "DeepReg.Check.Transform", "DeepReg.Check.Mask",
)  # fmt: skip
_MAP = "error_mm"
#: Most points at which a non-linear transform is sampled: finer than for the start of a
#: registration, as what lies between them is not seen.
_MOST_POINTS = 2_000_000
_LITTLE_OVERLAP = 0.25


@dataclass(frozen=True, eq=False)
class CheckRequest:
    """Nodes and choices of one check.

    Args:
        fixed: Volume that stays.
        moving: Volume as it was before the registration.
        transform: Transform of any kind that aligns the moving volume when put above it; None
            checks both volumes as they lie on screen.
        fixed_mask: Label map or segmentation where errors count.
        fixed_segment: Id or name of one segment of it; all of them if empty.
        model: Model by name or file; the newest if empty.
        step: Voxels of the model between places that are judged, 1, 2 or 4.
        threshold_mm: Errors above are too large.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    fixed: slicer.vtkMRMLVolumeNode
    moving: slicer.vtkMRMLVolumeNode
    transform: slicer.vtkMRMLTransformNode | None = None
    fixed_mask: slicer.vtkMRMLNode | None = None
    fixed_segment: str = ""
    model: str = ""
    step: int = 2
    threshold_mm: float = 2.0
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class Checked:
    """What a check left in the scene.

    Args:
        volume: Estimated error in mm on the fixed grid, under the fixed volume's transform.
        report: Verdict, sentence, figures, histogram and provenance, as in `check.Checked.report`,
            and the ``names`` of what was checked: ``fixed``, ``moving``, ``transform``, ``mask``.
    """

    volume: slicer.vtkMRMLScalarVolumeNode
    report: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """``green``, ``amber`` or ``red``."""
        return str(self.report["verdict"])

    @property
    def sentence(self) -> str:
        """Why, for people."""
        return str(self.report["sentence"])


def collecting_check(request: CheckRequest) -> Generator[None, None, Collected]:
    """Copies out of the scene what a check needs, in short steps; changes nothing.

    What is wrong with the nodes is raised by the first step.

    Raises:
        InputError: If a node is missing, empty or of the wrong kind.
    """
    fixed, moving = request.fixed, request.moving
    mask, segment = request.fixed_mask, request.fixed_segment
    for finding in check_findings(
        fixed, moving, request.transform, fixed_mask=mask, fixed_segment=segment
    ):
        if finding.level == "error":
            raise InputError(finding.text)
    arrays: dict[str, Any] = {
        "fixed": (volume_array(fixed), grid_of(fixed)),
        "moving": (volume_array(moving), grid_of(moving)),
    }
    if mask is not None:
        arrays["fixed_mask"] = mask_of(mask, segment, fixed), grid_of(fixed)
    parameters = {
        "model": request.model, "step": request.step, "threshold_mm": request.threshold_mm,
        "device": request.device,
    }  # fmt: skip
    yield
    start: Start = yield from initial_steps(fixed, moving, request.transform, _MOST_POINTS)
    return Collected(arrays, start, parameters, "check", "transform")


def check_findings(
    fixed: slicer.vtkMRMLVolumeNode | None,
    moving: slicer.vtkMRMLVolumeNode | None,
    transform: slicer.vtkMRMLTransformNode | None = None,
    translate: Callable[[str], str] = str,
    fixed_mask: slicer.vtkMRMLNode | None = None,
    fixed_segment: str = "",
) -> list[Finding]:
    """Says what speaks against a check, before it runs; changes nothing.

    Args:
        fixed: Volume that stays.
        moving: Volume as it was before the registration.
        transform: Transform to check.
        translate: Translates the templates of the sentences.
        fixed_mask: Label map or segmentation where errors count.
        fixed_segment: Id or name of one segment of it.
    """
    remarks = list(volume_faults(fixed, moving))
    if not remarks and fixed is not None and moving is not None:
        remarks = list(_remarks(Place(fixed, moving, transform, from_scene=True)))
        remarks += mask_remarks("fixed", fixed_mask, fixed_segment, fixed)
    return [
        Finding(level, code, translate(text).format(**values))  # type: ignore[arg-type]
        for text, level, code, values in remarks
    ]


def place_check(scene: slicer.vtkMRMLScene, request: CheckRequest, loaded: Loaded) -> Checked:
    """Adds the error volume of a finished check, or gives it to that of an earlier one.

    It is colored, transparent next to 0, and lies where the fixed volume does. If anything fails
    the scene is as it was.

    Args:
        scene: Scene of the request's nodes.
        request: What was asked for.
        loaded: What came back; see `outcome.load`.

    Raises:
        InputError: If a node of the request is no longer in the scene.
    """
    for node in (request.fixed, request.moving, request.transform):
        if node is not None and node.GetScene() is not scene:
            raise InputError(
                f"'{node.GetName()}' was deleted while the check ran; its result was not added. "
                "Choose what to check again."
            )
    nodes = {"fixed": request.fixed, "moving": request.moving, "transform": request.transform}
    names = {role: node.GetName() for role, node in nodes.items() if node is not None}
    if request.fixed_mask is not None:
        names["mask"] = _mask_name(request)
    report = {**loaded.event.data, "names": names}
    array, grid = loaded.arrays[_MAP]
    before = _earlier(scene, request)
    undo = None if before is None else undo_of(before)
    shown = None if before is None else before.GetDisplayNode()
    scale = None if shown is None else (shown.GetWindow(), shown.GetLevel())
    try:
        with scene_transaction(scene):
            made = add_map_volume(scene, _name(request), array, grid, _MAP, request.fixed)
            high = error_scale_mm(float(report["threshold_mm"]), float(report["largest_mm"]))
            made.GetDisplayNode().SetWindowLevel(high, high / 2)
            node = replace_map(scene, made, before, _MAP)
            _note(node, request, report)
    except BaseException:
        if undo is not None:
            undo()
        if shown is not None and scale is not None:
            shown.SetWindowLevel(*scale)
        raise
    return Checked(node, report)


def report_of(volume: slicer.vtkMRMLVolumeNode | None) -> dict[str, Any] | None:
    """Returns what the check said that an error volume comes from; None for other volumes."""
    text = None if volume is None else volume.GetAttribute(REPORT_ATTRIBUTE)
    try:
        report = json.loads(text) if text else None
    except json.JSONDecodeError:
        # Cut off or written by hand: the volume is one like any other then.
        return None
    return report if isinstance(report, dict) and "verdict" in report else None


def _remarks(place: Place) -> Iterator[Remark]:
    names = {"fixed": place.fixed.GetName(), "moving": place.moving.GetName()}
    values: dict[str, object] = {
        **names, "transform": place.initial.GetName() if place.initial else "",
    }  # fmt: skip
    if not invertible(place):
        text = "A transform above the volumes cannot be inverted; choose or make another one."
        yield text, "error", "not-invertible", values
        return
    if place.initial is not None and resting(place.initial):
        text = "The transform '{transform}' is empty: '{moving}' is checked where it was loaded."
        yield text, "note", "transform-empty", values
    share = overlap(place)
    values["percent"] = f"{100 * share:.0f}"
    if share == 0.0:
        text = (
            "'{fixed}' and '{moving}' do not overlap at all; does this transform belong to them, "
            "and in this direction?"
        )
        yield text, "warning", "overlap-none", values
    elif share < _LITTLE_OVERLAP:
        text = (
            "Only {percent} % of the smaller image overlaps the other; does this transform belong "
            "to '{fixed}' and '{moving}', and in this direction?"
        )
        yield text, "warning", "overlap-small", values


def _mask_name(request: CheckRequest) -> str:
    """Returns the name of a mask, with that of the segment if only one counts."""
    mask, segment = request.fixed_mask, request.fixed_segment
    assert mask is not None
    if not segment or not mask.IsA("vtkMRMLSegmentationNode"):
        return str(mask.GetName())
    return f"{mask.GetName()}: {segment_names(mask).get(segment, segment)}"


def _name(request: CheckRequest) -> str:
    if request.transform is not None:
        return f"{request.transform.GetName()} error"
    return f"{request.moving.GetName()} to {request.fixed.GetName()} error"


def _roles(request: CheckRequest) -> dict[str, str | None]:
    transform = None if request.transform is None else request.transform.GetID()
    return {
        FIXED_ROLE: request.fixed.GetID(),
        MOVING_ROLE: request.moving.GetID(),
        TRANSFORM_ROLE: transform,
    }


def _earlier(
    scene: slicer.vtkMRMLScene, request: CheckRequest
) -> slicer.vtkMRMLScalarVolumeNode | None:
    """Returns the error volume of an earlier check of the same nodes."""
    wanted = _roles(request)
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(number, "vtkMRMLScalarVolumeNode")
        if node.GetAttribute(REPORT_ATTRIBUTE) and all(
            node.GetNodeReferenceID(role) == id_ for role, id_ in wanted.items()
        ):
            return node
    return None


def _note(
    node: slicer.vtkMRMLScalarVolumeNode, request: CheckRequest, report: Mapping[str, Any]
) -> None:
    for role, id_ in _roles(request).items():
        node.SetNodeReferenceID(role, id_)
    mask = request.fixed_mask
    # It is no part of what makes two checks the same: the next one takes the same volume.
    isThere = mask is not None and mask.GetScene() is node.GetScene()
    node.SetNodeReferenceID(MASK_ROLE, mask.GetID() if mask is not None and isThere else None)
    node.SetAttribute(REPORT_ATTRIBUTE, json.dumps(report))
