"""Similarities of images and regularizers of deformations, one to a file."""

from __future__ import annotations

import inspect
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


def similarity(name: str, **options: Any) -> Similarity:
    """Makes a similarity by name.

    Args:
        name: One of `SIMILARITIES`.
        options: Arguments of its class.

    Raises:
        ParameterError: If there is none of that name, or it has no such option.

    Example:
        >>> similarity("lncc", radius=3).radius
        3
    """
    if name not in SIMILARITIES:
        raise ParameterError(
            f"There is no similarity '{name}'; choose from: {', '.join(SIMILARITIES)}."
        )
    known = [p for p in inspect.signature(SIMILARITIES[name]).parameters if p != "args"]
    for option in options:
        if option not in known:
            raise ParameterError(
                f"The similarity '{name}' has no option '{option}'; it has: "
                f"{', '.join(known) or 'none'}."
            )
    return SIMILARITIES[name](**options)


__all__ = ["SIMILARITIES", "BoundSimilarity", "Similarity", "similarity"]
