"""The command line: ``python -m DeepRegLib COMMAND``; ``--help`` shows the commands.

Exit codes: 0 done; 1 an internal error (or, for ``doctor``, something that does not work); 2 an
input, parameter or file that does not fit, with one sentence on the error stream; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .. import __version__
from ..errors import Cancelled, DeepRegError
from . import (
    anatomies,
    batch,
    check,
    describe,
    evaluate,
    models,
    population,
    raw,
    register,
    sections,
    train,
    warp,
)

DONE, INTERNAL, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """Complains in one sentence instead of a page."""

    def error(self, message: str) -> NoReturn:
        text = message[:1].upper() + message[1:].rstrip(".")
        self.exit(BAD_INPUT, f"{text}; see '{self.prog} --help'.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    chosen = _parser().parse_args(arguments)
    try:
        code = int(chosen.execute(chosen))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever reads the output has seen enough, such as `head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return DONE
    except (KeyboardInterrupt, Cancelled):
        return _end(INTERRUPTED, "Interrupted; nothing was written.")
    except DeepRegError as error:
        _save_traceback(chosen.debug)
        return _end(BAD_INPUT, " ".join(str(error).split()))
    except Exception as error:
        saved = _save_traceback(chosen.debug)
        hint = saved or "run again with --debug FILE, and report the problem with that file."
        return _end(INTERNAL, f"DeepReg failed unexpectedly ({type(error).__name__}: "
                    f"{' '.join(str(error).split())}); {hint}")  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--debug", metavar="FILE", help="save the details of an error in a file")
    parser = _Parser(prog="python -m DeepRegLib", description="Registers 3-D medical images.")
    parser.add_argument("--version", action="version", version=f"DeepRegLib {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    describe.add(commands, common)
    models.add(commands, common)
    register.add(commands, common)
    batch.add(commands, common)
    warp.add(commands, common)
    evaluate.add(commands, common)
    check.add(commands, common)
    raw.add(commands, common)
    train.add(commands, common)
    anatomies.add(commands, common)
    population.add(commands, common)
    sections.add(commands, common)
    text = "run jobs from standard input (for the Slicer panel)"
    worker = commands.add_parser("worker", parents=[common], help=text)
    worker.set_defaults(execute=_worker)
    return parser


def _worker(chosen: argparse.Namespace) -> int:
    from ..worker import main as run_worker

    return run_worker()


def _save_traceback(path: str | None) -> str:
    if not path:
        return ""
    try:
        Path(path).write_text(traceback.format_exc(), encoding="utf-8")
    except OSError as error:
        return f"the details could not be saved in '{path}' ({error.strerror})."
    return f"the details are in '{path}'."


def _end(code: int, sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return code
