"""The command ``sections``: aligns a stack of serial sections, each with its neighbors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import ParameterError
from ..spec import Parameter
from .register import parsed_settings

_HELP = """\
Aligns the sections of a stack with each other: from one in the middle outwards, each is matched
with its nearest neighbors by the features of an autoencoder, which learns from the stack itself
(or comes from a model of ssemnet).
"""
_EXAMPLE = """\
example:
  python -m DeepRegLib sections stack.nrrd --output aligned.nrrd --neighbors 2 --passes 2
"""
#: Numbers: default, least and largest value, help.
_NUMBERS = {
    "neighbors": Parameter(
        "neighbors", 2, "Sections that each one is matched with.", minimum=1, maximum=20
    ),
    "falloff": Parameter(
        "falloff", 0.5, "Weight of a neighbor relative to the one before it.",
        minimum=0.01, maximum=1.0,
    ),
    "passes": Parameter(
        "passes", 1, "How often; from the second on with neighbors on both sides.",
        minimum=1, maximum=20,
    ),
    "reference": Parameter(
        "reference", -1, "Section that rests, from 0; -1 is the middle one.", minimum=-1
    ),
    "steps": Parameter(
        "steps", 150, "Steps that the autoencoder is fitted to the stack.",
        minimum=0, maximum=100000,
    ),
}  # fmt: skip


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "sections", parents=[common], help="align a stack of serial sections", description=_HELP,
        epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("stack", metavar="STACK", help="image whose slices are the sections")
    parser.add_argument("--output", required=True, metavar="FILE", help="the aligned stack")
    text = "transform from the aligned stack to the stack as it was (.h5 or an image)"
    parser.add_argument("--output-transform", metavar="FILE", help=text)
    parser.add_argument("--report", metavar="FILE", help="parameters and values as .json")
    text = "axis across the sections, as arrays have it (default: that of the thickest voxels)"
    parser.add_argument("--axis", choices=("0", "1", "2"), help=text)
    for name, parameter in _NUMBERS.items():
        text = f"{parameter.help[0].lower()}{parameter.help[1:].rstrip('.')} "
        parser.add_argument(
            "--" + name, metavar="N", default=parameter.default,
            help=f"{text}(default {parameter.default})",
        )  # fmt: skip
    text = "model of ssemnet, by name or file (default: learn from the stack)"
    parser.add_argument("--model", metavar="NAME", default="", help=text)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
        help="a parameter of ssemnet",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to run")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads to use")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(execute=execute)


def execute(chosen: argparse.Namespace) -> int:
    """Aligns a stack; what does not fit is refused before anything is computed."""
    numbers = {name: p.parse(getattr(chosen, name)) for name, p in _NUMBERS.items()}
    values = parsed_settings(chosen.settings)
    if chosen.threads is not None and chosen.threads < 1:
        raise ParameterError(f"--threads takes a number from 1, not {chosen.threads}.")

    import torch

    from ..bar import bar
    from ..io.images import read_image, write_image
    from ..io.itk_transform import write_transform
    from ..outputs import Writer, check_outputs, json_writer, write_together
    from ..pipeline import choose_device
    from ..registration.base import Progress
    from ..registration.section_stack import StackSettings, align_stack

    settings = StackSettings(**numbers, model=chosen.model, values=dict(values))  # type: ignore[arg-type]
    wanted = [(chosen.output, "image"), (chosen.output_transform, "deformable"),
              (chosen.report, "json")]  # fmt: skip
    check_outputs([(path, kind) for path, kind in wanted if path], [chosen.stack])
    device, _ = choose_device(chosen.device)
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    stack = read_image(Path(chosen.stack)).to(device)
    axis = None if chosen.axis is None else int(chosen.axis)
    with bar(chosen.quiet) as listener:
        aligned = align_stack(stack, axis, settings, Progress(listener))
    image, transform = aligned.image.to("cpu"), aligned.transform.to("cpu")
    writers: list[Writer] = [(chosen.output, lambda p: write_image(image, p))]
    if chosen.output_transform:
        writers.append(
            (chosen.output_transform, lambda p: write_transform(transform, p, image.grid))
        )
    if chosen.report:
        said = {"provenance": aligned.provenance, "history": aligned.history}
        writers.append((chosen.report, json_writer(said)))
    write_together(writers)
    if not chosen.quiet:
        count = image.grid.shape[aligned.axis]
        print(f"{count} sections along axis {aligned.axis}, aligned: {chosen.output}")
    return 0
