"""The command ``raw``: registers raw data of a scanner, simulates it, and shows it."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import ParameterError
from ..spec import PRESETS, Parameter
from .register import parsed_settings

_HELP = """\
Works with under-sampled Cartesian k-space of magnetic resonance, one channel: files of numpy, .npz
with the complex array 'kspace' and, if known, 'mask' and 'voxel_to_ras', or .npy. Frequency zero is
in the middle of each axis; the axes are those of the image.
"""
_EXAMPLE = """\
example:
  python -m DeepRegLib raw simulate t1.nii.gz --acceleration 8 --output scan.npz
  python -m DeepRegLib raw image scan.npz --output zero_filled.nii.gz
  python -m DeepRegLib raw register reference.nii.gz scan.npz --output-image compensated.nii.gz
      --output-transform scan_to_reference.h5
"""
#: Numbers of the simulation.
_NUMBERS = {
    "acceleration": Parameter("acceleration", 4.0, "Voxels for each sample.", minimum=1.0,
                              maximum=64.0),
    "center": Parameter("center", 0.08, "Share of an axis that is whole.", minimum=0.0,
                        maximum=1.0),
    "seed": Parameter("seed", 0, "Decides which samples are drawn.", minimum=0),
}  # fmt: skip


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "raw", parents=[common], help="register raw MR data, simulate it, or show it",
        description=_HELP, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_register(actions.add_parser("register", parents=[common], help="register raw data"))
    show = actions.add_parser("image", parents=[common], help="write the zero-filled image")
    show.add_argument("raw", metavar="RAW", help="file of the raw data")
    show.add_argument("--grid", metavar="IMAGE", help="image that lies where the scan does")
    show.add_argument("--output", required=True, metavar="FILE")
    show.set_defaults(execute=_image)
    make = actions.add_parser("simulate", parents=[common], help="make raw data of an image")
    make.add_argument("image", metavar="IMAGE", help="magnitude image")
    make.add_argument("--output", required=True, metavar="FILE", help="the raw data, .npz")
    for name, parameter in _NUMBERS.items():
        text = f"{parameter.help.rstrip('.').lower()} (default {parameter.default})"
        make.add_argument(f"--{name}", metavar="N", default=parameter.default, help=text)
    make.add_argument("--pattern", choices=("points", "lines"), default="points")
    make.set_defaults(execute=_simulate)


def _add_register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fixed", metavar="FIXED", help="image that stays, of the same contrast")
    parser.add_argument("raw", metavar="RAW", help="file of the raw data")
    parser.add_argument("--grid", metavar="IMAGE", help="image that lies where the scan does")
    parser.add_argument("--stages", default="rigid+affine+raw_domain", metavar="NAMES")
    parser.add_argument("--preset", choices=PRESETS, default="balanced")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        dest="settings", help="a parameter of raw_domain")  # fmt: skip
    parser.add_argument("--initial-transform", metavar="FILE", help="where to start")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    for name, text in (
        ("--output-image", "motion-compensated image, on the grid of the scan"),
        ("--output-transform", "transform, from the fixed image to the scan"),
        ("--output-inverse", "inverse transform"),
        ("--report", "quality card and provenance as .json"),
    ):
        parser.add_argument(name, metavar="FILE", help=text)
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no quality card")
    parser.set_defaults(execute=_register)


def _register(chosen: argparse.Namespace) -> int:
    settings: dict[str, Any] = {**parsed_settings(chosen.settings)}
    from ..api import output_kinds
    from ..io.images import write_image
    from ..outputs import check_outputs
    from ..raw import register_raw

    files = {name: getattr(chosen, name) for name in
             ("output_transform", "output_inverse", "report")}  # fmt: skip
    kinds = output_kinds(chosen.output_image, **files, deformable=True)
    check_outputs(kinds, [chosen.fixed, chosen.raw])
    found = register_raw(
        chosen.fixed, chosen.raw, chosen.grid, stages=chosen.stages, preset=chosen.preset,
        initial_transform=chosen.initial_transform, device=chosen.device,
        progress=not chosen.quiet or None, **settings,
    )  # fmt: skip
    found.registered.save(**files)
    if chosen.output_image is not None:
        write_image(found.reconstruction, chosen.output_image)
    if not chosen.quiet:
        print(found.registered)
    return 0


def _image(chosen: argparse.Namespace) -> int:
    from ..io.images import write_image
    from ..outputs import check_outputs
    from ..raw import as_raw

    check_outputs([(chosen.output, "image")], [chosen.raw])
    raw = as_raw(chosen.raw, chosen.grid)
    write_image(raw.zero_filled(), chosen.output)
    print(f"{raw.acceleration:.2f} times fewer samples than voxels: {chosen.output}")
    return 0


def _simulate(chosen: argparse.Namespace) -> int:
    numbers: dict[str, Any] = {
        name: parameter.parse(getattr(chosen, name)) for name, parameter in _NUMBERS.items()
    }
    if not str(chosen.output).lower().endswith(".npz"):
        raise ParameterError(f"Raw data is written as .npz, not as '{chosen.output}'.")
    from ..raw import simulate_raw
    from ..registration.raw_data import write_raw

    raw = simulate_raw(chosen.image, pattern=chosen.pattern, **numbers)
    write_raw(raw, chosen.output)
    print(f"{raw.acceleration:.2f} times fewer samples than voxels: {chosen.output}")
    return 0
