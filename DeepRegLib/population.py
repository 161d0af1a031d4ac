"""Many registrations with one fixed image: what they have in common, and who is unlike the others.

Example:
    >>> from DeepRegLib.population import find_transforms, read_fields
    >>> modes = read_fields(find_transforms(["results"]), "atlas.nrrd")  # doctest: +SKIP
    >>> modes.count_for(0.95), modes.ranking()[0]  # doctest: +SKIP
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .batch import PairFiles
from .errors import FileFormatError, InputError, ParameterError
from .geometry.field import Field
from .geometry.grid import Grid
from .geometry.sampling import resize_image
from .geometry.transform import Transform
from .geometry.velocity import logarithm
from .inputs import ImageLike, TransformLike, as_image, as_transform
from .io.files import IMAGE_SUFFIXES, LINEAR_SUFFIXES, TRANSFORM_SUFFIXES, PathLike, suffix_of
from .io.itk_transform import write_transform
from .outputs import Writer, json_writer, write_together
from .registration.base import Progress
from .registration.preprocess import object_region
from .training.anatomies import check_new_folder
from .training.field_modes import KINDS, SHARE, FieldModes

#: Most voxels of the fields whose modes are looked for.
_MOST_VOXELS = 64**3
_SUFFIXES = (*TRANSFORM_SUFFIXES, *LINEAR_SUFFIXES, *IMAGE_SUFFIXES)
#: Files that `batch` writes for a pair.
_REPORT, _TRANSFORM = "report.json", "transform"
#: Numbers of a transform's position along a mode, in standard deviations.
DEVIATIONS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)

#: A row of a table.
Row = dict[str, Any]
#: Whose transform it is, and the transform: fixed to moving.
Named = tuple[str, TransformLike]


def find_transforms(paths: Iterable[PathLike]) -> list[tuple[str, Path]]:
    """Finds transform files, and how they are called.

    Args:
        paths: Transform files, and folders: one that `batch` wrote has a folder for each pair,
            after which it is called; of others all transform files are taken.

    Raises:
        FileFormatError: If there is nothing, or two have one name.
    """
    found: list[tuple[str, Path]] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append((_stem(path), path))
            continue
        made = [f for f in sorted(path.glob(f"*/{_TRANSFORM}.*")) if suffix_of(f) in _SUFFIXES]
        plain = [f for f in sorted(path.iterdir()) if suffix_of(f) in _SUFFIXES and f.is_file()]
        if not made and not plain:
            raise FileFormatError(
                f"'{path}' has no transforms; name a folder that 'batch' wrote, or one of "
                f"transform files ({', '.join(_SUFFIXES)})."
            )
        found += [(f.parent.name, f) for f in made] or [(_stem(f), f) for f in plain]
    names = [name for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FileFormatError(f"Two transforms are called '{twice}'; rename one of the files.")
    return found


def read_fields(
    transforms: Sequence[Named],
    fixed: ImageLike | Grid,
    *,
    spacing_mm: float = 0.0,
    linear: bool = False,
    kind: str = "displacement",
    progress: Progress | None = None,
) -> FieldModes:
    """Brings the deformations of a population onto one grid of their common fixed image.

    Args:
        transforms: Names and transforms, fixed to moving.
        fixed: The fixed image, whose object counts; or its grid, all of which does.
        spacing_mm: Voxel size of the fields; 0 takes that of the fixed image, or as much more as
            keeps the fields small.
        linear: Whether the linear parts belong to the deformations. Displacement images hold both
            in one, so there they always do.
        kind: ``displacement``, or ``velocity`` for stationary velocities whose exponentials are the
            displacements.
        progress: Gets the share that is done, and can cancel.

    Raises:
        InputError: If there are fewer than three, or none has a deformation.
        ParameterError: If the kind or the voxel size does not fit.
    """
    if kind not in KINDS:
        raise ParameterError(f"Fields are {' or '.join(KINDS)}, not '{kind}'.")
    image = None if isinstance(fixed, Grid) else as_image(fixed, "fixed image")
    whole = fixed if isinstance(fixed, Grid) else as_image(fixed, "fixed image").grid
    grid, progress = _working_grid(whole, spacing_mm), progress or Progress()
    fields, bent = [], False
    for number, (_, given) in enumerate(transforms):
        progress.update(number / len(transforms))
        transform = as_transform(given, whole)
        bent = bent or linear or not transform.is_linear
        field = displacement_on(transform, grid, linear)
        fields.append(logarithm(field) if kind == "velocity" else field)
    if not bent:
        raise InputError(
            "None of the transforms deforms; give those of a deformable registration, or let the "
            "linear parts count (linear, --linear)."
        )
    inside = None
    if image is not None:
        shown = resize_image(object_region(image).float(), grid.shape) >= 0.5
        inside = shown if bool(shown.any()) else None
    names = tuple(name for name, _ in transforms)
    progress.update(1.0)
    return FieldModes(names, torch.cat(fields), grid, inside, kind)


def displacement_on(transform: Transform, grid: Grid, linear: bool = False) -> Tensor:
    """Returns the displacement of a transform on a grid, (1, 3, *grid.shape), in its voxels.

    Args:
        transform: Fixed to moving.
        grid: Grid in the fixed space.
        linear: Whether its linear part counts, too.
    """
    if linear:
        return Field.from_ras_mm(transform.displacement_ras_mm(grid), grid).displacement
    if transform.field is None:
        return torch.zeros(1, 3, *grid.shape)
    return transform.field.to("cpu").on_grid(grid).displacement.float()


def write_modes(
    modes: FieldModes,
    folder: PathLike,
    count: int = 3,
    deviations: Sequence[float] = DEVIATIONS,
    suffix: str = ".h5",
    inverse: bool = False,
) -> Path:
    """Writes what is known of a population, and transforms along its leading modes.

    Args:
        modes: See `read_fields`.
        folder: New or empty. It gets ``modes.json`` (figures, and which file lies where along which
            mode), ``coefficients.csv`` (of every subject, in standard deviations), and the
            transforms ``mode_1_step_1.h5``, ...
        count: Number of modes; fewer are written if there are fewer.
        deviations: Where along a mode, in standard deviations.
        suffix: Kind of the transforms; see `io.itk_transform.write_transform`.
        inverse: Whether the transforms are the inverses, which make subjects of the fixed image.

    Returns:
        ``modes.json``.

    Raises:
        FileFormatError: If the folder is not empty, or cannot be written to.
        ParameterError: If the number of modes is not positive.
    """
    if count < 1:
        raise ParameterError(f"The number of modes is at least 1, not {count}.")
    files: list[Row] = []
    writers: list[Writer] = []
    for mode in range(min(count, len(modes.variances))):
        for step, deviation in enumerate(deviations, start=1):
            name = f"mode_{mode + 1}_step_{step}{suffix}"
            files.append({"mode": mode + 1, "deviation": float(deviation), "file": name})
            writers.append((name, _transform_writer(modes, mode, deviation, inverse)))
    known = modes.coefficients.tolist()
    rows = [
        {"name": name, **{f"mode_{k}": round(v, 6) for k, v in enumerate(values, start=1)}}
        for name, values in zip(modes.names, known)
    ]
    writers.append(("coefficients.csv", table_writer(rows)))
    writers.append(("modes.json", json_writer({**modes.summary(), "files": files})))
    write_folder(folder, writers)
    return Path(folder) / "modes.json"


def ranked(modes: FieldModes, share: float = SHARE) -> list[Row]:
    """Returns who is unlike the others, the most atypical first; see `FieldModes.ranking`."""
    return [
        {"rank": rank, "name": one.name, "residual_mm": round(one.residual_mm, 5),
         "deviation": round(one.deviation, 4)}
        for rank, one in enumerate(modes.ranking(share), start=1)
    ]  # fmt: skip


def read_codes(paths: Iterable[PathLike]) -> list[Row]:
    """Collects latent codes from reports of registrations by systems that have one.

    Args:
        paths: Report files (``register --report``), and folders that `batch` wrote.

    Returns:
        Rows with name, algorithm, model, further figures of the system such as
        ``atypicality_mm``, and ``code_1``, ``code_2``, ...

    Raises:
        FileFormatError: If a file is no report.
        InputError: If a report has no code, or two come from different models: their numbers mean
            different things.
    """
    files: list[tuple[str, Path]] = []
    for path in map(Path, paths):
        if path.is_dir():
            inner = sorted(path.glob(f"*/{_REPORT}"))
            if not inner:
                raise FileFormatError(f"'{path}' has no reports; name a folder that 'batch' wrote.")
            files += [(file.parent.name, file) for file in inner]
        else:
            files.append((_stem(path), path))
    rows = [code_row(name, _provenance(file)) for name, file in files]
    _check_one_model(rows)
    return rows


def codes_of_pairs(
    pairs: Sequence[PairFiles],
    algorithm: str,
    *,
    settings: Mapping[str, object] | None = None,
    device: str = "auto",
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Registers pairs and returns their latent codes; see `read_codes`.

    Args:
        pairs: See `batch.read_pairs`.
        algorithm: ``cvae``, ``coop_ae``, or stages that end in one of them.
        settings: Parameter values by name, such as the model.
        device: Where to compute.
        report: Gets each row when it is there.
    """
    from .api import register

    rows = []
    for pair in pairs:
        words: dict[str, Any] = {**pair.inputs, "algorithm": algorithm, "device": device,
                                 **(settings or {})}  # fmt: skip
        rows.append(code_row(pair.name, register(**words).provenance))
        if report is not None:
            report(rows[-1])
    _check_one_model(rows)
    return rows


def code_row(name: str, provenance: Mapping[str, Any]) -> Row:
    """Returns the latent code in the provenance of a registration as a row of a table.

    Raises:
        InputError: If there is none.
    """
    for algorithm, said in (provenance.get("learned") or {}).items():
        values = said.get("values") or {}
        code = values.get("latent_code")
        if code is None:
            continue
        model = (said.get("model") or {}).get("name", "")
        figures = {k: v for k, v in values.items() if isinstance(v, (int, float))}
        numbers = {f"code_{k}": value for k, value in enumerate(code, start=1)}
        return {"name": name, "algorithm": algorithm, "model": model, **figures, **numbers}
    raise InputError(
        f"The registration of '{name}' has no latent code; register with a system that has one, "
        "such as cvae or coop_ae."
    )


def table_writer(rows: Sequence[Row]) -> Callable[[Path], None]:
    """Returns a function that writes rows as a CSV table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)

    def write(path: Path) -> None:
        path.write_text(text.getvalue(), encoding="utf-8", newline="")

    return write


def write_folder(folder: PathLike, writers: Sequence[Writer]) -> None:
    """Writes files into a folder that is new or empty, all or none.

    Args:
        folder: The folder.
        writers: Names in it, and the functions that write at a path.

    Raises:
        FileFormatError: If that is not possible.
    """
    place = check_new_folder(folder)
    made = not place.exists()
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise FileFormatError(f"'{place}' could not be made ({error.strerror}).") from error
    try:
        write_together([(place / name, write) for name, write in writers])
    except BaseException:
        if made:
            place.rmdir()
        raise


def _transform_writer(
    modes: FieldModes, mode: int, deviation: float, inverse: bool
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        (transform,) = modes.along(mode, [deviation], inverse)
        assert transform.field is not None
        # ITK does nothing beyond the field and VTK repeats its edge; at rest, both agree.
        resting = Transform(transform.linear, transform.field.faded(1))
        write_transform(resting, path, modes.grid)

    return write


def _working_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Returns the grid of the fields: that of the fixed image, or one of larger voxels."""
    if spacing_mm < 0.0:
        raise ParameterError(f"A voxel size is positive, not {spacing_mm} mm.")
    if spacing_mm > 0.0:
        return grid.with_spacing(spacing_mm)
    if grid.size <= _MOST_VOXELS:
        return grid
    larger = (grid.size / _MOST_VOXELS) ** (1 / 3)
    return grid.with_spacing([s * larger for s in grid.spacing_mm])


def _provenance(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"'{path}' is no report that can be read.") from error
    said = content.get("provenance") if isinstance(content, dict) else None
    if not isinstance(said, dict):
        raise FileFormatError(f"'{path}' is no report of a registration; it has no provenance.")
    return said


def _check_one_model(rows: Sequence[Row]) -> None:
    if not rows:
        raise InputError("There are no registrations.")
    alone = next((row["name"] for row in rows if not row["model"]), None)
    if alone is not None and len(rows) > 1:
        raise InputError(
            f"'{alone}' was registered without a trained model, so its code means nothing beside "
            "others; train a model, or name one."
        )
    kinds = {(row["algorithm"], row["model"], sum(k.startswith("code_") for k in row)): row["name"]
             for row in rows}  # fmt: skip
    if len(kinds) > 1:
        first, second, *_ = kinds.values()
        raise InputError(
            f"The codes of '{first}' and '{second}' come from different models, so their numbers "
            "mean different things; register all pairs with one model."
        )


def _stem(path: Path) -> str:
    name = path.name
    return name[: len(name) - len(suffix_of(path))] or name
