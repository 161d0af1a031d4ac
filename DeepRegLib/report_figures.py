"""What a report says of a run, as plain texts and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def linear_summary(
    linear: ArrayLike, center_ras: ArrayLike = (0, 0, 0)
) -> dict[str, tuple[float, ...]]:
    """Describes a linear map by rotation, translation and scale.

    Args:
        linear: 4 x 4 matrix, fixed to moving RAS mm.
        center_ras: Point whose motion is the translation, best the middle of the fixed image.

    Returns:
        ``angle_deg`` (in all, one number), ``rotation_deg`` (about the R, then A, then S axis),
        ``translation_mm`` (R, A, S), ``scale`` (along R, A, S, before the rotation), ``shear``
        (largest) and ``volume`` (factor).
    """
    matrix = np.asarray(linear, np.float64)
    u, stretches, vt = np.linalg.svd(matrix[:3, :3])
    mirror = np.sign(np.linalg.det(u @ vt))
    # The part that turns, without a mirror; what is left stretches.
    keep = np.diag([1.0, 1.0, mirror])
    rotation = u @ keep @ vt
    stretch = vt.T @ keep @ np.diag(stretches) @ vt
    center = np.asarray(center_ras, np.float64)
    translation = matrix[:3, :3] @ center + matrix[:3, 3] - center
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    about_a = np.arcsin(np.clip(-rotation[2, 0], -1, 1))
    about_r = np.arctan2(rotation[2, 1], rotation[2, 2])
    about_s = np.arctan2(rotation[1, 0], rotation[0, 0])
    return {
        "angle_deg": (float(np.degrees(angle)),),
        "rotation_deg": tuple(float(np.degrees(a)) for a in (about_r, about_a, about_s)),
        "translation_mm": tuple(float(v) for v in translation),
        "scale": tuple(float(v) for v in np.diag(stretch)),
        "shear": (float(np.abs(stretch - np.diag(np.diag(stretch))).max()),),
        "volume": (float(np.linalg.det(matrix[:3, :3])),),
    }


def as_text(value: object) -> str:
    """Returns a value of the provenance as text; empty if there is none."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(as_text(entry) for entry in value)
    return str(value)


def axes_text(values: Sequence[float], form: str) -> str:
    """Returns three numbers with the letters of their axes."""
    return ", ".join(f"{axis} {form.format(v + 0.0)}" for axis, v in zip("RAS", values))


def duration_text(seconds: float | Mapping[str, float] | None) -> str:
    """Returns a time in seconds or minutes; the sum where it is given by stage."""
    if seconds is None:
        return ""
    total = sum(seconds.values()) if isinstance(seconds, Mapping) else float(seconds)
    return f"{total:.1f} s" if total < 100 else f"{total / 60:.1f} min"


def date_text(value: object) -> str:
    """Returns a date of the form ISO 8601 as people write it."""
    return as_text(value).replace("T", " ").replace("+00:00", " UTC")


def stages_of(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the stages of a run, each with ``algorithm`` and ``parameters``."""
    return [stage for stage in provenance.get("stages") or () if isinstance(stage, Mapping)]


def image_text(described: object) -> str:
    """Returns shape, spacing and type of an image of the provenance."""
    if not isinstance(described, Mapping):
        return ""
    shape = " x ".join(str(n) for n in described.get("shape") or ())
    spacing = " x ".join(f"{s:.4g}" for s in described.get("spacing_mm") or ())
    parts = [f"{shape} voxels" if shape else "", f"{spacing} mm" if spacing else ""]
    return ", ".join(p for p in (*parts, as_text(described.get("pixel_type"))) if p)


def center_of(described: object) -> ArrayLike | None:
    """Returns the middle of an image of the provenance, RAS mm."""
    if not isinstance(described, Mapping) or not {"shape", "voxel_to_ras"} <= set(described):
        return None
    matrix = np.asarray(described["voxel_to_ras"], np.float64)
    middle = (np.asarray(described["shape"], np.float64) - 1) / 2
    return np.asarray(matrix[:3, :3] @ middle + matrix[:3, 3])
