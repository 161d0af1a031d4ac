"""Makes Resources/SampleData: one person's brain and an average brain, both from packages.

The person is Colin27 (Debian package ``mricron-data``), the average MNI152 2009a (in the PyPI
package ``nilearn``). Both packages hold the brain without the head. The terms are in
``Resources/SampleData/LICENSES.md``, which this script checks to be there.

Needs Debian's ``apt-get`` and ``dpkg`` and a network; the result is part of the repository, so
only a change of this script calls for a run:

    .venv/bin/python tools/make_sample_data.py
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

TARGET = Path(__file__).resolve().parents[1] / "Resources" / "SampleData"
COLIN = "usr/share/mricron/templates/ch2bet.nii.gz"
MNI = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
#: Background kept around the brains, mm.
MARGIN_MM = 9.0
#: Voxels of the average, mm. The 1 mm original is smoother than that.
AVERAGE_SPACING_MM = 1.5
#: Where Colin27 lies in the scanner: turned about the x, y and z axis, and shifted (LPS).
POSE_DEG = (9.0, -6.0, 12.0)
POSE_SHIFT_MM = (14.0, -22.0, 31.0)


def main() -> int:
    """Makes the files and says what they are."""
    if not (TARGET / "LICENSES.md").is_file():
        print(f"The terms of the data are missing: {TARGET / 'LICENSES.md'}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        colin, average = fetch(Path(folder))
        write(posed(cropped(oriented(colin))), "Colin27_T1_brain.nii.gz")
        write(coarser(cropped(average), AVERAGE_SPACING_MM), "MNI152_T1_brain.nii.gz")
    return 0


def fetch(folder: Path) -> tuple[sitk.Image, sitk.Image]:
    """Gets both packages and reads one image of each."""
    run("apt-get", "download", "mricron-data", folder=folder)
    run("dpkg", "-x", str(next(folder.glob("mricron-data*.deb"))), "debian", folder=folder)
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "nilearn==0.14.1")
    run(*pip, folder=folder)
    with zipfile.ZipFile(next(folder.glob("nilearn*.whl"))) as wheel:
        wheel.extract(MNI, folder)
    return sitk.ReadImage(str(folder / "debian" / COLIN)), sitk.ReadImage(str(folder / MNI))


def run(*command: str, folder: Path) -> None:
    """Runs a command in a folder."""
    subprocess.run(command, cwd=folder, check=True)


def oriented(image: sitk.Image) -> sitk.Image:
    """Returns the image stored as a sagittal scan is: axes to posterior, inferior, left."""
    return sitk.DICOMOrient(image, "PIL")


def posed(image: sitk.Image) -> sitk.Image:
    """Returns the image with a header that says how the head lay; no voxel changes."""
    rotation = sitk.Euler3DTransform()
    rotation.SetRotation(*[math.radians(angle) for angle in POSE_DEG])
    turn = np.array(rotation.GetMatrix()).reshape(3, 3)
    result = sitk.Image(image)
    result.SetDirection((turn @ np.array(image.GetDirection()).reshape(3, 3)).reshape(-1).tolist())
    result.SetOrigin((turn @ image.GetOrigin() + POSE_SHIFT_MM).tolist())
    return result


def cropped(image: sitk.Image) -> sitk.Image:
    """Returns the block around everything above zero, with a margin."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(image > 0)
    start, size = np.array(shape.GetBoundingBox(1)).reshape(2, 3)
    margin = np.round(MARGIN_MM / np.array(image.GetSpacing())).astype(int)
    low = np.maximum(start - margin, 0)
    high = np.minimum(start + size + margin, image.GetSize())
    return sitk.RegionOfInterest(image, (high - low).tolist(), low.tolist())


def coarser(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Returns the image with larger voxels, smoothed before, over the same extent."""
    factor = spacing_mm / np.array(image.GetSpacing())
    size = np.ceil(np.array(image.GetSize()) / factor).astype(int)
    smooth = sitk.SmoothingRecursiveGaussian(
        sitk.Cast(image, sitk.sitkFloat32), (0.4 * np.sqrt(factor**2 - 1)).tolist()
    )
    # Outer edges stay: the first center moves by half a new minus half an old voxel.
    origin = image.TransformContinuousIndexToPhysicalPoint(((factor - 1) / 2).tolist())
    resampled = sitk.Resample(
        smooth, size.tolist(), sitk.Transform(), sitk.sitkLinear, origin,
        [spacing_mm] * 3, image.GetDirection(),
    )  # fmt: skip
    return sitk.Cast(sitk.Clamp(sitk.Round(resampled), sitk.sitkFloat32, 0, 255), sitk.sitkUInt8)


def write(image: sitk.Image, name: str) -> None:
    """Writes a file and prints its facts."""
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    path = TARGET / name
    sitk.WriteImage(image, str(path), useCompression=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    size, spacing = image.GetSize(), [round(s, 3) for s in image.GetSpacing()]
    print(f"{name}: {size} voxels of {spacing} mm, {path.stat().st_size / 1e6:.2f} MB, {digest}")


if __name__ == "__main__":
    sys.exit(main())
