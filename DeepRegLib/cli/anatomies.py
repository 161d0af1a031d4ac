"""The command ``anatomies``: a statistical model of images, new images from it, training pairs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import FileFormatError, ParameterError
from ..spec import Parameter

_HELP = """\
Makes a statistical model of shape and appearance from a few images of one kind (eight or more), and
from the model new anatomies, or pairs of them with the exact transform in between.
"""
_EXAMPLE = """\
example:
  python -m DeepRegLib anatomies fit brains --output brains.safetensors
  python -m DeepRegLib anatomies sample brains.safetensors --count 20 --output new_brains
  python -m DeepRegLib anatomies pairs brains.safetensors --count 100 --output training_pairs
"""
#: Parameters of the system that learns from such models which decide how they are made.
_OF_MODEL = {
    "engine": ("svf|greedy|syn", "algorithm that registers (default svf)"),
    "rounds": ("N", "how often the template is made anew (default 2)"),
    "locality": (
        "MM,MM", "distances over which shapes vary together; 0 is everywhere (default 0,60,30)"
    ),
    "texture_locality": ("MM,MM", "the same for brightness (default 0,30)"),
}  # fmt: skip
#: Options of `fit` that take a word: name, what it is, help.
_WORDS = (
    ("--images", "PATTERN", "of the images in a folder: one '*', which stands for the name"),
    ("--labels", "PATTERN", "of their label maps"),
    ("--reference", "NAME", "subject that all others are aligned with (default: of middle size)"),
    ("--alignment", "affine|rigid|none", "of all images with one of them (default affine)"),
    ("--cache", "FOLDER", "keeps prepared images and registrations"),
    ("--device", "auto|cpu|cuda", "where to register (default auto)"),
)
#: Numbers: default, least and largest value, help.
_NUMBERS = {
    "spacing": Parameter("spacing", 3.0, "Voxel size in mm.", minimum=0.01, maximum=100.0),
    "count": Parameter("count", 10, "How many.", minimum=1, maximum=1000000),
    "seed": Parameter("seed", 0, "Decides which.", minimum=0),
    "spread": Parameter(
        "spread", 1.0, "Size of the deviations of shape.", minimum=0.0, maximum=10.0
    ),
    "texture_spread": Parameter(
        "texture_spread", 1.0, "Size of the deviations of brightness.", minimum=0.0, maximum=10.0
    ),
    "shared_texture": Parameter(
        "shared_texture", 0.5, "Probability that both images have one texture.",
        minimum=0.0, maximum=1.0,
    ),
    "deviations": Parameter(
        "deviations", 2.0, "How far the ends are, in standard deviations.",
        minimum=0.01, maximum=10.0,
    ),
    "modes": Parameter("modes", 3, "How many modes.", minimum=1, maximum=1000),
}  # fmt: skip


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    text = "a statistical model of images, and new images from it"
    parser = commands.add_parser(
        "anatomies", parents=[common], help=text, description=_HELP, epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_fit(actions.add_parser("fit", parents=[common], help="make a model from images"))
    show = actions.add_parser("show", parents=[common], help="what a model is")
    show.add_argument("model", metavar="MODEL", help="file that 'fit' wrote")
    show.add_argument("--json", action="store_true", help="everything, as JSON")
    show.set_defaults(execute=_show)
    for name, text, numbers, execute in (
        ("sample", "write new anatomies", ("count", "seed", "spread", "texture_spread"), _sample),
        ("pairs", "write pairs with their transforms",
         ("count", "seed", "spread", "shared_texture"), _pairs),
        ("modes", "write both ends of the leading modes of shape", ("modes", "deviations"), _modes),
    ):  # fmt: skip
        action = actions.add_parser(name, parents=[common], help=text)
        action.add_argument("model", metavar="MODEL", help="file that 'fit' wrote")
        action.add_argument("--output", required=True, metavar="FOLDER", help="new or empty")
        _add_numbers(action, numbers)
        if name == "sample":
            text = "write the transform from each anatomy to the template, too"
            action.add_argument("--fields", action="store_true", help=text)
        if name != "modes":
            action.add_argument("--quiet", action="store_true", help="no progress bar")
        action.set_defaults(execute=execute)


def _add_fit(parser: argparse.ArgumentParser) -> None:
    text = "folder of images, CSV table of them, or BIDS data set"
    parser.add_argument("data", metavar="DATA", help=text)
    parser.add_argument("--output", required=True, metavar="FILE", help="the model, .safetensors")
    for name, what, text in _WORDS:
        parser.add_argument(name, metavar=what, help=text)
    _add_numbers(parser, ("spacing",))
    text = "voxels to the right, front and top (default: what the objects need)"
    parser.add_argument("--shape", nargs=3, metavar="N", help=text)
    for name, (what, text) in _OF_MODEL.items():
        parser.add_argument("--" + name.replace("_", "-"), metavar=what, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace a model of this name")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads to use")
    parser.set_defaults(execute=_fit)


def _add_numbers(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    for name in names:
        parameter = _NUMBERS[name]
        text = f"{parameter.help[0].lower()}{parameter.help[1:].rstrip('.')} "
        parser.add_argument(
            "--" + name.replace("_", "-"), metavar="N", default=parameter.default,
            help=f"{text}(default {parameter.default})",
        )  # fmt: skip


def _fit(chosen: argparse.Namespace) -> int:
    """Makes a model; what does not fit is refused before anything is computed."""
    spacing = float(_number(chosen, "spacing"))
    spec = registry.spec("flownet_ssm")
    given = {
        name: spec.parameter(name).parse(value)
        for name in _OF_MODEL
        if (value := getattr(chosen, name)) is not None
    }
    _check_output(chosen.output, chosen.overwrite)
    import torch

    from ..bar import bar
    from ..registration.base import Progress
    from ..registration.model_frame import ModelFrame
    from ..training.anatomies import make_anatomies
    from ..training.shape_model_file import save_anatomies
    from ..training.shape_model_fit import ModelSettings
    from ..training.subjects import find_subjects

    if chosen.threads is not None:
        if chosen.threads < 1:
            raise ParameterError(f"--threads takes a number from 1, not {chosen.threads}.")
        torch.set_num_threads(chosen.threads)
    names = {"locality": "locality_mm", "texture_locality": "texture_locality_mm"}
    settings = ModelSettings(**{names.get(k, k): v for k, v in given.items()})  # type: ignore[arg-type]
    frame: ModelFrame | float = spacing
    if chosen.shape:
        frame = ModelFrame(spacing, _shape(chosen.shape))
    subjects = find_subjects(chosen.data, chosen.images or "", chosen.labels or "")
    with bar(chosen.quiet) as listener:
        model = make_anatomies(
            subjects, frame, settings, folder=chosen.cache or "",
            reference=chosen.reference or "", alignment=chosen.alignment or "affine",
            device=chosen.device or "auto", progress=Progress(listener),
        )  # fmt: skip
    told = save_anatomies(model, chosen.output)
    if not chosen.quiet:
        print("\n".join(_lines(chosen.output, told)))
    return 0


def _show(chosen: argparse.Namespace) -> int:
    from ..training.shape_model_file import read_summary

    told = read_summary(chosen.model)
    if chosen.json:
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(_lines(chosen.model, told)))
    return 0


def _sample(chosen: argparse.Namespace) -> int:
    count, seed = int(_number(chosen, "count")), int(_number(chosen, "seed"))
    spread, texture = (float(_number(chosen, n)) for n in ("spread", "texture_spread"))
    from ..bar import bar
    from ..registration.base import Progress
    from ..training.anatomies import check_new_folder, write_anatomies
    from ..training.shape_model_file import load_anatomies

    check_new_folder(chosen.output)
    model = load_anatomies(chosen.model)
    with bar(chosen.quiet) as listener:
        table = write_anatomies(
            model, chosen.output, count, seed, spread, texture, fields=chosen.fields,
            progress=Progress(listener),
        )  # fmt: skip
    if not chosen.quiet:
        print(f"{count} anatomies: {table}")
    return 0


def _pairs(chosen: argparse.Namespace) -> int:
    count, seed = int(_number(chosen, "count")), int(_number(chosen, "seed"))
    spread, shared = (float(_number(chosen, n)) for n in ("spread", "shared_texture"))
    from ..bar import bar
    from ..registration.base import Progress
    from ..training.anatomies import check_new_folder, write_pairs
    from ..training.shape_model_file import load_anatomies

    check_new_folder(chosen.output)
    model = load_anatomies(chosen.model)
    with bar(chosen.quiet) as listener:
        table = write_pairs(
            model, chosen.output, count, seed, spread, shared, progress=Progress(listener)
        )
    if not chosen.quiet:
        print(f"{count} pairs: {table}")
    return 0


def _modes(chosen: argparse.Namespace) -> int:
    count, deviations = int(_number(chosen, "modes")), float(_number(chosen, "deviations"))
    from ..training.anatomies import check_new_folder, write_modes
    from ..training.shape_model_file import load_anatomies

    check_new_folder(chosen.output)
    files = write_modes(load_anatomies(chosen.model), chosen.output, count, deviations)
    print("\n".join(str(file) for file in files))
    return 0


def _number(chosen: argparse.Namespace, name: str) -> float:
    """Returns a checked number of the command line."""
    return float(_NUMBERS[name].parse(getattr(chosen, name)))  # type: ignore[arg-type]


def _shape(texts: list[str]) -> tuple[int, int, int]:
    """Returns three checked sizes in voxels."""
    size = Parameter("shape", 48, "", minimum=8, maximum=1024)
    a, b, c = (int(size.parse(text)) for text in texts)  # type: ignore[arg-type]
    return a, b, c


def _check_output(output: str, overwrite: bool) -> None:
    path = Path(output)
    if path.suffix != ".safetensors":
        raise FileFormatError(f"A model of anatomies ends in .safetensors, not '{path.name}'.")
    if path.exists() and not overwrite:
        raise FileFormatError(
            f"'{path}' is there already; choose another name, or replace it (--overwrite)."
        )
    if not path.absolute().parent.is_dir():
        raise FileFormatError(f"The folder '{path.parent}' does not exist; make it first.")


def _lines(path: str, told: dict[str, Any]) -> list[str]:
    """What a person wants to know of a model."""
    size = " x ".join(map(str, told.get("shape", ())))
    spacing = " x ".join(f"{s:g}" for s in told.get("spacing_mm", ()))
    lines = [
        f"Model of anatomies: {path}",
        f"  from {told.get('subjects')} images, registered by {told.get('engine')}",
        f"  {size} voxels of {spacing} mm, label map: {'yes' if told.get('labels') else 'no'}",
        f"  shapes deviate by {told.get('size_mm', 0.0):.2f} mm (root mean square)",
        f"  locality of shapes {_mm(told.get('locality_mm'))}, of textures "
        f"{_mm(told.get('texture_locality_mm'))}; about {told.get('effective_modes')} modes of "
        "shape of one size",
    ]
    for name, shares in told.get("variance_explained", {}).items():
        if shares:
            lines.append(
                f"  the first {len(shares)} modes hold {100 * shares[-1]:.0f} % of the variance "
                f"of {name}, the first alone {100 * shares[0]:.0f} %"
            )
    return lines


def _mm(lengths: Any) -> str:
    return ", ".join("everywhere" if not v else f"{v:g} mm" for v in lengths or ()) or "-"
