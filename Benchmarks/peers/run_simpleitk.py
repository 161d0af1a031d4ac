"""Registers one pair with SimpleITK's own methods, after its affine registration.

Settings: the SimpleITK notebooks (https://insightsoftwareconsortium.github.io/SimpleITK-Notebooks/)
60 (affine: Mattes MI with 50 bins, linear, shrink factors 4, 2, 1 and sigmas 2, 1, 0 mm), 65
(B-spline in levels, LBFGS) and 66 (multi-scale demons), and ITK's examples DeformableRegistration2
(histogram matching before demons: 1024 levels, 7 points; field smoothed by 1 voxel). Variants:

- ``demons``: diffeomorphic demons on shrink factors 4, 2, 1; for one modality.
- ``bspline-mi``: B-spline with a final mesh of one cell per 10 mm on Mattes mutual information.
"""

from __future__ import annotations

from protocol import (
    Job,
    Outcome,
    Stopwatch,
    chain,
    dense,
    field_transform,
    main,
    peak_memory_mb,
)

SHRINK, SMOOTH = [4, 2, 1], [2, 1, 0]
SPACING_MM, BRAIN_MM = 10.0, 180.0
DEMONS_ITERATIONS = 50


def run(job: Job) -> Outcome:
    """Affine, then demons or a B-spline."""
    import SimpleITK as sitk

    fixed, moving = (sitk.ReadImage(path, sitk.sitkFloat32) for path in (job.fixed, job.moving))
    watch, inverse = Stopwatch(), None
    with watch.step("affine"):
        affine = _affine(sitk, fixed, moving, job.aligned)
    with watch.step("deformable"):
        if job.variant == "demons":
            moved = sitk.Resample(moving, fixed, affine, sitk.sitkLinear, _low(sitk, moving))
            deformation = field_transform(_demons(sitk, fixed, moved))
        else:
            deformation = _bspline(sitk, fixed, moving, affine)
    peak = peak_memory_mb()
    forward = dense(chain(deformation, affine), fixed)
    name = f"SimpleITK {sitk.Version().VersionString()}"
    return Outcome(forward, name, watch.seconds, peak, inverse)


def _low(sitk, image) -> float:
    low, _ = sitk.MinimumMaximum(image)
    return low


def _method(sitk, samples: float):
    """A registration on mutual information of a share of the voxels, in three levels."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(samples, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel(SMOOTH)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def _affine(sitk, fixed, moving, aligned: bool):
    start = sitk.AffineTransform(3)
    if aligned:
        size = [(n - 1) / 2 for n in fixed.GetSize()]
        start.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint(size))
    else:
        kind = sitk.CenteredTransformInitializerFilter
        start = sitk.AffineTransform(
            sitk.CenteredTransformInitializer(fixed, moving, start, kind.MOMENTS)
        )
    method = _method(sitk, 0.05)
    method.SetOptimizerAsGradientDescent(1.0, 200, 1e-6, 10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start


def _bspline(sitk, fixed, moving, affine):
    longest = max(n * s for n, s in zip(fixed.GetSize(), fixed.GetSpacing()))
    spacing = SPACING_MM * min(1.0, longest / BRAIN_MM)
    cells = [
        max(1, round(n * s / spacing / 4)) for n, s in zip(fixed.GetSize(), fixed.GetSpacing())
    ]
    spline = sitk.BSplineTransformInitializer(fixed, cells, order=3)
    method = _method(sitk, 0.05)
    method.SetOptimizerAsLBFGS2(numberOfIterations=100)
    method.SetMovingInitialTransform(affine)
    method.SetInitialTransformAsBSpline(spline, inPlace=True, scaleFactors=[1, 2, 4])
    method.Execute(fixed, moving)
    return spline


def _demons(sitk, fixed, moved):
    matcher = sitk.HistogramMatchingImageFilter()
    matcher.SetNumberOfHistogramLevels(1024)
    matcher.SetNumberOfMatchPoints(7)
    matcher.ThresholdAtMeanIntensityOn()
    moved = matcher.Execute(moved, fixed)
    field = None
    for shrink in SHRINK:
        images = [_smaller(sitk, image, shrink) for image in (fixed, moved)]
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(DEMONS_ITERATIONS)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(1.0)
        if field is None:
            field = demons.Execute(*images)
        else:
            field = sitk.Resample(field, images[0])
            field = demons.Execute(*images, field)
    return field


def _smaller(sitk, image, shrink: int):
    if shrink == 1:
        return image
    sigma = [0.5 * shrink * s for s in image.GetSpacing()]
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, sigma), [shrink] * 3)


if __name__ == "__main__":
    main(run)
