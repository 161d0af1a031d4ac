"""Specs are read without importing, equal what an import gives, and reject what does not fit."""

import importlib
import importlib.util
from pathlib import Path

import pytest

from DeepRegLib import registry
from DeepRegLib.errors import ParameterError
from DeepRegLib.spec import PRESETS, AlgorithmSpec, Parameter

ROOT = Path(__file__).resolve().parents[2]
GOOD = (
    'SPEC = AlgorithmSpec(key="{key}", title="T", family="linear", summary="S", transform="linear")'
)


@pytest.mark.parametrize("key", sorted(registry.specs()))
def test_what_is_read_equals_what_is_imported(key):
    module = importlib.import_module(f"DeepRegLib.algorithms.{key}")
    assert registry.spec(key) == module.SPEC
    assert hasattr(module.Algorithm, "register")


@pytest.mark.parametrize("key", sorted(registry.specs()))
def test_every_value_of_every_preset_is_allowed(key):
    spec = registry.spec(key)
    for preset in PRESETS:
        values = spec.values(preset)
        assert spec.values(preset, **values) == values
    assert set().union(*(p.presets for p in spec.parameters)) <= set(PRESETS)
    assert all(stage in registry.specs() for stage in spec.stages)
    assert all(r.link.startswith("https://") for r in spec.references)


def test_files_with_an_underscore_are_not_listed():
    assert "_template" not in registry.specs()
    assert registry.ALGORITHMS_FOLDER.joinpath("_template.py").is_file()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "has no SPEC"),
        ("SPEC = 3", "not an AlgorithmSpec"),
        (GOOD.format(key="other"), "must have the key"),
        (GOOD.format(key="mine").replace('"T"', "str(1)"), "literals only"),
        (GOOD.format(key="mine").replace('"T"', '__import__("os").getcwd()'), "literals only"),
        (GOOD.format(key="mine").replace('"linear", s', '"magic", s'), "known family"),
    ],
)
def test_bad_specs_are_refused_without_running_them(tmp_path, text, words):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ParameterError, match=words):
        registry.read_spec(file)


def test_reading_runs_nothing(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GOOD.format(key="mine") + "\nraise SystemExit('ran')\n")
    assert registry.read_spec(file).title == "T"


def test_unknown_algorithm_names_the_known_ones():
    with pytest.raises(ParameterError, match=r"no algorithm 'elastix'.*rigid"):
        registry.spec("elastix")


@pytest.mark.parametrize(
    ("parameter", "given", "wanted"),
    [
        (Parameter("a", 3, "", minimum=1), "7", 7),
        (Parameter("a", 3, ""), 4.0, 4),
        (Parameter("a", 0.5, ""), "2", 2.0),
        (Parameter("a", True, ""), "off", False),
        (Parameter("a", (4, 2, 1), ""), "8,4", (8, 4)),
        (Parameter("a", (4, 2, 1), ""), 5, (5,)),
        (Parameter("a", (1.5,), ""), [1, 2], (1.0, 2.0)),
        (Parameter("a", "x", "", choices=("x", "y")), "y", "y"),
    ],
)
def test_values_are_converted(parameter, given, wanted):
    value = parameter.parse(given)
    assert value == wanted
    assert type(value) is type(wanted)


@pytest.mark.parametrize(
    ("parameter", "given"),
    [
        (Parameter("a", 3, "", minimum=1), 0),
        (Parameter("a", 3, ""), "2.5"),
        (Parameter("a", 0.5, "", minimum=0.0), "nan"),
        (Parameter("a", 0.5, "", maximum=1.0), 1.01),
        (Parameter("a", True, ""), "perhaps"),
        (Parameter("a", (4, 2), "", minimum=1), "4,0"),
        (Parameter("a", (4, 2), ""), ""),
        (Parameter("a", "x", "", choices=("x", "y")), "z"),
    ],
)
def test_values_out_of_range_are_refused(parameter, given):
    with pytest.raises(ParameterError, match="Parameter 'a'"):
        parameter.parse(given)


def test_presets_and_overrides():
    spec = AlgorithmSpec("k", "T", "linear", "S", "linear",
                         (Parameter("a", 3, "", presets={"fast": 1}), Parameter("b", 0.5, "")))  # fmt: skip
    assert spec.values("fast") == {"a": 1, "b": 0.5}
    assert spec.values("accurate", b=2) == {"a": 3, "b": 2.0}
    with pytest.raises(ParameterError, match="its parameters are: a, b"):
        spec.values(c=1)
    with pytest.raises(ParameterError, match="Preset 'best'"):
        spec.values("best")


def test_the_documentation_is_up_to_date():
    place = ROOT / "tools" / "make_docs.py"
    loader = importlib.util.spec_from_file_location("make_docs", place)
    make_docs = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(make_docs)
    assert make_docs.TARGET.read_text(encoding="utf-8") == make_docs.page(), "run: make docs"
