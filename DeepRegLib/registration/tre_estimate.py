"""The estimated error in mm of any rigid or affine alignment, by a trained network."""

from __future__ import annotations

from .. import registry
from ..geometry.transform import Transform
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
