"""What the benchmarks share: data folder, pairs, measures, results kept with their origin."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import DeepRegLib
from DeepRegLib.geometry.jacobian import jacobian_determinant
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image, read_labels
from DeepRegLib.metrics.overlap import dice_per_label, labels_present, mean_dice
from DeepRegLib.registration.base import Image, ImagePair, Progress, Result
from DeepRegLib.registration.compose import parse_stages, run_stages, stage_values

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "Benchmarks" / "results"
BRAINS = ("1101", "1104", "1110", "1128")
SKULLS = ("A_J_", "C57BL6_J_", "CAST_EIJ_", "129S1_SVLMJ_")


def data_folder() -> Path:
    """Folder of the real volumes: DEEPREG_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("DEEPREG_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"The volumes are not in {folder}; set DEEPREG_DATA to their folder.")
    return folder


def brain(person: str) -> tuple[Image, Image]:
    """T1 image and label map of one person at 1 mm."""
    stem = data_folder() / "brain_t1_oasis" / "eval_1mm" / person
    return read_image(f"{stem}_t1.nii.gz"), read_labels(f"{stem}_seg.nii.gz")


def ordered_pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """All ordered pairs of different names: fixed, moving."""
    return [(a, b) for a in names for b in names if a != b]


def register(
    pair: ImagePair, algorithm: str, preset: str = "balanced", **settings: Any
) -> tuple[Result, float]:
    """Runs the stages and returns the result with the wall seconds."""
    keys = parse_stages(algorithm)
    started = time.perf_counter()
    result = run_stages(pair, keys, stage_values(keys, preset, settings), Progress())
    return result, time.perf_counter() - started


def label_dice(transform: Transform, fixed: Image, moving: Image) -> float:
    """Mean Dice over the labels that both people have."""
    moved = transform.warp(moving.data, moving.grid, fixed.grid, "nearest", 0)
    both = set(labels_present(fixed.data)) & set(labels_present(moving.data))
    return mean_dice(dice_per_label(fixed.data, moved), both)


def regularity_inside(transform: Transform, inside: torch.Tensor) -> dict[str, float]:
    """Folds (det J <= 0, percent) and SDlogJ of the deformation inside a region."""
    if transform.field is None:
        return {"folds_percent": 0.0, "sdlogj": 0.0}
    det = jacobian_determinant(transform.field.displacement)[0][inside[0, 0]]
    return {
        "folds_percent": float((det <= 0).float().mean() * 100),
        "sdlogj": float(det.clamp(1e-9, 1e9).log().std()),
    }


def save(name: str, figures: dict[str, Any]) -> None:
    """Writes Benchmarks/results/<name>.json with commit, machine and versions."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"origin": ORIGIN, **figures}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(rounded(record), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")


def _origin() -> dict[str, Any]:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "DeepRegLib": DeepRegLib.__version__,
    }


def rounded(value: Any) -> Any:
    """Returns figures with five significant digits, for files."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{float(value):.5g}")
    return value


#: Taken when the program starts: a commit made while it runs is not what it measures.
ORIGIN = _origin()
