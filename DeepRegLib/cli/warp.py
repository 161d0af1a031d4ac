"""The command ``warp``."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import ParameterError

_HELP = """\
Carries something that belongs to the moving image (an image, a label map or landmarks) into the
space of the fixed image, by the transform that 'register' wrote.

Images and label maps are pulled back through the transform, which maps fixed to moving points.
Landmarks therefore go through its inverse, which is solved at each point: give the SAME transform
file for both, and a landmark stays on the feature that it marks.
"""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "warp", parents=[common], help="apply a transform to an image, label map or landmarks",
        description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    text = "image, or landmarks (.mrk.json, .fcsv, .csv), of the moving space"
    parser.add_argument("input", metavar="INPUT", help=text)
    parser.add_argument("--transform", required=True, metavar="FILE", help="fixed to moving")
    parser.add_argument("--reference", metavar="FILE",
                        help="fixed image, whose grid the result takes; landmarks need it only for "
                        "B-spline transforms")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--interpolation", choices=("linear", "nearest", "bspline"),
                        help="default: nearest for label maps, else linear")  # fmt: skip
    parser.add_argument("--fill", type=float, metavar="VALUE",
                        help="value where the moving image has no voxel")  # fmt: skip
    parser.set_defaults(execute=execute)


def execute(chosen: argparse.Namespace) -> int:
    """Warps a file; the output is checked before anything is read."""
    from ..inputs import as_image
    from ..io.files import LANDMARK_SUFFIXES, suffix_of
    from ..outputs import check_outputs

    is_points = suffix_of(chosen.input) in (*LANDMARK_SUFFIXES, ".json")
    if chosen.reference is None and not is_points:
        raise ParameterError("An image needs --reference, the fixed image whose grid it takes.")
    inputs = [chosen.input, chosen.transform, *([chosen.reference] if chosen.reference else [])]
    check_outputs([(chosen.output, "landmarks" if is_points else "image")], inputs)
    fixed = None if chosen.reference is None else as_image(chosen.reference, "reference").grid
    if is_points:
        _warp_points(chosen, fixed)
    else:
        _warp_image(chosen, fixed)
    return 0


def _warp_points(chosen: argparse.Namespace, fixed: Any) -> None:
    from ..api import warp_points
    from ..io.landmarks import write_landmarks

    if chosen.interpolation is not None or chosen.fill is not None:
        raise ParameterError("Landmarks take neither --interpolation nor --fill; leave them out.")
    write_landmarks(warp_points(chosen.input, chosen.transform, fixed), chosen.output)


def _warp_image(chosen: argparse.Namespace, fixed: Any) -> None:
    from ..api import warp
    from ..io.images import write_image
    from ..io.itk_transform import check_grid

    check_grid(fixed, chosen.output)
    moved = warp(chosen.input, chosen.transform, fixed, chosen.interpolation, chosen.fill)
    write_image(moved, chosen.output)
