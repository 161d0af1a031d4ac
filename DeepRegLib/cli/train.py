"""The command ``train``."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import registry
from ..errors import Cancelled, ParameterError
from ..training.settings import PARAMETERS
from .register import parsed_settings

if TYPE_CHECKING:
    from ..registration.base import Progress
    from ..training.session import Trained

_HELP = """\
Trains a system that learns, and writes a model, which 'register' then finds by itself. Images come
from a folder, a CSV table or a BIDS data set, with label maps if there are any; or they are
generated from label maps. Ctrl-C keeps a checkpoint, from which --resume goes on exactly.
"""
_EXAMPLE = """\
example:
  python -m DeepRegLib train --algorithm vxm --data brains --labels '*_seg.nii.gz'
      --images '*_t1.nii.gz' --spacing 3 --steps 2000 --name my_brains
  torchrun --nproc-per-node 4 -m DeepRegLib train --algorithm vxm --data brains --device cuda
"""
_INTERRUPTED = 130
#: Options that take a word: name, what it is, help.
_WORDS = (
    ("--algorithm", "NAME", "system to train, such as vxm"),
    ("--data", "PATH", "folder of images, CSV table of them, or BIDS data set"),
    ("--images", "PATTERN", "of the images in a folder: one '*', which stands for the name"),
    ("--labels", "PATTERN", "of their label maps"),
    ("--person", "REGEX", "first group is the person in a name; each name is one by default"),
    ("--generated", "FOLDER", "label maps that images of random contrast are made from"),
    ("--pairing", "all|atlas|within", "all pairs (default), to the atlas, or within a person"),
    ("--atlas", "NAME", "subject that all others are aligned with"),
    ("--alignment", "affine|rigid|none", "of all images with one of them (default affine)"),
    ("--share", "FRACTION", "share of the people that validate (default 0.2)"),
    ("--spacing", "MM", "voxel size (default 3)"),
    ("--name", "NAME", "name of the model (default: that of the algorithm)"),
    ("--anatomy", "TEXT", "what the model is for, for its card"),
    ("--contrast", "TEXT", "which contrasts it takes, for its card"),
    ("--terms", "TEXT", "on what terms it may be used, for its card"),
    ("--cache", "FOLDER", "keeps prepared images"),
)
_FLAGS = (
    ("--resume", "go on with an unfinished training: that of --name, or the latest"),
    ("--overwrite", "replace a model or an unfinished training of that name"),
    ("--quiet", "no progress bar, no figures"),
)


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    # An option that is not given is not there, so that --resume knows what was asked for anew.
    parser = commands.add_parser(
        "train", parents=[common], help="train a system that learns", description=_HELP,
        epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    for name, what, text in _WORDS:
        parser.add_argument(name, metavar=what, help=text)
    text = "voxels to the right, front and top (default: what the objects need)"
    parser.add_argument("--shape", nargs=3, metavar="N", help=text)
    text = "show the images as they are"
    parser.add_argument("--no-augment", dest="augment", action="store_false", help=text)
    text = "a parameter of the algorithm that training decides"
    parser.add_argument(
        "--set", action="append", metavar="NAME=VALUE", dest="parameters", help=text
    )
    text = "how images are made from label maps, such as contrast=t1 or brain_only=true"
    parser.add_argument("--recipe", action="append", metavar="NAME=VALUE", dest="recipe", help=text)
    for parameter in PARAMETERS:
        kinds = {int: "N", float: "NUMBER", str: "NAME"}
        what = "|".join(parameter.choices) or kinds[type(parameter.default)]
        text = f"{parameter.help.rstrip('.')} (default {parameter.default})"
        parser.add_argument("--" + parameter.name.replace("_", "-"), metavar=what, help=text)
    for name, text in _FLAGS:
        parser.add_argument(name, action="store_true", help=text)
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads to use")
    parser.set_defaults(execute=execute)


def execute(chosen: argparse.Namespace) -> int:
    """Trains, and says where the model is."""
    given = {k: v for k, v in vars(chosen).items() if k not in ("execute", "debug")}
    leads = os.environ.get("RANK", "0") == "0"
    quiet = bool(given.pop("quiet", False)) or not leads
    threads = given.pop("threads", None)
    names = [parameter.name for parameter in PARAMETERS]
    settings = {name: given.pop(name) for name in names if name in given}
    pairs = {name: parsed_settings(given.pop(name, [])) for name in ("parameters", "recipe")}

    import torch

    from ..bar import bar
    from ..registration.base import Progress
    from ..training.options import TrainingOptions
    from ..training.session import train

    if threads is not None:
        if threads < 1:
            raise ParameterError(f"--threads takes a number from 1, not {threads}.")
        torch.set_num_threads(threads)
    options = TrainingOptions.of({**given, **pairs, "settings": settings})
    try:
        with bar(quiet) as listener:
            progress = Progress(listener)
            with _interruptible(progress):
                trained = train(options, progress)
    except Cancelled as error:
        print(error, file=sys.stderr)
        return _INTERRUPTED
    if trained is not None and not quiet:
        print(_summary(trained))
    return 0


@contextlib.contextmanager
def _interruptible(progress: Progress) -> Iterator[None]:
    """Lets the first Ctrl-C (or SIGTERM) end a training between two steps, with a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    before: dict[int, Any] = {}

    def cancel(*_: object) -> None:
        progress.cancel()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before |= {number: signal.signal(number, cancel) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()


def _summary(trained: Trained) -> str:
    card = trained.card
    names = {"dice": "Dice", "ncc": "correlation", "error_mm": "error in mm"}
    lines = [f"Model {card.name} ({card.algorithm}): {trained.path}",
             f"Curves: {trained.folder}"]  # fmt: skip
    for name, text in names.items():
        if name in card.figures:
            base = name.removesuffix("_mm") + "_before" + ("_mm" if name.endswith("_mm") else "")
            lines.append(f"  {text} {card.figures[name]:.3f}, before {card.figures[base]:.3f}")
    if "folds_percent" in card.figures:
        lines.append(f"  folds {card.figures['folds_percent']:.3g} %")
    use = f"register FIXED MOVING --algorithm {card.algorithm} --set model={card.name}"
    if registry.spec(card.algorithm).transform == "none":
        use = f"check --fixed FIXED --moving MOVING --transform FILE --model {card.name}"
    lines.append(f"Use it: python -m DeepRegLib {use}")
    return "\n".join(lines)
