"""The command ``register``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import ParameterError
from ..spec import PRESETS

if TYPE_CHECKING:
    from ..registration.base import ImagePair

_INPUTS = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_labels", "moving_labels",
           "fixed_landmarks", "moving_landmarks", "initial_transform")  # fmt: skip
_OUTPUTS = ("output_image", "output_transform", "output_inverse", "report")

_HELP = """\
Brings the image MOVING onto the image FIXED. Stages are joined by '+'; a deformable algorithm
alone runs its usual linear stages first. 'list' shows the algorithms, 'list greedy' the parameters
of one. Images: NIfTI, NRRD, MetaImage and more, or a folder with a DICOM series.
"""
_EXAMPLE = """\
example:
  python -m DeepRegLib register ct.nrrd mr.nrrd --algorithm rigid+affine+greedy
      --set greedy.radius=3 --output-image moved.nrrd --output-transform mr_to_ct.h5
"""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "register", parents=[common], help="bring one image onto another", description=_HELP,
        epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("fixed", metavar="FIXED", help="image that stays")
    parser.add_argument("moving", metavar="MOVING", help="image that is moved")
    parser.add_argument(
        "--algorithm", default="greedy", metavar="NAMES",
        help="such as rigid, rigid+affine or rigid+affine+greedy (default greedy)",
    )  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, default="balanced")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
        help="a parameter for every stage that has it; stage.NAME=VALUE for one",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda",
        help="auto takes the GPU if it works (default)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads to use")
    for name, text in (
        ("--fixed-mask", "where the fixed image counts"),
        ("--moving-mask", "where the moving image counts; one mask alone is fine"),
        ("--fixed-labels", "label map of the fixed image, for the quality card"),
        ("--moving-labels", "label map of the moving image, for the quality card"),
        ("--fixed-landmarks", "points in the fixed image: .mrk.json, .fcsv or .csv"),
        ("--moving-landmarks", "the corresponding points in the moving image"),
        ("--initial-transform", "transform to start from (fixed to moving, as ITK has it)"),
        ("--output-image", "moved image on the fixed grid"),
        ("--output-transform", "transform: .h5, .tfm (linear), or a displacement image"),
        ("--output-inverse", "inverse transform, likewise"),
        ("--report", "quality card and provenance as .json"),
    ):
        parser.add_argument(name, metavar="FILE", help=text)
    parser.add_argument("--interpolation", choices=("linear", "bspline", "nearest"),
                        default="linear", help="of the moved image")  # fmt: skip
    parser.add_argument("--fill", type=float, metavar="VALUE",
                        help="value where the moving image has no voxel (default: the low end of "
                        "its values, such as -1000 in CT)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no quality card")
    parser.set_defaults(execute=execute)


def execute(chosen: argparse.Namespace) -> int:
    """Registers, and writes what was asked for; the outputs are checked before anything is read."""
    settings = parsed_settings(chosen.settings)
    from ..api import output_kinds
    from ..inputs import make_pair
    from ..outputs import check_outputs
    from ..registration.compose import parse_stages, stage_values
    from ..registry import spec

    keys = parse_stages(chosen.algorithm)
    stage_values(keys, chosen.preset, settings)
    outputs = {name: getattr(chosen, name) for name in _OUTPUTS}
    given = {n: v for n in _INPUTS if (v := getattr(chosen, n)) is not None}
    # A start may be a deformation; that is known only when it is read.
    deformable = any(spec(key).transform != "linear" for key in keys)
    check_outputs(output_kinds(**outputs, deformable=deformable), given.values())
    pair = make_pair(**given)
    if pair.initial is not None and not pair.initial.is_linear:
        check_outputs(output_kinds(**outputs, deformable=True), given.values())
    _check_grids(chosen, pair)
    _register(chosen, pair, settings, given).save(**outputs)
    return 0


def _register(
    chosen: argparse.Namespace, pair: ImagePair, settings: dict[str, str], given: dict[str, str]
) -> Any:
    import torch

    from .. import pipeline
    from ..api import Registered
    from ..bar import bar
    from ..registration.base import Progress

    if chosen.threads is not None:
        if chosen.threads < 1:
            raise ParameterError(f"--threads takes a number from 1, not {chosen.threads}.")
        torch.set_num_threads(chosen.threads)
    with bar(chosen.quiet) as listener:
        result = pipeline.run(
            pair, chosen.algorithm, chosen.preset, settings, chosen.device, Progress(listener),
            interpolation=chosen.interpolation, fill=chosen.fill,
            names={name: repr(value) for name, value in given.items()},
        )  # fmt: skip
    registered = Registered(result, pair)
    if not chosen.quiet:
        print(registered)
    return registered


def parsed_settings(pairs: list[str]) -> dict[str, str]:
    """Parts the NAME=VALUE texts of an option like ``--set``."""
    settings: dict[str, str] = {}
    for text in pairs:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ParameterError(f"--set takes NAME=VALUE, such as radius=3, but got '{text}'.")
        if name in settings:
            raise ParameterError(f"The parameter '{name}' is set twice; leave one out.")
        settings[name] = value.strip()
    return settings


def _check_grids(chosen: argparse.Namespace, pair: ImagePair) -> None:
    """Refuses before the run to write a sheared grid into a file that cannot hold it."""
    from ..io.files import IMAGE_SUFFIXES, suffix_of
    from ..io.itk_transform import check_grid

    for path, image in (
        (chosen.output_image, pair.fixed),
        (chosen.output_transform, pair.fixed),
        (chosen.output_inverse, pair.moving),
    ):
        if path is not None and suffix_of(path) in IMAGE_SUFFIXES:
            check_grid(image.grid, path)
