"""The estimated error in mm of any rigid or affine alignment, by a trained network."""

from __future__ import annotations

from typing import Any

import torch

from .. import registry
from ..geometry.transform import Transform
from ..models import ModelFile, list_models
from .base import ImagePair

#: The system whose models estimate errors.
SYSTEM = "deep_similarity"


def estimated_tre_mm(
    pair: ImagePair, transform: Transform | None = None, model: str = ""
) -> float | None:
    """Returns the estimated mean target registration error of a linear alignment.

    Args:
        pair: The images.
        transform: The alignment, fixed to moving; the images as they are stored if omitted.
        model: Model of `deep_similarity`, by name or file; empty takes the newest.

    Returns:
        mm; None if no model is named and there is none.

    Raises:
        InputError: If the transform is not linear.
        ParameterError: If there is no such model, or it belongs to another algorithm.
        FileFormatError: If the model is damaged or does not fit.
    """
    values = registry.spec(SYSTEM).values(model=model)
    estimate: float | None = registry.create(SYSTEM, **values).estimate(pair, transform)
    return estimate


def card_figures(
    pair: ImagePair, transform: Transform, device: torch.device
) -> tuple[dict[str, Any], str]:
    """Returns what the quality card of a linear alignment says of its error.

    The models are asked one after the other, the newest first, until one is for these images. A
    wrong figure would be worse than none, and an estimate is no reason for a run to fail: whatever
    stands in its way becomes a sentence. The models that come along are for few kinds of images,
    and nobody chose them: if they are not for these, nothing is said.

    Args:
        pair: The images.
        transform: The alignment, fixed to moving.
        device: Where to estimate.

    Returns:
        ``estimated_tre_mm`` and ``estimated_tre_model``, or nothing; and why there is nothing, or
        an empty text (also without any model).
    """
    first = ""
    seen = ImagePair(pair.fixed, pair.moving, pair.fixed_mask, pair.moving_mask)
    for file in list_models(SYSTEM):
        try:
            values = registry.spec(SYSTEM).values(model=str(file.path))
            system = registry.create(SYSTEM, **values)
            found = system.trusted_estimate(seen.to(device), transform.to(device))
            reason = found.reason
        except Exception as error:  # The registration is done; its estimate must not undo it.
            found, reason = None, str(error).strip().partition("\n")[0] or type(error).__name__
        if found is not None and found.mm is not None:
            return {"estimated_tre_mm": found.mm, "estimated_tre_model": _described(file)}, ""
        if file.bundled:
            continue
        first = first or (
            f"The model '{file.name}' gives no estimate of the error of this result: "
            f"{reason.rstrip('.')}."
        )
    return {}, first


def _described(file: ModelFile) -> str:
    card = file.card
    about = (
        "" if card is None else ", ".join(text for text in (card.anatomy, card.contrast) if text)
    )
    return f"{file.name} ({about})" if about else file.name
