"""Makes the pictures of the sample data for Slicer's module Sample Data, 260 x 280 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from DeepRegLib.io.images import read_image
from DeepRegLib.pictures.compose import red_cyan, to_gray
from DeepRegLib.pictures.panels import window_of
from DeepRegLib.pictures.png import png_bytes
from DeepRegLib.pictures.slices import cut, planes_through

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 260, 280
FILES = {"MNI152": "MNI152_T1_brain.nii.gz", "Colin27": "Colin27_T1_brain.nii.gz"}


def main() -> None:
    """Writes one picture for each volume and one for the pair."""
    images = {n: read_image(ROOT / "Resources" / "SampleData" / f) for n, f in FILES.items()}
    grays = {}
    for name, image in images.items():
        array, grid = image.numpy(), images["MNI152"].grid
        plane = planes_through(grid, pixel_mm=0.75)["axial"]
        grays[name] = to_gray(cut(array, image.grid, plane), *window_of(array))
        _write(name, np.repeat(grays[name][..., None], 3, axis=-1))
    _write("BrainPair", red_cyan(grays["MNI152"], grays["Colin27"]))


def _write(name: str, picture: np.ndarray) -> None:
    framed = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    height, width = (min(a, b) for a, b in zip(picture.shape, (HEIGHT, WIDTH)))
    top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
    y, x = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    framed[top : top + height, left : left + width] = picture[y : y + height, x : x + width]
    path = ROOT / "DeepReg" / "Resources" / "Icons" / f"{name}.png"
    path.write_bytes(png_bytes(framed))


if __name__ == "__main__":
    main()
