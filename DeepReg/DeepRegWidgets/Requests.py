"""From the choices of the panel to what the library is asked for."""

from __future__ import annotations

from DeepRegLib.bridge.outcome import Wanted
from DeepRegLib.bridge.request import RegistrationRequest

from .AlgorithmPart import stagesText, usedSettings

_PREVIEW_SECONDS = 0.7


def requestOf(parameterNode, again: bool = False) -> RegistrationRequest:
    """Returns what the panel asks for.

    Args:
        parameterNode: The choices.
        again: Only the last stage, quickly, from the last result bent to the landmarks.
    """
    node = parameterNode
    hasResult = again and node.resultTransform is not None
    stages = stagesText([node.algorithm]) if hasResult else node.stages
    return RegistrationRequest(
        node.fixedVolume,
        node.movingVolume,
        algorithm=stages,
        preset="fast" if hasResult else node.preset.value,
        settings=usedSettings(node, stages),
        device=node.device.value,
        fixed_mask=node.fixedMask,
        fixed_segment=node.fixedSegment,
        moving_mask=node.movingMask,
        moving_segment=node.movingSegment,
        fixed_points=node.fixedPoints,
        moving_points=node.movingPoints,
        fixed_labels=node.fixedLabels,
        moving_labels=node.movingLabels,
        initial=node.resultTransform if hasResult else node.initialTransform,
        start_from_scene=node.startFromScene,
        follow_landmarks=hasResult,
        interpolation=node.interpolation.value,
        grid_spacing_mm=node.gridSpacing,
        maps=("jacobian",) if node.wantJacobian else (),
        preview_seconds=_PREVIEW_SECONDS if node.livePreview else None,
    )


def wantedOf(parameterNode) -> Wanted:
    """Returns which results the panel wants, and in which nodes."""
    node = parameterNode
    return Wanted(
        moved=node.wantMoved,
        inverse=node.wantInverse,
        moved_node=node.movedVolume,
        transform_node=node.resultTransform,
        inverse_node=node.inverseTransform,
    )
