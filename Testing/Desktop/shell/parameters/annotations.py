"""What may stand beside a type in ``Annotated[...]``: checks, defaults and hints for widgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, get_args


class Default:
    """The value a parameter starts with; ``generator`` makes a fresh one each time."""

    def __init__(self, value: Any = None, *, generator: Callable | None = None) -> None:
        self._value, self._generator = value, generator

    @property
    def value(self):
        return self._generator() if self._generator else self._value

    def __repr__(self) -> str:
        return f"Default(value={self._value}, generator={self._generator})"

    def __eq__(self, other) -> bool:
        return isinstance(other, Default) and (self._value, self._generator) == (
            other._value,
            other._generator,
        )

    __hash__ = None


class Decimals:
    """Number of digits after the point that a spin box shows."""

    def __init__(self, value: int) -> None:
        self.value = value


class SingleStep:
    """Step of the arrows of a spin box."""

    def __init__(self, value: float) -> None:
        self.value = value


class Validator:
    """Base of the checks; `validate` raises ValueError for a value that must not be stored."""

    def validate(self, value) -> None:
        raise NotImplementedError

    def _require(self, condition: bool, text: str) -> None:
        if not condition:
            raise ValueError(text)


class NotNone(Validator):
    def validate(self, value) -> None:
        self._require(value is not None, "Value must not be None")


class IsNone(Validator):
    def validate(self, value) -> None:
        self._require(value is None, f"Value must be None, is {value!r}")


class IsInstance(Validator):
    """The type itself, else TypeError; None passes, as `NotNone` is a check of its own."""

    def __init__(self, classtype) -> None:
        self.classtype = classtype

    def validate(self, value) -> None:
        if value is not None and not isinstance(value, self.classtype):
            raise TypeError(f"Value {value!r} must be of type {self.classtype}")


class WithinRange(Validator):
    def __init__(self, minimum, maximum) -> None:
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value) -> None:
        inside = self.minimum <= value <= self.maximum
        self._require(inside, f"Value {value} is not in [{self.minimum}, {self.maximum}]")


class Minimum(Validator):
    def __init__(self, minimum) -> None:
        self.minimum = minimum

    def validate(self, value) -> None:
        self._require(value >= self.minimum, f"Value {value} is less than {self.minimum}")


class Maximum(Validator):
    def __init__(self, maximum) -> None:
        self.maximum = maximum

    def validate(self, value) -> None:
        self._require(value <= self.maximum, f"Value {value} is more than {self.maximum}")


class Choice(Validator):
    def __init__(self, choices: Iterable) -> None:
        self.choices = choices

    def validate(self, value) -> None:
        self._require(value in self.choices, f"Value {value!r} is not one of {self.choices}")


class Exclude(Validator):
    def __init__(self, excludedValues: Iterable) -> None:
        self.excludedValues = excludedValues

    def validate(self, value) -> None:
        self._require(value not in self.excludedValues, f"Value {value!r} is excluded")


def splitAnnotations(possiblyAnnotatedType):
    """The bare type and the tuple of its annotations."""
    # Annotated types flatten, so that wrapping once more gives all of them the same form.
    args = get_args(Annotated[possiblyAnnotatedType, "mark"])
    return args[0], args[1:-1]


def unannotatedType(possiblyAnnotatedType):
    return splitAnnotations(possiblyAnnotatedType)[0]


def findFirstAnnotation(annotationsList, annotationType):
    return next((a for a in annotationsList if isinstance(a, annotationType)), None)
