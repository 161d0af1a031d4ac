"""What travels between a client (the Slicer panel) and the worker. Standard library only.

Requests and events are JSON, one a line; arrays are ``.npy`` files in a private folder that the
client makes for each job and removes. A request is ``{"job": {...}}``, ``{"stop": true}`` (end
with the best so far) or ``{"cancel": true}``.

Convention:
    Images, masks and label maps are arrays in tensor order with the 4 x 4 `voxel_to_ras` of
    `geometry.grid.Grid`, RAS mm. Point lists are (N, 3), RAS mm, without a matrix. A deformation
    is (3, *shape), float32, components R, A, S in mm: p -> linear(p + u(p)), fixed to moving.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, Union

from .errors import Cancelled, DeepRegError, InputError, OutOfMemoryError, WorkerError

#: Version of the protocol; both sides refuse another one.
VERSION = 1
OPERATIONS = ("register", "warp", "evaluate", "train", "check", "transport", "population")
EVENTS = ("ready", "stage", "progress", "message", "preview", "done", "error")
#: What went wrong, for an event of kind ``error``: the input does not fit, memory ran out, the
#: user cancelled, a defect of DeepReg, or the worker process ended.
ERRORS = ("input", "memory", "cancelled", "internal", "crash")

Rows = tuple[tuple[float, ...], ...]
Stop = Literal["stop", "cancel"]

IDENTITY: Rows = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.npy")
_T = TypeVar("_T")


@dataclass(frozen=True)
class ArrayFile:
    """An array in the folder of its job.

    Args:
        file: Name of a ``.npy`` file, without any folder.
        voxel_to_ras: 4 x 4 matrix of the grid that the last three axes lie on; None for points.
        pixel_type: numpy name of the type that the voxels had before, if another.
    """

    file: str
    voxel_to_ras: Rows | None = None
    pixel_type: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.file, str) or not _FILE_NAME.fullmatch(self.file):
            raise WorkerError(f"'{self.file}' is no name of an .npy file in the folder of its job.")
        if self.voxel_to_ras is not None:
            object.__setattr__(self, "voxel_to_ras", _matrix(self.voxel_to_ras))


@dataclass(frozen=True)
class TransformFile:
    """A transform p -> linear(p + u(p)), RAS mm.

    Args:
        linear: 4 x 4 matrix.
        field: u as (3, *shape), RAS mm, with the grid that it lives on; None if there is none.
    """

    linear: Rows = IDENTITY
    field: ArrayFile | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "linear", _matrix(self.linear))
        object.__setattr__(self, "field", _optional(ArrayFile, self.field))
        if self.field is not None and self.field.voxel_to_ras is None:
            raise WorkerError(f"The deformation '{self.field.file}' needs a voxel_to_ras matrix.")


@dataclass(frozen=True)
class Job:
    """Something for the worker to do.

    ``register`` takes the arrays ``fixed``, ``moving`` and, where there are any, ``fixed_mask``,
    ``moving_mask``, ``fixed_labels``, ``moving_labels``, ``fixed_landmarks``,
    ``moving_landmarks``; the transform ``initial``; the parameters ``algorithm``, ``preset``,
    ``settings``, ``device``, ``interpolation``, ``fill``, ``preview_seconds`` (none by default),
    ``names`` (Python text of the inputs for the provenance), ``maps`` (``jacobian``, as
    ``extra_jacobian``, 1 around the object), ``grid_spacing_mm`` (of the returned transform's
    deformation; 0 for the fixed image's) and ``follow_landmarks`` (start where the landmark pairs
    agree). It gives the array ``moved`` and one ``extra_*`` for each further map (whole numbers are
    labels; ``extra_moving_*`` lie in the moving space), the transforms ``transform`` and
    ``inverse``, and in `JobEvent.data` ``quality``, ``provenance``, ``history``, ``seconds``.

    ``warp`` takes the transform ``transform`` and either the array ``image`` with the parameters
    ``shape`` and ``voxel_to_ras`` of the fixed grid, ``interpolation`` and ``fill``, or the array
    ``points`` of the moving space. It gives ``image`` or ``points``.

    ``evaluate`` takes the arrays ``fixed_labels`` and ``moved_labels``, ``fixed_landmarks`` and
    ``moving_landmarks``, and the transforms ``transform`` and ``inverse``, as far as there are
    any. It gives `JobEvent.data`.

    ``train`` takes the arrays ``image_1``, ``image_2``, ... and, where there are any,
    ``labels_1``, ...; or none, and the parameter ``data`` (a folder, table or BIDS data set) or
    ``generated`` (a folder of label maps). Its other parameters are the options of
    `training.session` (``algorithm``, ``name``, ``spacing``, ``shape``, ``parameters``,
    ``resume``, ``overwrite`` ...) with ``settings`` as in `training.settings` (``steps``,
    ``device`` ...), and ``names`` and ``people``, texts by array. While it runs, ``value`` is the
    loss; an event with a new point of the curves has it in `JobEvent.data` (``point``, ``step``,
    ``steps``, ``seconds_left``). A stop keeps the best weights so far. It writes a model file, and
    gives in `JobEvent.data` ``model`` (its name), ``path``, ``card``, ``figures``, ``ended``,
    ``history`` (all points) and ``curves`` (their folder).

    ``check`` takes the arrays ``fixed``, ``moving`` and, where there is one, ``fixed_mask``; the
    transform ``transform`` (none: as the images lie); the parameters ``model``, ``step``,
    ``threshold_mm``, ``device`` of `check.check_registration`. It gives the array ``error_mm`` on
    the fixed grid, and in `JobEvent.data` what `check.Checked.report` says.

    ``transport`` takes the arrays ``fixed``, ``moving`` and ``subject``; where they are known
    already, the alignments ``initial`` (fixed to moving) and ``subject_transform`` (fixed to
    subject, linear); the parameters ``model``, ``strength``, ``alignment``, ``device`` of
    `population_latent.transport`. It gives the array ``deformed`` and the transform ``transform``
    on the grid of the subject, and in `JobEvent.data` ``mean_mm``, ``largest_mm``,
    ``folds_percent`` (of the subject's object), ``model``, ``code``, ``strength``, ``alignment``.

    ``population`` takes the array ``fixed`` and any number of transforms, fixed to moving, with
    the parameter ``names`` (subjects by transform); or the parameter ``folder``, in which transform
    files are found. Its other parameters are ``modes`` (how many, 3), ``linear`` (whether linear
    parts count), ``model`` (of ``coop_ae``, which judges too; empty for the newest, none by
    default) and ``device``. It gives the arrays ``mean`` and ``mode_1``, ..., (3, *shape), RAS mm,
    one standard deviation long and at rest at the rim, and in `JobEvent.data` what
    `training.field_modes.FieldModes.summary` says, ``modes`` (how many) and ``subjects``: rows with
    ``name``, ``coefficients``, ``residual_mm`` and ``deviation`` (from four subjects on) and
    ``atypicality_mm`` (with a model), the most atypical first.

    Args:
        operation: One of `OPERATIONS`.
        folder: Absolute path of the private folder that holds the arrays and gets the results.
        arrays: Input arrays by name.
        transforms: Input transforms by name.
        parameters: Everything else, as JSON holds it.
        id: Name that the events of this job carry.
    """

    operation: str
    folder: str
    arrays: dict[str, ArrayFile] = field(default_factory=dict)
    transforms: dict[str, TransformFile] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    version: int = VERSION

    def __post_init__(self) -> None:
        _check_version(self.version)
        if self.operation not in OPERATIONS:
            raise WorkerError(
                f"A job is one of {', '.join(OPERATIONS)}, but '{self.operation}' was asked for."
            )
        _check_kinds(self, {"folder": str, "id": str, "parameters": dict})
        object.__setattr__(self, "arrays", _each(ArrayFile, self.arrays))
        object.__setattr__(self, "transforms", _each(TransformFile, self.transforms))

    def to_line(self) -> str:
        """Returns the request as one line of JSON."""
        return _line({"job": asdict(self)})


@dataclass(frozen=True)
class JobEvent:
    """A message of the worker.

    Args:
        kind: One of `EVENTS`; ``done`` and ``error`` are the last of a job.
        job: Id of the job; empty for ``ready``.
        stage: Key of the running stage.
        fraction: Share of the whole run that is done, 0 to 1.
        value: Objective value, if there is one.
        text: A sentence for people.
        error: One of `ERRORS`, for the kind ``error``.
        arrays: Files in the job's folder.
        transforms: Transforms; a preview has one called ``transform``.
        data: Everything else.
    """

    kind: str
    job: str = ""
    stage: str = ""
    fraction: float = 0.0
    value: float | None = None
    text: str = ""
    error: str = ""
    arrays: dict[str, ArrayFile] = field(default_factory=dict)
    transforms: dict[str, TransformFile] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        _check_version(self.version)
        if self.kind not in EVENTS or (self.kind == "error") != (self.error in ERRORS):
            raise WorkerError(f"The worker sent an event of an unknown kind '{self.kind}'.")
        _check_kinds(self, {"job": str, "stage": str, "text": str, "data": dict})
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "value", None)
        object.__setattr__(self, "arrays", _each(ArrayFile, self.arrays))
        object.__setattr__(self, "transforms", _each(TransformFile, self.transforms))

    @property
    def is_last(self) -> bool:
        """Whether the job ends with this event."""
        return self.kind in ("done", "error")

    def to_line(self) -> str:
        """Returns the event as one line of JSON."""
        return _line(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> JobEvent:
        """Reads an event.

        Raises:
            WorkerError: If the line is not an event of this version.
        """
        return _build(cls, _parsed(line))

    def exception(self) -> DeepRegError:
        """Returns the error that an event of kind ``error`` tells of."""
        kinds = {"input": InputError, "memory": OutOfMemoryError, "cancelled": Cancelled}
        return kinds.get(self.error, WorkerError)(self.text)


def parse_request(line: str) -> Job | Stop:
    """Reads a line that a client sent.

    Raises:
        WorkerError: If the line is not a request of this version.
    """
    content = _parsed(line)
    if len(content) == 1 and content.get("stop") is True:
        return "stop"
    if len(content) == 1 and content.get("cancel") is True:
        return "cancel"
    if set(content) != {"job"}:
        raise WorkerError(
            'A request is {"job": ...}, {"stop": true} or {"cancel": true}, but got: '
            f"{line.strip()[:80]}"
        )
    return _build(Job, content["job"])


def private_folder() -> tempfile.TemporaryDirectory[str]:
    """Makes a temporary folder for one job that only this user can enter (mode 0700)."""
    # Windows keeps memory-mapped files open; what stays is removed with the temporary files.
    return tempfile.TemporaryDirectory(prefix="deepreg-", ignore_cleanup_errors=True)


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: tuples as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, which this file does not import
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(plain(content), allow_nan=False, separators=(",", ":")) + "\n"


def _parsed(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise WorkerError(f"Expected a line of JSON, but got: {line.strip()[:80]!r}.") from error
    if not isinstance(content, dict):
        raise WorkerError(f"Expected a JSON object, but got: {line.strip()[:80]!r}.")
    return content


def _build(kind: type[_T], content: object) -> _T:
    """Makes a dataclass from a JSON object and refuses unknown and missing entries."""
    if isinstance(content, kind):
        return content
    if not isinstance(content, dict):
        raise WorkerError(f"{kind.__name__} must be a JSON object, not {content!r:.80}.")
    # Another version may have other entries; that is the more telling complaint.
    _check_version(content.get("version", VERSION))
    unknown = set(content) - {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise WorkerError(f"{kind.__name__} has no entry '{sorted(unknown)[0]}'.")
    try:
        return kind(**content)
    except TypeError as error:
        raise WorkerError(f"{kind.__name__} is incomplete: {error}.") from error


def _each(kind: type[_T], content: object) -> dict[str, _T]:
    if not isinstance(content, dict):
        raise WorkerError(f"Files are listed by name, but got {content!r:.80}.")
    return {str(name): _build(kind, item) for name, item in content.items()}


def _optional(kind: type[_T], content: object) -> Union[_T, None]:
    return None if content is None else _build(kind, content)


def _matrix(rows: object) -> Rows:
    try:
        matrix = tuple(tuple(float(x) for x in row) for row in rows)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise WorkerError(f"A matrix has 4 x 4 numbers, but got {rows!r:.80}.") from error
    if len(matrix) != 4 or any(len(row) != 4 for row in matrix):
        raise WorkerError(f"A matrix has 4 x 4 numbers, but got {rows!r:.80}.")
    return matrix


def _check_version(version: object) -> None:
    if version != VERSION:
        raise WorkerError(
            f"The panel and the worker speak different versions ({VERSION} and {version}); restart "
            "3D Slicer, or reinstall DeepReg."
        )


def _check_kinds(instance: object, kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        if not isinstance(getattr(instance, name), kind):
            raise WorkerError(f"{type(instance).__name__}.{name} must be a {kind.__name__}.")
