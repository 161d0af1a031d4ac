"""The command ``check``: how far a registration is off, estimated at every voxel."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..errors import ParameterError
from ..spec import Parameter

_HELP = """\
Checks a registration: estimates its error in mm at every voxel of the fixed image, from the images
alone. The transform may come from any program (ITK transform files, displacement images); without
one the images are judged as they lie. Needs a model of 'error_map'.

--out FILE writes the error as a volume, and beside it FILE's name with .json (figures, histogram,
verdict) and .png (three planes of both images and of the error, and the histogram).
"""
_EXAMPLE = """\
example:
  python -m DeepRegLib check --fixed ct.nrrd --moving mr.nrrd --transform mr_to_ct.h5
      --out error.nrrd
"""
_FILES = (
    ("--fixed", True, "fixed image"),
    ("--moving", True, "moving image, as it was before the registration"),
    ("--transform", False, "transform to check, fixed to moving; none: as the images lie"),
    ("--fixed-mask", False, "where errors count; the object of the fixed image by default"),
    ("--out", False, "error in mm, such as error.nrrd or error.nii.gz"),
)
_THRESHOLD = Parameter("threshold", 2.0, "Too large.", "mm", minimum=1e-3, maximum=999.0)
_STEP = Parameter("step", 2, "Distance of places.", "voxel", minimum=1, maximum=4)


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "check", parents=[common], help="estimate the error of a registration at every voxel",
        description=_HELP, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for name, required, text in _FILES:
        parser.add_argument(name, required=required, metavar="FILE", help=text)
    parser.add_argument("--model", default="", help="trained model, by name or file")
    text = "errors above are too large (default 2)"
    parser.add_argument("--threshold", metavar="MM", default="2", help=text)
    text = "voxels of the model between places that are judged: 1, 2 (default) or 4"
    parser.add_argument("--step", metavar="N", default="2", help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads to use")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(execute=execute)


def execute(chosen: argparse.Namespace) -> int:
    """Checks a registration, and writes and prints what came out."""
    threshold = float(_THRESHOLD.parse(chosen.threshold))  # type: ignore[arg-type]
    step = int(_STEP.parse(chosen.step))  # type: ignore[arg-type]
    import torch

    from ..check import check_files, check_registration, files_beside
    from ..job import plain

    if chosen.threads is not None:
        if chosen.threads < 1:
            raise ParameterError(f"--threads takes a number from 1, not {chosen.threads}.")
        torch.set_num_threads(chosen.threads)
    files: tuple[Any, ...] = (None, None, None)
    if chosen.out is not None:
        files = (chosen.out, *files_beside(chosen.out))
    inputs = [chosen.fixed, chosen.moving, chosen.transform, chosen.fixed_mask]
    check_files(*files, *(path for path in inputs if path is not None))
    found = check_registration(
        chosen.fixed, chosen.moving, chosen.transform, fixed_mask=chosen.fixed_mask,
        model=chosen.model, step=step, threshold_mm=threshold, device=chosen.device,
    )  # fmt: skip
    if chosen.out is not None:
        found.save(*files)
    if chosen.json:
        print(json.dumps(plain(found.report()), indent=2))
    else:
        print(found, end="")
    return 0
