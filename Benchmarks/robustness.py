"""Hard but usual inputs on real volumes at 2 mm, each with a known truth.

One brain is fixed; the moving image is the same brain with a rigid motion and a smooth bend, and
then what makes the case: thick slices, a slab, half of the field of view, a turn, another contrast,
a lesion. Errors are distances from the truth in the brain, in mm. The phantom versions of these
cases are tested in Testing/Library/test_robustness.py.

Run: python Benchmarks/robustness.py [case ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import data_folder, register, save
from numpy.typing import NDArray

from DeepRegLib.geometry.affine import about_point, rotation_from_vector
from DeepRegLib.geometry.grid import Grid, Matrix, transform_points
from DeepRegLib.geometry.sampling import resize_image, sample
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image
from DeepRegLib.registration.base import Image, ImagePair

PERSON, BEND_MM, WAVE_MM = "1000", 4.0, 14.0
ALL = "rigid+affine+greedy"
#: Fewer points and orientations than by default, to keep a case short.
SMALL = {"samples": 20000, "rotations": 300}


class Truth:
    """Moving to fixed space: a rigid motion, then a bend by sines of the coordinates."""

    def __init__(self, brain: Image, turn_rad: tuple[float, float, float] = (0.1, -0.08, 0.12)):
        vector = torch.tensor(turn_rad, dtype=torch.float64)
        center = brain.grid.center_ras
        shift = np.array([4.0, -3.0, 2.5])
        self.matrix = about_point(rotation_from_vector(vector).numpy(), center, center + shift)

    def to_fixed(self, points_ras: NDArray) -> NDArray:
        """Maps points (N, 3)."""
        points = transform_points(np.linalg.inv(self.matrix), points_ras)
        return points + BEND_MM * np.sin(points[:, [1, 2, 0]] / WAVE_MM)

    def errors_mm(self, transform: Transform, points_ras: NDArray) -> NDArray:
        """Distances of fixed points from themselves, after the transform and the true way back."""
        found = self.to_fixed(transform.map_points_ras(points_ras))
        return np.linalg.norm(found - points_ras, axis=1)


def moved_away(brain: Image, truth: Truth, grid: Grid | None = None) -> Image:
    """The brain where the truth puts it."""
    grid = grid or _turned_grid(brain.grid, truth.matrix)
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 3)
    where = brain.grid.to_voxel(truth.to_fixed(grid.to_ras(voxels)))
    at = torch.from_numpy(where.T.reshape(1, 3, *grid.shape)).float()
    values = sample(brain.data, at, "bspline", "fill", 0.0).clamp(min=0.0)
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
    return Image(values + 0.01 * float(brain.data.max()) * noise, grid)


def thick(image: Image, axis: int, spacing_mm: float = 5.0) -> Image:
    """The image with thick slices along an axis."""
    spacing = [spacing_mm if a == axis else s for a, s in enumerate(image.grid.spacing_mm)]
    grid = image.grid.with_spacing(spacing)
    return Image(resize_image(image.data, grid.shape), grid)


def cropped(image: Image, axis: int, start: int, count: int) -> Image:
    """Some slices of the image along an axis."""
    lower, shape = [0, 0, 0], list(image.grid.shape)
    lower[axis], shape[axis] = start, count
    data = image.data.narrow(2 + axis, start, count).contiguous()
    return Image(data, image.grid.cropped(tuple(lower), tuple(shape)))  # type: ignore[arg-type]


def measure(
    pair: ImagePair, truth: Truth, points: NDArray, unseen: NDArray | None = None, **settings: Any
) -> dict[str, Any]:
    """Errors as stored, by the linear stages and by all; also at points that one image lacks."""
    result, seconds = register(pair, ALL, "fast", **SMALL, **settings)
    figures: dict[str, Any] = {"seconds": seconds, **_errors(result.transform, truth, points)}
    if unseen is not None:
        figures["unseen"] = _errors(result.transform, truth, unseen)
    return figures


def _errors(transform: Transform, truth: Truth, points: NDArray) -> dict[str, Any]:
    stages = {"stored": Transform(), "affine": Transform(transform.linear), "greedy": transform}
    figures: dict[str, Any] = {"points": len(points)}
    for name, stage in stages.items():
        errors = truth.errors_mm(stage, points)
        figures[name] = {
            "mean_mm": float(errors.mean()),
            "p95_mm": float(np.percentile(errors, 95)),
        }
    return figures


def main(chosen: list[str]) -> None:
    """Runs the cases and keeps the figures."""
    path = data_folder() / "brain_t1_oasis" / "train_2mm" / f"{PERSON}_t1.nii.gz"
    brain = read_image(path)
    voxels = (brain.data[0, 0] > 0.2 * brain.data.max()).nonzero().numpy()
    points = brain.grid.to_ras(np.random.default_rng(0).permutation(voxels)[:4000])
    truth = Truth(brain)
    cases = _cases(brain, moved_away(brain, truth), truth, points)
    figures = {}
    for name in chosen or list(cases):
        figures[name] = cases[name]()
        print(name, figures[name], flush=True)
    if not chosen:
        save(
            "robustness",
            {"volume": f"{PERSON}, 2 mm", "preset": "fast", "settings": SMALL, "cases": figures},
        )


def _cases(
    brain: Image, moving: Image, truth: Truth, points: NDArray
) -> dict[str, Callable[[], dict[str, Any]]]:
    half = cropped(moving, 0, 0, moving.grid.shape[0] // 2)
    seen = _seen(half.grid, points, truth)
    middle = brain.grid.shape[2] // 2 - 4
    slab = cropped(brain, 2, middle, 8)
    quarter = Truth(brain, (0.0, np.pi / 2, 0.0))
    dark = moving.data > 0.1 * moving.data.max()
    inside = Image(torch.where(dark, 1.2 * moving.data.max() - moving.data, 0.0), moving.grid)
    inverted = Image(moving.data.max() - moving.data, moving.grid)
    pair = ImagePair(brain, moving)

    def run(pair: ImagePair, where: NDArray = points, **settings: Any) -> Callable[[], dict]:
        return lambda: measure(pair, truth, where, **settings)

    return {
        "plain": run(pair),
        "thick fixed": run(ImagePair(thick(brain, 2), moving)),
        "thick both": run(ImagePair(thick(brain, 2), thick(moving, 0))),
        "slab": run(ImagePair(slab, moving), points[_within(slab.grid, points)]),
        "half": run(ImagePair(brain, half), points[seen], unseen=points[~seen]),
        "turned 90": lambda: measure(
            ImagePair(brain, moved_away(brain, quarter, brain.grid)), quarter, points
        ),
        "inverted": run(ImagePair(brain, inverted)),
        "inverted inside": run(ImagePair(brain, inside), modality="different"),
        "inverted inside, mi": run(ImagePair(brain, inside), modality="different", similarity="mi"),
        **_lesion(brain, pair, points, run),
    }


def _lesion(brain: Image, pair: ImagePair, points: NDArray, run: Callable) -> dict[str, Callable]:
    """A bright ball in the fixed image, measured in it and up to 8 mm around it."""
    center, radius = points.mean(0) + np.array([25.0, -15.0, 15.0]), 12.0
    voxels = np.moveaxis(np.indices(brain.grid.shape), 0, -1)
    distance = np.linalg.norm(brain.grid.to_ras(voxels) - center, axis=-1)
    bright = torch.from_numpy(1.0 / (1.0 + np.exp(distance - radius))).float()
    fixed = Image(brain.data + float(brain.data.max()) * bright[None, None], brain.grid)
    mask = Image.from_array((distance > radius + 2.0).astype(np.uint8), brain.grid)
    near = points[np.linalg.norm(points - center, axis=1) < radius + 8.0]
    pair = replace(pair, fixed=fixed)
    return {
        "lesion": run(pair, near),
        "lesion, masked": run(replace(pair, fixed_mask=mask), near),
    }


def _turned_grid(grid: Grid, matrix: Matrix) -> Grid:
    """A grid that follows half of the shift, so that it is none of the fixed image's."""
    shifted = grid.voxel_to_ras.copy()
    shifted[:3, 3] += (transform_points(matrix, grid.center_ras[None])[0] - grid.center_ras) / 2
    return Grid(grid.shape, shifted)


def _within(grid: Grid, points: NDArray) -> NDArray:
    where = grid.to_voxel(points)
    return np.all((where >= -0.5) & (where <= np.array(grid.shape) - 0.5), axis=1)


def _seen(grid: Grid, points: NDArray, truth: Truth) -> NDArray:
    """Which fixed points the moving grid holds; the bend is inverted by iteration."""
    before = points
    for _ in range(40):
        before = points - BEND_MM * np.sin(before[:, [1, 2, 0]] / WAVE_MM)
    return _within(grid, transform_points(truth.matrix, before))


if __name__ == "__main__":
    main(sys.argv[1:])
