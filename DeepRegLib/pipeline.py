"""One path for every registration: check, run the stages, finish, measure, say how to repeat it.

Out of memory is no end: the run is tried again at half the resolution, then on the CPU, and says
so. Whatever was run, the result lies on the full fixed grid.
"""

from __future__ import annotations

import datetime
import gc
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from . import __version__, registry
from .errors import InputError, OutOfMemoryError, ParameterError
from .geometry.affine import fit_points
from .geometry.field import Field, rim_motion
from .geometry.grid import Grid
from .geometry.inverse import invert
from .geometry.sampling import Interpolation, apply_matrix, voxel_coordinates
from .geometry.transform import Transform
from .io.checks import check_pair
from .memory import PeakMemory, is_out_of_memory
from .metrics.report import quality_card
from .operations import background_value, choose_interpolation, warp_image
from .registration.base import Image, ImagePair, Progress, Result
from .registration.compose import STAGES_SHARE, parse_stages, run_stages, stage_values
from .registration.landmark_start import bent_to_landmarks
from .registration.preprocess import make_level
from .registration.tre_estimate import card_figures
from .spec import Value

#: A rim that moves by less than this many voxels counts as resting.
_STILL_VOXEL = 1e-3
_LED = "The landmarks led the registration, so their error says little of the accuracy elsewhere."


def run(
    pair: ImagePair,
    algorithm: str,
    preset: str = "balanced",
    settings: Mapping[str, object] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    *,
    interpolation: Interpolation = "linear",
    fill: float | None = None,
    names: Mapping[str, str] | None = None,
    follow_landmarks: bool = False,
) -> Result:
    """Registers a pair of images.

    Args:
        pair: What to register.
        algorithm: Keys joined by ``+``; a deformable one alone runs its linear stages first.
        preset: ``fast``, ``balanced`` or ``accurate``.
        settings: Values by parameter name, or ``key.name`` for one stage only.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: Gets events, and can cancel or stop.
        interpolation: Of the moved image.
        fill: Value of the moved image where the moving image has no voxel; by default the low end
            of the moving image's values (see `operations.background_value`).
        names: Python text of the inputs by argument name, for the call in the provenance.
        follow_landmarks: Bends the start so that the landmark pairs agree, and starts there.

    Returns:
        Everything, on the CPU: the transform with its field on the fixed grid (zero at the rim),
        the inverse with its field on the moving grid, the moved image, the quality card and the
        provenance.

    Raises:
        InputError: If the images cannot be registered.
        ParameterError: If algorithm, preset, a setting or the device does not fit.
        OutOfMemoryError: If memory runs out, also at half the resolution and on the CPU.
        Cancelled: If the user cancelled.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    keys = parse_stages(algorithm)
    values = stage_values(keys, preset, settings)
    chosen, remark = choose_device(device)
    choose_interpolation(interpolation, pair.moving.data)
    remarks = check_pair(pair) + ([remark] if remark else [])
    original = pair = replace(pair, initial=_split(pair.initial, pair.fixed.grid))
    if follow_landmarks:
        pair = _led_by_landmarks(pair, keys)
        remarks.append(_LED)
    for sentence in remarks:
        progress.message(sentence)
    memory = PeakMemory(chosen)
    result, rung = _climb_down(pair, keys, values, chosen, progress)
    progress.stage("finish", STAGES_SHARE, 1.0)
    progress.update(0.0)
    fill = background_value(pair.moving) if fill is None else fill
    _finish(result, pair, rung.device, interpolation, fill, progress)
    progress.update(0.6)
    result.quality = quality_card(
        original.to("cpu"), result, time.perf_counter() - started, memory.megabytes()
    )
    if result.transform.is_linear:
        figures, sentence = card_figures(original, result.transform, rung.device)
        result.quality |= figures
        if sentence:
            progress.message(sentence)
            remarks.append(sentence)
    progress.update(1.0)
    result.provenance = {
        "algorithm": "+".join(keys),
        "preset": preset,
        "stages": [{"algorithm": key, "parameters": dict(v)} for key, v in zip(keys, values)],
        **({"learned": result.provenance} if result.provenance else {}),
        "stopped_early": progress.stop_requested,
        "interpolation": interpolation,
        "fill": fill,
        "remarks": remarks,
        **_circumstances(pair, rung),
        "python": _repeating_call(algorithm, preset, settings or {}, device, names or {}),
    }
    return result


def choose_device(name: str) -> tuple[torch.device, str]:
    """Returns the device to run on, and a remark for the user (or an empty text).

    Args:
        name: ``auto`` (the GPU if it works, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ParameterError: If there is no such device, or it does not work.
    """
    if name == "cpu":
        return torch.device("cpu"), ""
    kind, _, number = name.partition(":")
    if name != "auto" and (kind != "cuda" or not (number.isdigit() or name == "cuda")):
        raise ParameterError(f"The device must be auto, cpu, cuda or cuda:N, not '{name}'.")
    if not torch.cuda.is_available():
        if name == "auto":
            return torch.device("cpu"), ""
        raise ParameterError(
            "There is no GPU that this PyTorch can use; choose the device auto or cpu, or run "
            "'python -m DeepRegLib doctor' to see why."
        )
    device = torch.device("cuda", int(number or 0))
    try:
        # A GPU that is too old or too new for this PyTorch shows itself at the first computation.
        torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:120]
        if name == "auto" and not is_out_of_memory(error):
            return torch.device("cpu"), f"The GPU does not work ({reason}); running on the CPU."
        raise ParameterError(f"The GPU does not work ({reason}); choose the device cpu.") from error
    return device, ""


def device_name(device: torch.device) -> str:
    """Returns a device as people know it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    return {"DeepRegLib": __version__, "torch": str(torch.__version__), "numpy": np.__version__,
            "python": platform.python_version()}  # fmt: skip


@dataclass(frozen=True)
class _Rung:
    """A way to run that takes less memory than the one before, and what to say about it."""

    device: torch.device
    coarse: bool
    sentence: str


def _rungs(device: torch.device) -> list[_Rung]:
    cpu = torch.device("cpu")
    where = "computer" if device == cpu else "GPU"
    rungs = [
        _Rung(device, False, ""),
        _Rung(device, True, f"The {where} has too little memory; trying at half the resolution."),
    ]
    if device != cpu:
        rungs += [
            _Rung(cpu, False, "The GPU has too little memory; going on with the CPU, slowly."),
            _Rung(cpu, True, "The computer has too little memory; trying at half the resolution."),
        ]
    return rungs


def _led_by_landmarks(pair: ImagePair, keys: Sequence[str]) -> ImagePair:
    """Returns the pair with a start that meets the landmarks, as far as the stages can."""
    fixed, moving = pair.fixed_landmarks_ras, pair.moving_landmarks_ras
    if fixed is None or moving is None:
        raise InputError("Following landmarks needs points on both images; place them first.")
    if registry.spec(keys[0]).transform == "linear":
        # A linear stage would drop a deformation; the landmarks give it the rigid start.
        start = Transform(fit_points(fixed, moving, "rigid")) if len(fixed) >= 3 else pair.initial
    else:
        start = bent_to_landmarks(pair.initial, fixed, moving, pair.fixed.grid)
        start = _split(start, pair.fixed.grid)
    return replace(pair, initial=start, initial_is_given=start is not None, landmarks_lead=True)


def _climb_down(
    pair: ImagePair,
    keys: Sequence[str],
    values: Sequence[Mapping[str, Value]],
    device: torch.device,
    progress: Progress,
) -> tuple[Result, _Rung]:
    """Runs the stages on the first rung of the ladder that has enough memory."""
    for rung in _rungs(device):
        if rung.sentence:
            # Out of the except clause, so that the failed run's tensors are free by now.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            progress.message(rung.sentence)
        try:
            inputs = _coarser(pair) if rung.coarse else pair
            return run_stages(inputs.to(rung.device), keys, values, progress), rung
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    size = " x ".join(map(str, pair.fixed.grid.shape))
    raise OutOfMemoryError(
        f"There is too little memory to register on {size} voxels, also at half the resolution; "
        "crop the images, or resample the fixed image to larger voxels."
    )


def _coarser(pair: ImagePair) -> ImagePair:
    """Returns the pair with voxels of twice the size; thick slices stay as they are."""

    def halved(image: Image) -> Image:
        level = make_level(image.data, image.grid, 2.0 * min(image.grid.spacing_mm))
        return replace(image, data=level.data, grid=level.grid)

    return replace(pair, fixed=halved(pair.fixed), moving=halved(pair.moving))


def _finish(
    result: Result,
    pair: ImagePair,
    device: torch.device,
    interpolation: Interpolation,
    fill: float,
    progress: Progress,
) -> None:
    """Adds inverse and moved image, and brings everything to the CPU."""
    for where in dict.fromkeys([device, torch.device("cpu")]):
        try:
            with torch.no_grad():
                transform = settled(result.transform.to(where), pair.fixed.grid)
                inverse, _ = invert(transform, pair.moving.grid)
                progress.update(0.4)
                moved = warp_image(
                    pair.moving.to(where), transform, pair.fixed.grid, interpolation, fill
                )
            result.transform, result.inverse = transform.to("cpu"), inverse.to("cpu")
            result.moved = moved.to("cpu")
            result.extras = {name: image.to("cpu") for name, image in result.extras.items()}
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        progress.message("There is too little memory to finish there; finishing on the CPU.")
    raise OutOfMemoryError(
        "There is too little memory to make the moved image and the inverse; crop the images, or "
        "resample them to larger voxels."
    )


def settled(transform: Transform, fixed: Grid) -> Transform:
    """Returns the transform with its field on the fixed grid and at rest at the rim.

    A rim that still moves is faded over twice its motion, which cannot fold.
    """
    if transform.field is None:
        return transform
    field = transform.field.on_grid(fixed)
    rim = rim_motion(field.displacement)
    if rim > 0.0:
        field = field.faded(1 if rim < _STILL_VOXEL else max(4, int(np.ceil(2.0 * rim))))
    spline = transform.spline if rim < _STILL_VOXEL else None
    return Transform(transform.linear, field, spline)


def _split(initial: Transform | None, fixed: Grid) -> Transform | None:
    """Takes the linear part out of a given deformation that does not rest at the rim.

    Displacement files hold the whole motion. Fading that to zero at the rim would undo the linear
    part there, so the affine map that fits the rim best becomes the linear part.
    """
    if initial is None or initial.field is None:
        return initial
    on_fixed = initial.field.on_grid(fixed)
    if rim_motion(on_fixed.displacement) < _STILL_VOXEL:
        return Transform(initial.linear, on_fixed)
    start = apply_matrix(fixed.voxel_to_ras, voxel_coordinates(fixed.shape, None, torch.float64))
    mapped = start + initial.to("cpu").displacement_ras_mm(fixed)
    rim = _rim(fixed.shape)
    points = start[0][:, rim].T.numpy()
    if len(points) < 8 or min(fixed.shape) < 2:
        return Transform(initial.linear, on_fixed)
    ones = np.ones((len(points), 1))
    solution, *_ = np.linalg.lstsq(
        np.hstack([points, ones]), mapped[0][:, rim].T.numpy(), rcond=None
    )
    linear = np.eye(4)
    linear[:3] = solution.T
    rest = apply_matrix(np.linalg.inv(linear), mapped) - start
    return Transform(linear, Field.from_ras_mm(rest, fixed))


def _rim(shape: tuple[int, int, int]) -> torch.Tensor:
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[tuple(slice(1, -1) if n > 2 else slice(None) for n in shape)] = True
    return ~inside


def _circumstances(pair: ImagePair, rung: _Rung) -> dict[str, Any]:
    """Returns what else a result depends on: the images, the device, the versions, the day."""
    return {
        "device": device_name(rung.device),
        "resolution": "half" if rung.coarse else "full",
        "fixed": _described(pair.fixed),
        "moving": _described(pair.moving),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _described(image: Image) -> dict[str, Any]:
    return {"shape": list(image.grid.shape), "spacing_mm": list(image.grid.spacing_mm),
            "voxel_to_ras": image.grid.voxel_to_ras.tolist(),
            "pixel_type": image.pixel_type}  # fmt: skip


def _repeating_call(
    algorithm: str,
    preset: str,
    settings: Mapping[str, object],
    device: str,
    names: Mapping[str, str],
) -> str:
    """Returns Python that repeats the run."""
    inputs = {"fixed": "'fixed.nrrd'", "moving": "'moving.nrrd'", **names}
    arguments = [inputs.pop("fixed"), inputs.pop("moving"), repr(algorithm), f"preset={preset!r}"]
    arguments += [f"{name}={text}" for name, text in inputs.items()]
    if device != "auto":
        arguments.append(f"device={device!r}")
    arguments += [f"{k}={v!r}" for k, v in settings.items() if k.isidentifier()]
    dotted = {k: v for k, v in settings.items() if not k.isidentifier()}
    if dotted:
        arguments.append(f"**{dotted!r}")
    lines = ",\n    ".join(arguments)
    return f"import DeepRegLib\n\nresult = DeepRegLib.register(\n    {lines},\n)\n"


def report(result: Result) -> dict[str, Any]:
    """Returns what a report file holds of a result."""
    return {
        "quality": result.quality,
        "provenance": result.provenance,
        "seconds": dict(result.seconds),
        "history": [dict(entry) for entry in result.history],
        "linear": result.transform.linear.tolist(),
    }
