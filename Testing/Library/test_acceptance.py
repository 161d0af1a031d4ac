"""The acceptance checks of learned systems: what they judge, keep, and show."""

import argparse
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "Benchmarks"
sys.path[:0] = [str(BENCHMARKS)]

import accept
import accept_table
from acceptance.plans import Check
from acceptance.systems import MEASURES, PLANS, UNTRAINED

from DeepRegLib import registry

OPTIONS = argparse.Namespace(steps=None)
BASE = {"affine": {"dice": 0.42}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of results with the methods that need no training."""
    for module in (accept, accept_table):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(accept, "baselines", lambda: BASE)
    return tmp_path


def training(variant, seed, **figures):
    plan = PLANS["pmrn"]
    return {"variant": variant, "seed": seed, "steps": plan.steps, "values": {},
            "figures": figures, "training_seconds": 60.0, "machine": "m", "commit": "c"}  # fmt: skip


def rows(**dice):
    """Figures of three seeds for each variant of pmrn, its name with underscores."""
    return {name.replace("_", " "): [{"dice": value + 0.001 * seed} for seed in range(3)]
            for name, value in dice.items()}  # fmt: skip


def test_every_learned_system_has_a_plan():
    """Those of the survey are the ones that need training; nothing is left out."""
    learned = {key for key, spec in registry.specs().items() if spec.needs.training}
    assert learned <= {*PLANS, *UNTRAINED}, learned - {*PLANS, *UNTRAINED}
    for plan in PLANS.values():
        assert plan.variants and set(plan.extra) <= set(MEASURES)


@pytest.mark.parametrize(
    ("dice", "passed"),
    [
        ({"full": 0.530, "single_level": 0.520, "without_features": 0.5, "vxm": 0.51},
         [True, True, True]),
        ({"full": 0.510, "single_level": 0.520, "without_features": 0.5, "vxm": 0.51},
         [False, True, True]),
        ({"full": 0.530, "single_level": 0.505, "without_features": 0.526, "vxm": 0.51},
         [True, False, False]),
    ],
)  # fmt: skip
def test_checks_can_fail(dice, passed):
    found = PLANS["pmrn"].checks(rows(**dice), BASE)
    assert [check.passed for check in found] == passed


def test_nothing_is_judged_before_three_seeds_are_there(folder, capsys):
    names = list(PLANS["pmrn"].variants)
    entries = [training(name, seed, dice=0.5) for name in names for seed in range(3)]
    accept.keep("pmrn", {"system": "pmrn", "trainings": entries[:-1]})
    assert not accept.judge("pmrn", PLANS["pmrn"], OPTIONS)
    assert "nothing is judged" in capsys.readouterr().out
    assert "checks" not in accept.read("pmrn")
    # Trainings of another length do not count.
    entries[-1]["steps"] += 1
    accept.keep("pmrn", {"system": "pmrn", "trainings": entries})
    assert not accept.judge("pmrn", PLANS["pmrn"], OPTIONS)


def test_a_system_without_training_is_measured_and_judged(folder, monkeypatch, capsys):
    checks = [Check("small", "1 against 2", True), Check("large", "1", False)]
    figures = {"brains 8": [{"raw_mm": 1.0}, {"raw_mm": 3.0}]}
    monkeypatch.setitem(accept.UNTRAINED, "raw_domain", lambda: (figures, checks))
    assert not accept.run_untrained("raw_domain")
    assert "FAILED  large: 1" in capsys.readouterr().out
    kept = json.loads((folder / "raw_domain.json").read_text(encoding="utf-8"))
    assert kept["checks"][0]["passed"] and kept["figures"] == figures


def test_the_page_has_a_row_for_every_system(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(accept_table, "ROOT", tmp_path)
    monkeypatch.setattr(accept_table, "PAGE", tmp_path / "acceptance.md")
    accept.keep("baselines", {"figures": {"affine": {"dice": 0.42}}})
    entries = [training("full", seed, dice=0.5 + 0.01 * seed, auc=0.9) for seed in range(3)]
    check = {"text": "above", "reached": "0.5 > 0.4", "passed": False}
    accept.keep("pmrn", {"trainings": entries, "checks": [check, {**check, "passed": True}]})
    of_istn = {**training("istn_e", 0, dice=0.4), "steps": 3000}
    accept.keep("istn", {"trainings": [of_istn]})
    accept.keep("raw_domain", {"figures": {"brains 8": [{"raw_mm": 1.0}]}})
    accept.keep("shipped", {"models": {"vxm_brain": {"steps": 9, "figures": {"dice": 0.5}}}})
    accept_table.main()
    text = (tmp_path / "acceptance.md").read_text(encoding="utf-8")
    for system in (*PLANS, *UNTRAINED):
        assert f"\n| {system} |" in text
    assert "| vxm | – | not measured yet |" in text
    assert "| pmrn | 1 of 2 | above: 0.5 > 0.4, **not met**<br>above: 0.5 > 0.4, met |" in text
    assert "| pmrn | 3 | 0.5100 (0.5000 to 0.5200) | 0.9 |" in text and "| auc |" in text
    assert "| istn_e | 1 | 0.4000 |" in text and "3000 steps of one pair" in text
    assert "| brains 8 | 1 | 1 |" in text and "| vxm_brain (9 steps) | 1 | 0.5000 |" in text
