"""Similarities of images and regularisers of deformations, one to a file."""

from __future__ import annotations

from typing import Any

from ..errors import ParameterError
from .base import BoundSimilarity, Similarity
from .dice import Dice
from .lncc import LNCC
from .mind import MIND
from .mse import MSE
from .mutual_information import MutualInformation
from .ncc import NCC
from .ngf import NGF

#: Similarities by the name that parameters and files use.
SIMILARITIES: dict[str, type[Similarity]] = {
    "mse": MSE,
    "ncc": NCC,
    "lncc": LNCC,
    "mi": MutualInformation,
    "mind": MIND,
    "ngf": NGF,
    "dice": Dice,
}
#: Similarities that a trained network gives; `registration.metric_similarity` makes them.
LEARNED = ("deep_metric", "features")


def similarity(name: str, **options: Any) -> Similarity:
    """Makes a similarity by name.

    Raises:
        ParameterError: If there is none of that name.
    """
    if name not in SIMILARITIES:
        raise ParameterError(
            f"There is no similarity '{name}'; choose from: {', '.join(SIMILARITIES)}."
        )
    return SIMILARITIES[name](**options)


def parse_terms(text: str) -> list[tuple[float, str]]:
    """Reads a weighted sum such as ``lncc + 0.5*mi`` as weights and names.

    Raises:
        ParameterError: If it is no such sum.
    """
    terms = []
    for part in text.replace(" ", "").split("+"):
        weight, star, name = part.rpartition("*")
        try:
            value = float(weight) if star else 1.0
        except ValueError:
            value = -1.0
        if name not in (*SIMILARITIES, *LEARNED) or not 0.0 < value < float("inf"):
            raise ParameterError(
                f"'{part}' is not a similarity with a positive weight; write a sum such as "
                f"lncc+0.5*mi of: {', '.join((*SIMILARITIES, *LEARNED))}."
            )
        terms.append((value, name))
    return terms


__all__ = [
    "LEARNED", "SIMILARITIES", "BoundSimilarity", "Similarity", "parse_terms", "similarity",
]  # fmt: skip
