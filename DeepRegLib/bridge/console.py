"""The lines for Slicer's Python console that repeat a run."""

from __future__ import annotations

from typing import Any

from .request import RegistrationRequest

#: Argument of `DeepRegLogic.register`, attribute of the request, value that need not be said.
_ARGUMENTS: tuple[tuple[str, str, Any], ...] = (
    ("preset", "preset", "balanced"),
    ("device", "device", "auto"),
    ("fixedMask", "fixed_mask", None),
    ("fixedSegment", "fixed_segment", ""),
    ("movingMask", "moving_mask", None),
    ("movingSegment", "moving_segment", ""),
    ("fixedPoints", "fixed_points", None),
    ("movingPoints", "moving_points", None),
    ("fixedLabels", "fixed_labels", None),
    ("movingLabels", "moving_labels", None),
    ("initialTransform", "initial", None),
    ("startFromScene", "start_from_scene", True),
    ("followLandmarks", "follow_landmarks", False),
    ("interpolation", "interpolation", "auto"),
    ("fillValue", "fill", None),
    ("gridSpacing", "grid_spacing_mm", 0.0),
    ("maps", "maps", ()),
)


def console_call(request: RegistrationRequest) -> str:
    """Returns Python that repeats a registration in a scene with nodes of the same names.

    Example:
        >>> print(console_call(request))  # doctest: +SKIP
        import DeepReg
        result = DeepReg.DeepRegLogic().register(
            getNode('MNI152'),
            getNode('Colin27'),
            algorithm='rigid+affine+greedy',
        )
    """
    lines = [_node(request.fixed), _node(request.moving), f"algorithm={request.algorithm!r}"]
    for argument, attribute, usual in _ARGUMENTS:
        value = getattr(request, attribute)
        value = tuple(value) if attribute == "maps" else value
        if value == usual:
            continue
        text = _node(value) if hasattr(value, "GetName") else repr(value)
        lines.append(f"{argument}={text}")
    if request.settings:
        lines.append(f"settings={dict(request.settings)!r}")
    body = "".join(f"    {line},\n" for line in lines)
    return f"import DeepReg\nresult = DeepReg.DeepRegLogic().register(\n{body})\n"


def _node(node: Any) -> str:
    return f"slicer.util.getNode({node.GetName()!r})"
