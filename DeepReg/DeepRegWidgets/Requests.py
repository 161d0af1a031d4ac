"""From the choices of the panel to what the library is asked for."""

from __future__ import annotations

from slicer.i18n import tr as _

from DeepRegLib import registry
from DeepRegLib.bridge.outcome import Wanted
from DeepRegLib.bridge.request import RegistrationRequest

from .AlgorithmPart import REFINEMENT, stageKeys, stagesText, usedSettings

#: How a run goes on from the last result; empty text: it does not.
TO_LANDMARKS, BY_STRUCTURES = "landmarks", "structures"
#: By optimization: of images of one contrast, or of any two.
BY_ENGINE, ACROSS_CONTRASTS = "engine", "engine across contrasts"
#: The algorithm that refines its own result, on the maps of the structures that it has learned.
_TRANSFORMER = "istn"
_PREVIEW_SECONDS = 0.7


def requestOf(parameterNode, goesOn: str = "") -> RegistrationRequest:
    """Returns what the panel asks for.

    Args:
        parameterNode: The choices.
        goesOn: `TO_LANDMARKS`: only the last stage, quickly, from the last result bent to the
            landmarks; `BY_ENGINE`, `ACROSS_CONTRASTS`, `BY_STRUCTURES`: see `refinementOf`.
    """
    node = parameterNode
    goesOn = goesOn if node.resultTransform is not None else ""
    stages, preset, initial = node.stages, node.preset.value, node.initialTransform
    more = {}
    if goesOn == TO_LANDMARKS:
        stages, preset, initial = stagesText(stageKeys(stages)[-1:]), "fast", node.resultTransform
    elif goesOn == BY_STRUCTURES:
        more = {f"{_TRANSFORMER}.pair_steps": _pairSteps()}
    elif goesOn in (BY_ENGINE, ACROSS_CONTRASTS):
        stages, initial = stagesText([REFINEMENT]), node.resultTransform
    used = usedSettings(node, stages)
    if goesOn == ACROSS_CONTRASTS:
        used = {f"{REFINEMENT}.modality": "different", **used}
    return RegistrationRequest(
        node.fixedVolume,
        node.movingVolume,
        algorithm=stages,
        preset=preset,
        settings={**used, **more},
        device=node.device.value,
        fixed_mask=node.fixedMask,
        fixed_segment=node.fixedSegment,
        moving_mask=node.movingMask,
        moving_segment=node.movingSegment,
        fixed_points=node.fixedPoints,
        moving_points=node.movingPoints,
        fixed_labels=node.fixedLabels,
        moving_labels=node.movingLabels,
        initial=initial,
        start_from_scene=node.startFromScene,
        follow_landmarks=goesOn == TO_LANDMARKS,
        interpolation=node.interpolation.value,
        grid_spacing_mm=node.gridSpacing,
        maps=("jacobian",) if node.wantJacobian else (),
        preview_seconds=_PREVIEW_SECONDS if node.livePreview else None,
    )


def refinementOf(parameterNode, request, transform) -> tuple[str, str]:
    """Returns how the last result can be refined: for `requestOf`, and as the text of a button.

    What a trained model finds goes on by optimization, which must not expect one contrast where the
    model does not. Image-and-spatial transformers rather run
    again and change the transform until the learned maps of the structures agree.

    Args:
        parameterNode: The choices.
        request: What the last result was asked for with; None if there is none.
        transform: Its transform.

    Returns:
        Empty texts if there is nothing to refine.
    """
    node, nothing = parameterNode, ("", "")
    if request is None or node.resultTransform is not transform:
        return nothing
    key = stageKeys(request.algorithm)[-1]
    spec = registry.specs().get(key)
    isLast = (node.fixedVolume, node.movingVolume) == (request.fixed, request.moving)
    if not isLast or spec is None or not spec.needs.training or spec.transform == "linear":
        return nothing
    if key != _TRANSFORMER:
        engine = ACROSS_CONTRASTS if "different" in spec.modalities else BY_ENGINE
        return engine, _("Refine by optimization")
    name = f"{key}.pair_steps"
    isRefined = request.settings.get(name, spec.values(request.preset)["pair_steps"])
    if isRefined or node.algorithm != key:
        return nothing
    return BY_STRUCTURES, _("Refine on these structures")


def _pairSteps() -> int:
    return registry.spec(_TRANSFORMER).values("accurate")["pair_steps"]


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
