"""The report page: complete, self-contained, safe with hostile names, written all or nothing."""

import base64
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from support import make_grid

from DeepRegLib.card import ROWS, card_rows
from DeepRegLib.errors import FileFormatError
from DeepRegLib.pictures.panels import KINDS, Picture, comparison_pictures
from DeepRegLib.report_curve import objective_curve
from DeepRegLib.report_figures import linear_summary
from DeepRegLib.report_page import write_report
from DeepRegLib.report_template import COMPARISONS, MEANINGS

EVIL = "<script>alert(1)</script>\"'&$body${x}"
VOID = {"meta", "img", "br", "line", "rect", "circle", "polyline"}


class Outline(HTMLParser):
    """Checks the nesting and collects tags, attributes and text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def outline(path):
    parser = Outline()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def pictures():
    grid = make_grid("oblique", (20, 30, 16), (1.5, 0.9, 3.0))
    volume = np.random.default_rng(0).normal(100, 30, grid.shape)
    return comparison_pictures(volume, grid, volume, grid, volume, kinds=KINDS, pixels=40)


@pytest.fixture
def facts(pictures):
    grid = make_grid("oblique")
    card = {after: 0.5 for _, _, after, _ in ROWS}
    card |= {before: 0.25 for _, before, _, _ in ROWS if before}
    card |= {
        "verdict": "amber", "sentence": "The inverse is not exact.",
        "reasons": ["The inverse is not exact.", "The deformation folds."],
        "dice_per_label": {"1": 0.91, "17": 0.5},
        "deformation_mean_mm": 2.5, "deformation_max_mm": 8.72,
    }  # fmt: skip
    linear = np.eye(4)
    linear[:3, 3] = (5, -6, 7)
    described = {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm),
                 "voxel_to_ras": grid.voxel_to_ras.tolist(), "pixel_type": "int16"}  # fmt: skip
    return {
        "title": "Follow-up of the liver",
        "fixed_name": "CT March",
        "moving_name": "MR May",
        "pictures": pictures,
        "card_rows": card_rows(card),
        "verdict": card,
        "history": [
            {"stage": stage, "level": level, "iteration": n, "value": -level - 1 / (n + 1)}
            for stage in ("rigid", "greedy") for level in (0, 1) for n in range(9)
        ],
        "provenance": {
            "algorithm": "rigid+greedy", "preset": "fast", "device": "cpu", "fixed": described,
            "moving": described, "date": "2026-05-04T03:02:01+00:00", "remarks": ["Cropped."],
            "stages": [{"algorithm": "rigid", "parameters": {"samples": 40000}},
                       {"algorithm": "greedy", "parameters": {"factors": [4, 2], "step": 0.25}}],
        },
        "versions": {"DeepRegLib": "0.1.0"},
        "seconds": {"rigid": 1.5, "greedy": 2.0},
        "python_call": "import DeepRegLib\nresult = DeepRegLib.register('a', 'b')\n",
        "linear": linear,
    }  # fmt: skip


def test_everything_is_on_the_page(facts, tmp_path):
    path = write_report(tmp_path / "report.html", **facts)
    assert path == tmp_path / "report.html"
    page = outline(path)
    for text in (
        "Follow-up of the liver", "CT March", "MR May", "Check this result",
        "The inverse is not exact.", "The deformation folds.", "Landmark error, mean", "0.50 mm",
        "Label", "0.910", "R 5.00 mm, A -6.00 mm, S 7.00 mm", "8.72 mm", "Rotation in all",
        "https://doi.org/", "samples", "40000", "4, 2", "13 x 17 x 11 voxels, 1.5 x 0.8 x 3 mm",
        "2026-05-04 03:02:01 UTC", "Cropped.", "rigid 1.5 s", "DeepRegLib 0.1.0",
        "result = DeepRegLib.register('a', 'b')", "not a medical device", "Not a medical device.",
    ):  # fmt: skip
        assert text in page.text, text
    assert page.text.count("The inverse is not exact.") == 1
    assert ("section", {"class": "verdict amber"}) in page.tags
    headings = [name for name, _ in COMPARISONS.values()]
    assert all(name in page.text for name in headings)


def test_every_row_of_the_card_is_explained(facts, tmp_path):
    assert set(MEANINGS) == {name for name, *_ in ROWS}
    page = outline(write_report(tmp_path / "report.html", **facts))
    for name, *_ in ROWS:
        assert name in page.text and MEANINGS[name] in page.text


def test_pictures_are_inside_and_unchanged(facts, pictures, tmp_path):
    page = outline(write_report(tmp_path / "report.html", **facts))
    shown = [attrs for tag, attrs in page.tags if tag == "img"]
    data = [base64.b64decode(a["src"].removeprefix("data:image/png;base64,")) for a in shown]
    assert data == [p.png for p in pictures]
    assert [(int(a["width"]), int(a["height"])) for a in shown] == [
        (p.width, p.height) for p in pictures
    ]
    assert shown[0]["alt"] == "Blend, axial, Before"


def test_nothing_is_loaded_and_nothing_runs(facts, tmp_path):
    path = write_report(tmp_path / "report.html", **facts)
    page = outline(path)
    assert not {"script", "link", "iframe", "object", "form", "base"} & {t for t, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "data"):
                assert value.startswith("data:image/png;base64,")
    style = re.search(r"<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style
    policies = [a for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policies[0]["content"]


def poisoned(value):
    """Replaces every text by a hostile one, in keys as well."""
    if isinstance(value, str):
        return EVIL
    if isinstance(value, dict):
        return {(k if k in KEPT else EVIL): poisoned(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(poisoned(v) for v in value)
    if isinstance(value, Picture):
        return Picture(EVIL, EVIL, EVIL, value.png, value.width, value.height, value.pixel_mm)
    return value


KEPT = {
    "stages", "algorithm", "parameters", "fixed", "moving", "shape", "spacing_mm", "voxel_to_ras",
    "pixel_type", "date", "device", "remarks", "sentence", "reasons", "verdict", "dice_per_label",
    "stage", "level", "value", "preset",
}  # fmt: skip


def test_hostile_names_stay_text(facts, tmp_path):
    bad = {name: poisoned(value) for name, value in facts.items() if name != "linear"}
    path = write_report(tmp_path / "report.html", **bad, translate=lambda text: f"{text}{EVIL}")
    page = outline(path)
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags
    assert "<script" not in path.read_text(encoding="utf-8")
    assert "<script>alert(1)</script>\"'&$body${x}" in page.text
    for _, attributes in page.tags:
        assert set(attributes) <= {
            "lang", "charset", "name", "content", "http-equiv", "class", "style", "src", "width",
            "height", "alt", "xmlns", "viewbox", "role", "aria-label", "x", "y", "x1", "x2", "y1",
            "y2", "cx", "cy", "r", "fill", "stroke", "stroke-width", "stroke-dasharray",
            "stroke-linejoin", "points", "text-anchor", "font-family", "font-size", "font-weight",
        }  # fmt: skip
        assert "script" not in attributes.get("style", "")
        assert "<" not in attributes.get("class", "")


def test_a_page_of_almost_nothing(tmp_path):
    path = write_report(
        tmp_path / "report.html", title="T", fixed_name="F", moving_name="M", pictures=[],
        card_rows=[], verdict={}, history=[], provenance={}, versions=None, seconds=None,
        python_call="",
    )  # fmt: skip
    page = outline(path)
    assert "Not judged" in page.text and "Not a medical device" in page.text
    assert not {"img", "svg", "table", "pre"} & {tag for tag, _ in page.tags}


@pytest.mark.parametrize(
    ("color", "headline"), [("green", "Good"), ("red", "Do not use this result")]
)
def test_verdicts(facts, tmp_path, color, headline):
    facts["verdict"] = {"verdict": color, "sentence": "Because.", "reasons": []}
    page = outline(write_report(tmp_path / "report.html", **facts))
    assert ("section", {"class": f"verdict {color}"}) in page.tags
    assert f"{headline} Because." in page.text


def test_words_are_translated(facts, tmp_path):
    asked = []

    def translate(text):
        asked.append(text)
        return text.upper()

    page = outline(write_report(tmp_path / "report.html", **facts, translate=translate))
    assert "QUALITY" in page.text and "Quality" not in page.text
    assert "Quality" in asked and "CT March" not in asked
    assert "CT March" in page.text


def test_written_all_or_nothing(facts, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(FileFormatError, match="No space"):
        write_report(path, **facts)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_report(path, **facts)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileFormatError, match="another"):
        write_report(tmp_path / "absent" / "report.html", **facts)


# The curve ---------------------------------------------------------------------------------------


def test_curve_has_a_line_for_each_level():
    history = [
        {"stage": stage, "level": level, "value": math.exp(-n / 5) + level}
        for stage, levels in (("rigid", 2), ("greedy", 3))
        for level in range(levels)
        for n in range(20)
    ]
    drawing = objective_curve(history)
    lines = re.findall(r'<polyline points="([^"]*)"', drawing)
    assert len(lines) == 5
    assert drawing.count("stroke-dasharray") == 3
    for line in lines:
        points = np.array([[float(v) for v in p.split(",")] for p in line.split()])
        assert (np.diff(points[:, 0]) > 0).all()
        # The value falls, so the line goes down, which is up in numbers.
        assert (np.diff(points[:, 1]) >= 0).all()
        assert points.min() >= 0 and points[:, 0].max() <= 900 and points[:, 1].max() <= 170
    assert ">rigid<" in drawing and ">40<" in drawing and ">60<" in drawing


def test_curve_of_odd_histories():
    assert objective_curve([]) == ""
    assert objective_curve([{"value": math.nan}, {"value": None}, {"value": "x"}]) == ""
    assert "circle" in objective_curve([{"value": 1.0}])
    flat = objective_curve([{"value": 1.0}] * 5)
    assert "nan" not in flat and "inf" not in flat and "<polyline" in flat
    long = objective_curve([{"value": float(n)} for n in range(10000)])
    assert len(re.findall(r"\d,\d", long)) <= 320
    last = re.search(r'points="([^"]*)"', long).group(1).split()[-1]
    assert float(last.split(",")[0]) == pytest.approx(900 - 12, abs=0.2)
    many = objective_curve([{"stage": f"s{n}", "value": 1.0 * k} for n in range(9) for k in (1, 2)])
    assert 'viewBox="0 0 1800 210"' in many


# The linear part ---------------------------------------------------------------------------------


def turned(r, a, s):
    """Rotation about R, then A, then S."""
    r, a, s = np.radians((r, a, s))
    about_r = np.array([[1, 0, 0], [0, np.cos(r), -np.sin(r)], [0, np.sin(r), np.cos(r)]])
    about_a = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_s = np.array([[np.cos(s), -np.sin(s), 0], [np.sin(s), np.cos(s), 0], [0, 0, 1]])
    return about_s @ about_a @ about_r


def test_linear_summary():
    center = np.array([10.0, -30.0, 50.0])
    rotation = turned(10, -20, 30)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ np.diag([1.1, 0.9, 1.3])
    matrix[:3, 3] = center + (1, 2, 3) - matrix[:3, :3] @ center
    found = linear_summary(matrix, center)
    assert found["rotation_deg"] == pytest.approx((10, -20, 30))
    assert found["translation_mm"] == pytest.approx((1, 2, 3))
    assert found["scale"] == pytest.approx((1.1, 0.9, 1.3))
    assert found["shear"][0] == pytest.approx(0, abs=1e-9)
    assert found["volume"][0] == pytest.approx(1.1 * 0.9 * 1.3)
    angle = np.degrees(np.arccos((np.trace(rotation) - 1) / 2))
    assert found["angle_deg"][0] == pytest.approx(angle)


def test_linear_summary_of_special_maps():
    same = linear_summary(np.eye(4))
    assert same["angle_deg"] == (0,) and same["scale"] == pytest.approx((1, 1, 1))
    half = np.eye(4)
    half[:3, :3] = turned(0, 0, 180)
    assert linear_summary(half)["angle_deg"][0] == pytest.approx(180)
    mirror = linear_summary(np.diag([-1.0, 1.0, 1.0, 1.0]))
    assert mirror["volume"][0] == pytest.approx(-1)
    assert np.isfinite([v for values in mirror.values() for v in values]).all()
