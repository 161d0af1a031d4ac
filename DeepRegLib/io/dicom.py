"""A folder that holds one DICOM series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import FileFormatError, InputError


def read_dicom_series(folder: Path) -> sitk.Image:
    """Reads the one DICOM series of a folder.

    Raises:
        FileFormatError: If the folder holds no series, several, or one that cannot be read.
        InputError: If slices are missing or unevenly spaced.
    """
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise FileFormatError(f"The folder '{folder}' holds no DICOM images; give an image file.")
    if len(series) > 1:
        raise FileFormatError(
            f"The folder '{folder}' holds {len(series)} DICOM series; put the files of one series "
            "into a folder of their own."
        )
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise FileFormatError(
            f"The DICOM series in '{folder}' cannot be read; one of its files is damaged."
        ) from error
    _check_positions(reader, image, folder)
    return image


def _check_positions(reader: sitk.ImageSeriesReader, image: sitk.Image, folder: Path) -> None:
    count = len(reader.GetFileNames())
    tag = "0020|0032"
    if count < 3 or not all(reader.HasMetaDataKey(i, tag) for i in range(count)):
        return
    positions = [[float(x) for x in reader.GetMetaData(i, tag).split("\\")] for i in range(count)]
    normal = np.array(image.GetDirection()).reshape(3, 3)[:, 2]
    steps = np.abs(np.diff(np.array(positions) @ normal))
    usual = float(np.median(steps))
    worst = float(steps[np.argmax(np.abs(steps - usual))])
    if abs(worst - usual) > 0.02 * usual + 0.01:
        raise InputError(
            f"The DICOM series in '{folder}' has slices {usual:.3g} mm apart and elsewhere "
            f"{worst:.3g} mm: slices are missing or the gantry steps unevenly. Import it in "
            "Slicer, which corrects such series, and save it as .nrrd."
        )
