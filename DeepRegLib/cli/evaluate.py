"""The command ``evaluate``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..errors import ParameterError

_INPUTS = ("fixed_labels", "moved_labels", "fixed_landmarks", "moving_landmarks", "transform",
           "inverse", "reference")  # fmt: skip

_HELP = """\
Measures a registration from whatever is given: Dice and 95 % Hausdorff distance of two label maps,
the distance of landmarks (under the transform, or as they lie without one), and the folds, SDlogJ
and inverse consistency of a transform. All label maps must lie on the fixed grid already.
"""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "evaluate", parents=[common], help="measure Dice, landmark error, folds and more",
        description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for name, text in (
        ("--fixed-labels", "label map of the fixed image"),
        ("--moved-labels", "label map of the moving image on the fixed grid (see 'warp')"),
        ("--fixed-landmarks", "points in the fixed image: .mrk.json, .fcsv or .csv"),
        ("--moving-landmarks", "the corresponding points in the moving image, as they were"),
        ("--transform", "transform, fixed to moving"),
        ("--inverse", "transform back; computed from the transform if omitted"),
        ("--reference", "fixed image, needed for B-spline transforms"),
        ("--report", "the figures as .json"),
    ):
        parser.add_argument(name, metavar="FILE", help=text)
    parser.set_defaults(execute=execute)


def execute(chosen: argparse.Namespace) -> int:
    """Measures, prints the figures, and writes the report if one was asked for."""
    given = {name: value for name in _INPUTS if (value := getattr(chosen, name)) is not None}
    if not set(given) - {"reference"}:
        raise ParameterError(
            "There is nothing to measure; give --fixed-labels and --moved-labels, "
            "--fixed-landmarks and --moving-landmarks, or --transform."
        )
    from ..api import evaluate
    from ..outputs import check_outputs, json_writer, write_together

    if chosen.report is not None:
        check_outputs([(chosen.report, "json")], given.values())
    figures = evaluate(**given)
    if chosen.report is not None:
        write_together([(chosen.report, json_writer(figures))])
    for line in _lines(figures):
        print(line)
    return 0


def _lines(figures: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            lines += [f"{name}[{key}]: {_number(item)}" for key, item in value.items()]
        else:
            lines.append(f"{name}: {_number(value)}")
    return lines


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
