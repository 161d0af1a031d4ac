"""Registers one pair with elastix, through itk-elastix.

Variants:

- ``brain-mi``: Par0035 of the elastix Model Zoo for pairs of people (Hammers brains, T1 MRI;
  similarity, then a B-spline of 5 mm on mutual information with adaptive stochastic gradient
  descent), files in https://github.com/SuperElastix/ElastixModelZoo/tree/master/models/Par0035:
  Par0035.Hammers.MI.si.0 and Par0035.Hammers.MI.bs.1.FASGD.
- ``default-mi``: elastix's default maps rigid, affine and bspline (4 levels, 10 mm, MI), but
  without the bending energy, with which itk-elastix 0.25.4 crashed.
- ``default-ncc``: the same on normalized correlation.

Lengths in mm are for brains; on smaller objects (mouse skulls) they shrink with the image.
"""

from __future__ import annotations

from importlib.metadata import version

from protocol import Job, Outcome, Stopwatch, main, peak_memory_mb

_BOTH = {
    "FixedInternalImagePixelType": "float", "MovingInternalImagePixelType": "float",
    "FixedImageDimension": 3, "MovingImageDimension": 3,
    "Registration": "MultiResolutionRegistration",
    "FixedImagePyramid": "FixedSmoothingImagePyramid",
    "MovingImagePyramid": "MovingSmoothingImagePyramid",
    "Interpolator": "BSplineInterpolator", "BSplineInterpolationOrder": 1,
    "ResampleInterpolator": "FinalBSplineInterpolator", "FinalBSplineInterpolationOrder": 3,
    "Resampler": "DefaultResampler", "DefaultPixelValue": 0,
    "Metric": "AdvancedMattesMutualInformation", "NumberOfHistogramBins": 32,
    "FixedKernelBSplineOrder": 1, "MovingKernelBSplineOrder": 3,
    "UseFastAndLowMemoryVersion": "true",
    "Optimizer": "AdaptiveStochasticGradientDescent", "MaximumNumberOfIterations": 500,
    "AutomaticParameterEstimation": "true", "UseAdaptiveStepSizes": "true",
    "ASGDParameterEstimationMethod": "DisplacementDistribution",
    "NumberOfResolutions": 3, "ImagePyramidSchedule": (4, 4, 4, 2, 2, 2, 1, 1, 1),
    "HowToCombineTransforms": "Compose", "ErodeMask": "false", "UseDirectionCosines": "true",
    "ImageSampler": "RandomCoordinate", "NewSamplesEveryIteration": "true",
    "WriteResultImage": "false",
}  # fmt: skip
_SIMILARITY = {
    "Transform": "SimilarityTransform", "NumberOfSpatialSamples": 2000,
    "AutomaticTransformInitialization": "true", "AutomaticScalesEstimation": "true",
}  # fmt: skip
_SPLINE = {
    "Transform": "BSplineTransform", "NumberOfSpatialSamples": 5000,
    "FinalGridSpacingInPhysicalUnits": (5.0, 5.0, 5.0), "GridSpacingSchedule": (4.0, 2.0, 1.0),
    "MaximumStepLength": 0.5, "SP_A": (10.0, 10.0, 10.0), "UseRandomSampleRegion": "false",
}  # fmt: skip
#: Size in mm of the brains that lengths in mm are meant for, to scale them to other objects.
_BRAIN_MM = 180.0


def run(job: Job) -> Outcome:
    """Runs elastix and has transformix evaluate the result on the fixed grid."""
    import itk
    import numpy as np
    import SimpleITK as sitk

    fixed, moving = (itk.imread(path, itk.F) for path in (job.fixed, job.moving))
    grid = sitk.ReadImage(job.fixed)
    longest = max(n * s for n, s in zip(grid.GetSize(), grid.GetSpacing()))
    maps = _maps(itk, job, min(1.0, longest / _BRAIN_MM))
    parameters = itk.ParameterObject.New()
    for one in maps:
        parameters.AddParameterMap(one)
    watch = Stopwatch()
    with watch.step("registration"):
        _, found = itk.elastix_registration_method(
            fixed, moving, parameter_object=parameters, number_of_threads=job.threads,
            log_to_console=False, output_directory=str(job.out),
        )  # fmt: skip
    peak = peak_memory_mb()
    vectors = itk.transformix_deformation_field(moving, found)
    forward = sitk.GetImageFromArray(np.asarray(vectors, np.float32), isVector=True)
    forward.CopyInformation(grid)
    used = {f"{i} {one['Transform'][0]}": " ".join(one["Metric"]) for i, one in enumerate(maps)}
    return Outcome(
        forward, f"itk-elastix {version('itk-elastix')}", watch.seconds, peak, settings=used
    )


def _maps(itk, job: Job, scale: float) -> list[dict[str, list[str]]]:
    """The parameter maps of a variant."""
    if job.variant == "brain-mi":
        maps = [_texts({**_BOTH, **_SIMILARITY}), _texts({**_BOTH, **_SPLINE})]
        lengths = {"FinalGridSpacingInPhysicalUnits": 5.0, "MaximumStepLength": 0.5}
    else:
        default = itk.ParameterObject.New().GetDefaultParameterMap
        maps = [dict(default(name)) for name in ("rigid", "affine", "bspline")]
        lengths = {"FinalGridSpacingInPhysicalUnits": 10.0}
        metric = {"default-mi": "AdvancedMattesMutualInformation",
                  "default-ncc": "AdvancedNormalizedCorrelation"}[job.variant]  # fmt: skip
        for one in maps:
            one["WriteResultImage"] = ["false"]
            # The default B-spline has a second metric, the bending energy. With it this version
            # of elastix crashes (segmentation fault) as soon as the B-spline begins.
            one["Metric"], one["Registration"] = [metric], ["MultiResolutionRegistration"]
    for name, value in lengths.items():
        count = 3 if name.startswith("Final") else 1
        maps[-1][name] = [str(value * scale)] * count
    if job.aligned:
        maps[0]["AutomaticTransformInitialization"] = ["false"]
    return maps


def _texts(values: dict) -> dict[str, list[str]]:
    """Values as elastix wants them: lists of texts."""
    return {
        key: [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
        for key, value in values.items()
    }


if __name__ == "__main__":
    main(run)
