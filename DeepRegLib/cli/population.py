"""The command ``population``: what many registrations have in common, and deformations on loan."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import FileFormatError, ParameterError
from ..spec import Parameter
from .register import parsed_settings

_HELP = """\
Describes the deformations of a population: how they vary (principal modes), by which few numbers
they can be described (latent codes), and who is unlike the others. Transforms map a common fixed
image to the images of the subjects, as 'register' and 'batch' write them.
With a trained model of 'cvae', deformations are carried from one subject to another, or drawn.
"""
_EXAMPLE = """\
example:
  python -m DeepRegLib batch pairs.csv --out results --algorithm cvae
  python -m DeepRegLib population modes results --fixed atlas.nii.gz --output modes
  python -m DeepRegLib population atypical results --fixed atlas.nii.gz --output ranking.csv
  python -m DeepRegLib population codes results --output codes.csv
  python -m DeepRegLib population transport later.nii.gz earlier.nii.gz other.nii.gz \\
      --output-image other_later.nii.gz --output-transform change.h5
"""
#: Numbers: default, least and largest value, help.
_NUMBERS = {
    "spacing": Parameter(
        "spacing", 0.0, "Voxel size of the fields in mm; 0 takes that of the fixed image, or more.",
        minimum=0.0, maximum=100.0,
    ),
    "modes": Parameter("modes", 3, "How many modes.", minimum=1, maximum=1000),
    "share": Parameter(
        "share", 0.95, "Share of the variance that the modes of the others hold.",
        minimum=0.01, maximum=1.0,
    ),
    "strength": Parameter(
        "strength", 1.0, "How much of the deformation.", minimum=-10.0, maximum=10.0
    ),
    "count": Parameter("count", 10, "How many.", minimum=1, maximum=100000),
    "seed": Parameter("seed", 0, "Decides which.", minimum=0),
    "spread": Parameter(
        "spread", 1.0, "Standard deviation of the numbers.", minimum=0.0, maximum=10.0
    ),
}  # fmt: skip


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "population", parents=[common], description=_HELP, epilog=_EXAMPLE,
        help="modes, codes and atypical cases of many registrations; deformations for others",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_modes(actions.add_parser("modes", parents=[common], help="how the deformations vary"))
    _add_atypical(actions.add_parser("atypical", parents=[common], help="who is unlike the others"))
    _add_codes(actions.add_parser("codes", parents=[common], help="table of latent codes"))
    text = "apply the deformation of one subject to another"
    _add_transport(actions.add_parser("transport", parents=[common], help=text))
    text = "deform an image at random, as a population does"
    _add_sample(actions.add_parser("sample", parents=[common], help=text))


def _add_modes(parser: argparse.ArgumentParser) -> None:
    _add_fields(parser)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new or empty")
    _add_numbers(parser, ("modes", "spacing"))
    text = "where along each mode, in standard deviations (default -3,-2,-1,0,1,2,3)"
    parser.add_argument("--deviations", metavar="N,N", help=text)
    _add_kind(parser)
    parser.add_argument("--transform-type", default=".h5", metavar="SUFFIX", dest="suffix",
                        help="of the transforms along the modes (default .h5)")  # fmt: skip
    text = "write the inverses, which make subjects of the fixed image"
    parser.add_argument("--inverse", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="the figures, as JSON")
    parser.set_defaults(execute=_modes)


def _add_atypical(parser: argparse.ArgumentParser) -> None:
    _add_fields(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="the ranking, .csv")
    text = "ask this model of coop_ae instead ('newest' takes the newest)"
    parser.add_argument("--model", metavar="MODEL", help=text)
    _add_numbers(parser, ("share", "spacing"))
    _add_kind(parser)
    _add_device(parser)
    parser.set_defaults(execute=_atypical)


def _add_codes(parser: argparse.ArgumentParser) -> None:
    text = "reports, folders that 'batch' wrote, or one CSV table of pairs, which are registered"
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=text)
    parser.add_argument("--output", required=True, metavar="FILE", help="the codes, .csv")
    parser.add_argument("--algorithm", default="cvae", metavar="NAMES",
                        help="for a table of pairs: cvae (default) or coop_ae")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        dest="settings", help="a parameter, as for 'register'")  # fmt: skip
    _add_device(parser)
    parser.set_defaults(execute=_codes)


def _add_transport(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Applies this deformation to another subject: what takes MOVING to FIXED, two images of "
        "one subject, is applied to SUBJECT."
    )
    parser.add_argument("fixed", metavar="FIXED", help="after the change, such as a later scan")
    parser.add_argument("moving", metavar="MOVING", help="the same subject before it")
    parser.add_argument("subject", metavar="SUBJECT", help="another subject, before the change")
    for name, text in (
        ("--output-image", "the subject after the change"),
        ("--output-transform", "transform that makes it from SUBJECT"),
        ("--output-inverse", "the way back"),
    ):
        parser.add_argument(name, metavar="FILE", help=text)
    _add_model(parser)
    _add_numbers(parser, ("strength",))
    parser.add_argument("--alignment", choices=("affine", "rigid", "none"), default="affine",
                        help="of MOVING and SUBJECT with FIXED beforehand (default affine)"
                        )  # fmt: skip
    _add_device(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(execute=_transport)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="image that is deformed")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new or empty")
    _add_model(parser)
    _add_numbers(parser, ("count", "seed", "spread"))
    text = "of the deformed images (default .nii.gz); none writes transforms alone"
    parser.add_argument("--image-type", default=".nii.gz", metavar="SUFFIX", help=text)
    _add_device(parser)
    parser.set_defaults(execute=_sample)


def _add_fields(parser: argparse.ArgumentParser) -> None:
    text = "transform files, or folders of them, such as those that 'batch' wrote"
    parser.add_argument("transforms", nargs="+", metavar="TRANSFORM", help=text)
    parser.add_argument("--fixed", required=True, metavar="FILE", help="their common fixed image")


def _add_kind(parser: argparse.ArgumentParser) -> None:
    text = "let the linear parts of the transforms count, too"
    parser.add_argument("--linear", action="store_true", help=text)
    text = "use stationary velocities, so that everything along a mode can be inverted"
    parser.add_argument("--velocity", action="store_true", help=text)


def _add_model(parser: argparse.ArgumentParser) -> None:
    text = "model of cvae, by name or file (default: the newest)"
    parser.add_argument("--model", default="", metavar="MODEL", help=text)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda",
                        help="auto takes the GPU if it works (default)")  # fmt: skip


def _add_numbers(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    for name in names:
        parameter = _NUMBERS[name]
        text = f"{parameter.help[0].lower()}{parameter.help[1:].rstrip('.')} "
        parser.add_argument(
            "--" + name, metavar="N", default=parameter.default,
            help=f"{text}(default {parameter.default})",
        )  # fmt: skip


def _modes(chosen: argparse.Namespace) -> int:
    count = int(_number(chosen, "modes"))
    suffix = _checked_suffix(chosen.suffix)
    from ..population import DEVIATIONS, write_modes
    from ..training.anatomies import check_new_folder

    deviations = _deviations(chosen.deviations) if chosen.deviations else DEVIATIONS
    check_new_folder(chosen.output)
    fields = _read(chosen)
    file = write_modes(fields, chosen.output, count, deviations, suffix, chosen.inverse)
    if chosen.json:
        print(json.dumps(fields.summary(), indent=2))
    else:
        print("\n".join(_lines(fields.summary())))
        print(f"  {file}")
    return 0


def _atypical(chosen: argparse.Namespace) -> int:
    share = _number(chosen, "share")
    _check_table(chosen.output)
    from ..population import find_transforms, ranked

    if chosen.model is not None:
        from ..population_latent import judge_fields

        name = "" if chosen.model == "newest" else chosen.model
        rows = judge_fields(
            find_transforms(chosen.transforms), chosen.fixed, name, device=chosen.device
        )
        figure = "atypicality_mm"
    else:
        rows = ranked(_read(chosen), share)
        figure = "residual_mm"
    _write_table(rows, chosen.output)
    for row in rows[:5]:
        print(f"{row['rank']:>4}  {row[figure]:8.3f} mm  {row['name']}")
    print(f"{len(rows)} deformations: {chosen.output}")
    return 0


def _codes(chosen: argparse.Namespace) -> int:
    _check_table(chosen.output)
    settings = parsed_settings(chosen.settings)
    tables = [path for path in chosen.inputs if path.lower().endswith(".csv")]
    if tables and len(chosen.inputs) > 1:
        raise ParameterError("A table of pairs stands alone; leave out the other inputs.")
    from ..batch import read_pairs
    from ..population import codes_of_pairs, read_codes

    if tables:
        rows = codes_of_pairs(
            read_pairs(tables[0]), chosen.algorithm, settings=settings, device=chosen.device,
            report=lambda row: print(row["name"], flush=True),
        )  # fmt: skip
    else:
        rows = read_codes(chosen.inputs)
    _write_table(rows, chosen.output)
    print(f"{len(rows)} codes: {chosen.output}")
    return 0


def _transport(chosen: argparse.Namespace) -> int:
    strength = _number(chosen, "strength")
    if not (chosen.output_image or chosen.output_transform or chosen.output_inverse):
        raise ParameterError(
            "Nothing would be kept; name --output-image, --output-transform or --output-inverse."
        )
    from ..bar import bar
    from ..inputs import as_image
    from ..io.images import write_image
    from ..io.itk_transform import write_transform
    from ..outputs import check_outputs, write_together
    from ..population_latent import transport
    from ..registration.base import Progress

    wanted = (
        (chosen.output_image, "image"),
        (chosen.output_transform, "deformable"),
        (chosen.output_inverse, "deformable"),
    )
    inputs = (chosen.fixed, chosen.moving, chosen.subject)
    check_outputs([(path, kind) for path, kind in wanted if path], inputs)
    subject = as_image(chosen.subject, "subject")
    with bar(chosen.quiet) as listener:
        done = transport(
            chosen.fixed, chosen.moving, subject, chosen.model, strength=strength,
            alignment=chosen.alignment, device=chosen.device, progress=Progress(listener),
        )  # fmt: skip
    grid = subject.grid
    made = (
        (chosen.output_image, lambda path: write_image(done.deformed, path)),
        (chosen.output_transform, lambda path: write_transform(done.transform, path, grid)),
        (chosen.output_inverse, lambda path: write_transform(done.inverse, path, grid)),
    )
    write_together([(path, write) for path, write in made if path])
    return 0


def _sample(chosen: argparse.Namespace) -> int:
    count, seed = int(_number(chosen, "count")), int(_number(chosen, "seed"))
    spread = _number(chosen, "spread")
    from ..inputs import as_image
    from ..population_latent import LatentModel, write_samples
    from ..training.anatomies import check_new_folder

    suffix = "" if chosen.image_type == "none" else chosen.image_type
    if suffix:
        _checked_suffix(suffix, "image")
    check_new_folder(chosen.output)
    image = as_image(chosen.image)
    drawn = LatentModel(chosen.model, chosen.device).sample(image, count, seed, spread)
    table = write_samples(drawn, chosen.output, suffix)
    print(f"{count} deformations: {table}")
    return 0


def _read(chosen: argparse.Namespace) -> Any:
    """Reads the fields that the command line names."""
    from ..population import find_transforms, read_fields

    return read_fields(
        find_transforms(chosen.transforms), chosen.fixed,
        spacing_mm=_number(chosen, "spacing"), linear=chosen.linear,
        kind="velocity" if chosen.velocity else "displacement",
    )  # fmt: skip


def _number(chosen: argparse.Namespace, name: str) -> float:
    """Returns a checked number of the command line."""
    return float(_NUMBERS[name].parse(getattr(chosen, name)))  # type: ignore[arg-type]


def _deviations(text: str) -> Sequence[float]:
    """Returns checked positions along a mode."""
    some = Parameter("deviations", (0.0,), "", minimum=-10.0, maximum=10.0)
    return some.parse(text)  # type: ignore[return-value]


def _checked_suffix(suffix: str, kind: str = "deformable") -> str:
    from ..io.files import WRITABLE

    if suffix not in WRITABLE[kind]:
        raise FileFormatError(
            f"'{suffix}' cannot be written here; take one of {', '.join(WRITABLE[kind])}."
        )
    return suffix


def _check_table(output: str) -> None:
    """Makes sure that a table can be written."""
    path = Path(output)
    if path.suffix.lower() != ".csv":
        raise FileFormatError(f"A table ends in .csv, not '{path.name}'.")
    if not path.absolute().parent.is_dir():
        raise FileFormatError(f"The folder '{path.parent}' does not exist; make it first.")


def _write_table(rows: Sequence[dict[str, Any]], output: str) -> None:
    from ..outputs import write_together
    from ..population import table_writer

    write_together([(output, table_writer(rows))])


def _lines(told: dict[str, Any]) -> list[str]:
    """What a person wants to know of a population."""
    shares = told["variance_explained"]
    leading = ", ".join(f"{100 * share:.0f} %" for share in shares[:5])
    return [
        f"{told['fields']} deformations deviate by {told['size_mm']:.2f} mm (root mean square)",
        f"  the first modes hold {leading or 'nothing'} of the variance",
        f"  {told['modes_for_95_percent']} of {len(shares)} modes hold 95 %",
    ]
