"""The figures of the main job: rigid, affine and greedy on real brains and skulls.

Usage: python Benchmarks/main_job.py [retest] [turned] [skulls] [brains] [flair] [warped]
(all of them without arguments); writes Benchmarks/results/*.json.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import SimpleITK as sitk
import torch
from common import (
    BRAINS,
    SKULLS,
    brain,
    data_folder,
    label_dice,
    ordered_pairs,
    register,
    regularity_inside,
    save,
)

from DeepRegLib.geometry.affine import rotation_angle_deg, rotation_from_vector
from DeepRegLib.geometry.field import Field, fade_window
from DeepRegLib.geometry.grid import Grid, transform_points
from DeepRegLib.geometry.inverse import invert, round_trip_error_mm
from DeepRegLib.geometry.sampling import gaussian_smooth
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import read_image, to_sitk
from DeepRegLib.io.itk_transform import transform_from_sitk
from DeepRegLib.io.landmarks import read_landmarks
from DeepRegLib.registration.base import Image, ImagePair

ALIGNED, OFFSET = ("01", "04", "12", "17"), ("05", "20")


def retest() -> None:
    """Rigid registration of one person scanned twice."""
    (fixed, fixed_labels), (moving, moving_labels) = brain("1003"), brain("1023")
    rows = {}
    for preset in ("fast", "balanced", "accurate"):
        result, seconds = register(ImagePair(fixed, moving), "rigid", preset)
        dice = label_dice(result.transform, fixed_labels, moving_labels)
        rows[preset] = {"dice": dice, "seconds": seconds}
        print(preset, rows[preset], flush=True)
    save("retest", {"pair": "1003 <- 1023", "asked": "Dice >= 0.765", "rigid": rows})


def turned(starts: int = 20) -> None:
    """The same, with the moving volume first turned up to 60 degrees and shifted up to 60 mm."""
    (fixed, fixed_labels), (moving, moving_labels) = brain("1003"), brain("1023")
    straight, _ = register(ImagePair(fixed, moving), "rigid")
    reference = label_dice(straight.transform, fixed_labels, moving_labels)
    rows = []
    for seed in range(starts):
        motion, angle, shift = _random_motion(moving.grid, seed)
        posed = Image(moving.data, Grid(moving.grid.shape, motion @ moving.grid.voxel_to_ras))
        posed_labels = Image(moving_labels.data, posed.grid)
        result, seconds = register(ImagePair(fixed, posed), "rigid")
        dice = label_dice(result.transform, fixed_labels, posed_labels)
        rows.append({"angle_deg": angle, "shift_mm": shift, "dice": dice, "seconds": seconds})
        print(seed, rows[-1], flush=True)
    within = sum(abs(row["dice"] - reference) <= 0.01 for row in rows)
    save("turned", {"asked": "within 0.01 of the straight result in 19 of 20",
                    "straight_dice": reference, "within": within, "starts": rows})  # fmt: skip


def skulls() -> None:
    """Rigid registration of mouse skulls in arbitrary pose, on intensities alone."""
    folder = data_folder() / "mouse_skull_ct"
    images = {name: read_image(folder / f"{name}.nii.gz") for name in SKULLS}
    points = {name: read_landmarks(folder / f"{name}.mrk.json").points_ras for name in SKULLS}
    rows = []
    for a, b in ordered_pairs(SKULLS):
        result, seconds = register(ImagePair(images[a], images[b]), "rigid")
        error = np.linalg.norm(result.transform.map_points_ras(points[a]) - points[b], axis=1)
        rows.append(
            {"fixed": a, "moving": b, "median_tre_mm": np.median(error), "seconds": seconds}
        )
        print(rows[-1], flush=True)
    medians = [row["median_tre_mm"] for row in rows]
    save("skulls", {"asked": "median TRE <= 1.2 mm", "median_tre_mm": np.median(medians),
                    "worst_pair_mm": max(medians), "pairs": rows})  # fmt: skip


def brains(presets: tuple[str, ...] = ("balanced",)) -> None:
    """Affine + greedy of four people, twelve ordered pairs, 138 manual labels."""
    people = {name: brain(name) for name in BRAINS}
    for preset in presets:
        rows = [_brain_pair(people, a, b, preset) for a, b in ordered_pairs(BRAINS)]
        dice = [row["dice"] for row in rows]
        save(
            f"brains_{preset}",
            {
                "asked": "mean Dice >= 0.54, each >= 0.50, folds <= 0.01 %, SDlogJ <= 0.5, "
                "round trip <= 0.1 voxel",
                "mean_dice": np.mean(dice),
                "least_dice": min(dice),
                "mean_affine_dice": np.mean([row["affine_dice"] for row in rows]),
                "most_folds_percent": max(row["folds_percent"] for row in rows),
                "mean_sdlogj": np.mean([row["sdlogj"] for row in rows]),
                "most_sdlogj": max(row["sdlogj"] for row in rows),
                "most_round_trip_voxel": max(row["round_trip_voxel"] for row in rows),
                "mean_seconds": np.mean([row["seconds"] for row in rows]),
                "pairs": rows,
            },
        )


def _brain_pair(people: dict, a: str, b: str, preset: str) -> dict:
    (fixed, fixed_labels), (moving, moving_labels) = people[a], people[b]
    result, seconds = register(ImagePair(fixed, moving), "rigid+affine+greedy", preset)
    affine = Transform(result.transform.linear)
    inside = fixed_labels.data > 0
    inverse, _ = invert(result.transform, moving.grid)
    round_trip = round_trip_error_mm(result.transform, inverse, fixed.grid)[inside]
    row = {
        "fixed": a,
        "moving": b,
        "affine_dice": label_dice(affine, fixed_labels, moving_labels),
        "dice": label_dice(result.transform, fixed_labels, moving_labels),
        **regularity_inside(result.transform, inside),
        "round_trip_voxel": float(round_trip.mean()) / min(fixed.grid.spacing_mm),
        "seconds": seconds,
        "seconds_by_stage": result.seconds,
    }
    print(row, flush=True)
    return row


def flair() -> None:
    """Rigid T1 to FLAIR against the best of several SimpleITK mutual-information runs."""
    rows = []
    for subject in (*OFFSET, *ALIGNED):
        fixed, moving = t1_flair(subject)
        result, seconds = register(ImagePair(fixed, moving), "rigid")
        best, value = best_simpleitk(fixed, moving)
        between = np.linalg.inv(best) @ result.transform.linear
        points = fixed.grid.to_ras(np.argwhere(fixed.numpy() > 0)[::997])
        distance = np.linalg.norm(transform_points(between, points) - points, axis=1)
        center = fixed.grid.center_ras
        rows.append({
            "subject": subject,
            "corrected_mm": np.linalg.norm(
                result.transform.map_points_ras(center)[0] - center
            ),
            "difference_deg": rotation_angle_deg(between),
            "difference_mm": np.linalg.norm(transform_points(between, center) - center),
            "difference_in_brain_mm": distance.mean(),
            "simpleitk_value": value,
            "seconds": seconds,
        })  # fmt: skip
        print(rows[-1], flush=True)
    save("flair", {"asked": "within 1 mm and 1 degree on 05 and 20", "subjects": rows})


def warped() -> None:
    """T1 to FLAIR after a known smooth warp of 8 mm: how much of it is found."""
    rows = []
    for subject in ALIGNED:
        fixed, moving = t1_flair(subject)
        inside = fixed.data > 0
        truth = known_warp(moving, 8.0, int(subject))
        bent = Image(truth.warp(moving.data, moving.grid, moving.grid), moving.grid)
        # The two scans lie up to 2 mm apart as stored, so the truth starts from their rigid
        # alignment R by another program: bent(y) = moving(truth(y)) asks for truth^-1(R(x)).
        aligned, _ = best_simpleitk(fixed, moving)
        answer = after(aligned, invert(truth, moving.grid)[0], fixed.grid)
        for similarity in ("auto", "mi"):
            result, seconds = register(ImagePair(fixed, bent), "rigid+affine+greedy",
                                       modality="different",
                                       **{"greedy.similarity": similarity})  # fmt: skip
            rows.append({
                "subject": subject,
                "similarity": similarity,
                "initial_mm": _error(Transform(), answer, fixed.grid, inside),
                "affine_mm": _error(Transform(result.transform.linear), answer, fixed.grid, inside),
                "final_mm": _error(result.transform, answer, fixed.grid, inside),
                "seconds": seconds,
                **regularity_inside(result.transform, inside),
            })  # fmt: skip
            print(rows[-1], flush=True)
    save("warped", {"asked": "mean error at most half of the initial one", "subjects": rows})


def known_warp(moving: Image, amplitude_mm: float, seed: int) -> Transform:
    """Smooth random deformation (Gaussian, 16 mm) whose longest vector in the brain is given."""
    grid = moving.grid
    noise = torch.randn(1, 3, *grid.shape, generator=torch.Generator().manual_seed(seed))
    sigma = [16.0 / s for s in grid.spacing_mm]
    vectors = gaussian_smooth(noise, sigma) * fade_window(grid.shape, 8)
    inside = moving.data > 0
    vectors = vectors * (amplitude_mm / vectors.norm(dim=1, keepdim=True)[inside].max())
    return Transform(np.eye(4), Field.from_ras_mm(vectors, grid))


def after(linear: np.ndarray, transform: Transform, grid: Grid) -> Transform:
    """The transform after a linear map, as one displacement on a grid."""
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
    moved = transform.map_points_ras(transform_points(linear, points))
    vectors = (moved - points).T.reshape(1, 3, *grid.shape)
    return Transform.from_displacement_ras_mm(torch.from_numpy(vectors).float(), grid)


def _error(found: Transform, answer: Transform, grid: Grid, inside: torch.Tensor) -> float:
    difference = found.displacement_ras_mm(grid) - answer.displacement_ras_mm(grid)
    return float(difference.norm(dim=1, keepdim=True)[inside].mean())


def t1_flair(subject: str) -> tuple[Image, Image]:
    stem = data_folder() / "brain_t1_flair" / subject
    return read_image(f"{stem}_t1.nii.gz"), read_image(f"{stem}_flair.nii.gz")


def _random_motion(grid: Grid, seed: int) -> tuple[np.ndarray, float, float]:
    random = np.random.default_rng(seed)
    axis, direction = (v / np.linalg.norm(v) for v in random.normal(size=(2, 3)))
    angle, shift = random.uniform(0, np.pi / 3), random.uniform(0, 60)
    motion = np.eye(4)
    motion[:3, :3] = rotation_from_vector(torch.from_numpy(axis * angle)).numpy()
    center = grid.center_ras
    motion[:3, 3] = center - motion[:3, :3] @ center + direction * shift
    return motion, float(np.degrees(angle)), float(shift)


def best_simpleitk(fixed: Image, moving: Image) -> tuple[np.ndarray, float]:
    """The best of six mutual-information runs from different starts."""
    a, b = (sitk.Cast(to_sitk(image), sitk.sitkFloat32) for image in (fixed, moving))
    moments = sitk.CenteredTransformInitializer(
        a, b, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    runs = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        start = sitk.Euler3DTransform(moments)
        if seed:
            start.SetRotation(*random.uniform(-0.25, 0.25, 3))
            start.SetTranslation(np.array(start.GetTranslation()) + random.uniform(-10, 10, 3))
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(48)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(0.2, seed=seed + 1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 300, 0.6)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([4, 2, 0])
        method.SetInitialTransform(start, inPlace=True)
        method.Execute(a, b)
        runs.append((_full_information(a, b, start), start))
    value, best = min(runs, key=lambda run: run[0])
    return transform_from_sitk(best).linear, value


def _full_information(a: sitk.Image, b: sitk.Image, transform: sitk.Transform) -> float:
    """Mutual information over all voxels, so that runs can be compared."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(48)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(transform)
    return float(method.MetricEvaluate(a, b))


PARTS = {f.__name__: f for f in (retest, turned, skulls, brains, flair, warped)}

if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(PARTS)
    if unknown:
        sys.exit(f"There is no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}.")
    for name in sys.argv[1:] or PARTS:
        print(json.dumps({"part": name}), flush=True)
        PARTS[name]()
