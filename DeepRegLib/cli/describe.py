"""The commands ``list`` and ``doctor``, which need neither torch nor numpy."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import textwrap
from typing import Any

from .. import registry
from ..spec import PRESETS, AlgorithmSpec, Parameter


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds both commands to the parser."""
    listing = commands.add_parser("list", parents=[common], help="show the algorithms")
    listing.add_argument("algorithm", nargs="?", help="show the parameters of this one")
    listing.add_argument("--json", action="store_true", help="everything, as JSON")
    listing.set_defaults(execute=_list)
    text = "check Python, PyTorch, the GPU and the rest"
    doctor = commands.add_parser("doctor", parents=[common], help=text)
    doctor.add_argument("--json", action="store_true", help="the findings as JSON")
    doctor.set_defaults(execute=_doctor)


def _list(chosen: argparse.Namespace) -> int:
    specs = list(registry.specs().values())
    if chosen.algorithm:
        specs = [registry.spec(chosen.algorithm)]
    if chosen.json:
        print(json.dumps([dataclasses.asdict(spec) for spec in specs], indent=2))
    elif chosen.algorithm:
        print("\n".join(_details(specs[0])))
    else:
        print("\n".join(_table(specs)))
    return 0


def _table(specs: list[AlgorithmSpec]) -> list[str]:
    rows = [("NAME", "FAMILY", "TRANSFORM", "NEEDS", "SUMMARY")]
    for spec in specs:
        needs = [name for name, value in dataclasses.asdict(spec.needs).items() if value]
        rows.append((spec.key, spec.family, spec.transform, ", ".join(needs) or "-", spec.summary))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(t.ljust(w) for t, w in zip(row, widths)), row[4]]) for row in rows]


def _details(spec: AlgorithmSpec) -> list[str]:
    lines = [f"{spec.title} ({spec.key})", *_wrapped(spec.summary, "  "), "", "Parameters:"]
    for parameter in spec.parameters:
        text = f"  {parameter.name} = {_value(parameter.default)}{_range(parameter)}"
        lines.append(text + ("  [training]" if parameter.training else ""))
        lines += _wrapped(parameter.help, "      ")
        presets = [(name, parameter.presets[name]) for name in PRESETS if name in parameter.presets]
        if presets:
            lines.append("      " + "; ".join(f"{name}: {_value(v)}" for name, v in presets))
    lines += ["", "References:"]
    for r in spec.references:
        lines += _wrapped(f"{r.authors}: {r.title}. {r.venue}, {r.year}. {r.link}", "  ")
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    width = min(100, shutil.get_terminal_size().columns)
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _range(parameter: Parameter) -> str:
    parts = [parameter.unit]
    if parameter.choices:
        parts.append("one of " + ", ".join(parameter.choices))
    elif parameter.minimum is not None or parameter.maximum is not None:
        ends = [parameter.minimum, parameter.maximum]
        parts.append(" to ".join("any" if end is None else f"{end:g}" for end in ends))
    text = "; ".join(part for part in parts if part)
    return f"  ({text})" if text else ""


def _doctor(chosen: argparse.Namespace) -> int:
    from ..doctor import examine

    findings = examine()
    if chosen.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.status.upper():<5} {finding.name}: {finding.text}")
    return int(any(finding.status == "fail" for finding in findings))
