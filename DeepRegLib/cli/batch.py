"""The command ``batch``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..errors import ParameterError
from ..spec import PRESETS
from .register import parsed_settings

_HELP = """\
Registers the pairs of a CSV table with the columns fixed and moving, and as needed name,
fixed_mask, moving_mask, fixed_labels, moving_labels, fixed_landmarks, moving_landmarks and
initial_transform; paths are relative to the table. Every pair gets a folder in OUT with its moved
image, transform and report; OUT/summary.csv has a row for each. A pair that fails is told and left
out; what is there already from the same files and settings is taken over, so that an interrupted
batch goes on when it is called again.
"""
_EXAMPLE = """\
example:
  python -m DeepRegLib batch pairs.csv --out results --algorithm rigid+affine+greedy --together 2
"""
#: Something failed, but not all of it: the exit code of an input that does not fit.
_SOME_FAILED = 2
_INTERRUPTED = 130


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "batch", parents=[common], help="register many pairs", description=_HELP,
        epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("table", metavar="TABLE", help="CSV table of pairs")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="gets the results")
    parser.add_argument("--algorithm", default="greedy", metavar="NAMES",
                        help="as for 'register' (default greedy)")  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, default="balanced")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        dest="settings", help="a parameter, as for 'register'")  # fmt: skip
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda",
                        help="auto takes the GPU if it works (default)")  # fmt: skip
    parser.add_argument("--together", type=int, default=1, metavar="N",
                        help="pairs at once, each in a process of its own (default 1)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=0, metavar="N",
                        help="threads of each process (default: cores shared out)")  # fmt: skip
    parser.add_argument("--image-type", default=".nii.gz", metavar="SUFFIX",
                        help="of the moved images; none writes no images")  # fmt: skip
    parser.add_argument("--inverse", action="store_true", help="write the inverse transforms, too")
    parser.add_argument("--again", action="store_true", help="register also what is there already")
    parser.add_argument("--quiet", action="store_true", help="no line for each pair")
    parser.set_defaults(execute=execute)


def execute(chosen: argparse.Namespace) -> int:
    """Registers all pairs; the exit code is 2 if one of them failed."""
    if chosen.threads < 0:
        raise ParameterError(f"--threads takes a number from 1, not {chosen.threads}.")
    settings = parsed_settings(chosen.settings)
    from ..batch import SUMMARY, BatchSettings, read_pairs, register_many

    pairs = read_pairs(chosen.table)
    done = 0

    def tell(row: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        if not chosen.quiet:
            said = row["error"] or f"{row['verdict']}: {row['sentence']}"
            print(f"{row['name']}: {said}", flush=True)

    image = "" if chosen.image_type == "none" else chosen.image_type
    try:
        rows = register_many(
            pairs, chosen.out,
            BatchSettings(chosen.algorithm, chosen.preset, settings, chosen.device, image,
                          inverse=chosen.inverse, threads=chosen.threads),
            together=chosen.together, again=chosen.again, report=tell,
        )  # fmt: skip
    except KeyboardInterrupt:
        sys.stderr.write(
            f"Interrupted after {done} pairs, which are kept in '{chosen.out}'; the same command "
            "goes on with the others.\n"
        )
        return _INTERRUPTED
    failed = sum(bool(row["error"]) for row in rows)
    if not chosen.quiet:
        kept = len(rows) - done
        print(f"{len(rows) - failed} of {len(rows)} pairs are registered"
              + (f" ({kept} were there already)" if kept else "")
              + f"; figures in {chosen.out}/{SUMMARY}.")  # fmt: skip
    return _SOME_FAILED if failed else 0
