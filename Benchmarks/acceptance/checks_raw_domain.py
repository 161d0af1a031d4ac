"""What registration to raw data has to show: known warps against the zero-filled image, and PSNR.

It is not trained, so there is no plan. Brains are bent by known warps; frames of a heart stand for
a scan that moves. Samples are simulated. The other method is local correlation with the image that
has zeros in place of the samples that are missing, by the engine (`greedy`) in the same resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from common import data_folder, register, rounded
from torch import Tensor

from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.geometry.velocity import exponential
from DeepRegLib.io.images import from_sitk
from DeepRegLib.registration.base import Image, ImagePair, Result
from DeepRegLib.registration.kspace import cartesian_mask
from DeepRegLib.registration.preprocess import object_region
from DeepRegLib.registration.raw_data import RawData

from .cases import known_warps
from .figures import Figures
from .plans import Check, at_least

ACCELERATIONS = (4.0, 8.0)
#: Largest motion of the known warps.
BRAIN_MM, HEART_MM = 9.0, 15.0


def brains(count: int, acceleration: float, **settings: Any) -> list[Figures]:
    """Figures of known warps of the test people."""
    rows = []
    for number, (pair, truth) in enumerate(known_warps(count, BRAIN_MM)):
        images = pair.as_images()
        rows.append(_compared(images, truth, pair.inside, acceleration, number, settings))
    return rows


def hearts(count: int, acceleration: float, **settings: Any) -> list[Figures]:
    """Figures of known warps of frames of a heart."""
    rows = []
    generator = torch.Generator().manual_seed(4)
    frames = heart_frames()
    for number in range(count):
        fixed = frames[number * len(frames) // count]
        noise = torch.randn(1, 3, *fixed.grid.shape, generator=generator)
        velocity = gaussian_smooth(noise, 4.0)
        most = HEART_MM / min(fixed.grid.spacing_mm)
        velocity = velocity * (most / velocity.norm(dim=1).max())
        bend = Transform(np.eye(4), Field(exponential(-velocity), fixed.grid))
        moving = Image(bend.warp(fixed.data, fixed.grid, fixed.grid), fixed.grid)
        inside = object_region(fixed)
        pair = ImagePair(fixed, moving)
        rows.append(_compared(pair, exponential(velocity), inside, acceleration, number, settings))
    return rows


def beats(count: int, acceleration: float, **settings: Any) -> list[Figures]:
    """Figures of real motion: other frames of the heart, of which the raw data is simulated."""
    rows = []
    frames = heart_frames()
    for number in range(count):
        moving = frames[1 + number * (len(frames) - 1) // count]
        result = _raw(ImagePair(frames[0], moving), acceleration, number, settings)
        rows.append(_images(result, moving.data))
    return rows


def heart_frames() -> list[Image]:
    """The frames of the longer series."""
    series = sitk.ReadImage(str(data_folder() / "heart_echo_4d" / "img4d_11f.nii.gz"))
    count = series.GetSize()[3] if series.GetDimension() == 4 else 1
    frames = [series[:, :, :, k] if count > 1 else series for k in range(count)]
    return [from_sitk(sitk.Cast(frame, sitk.sitkFloat32)) for frame in frames]


def checks(rows: dict[str, list[Figures]]) -> list[Check]:
    """Judges the figures at eightfold acceleration."""
    found = []
    for name in ("brains", "hearts"):
        error = {key: _mean(rows[f"{name} 8"], key) for key in ("raw_mm", "zero_filled_mm")}
        found.append(
            Check(
                f"{name}, error below that with the zero-filled image",
                f"{error['raw_mm']:.3f} mm against {error['zero_filled_mm']:.3f} mm",
                error["raw_mm"] < error["zero_filled_mm"],
            )
        )
    for name in ("brains", "hearts", "beats"):
        gain = _mean(rows[f"{name} 8"], "psnr_gain_db")
        found.append(at_least(f"{name}, PSNR above the zero-filled image, dB", gain, 3.0, "{:.2f}"))
    return found


def _compared(
    pair: ImagePair,
    truth: Tensor,
    inside: Tensor,
    acceleration: float,
    seed: int,
    settings: dict[str, Any],
) -> Figures:
    """Errors of both methods on one known warp, in mm."""
    result = _raw(pair, acceleration, seed, settings)
    mask = cartesian_mask(pair.moving.grid.shape, acceleration, seed=seed)
    zero_filled = RawData.simulated(pair.moving, mask).zero_filled()
    other, _ = register(ImagePair(pair.fixed, zero_filled), "+greedy", similarity="lncc")
    whole, _ = register(pair, "+greedy", similarity="lncc")
    spacing = torch.tensor(pair.fixed.grid.spacing_mm).view(1, 3, 1, 1, 1)
    figures = {"start_mm": _error(torch.zeros_like(truth), truth, spacing, inside)}
    for name, found in (("raw_mm", result), ("zero_filled_mm", other), ("whole_mm", whole)):
        assert found.transform.field is not None
        u = found.transform.field.displacement
        figures[name] = _error(u, truth, spacing, inside)
    return {**figures, **_images(result, pair.moving.data)}


def _raw(pair: ImagePair, acceleration: float, seed: int, settings: dict[str, Any]) -> Result:
    result, _ = register(pair, "+raw_domain", acceleration=acceleration, seed=seed, **settings)
    return result


def _images(result: Result, truth: Tensor) -> Figures:
    found = {name: psnr(result.extras[f"moving_{name}"].data, truth)
             for name in ("reconstruction", "zero_filled")}  # fmt: skip
    return {
        "psnr_db": found["reconstruction"],
        "psnr_zero_filled_db": found["zero_filled"],
        "psnr_gain_db": found["reconstruction"] - found["zero_filled"],
    }


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the largest value of the truth."""
    return 10.0 * float(torch.log10(truth.max() ** 2 / (image - truth).square().mean()))


def _error(found: Tensor, truth: Tensor, spacing: Tensor, inside: Tensor) -> float:
    return float(((found - truth) * spacing).norm(dim=1, keepdim=True)[inside].mean())


def _mean(rows: Sequence[Figures], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def run(count: int = 6) -> tuple[dict[str, list[Figures]], list[Check]]:
    """Measures and judges.

    Args:
        count: Cases of each kind.
    """
    rows = {}
    for acceleration in ACCELERATIONS:
        for kind in (brains, hearts, beats):
            name = f"{kind.__name__} {acceleration:g}"
            rows[name] = kind(count, acceleration)
            told = {key: _mean(rows[name], key) for key in rows[name][0]}
            print(name, rounded(told), flush=True)
    return rows, checks(rows)
