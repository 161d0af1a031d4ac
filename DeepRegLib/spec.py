"""What an algorithm says of itself. Standard library only.

The panel, the command line and the documentation are made from these descriptions, which the
registry reads without importing the algorithm (and hence without torch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Union

from .errors import ParameterError

#: What a parameter may hold: one value, or a comma-separated list of numbers.
Value = Union[bool, int, float, str, tuple[float, ...]]

PRESETS = ("fast", "balanced", "accurate")
FAMILIES = (
    "linear",
    "optimisation",
    "learned similarity",
    "error estimation",
    "reinforcement learning",
    "supervised",
    "weakly supervised",
    "unsupervised",
    "probabilistic",
    "joint registration and segmentation",
)


@dataclass(frozen=True)
class Parameter:
    """One setting of an algorithm; the type of `default` is the type of the parameter.

    Args:
        name: Python identifier, also the name on the command line (``--set name=value``).
        default: Value of the balanced preset.
        help: One sentence for the tooltip.
        unit: Unit as shown to people, such as ``mm``, ``voxel`` or an empty string.
        minimum: Smallest allowed value (of every element of a list).
        maximum: Largest allowed value (of every element of a list).
        choices: Allowed texts, for a text parameter.
        presets: Values that differ from `default` in a preset, by preset name.
        advanced: Whether a panel folds the parameter away.
        training: Whether it is a choice of the training; a trained model brings its own value.
    """

    name: str
    default: Value
    help: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    presets: dict[str, Value] = field(default_factory=dict)
    advanced: bool = False
    training: bool = False

    def for_preset(self, preset: str) -> Value:
        """Returns the value that a preset gives to this parameter."""
        return self.presets.get(preset, self.default)

    def parse(self, value: object) -> Value:
        """Converts and checks a value from the command line, a job file or a panel.

        Raises:
            ParameterError: If the value has the wrong type, range or choice.
        """
        try:
            converted = self._convert(value)
        except (OverflowError, TypeError, ValueError) as error:
            raise ParameterError(
                f"Parameter '{self.name}' takes {self._expected()}, but {value!r} was given."
            ) from error
        self._check(converted)
        return converted

    def _convert(self, value: object) -> Value:
        if isinstance(self.default, bool):
            return _to_bool(value)
        if isinstance(self.default, int):
            return _to_int(value)
        if isinstance(self.default, float):
            return _to_float(value)
        if isinstance(self.default, tuple):
            items = value.split(",") if isinstance(value, str) else value
            items = (items,) if isinstance(items, (int, float)) else items
            whole = all(isinstance(item, int) for item in self.default)
            kind = _to_int if whole else _to_float
            return tuple(kind(item) for item in items)  # type: ignore[attr-defined]
        return str(value)

    def _check(self, value: Value) -> None:
        if self.choices and value not in self.choices:
            raise ParameterError(
                f"Parameter '{self.name}' takes one of {', '.join(self.choices)}, not {value!r}."
            )
        numbers = value if isinstance(value, tuple) else (value,)
        if isinstance(value, tuple) and not value:
            raise ParameterError(f"Parameter '{self.name}' needs at least one number.")
        for number in numbers:
            if isinstance(number, (bool, str)):
                continue
            low, high = self.minimum, self.maximum
            if (low is not None and number < low) or (high is not None and number > high):
                raise ParameterError(
                    f"Parameter '{self.name}' takes {self._expected()}, but {number} was given."
                )

    def _expected(self) -> str:
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        kind = kinds.get(type(self.default), "numbers separated by commas")
        if self.minimum is not None or self.maximum is not None:
            low = "-inf" if self.minimum is None else f"{self.minimum:g}"
            high = "inf" if self.maximum is None else f"{self.maximum:g}"
            kind += f" from {low} to {high}"
        return f"{kind} {self.unit}".rstrip()


@dataclass(frozen=True)
class Reference:
    """A publication: who, what, where, and its DOI or address."""

    authors: str
    title: str
    venue: str
    year: int
    doi: str = ""
    url: str = ""

    @property
    def link(self) -> str:
        """Address that a browser opens."""
        return f"https://doi.org/{self.doi}" if self.doi else self.url


@dataclass(frozen=True)
class Needs:
    """What an algorithm needs beside a fixed and a moving image.

    Args:
        training: A trained model.
        labels: Label maps: of images to train with for one that is trained, else of the pair.
        landmarks: Landmarks, likewise.
        teacher: The results of another algorithm to learn from.
    """

    training: bool = False
    labels: bool = False
    landmarks: bool = False
    teacher: bool = False


@dataclass(frozen=True)
class Outputs:
    """What an algorithm gives beside the transform and the moved image."""

    inverse: bool = True
    uncertainty: bool = False
    error_map: bool = False
    segmentation: bool = False
    latent_code: bool = False
    trajectory: bool = False


@dataclass(frozen=True)
class AlgorithmSpec:
    """Everything that can be known of an algorithm without importing it.

    Args:
        key: Name on the command line and in files; equals the file name.
        title: Name for people.
        family: One of `FAMILIES`, groups the algorithms in the panel.
        summary: One sentence for people who choose.
        transform: ``linear``, ``bspline`` or ``dense``: the kind of transform that it estimates;
            ``none`` for a system that judges registrations (`estimators/`).
        parameters: Its settings, in the order in which a form shows them.
        references: Its publications.
        needs: What it needs beside two images.
        outputs: What it gives beside transform and moved image.
        modalities: ``same``, ``different``, or both.
        stages: Keys of the algorithms that usually run before it.
    """

    key: str
    title: str
    family: str
    summary: str
    transform: str
    parameters: tuple[Parameter, ...] = ()
    references: tuple[Reference, ...] = ()
    needs: Needs = Needs()
    outputs: Outputs = Outputs()
    modalities: tuple[str, ...] = ("same",)
    stages: tuple[str, ...] = ()

    def parameter(self, name: str) -> Parameter:
        """Returns the parameter of that name.

        Raises:
            ParameterError: If the algorithm has no such parameter.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        known = ", ".join(p.name for p in self.parameters) or "none"
        raise ParameterError(
            f"Algorithm '{self.key}' has no parameter '{name}'; its parameters are: {known}."
        )

    def values(self, preset: str = "balanced", **overrides: object) -> dict[str, Value]:
        """Returns the complete, checked settings of a preset with some values replaced.

        Raises:
            ParameterError: If the preset or a parameter is unknown, or a value does not fit.
        """
        if preset not in PRESETS:
            raise ParameterError(f"Preset '{preset}' is not one of {', '.join(PRESETS)}.")
        values = {p.name: p.for_preset(preset) for p in self.parameters}
        for name, value in overrides.items():
            values[name] = self.parameter(name).parse(value)
        return values


def _to_bool(value: object) -> bool:
    text = str(value).strip().lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise ValueError(text)


def _to_int(value: object) -> int:
    if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
        return int(value)  # not by way of a float, which has 53 bits
    if isinstance(value, int):
        return int(value)
    number = _to_float(value)
    if not number.is_integer():
        raise ValueError(value)
    return int(number)


def _to_float(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError(value)
    return number
