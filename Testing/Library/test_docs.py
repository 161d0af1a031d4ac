"""The pages of documentation agree with the code and with each other."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import DeepRegLib
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.itk_transform import write_transform

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_page_of_algorithms_is_up_to_date():
    place = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
    make_docs = importlib.util.module_from_spec(place)
    place.loader.exec_module(make_docs)
    written = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert written == make_docs.page(), "run `make docs`"


def test_the_version_to_cite_is_the_version_of_the_library():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)$", citation, re.M).group(1) == DeepRegLib.__version__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing


def test_the_example_of_the_conventions_is_right(tmp_path):
    text = " ".join((ROOT / "docs" / "conventions.md").read_text(encoding="utf-8").split())
    for part in ("(first column of the matrix: −2, 0, 0)", "u = (3, 0, 0)", "R = −6 mm",
                 "is (−6, 0, 0) (RAS", "it is (6, 0, 0) (LPS)", "6 mm to the *right*"):  # fmt: skip
        assert part in text, "the example changed: change this test with it"

    grid = Grid((9, 8, 7), np.diag([-2.0, 1.0, 1.0, 1.0]))
    displacement = torch.zeros(1, 3, *grid.shape)
    displacement[:, 0] = 3.0
    transform = Transform(field=Field(displacement, grid))
    assert transform.field.to_ras_mm()[0, :, 4, 4, 3].tolist() == [-6.0, 0.0, 0.0]
    write_transform(transform, tmp_path / "field.nrrd", grid)
    image = sitk.ReadImage(str(tmp_path / "field.nrrd"))
    assert image[tuple(n // 2 for n in image.GetSize())] == pytest.approx((6.0, 0.0, 0.0))
    # A point of the moving image goes through the inverse: to the right, which is +R.
    point = grid.to_ras([[4.0, 4.0, 3.0]])
    assert transform.map_points_ras(point + [6.0, 0.0, 0.0]) == pytest.approx(point)
