"""Parameters: what is converted, what is refused, and with which words."""

import math
import re

import pytest

from DeepRegLib.errors import ParameterError
from DeepRegLib.spec import PRESETS, AlgorithmSpec, Parameter, Reference

FLAG = Parameter("flag", False, "A flag.")
COUNT = Parameter("count", 3, "A count.", minimum=1, maximum=10)
LENGTH = Parameter("length", 1.5, "A length.", unit="mm", minimum=0.0, maximum=4.0)
FREE = Parameter("free", 1.0, "Any number.")
KIND = Parameter("kind", "one", "A kind.", choices=("one", "two"))
SIZES = Parameter("sizes", (8, 16), "Sizes.", minimum=4, maximum=64)
WEIGHTS = Parameter("weights", (0.5, 1.0), "Weights.", minimum=0.0)

SPEC = AlgorithmSpec(
    key="some",
    title="Some",
    family="linear",
    summary="Does something.",
    transform="linear",
    parameters=(
        Parameter("steps", 20, "Steps.", minimum=1, presets={"fast": 5, "accurate": 80}),
        LENGTH,
    ),
)


@pytest.mark.parametrize(
    ("parameter", "given", "expected"),
    [
        (FLAG, True, True),
        (FLAG, "yes", True),
        (FLAG, " Off ", False),
        (FLAG, 1, True),
        (COUNT, "7", 7),
        (COUNT, 7.0, 7),
        (LENGTH, "2.5", 2.5),
        (LENGTH, 2, 2.0),
        (LENGTH, "1e-3", 0.001),
        (KIND, "two", "two"),
        (SIZES, "4,8, 16", (4, 8, 16)),
        (SIZES, [4, 8], (4, 8)),
        (SIZES, (64,), (64,)),
        (WEIGHTS, "0,1", (0.0, 1.0)),
        (COUNT, 1, 1),
        (COUNT, 10, 10),
    ],
)
def test_values_are_converted_to_the_type_of_the_default(parameter, given, expected):
    parsed = parameter.parse(given)
    assert parsed == expected
    assert type(parsed) is type(expected)
    if isinstance(expected, tuple):
        assert [type(item) for item in parsed] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("parameter", "given"),
    [
        (FLAG, "maybe"),
        (FLAG, None),
        (COUNT, "many"),
        (COUNT, 2.5),
        (COUNT, "2.5"),
        (COUNT, None),
        (COUNT, 0),
        (COUNT, 11),
        (COUNT, math.inf),
        (COUNT, math.nan),
        (LENGTH, ""),
        (LENGTH, [1.0]),
        (LENGTH, -0.001),
        (LENGTH, 4.001),
        (LENGTH, "nan"),
        (LENGTH, "inf"),
        (FREE, math.nan),
        (FREE, math.inf),
        (KIND, "three"),
        (KIND, "One"),
        (SIZES, ""),
        (SIZES, ()),
        (SIZES, "8,x"),
        (SIZES, "8,2"),
        (SIZES, (8.5, 16)),
        (SIZES, (8, 128)),
        (WEIGHTS, (0.5, math.nan)),
    ],
)
def test_what_does_not_fit_is_refused_by_name(parameter, given):
    with pytest.raises(ParameterError, match=re.escape(f"'{parameter.name}'")):
        parameter.parse(given)


def test_errors_say_what_was_expected_and_what_came():
    with pytest.raises(ParameterError, match=r"a number from 0 to 4 mm, but 5\.0 was given"):
        LENGTH.parse(5)
    with pytest.raises(ParameterError, match="a whole number from 1 to 10, but 'many' was given"):
        COUNT.parse("many")
    with pytest.raises(ParameterError, match="one of one, two, not 'three'"):
        KIND.parse("three")


def test_an_error_of_a_parameter_is_a_value_error():
    with pytest.raises(ValueError, match="count"):
        COUNT.parse("many")


def test_large_whole_numbers_keep_every_digit():
    seed = Parameter("seed", 0, "A seed.")
    assert seed.parse("9007199254740993") == 9007199254740993  # 2**53 + 1 is no float


def test_presets_replace_defaults_and_overrides_replace_both():
    assert SPEC.values() == {"steps": 20, "length": 1.5}
    assert SPEC.values("fast") == {"steps": 5, "length": 1.5}
    assert SPEC.values("accurate") == {"steps": 80, "length": 1.5}
    assert SPEC.values("fast", steps="7", length="2") == {"steps": 7, "length": 2.0}


def test_unknown_names_are_refused_with_those_that_exist():
    with pytest.raises(ParameterError, match="no parameter 'step'; .*steps, length"):
        SPEC.values(step=3)
    with pytest.raises(ParameterError, match="'slow' is not one of " + ", ".join(PRESETS)):
        SPEC.values("slow")
    with pytest.raises(ParameterError, match="none"):
        AlgorithmSpec("bare", "Bare", "linear", "Nothing.", "linear").parameter("x")


def test_overrides_are_checked():
    with pytest.raises(ParameterError, match="steps"):
        SPEC.values(steps=0)


def test_a_doi_is_preferred_to_an_address():
    both = Reference("A", "T", "V", 2000, doi="10.1/x", url="https://example.org")
    assert both.link == "https://doi.org/10.1/x"
    assert Reference("A", "T", "V", 2000, url="https://example.org").link == "https://example.org"
