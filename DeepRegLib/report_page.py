"""The report of a registration as one HTML file, to read, print and send.

Everything is inside the file: styles, pictures and the drawing of the objective. Nothing is loaded
from elsewhere and nothing runs in it. Needs neither torch nor Slicer.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from . import registry
from .errors import DeepRegError, FileFormatError
from .report_curve import objective_curve
from .report_figures import (
    as_text,
    axes_text,
    center_of,
    date_text,
    duration_text,
    image_text,
    linear_summary,
    stages_of,
)
from .report_template import COMPARISONS, DISCLAIMER, MEANINGS, PAGE, STYLE

if TYPE_CHECKING:
    from .pictures.panels import Picture

Translate = Callable[[str], str]

#: Height of a row of pictures that leaves room for two comparisons on a printed page.
_ROW_MM = 54.0
_PAGE_MM = 182.0
#: Rows of the card that stand right below the verdict.
_FACTS = (
    "Landmark error, mean",
    "Dice, mean over labels",
    "Correlation (NCC)",
    "Normalized mutual information",
    "Folded voxels",
    "Deformation, maximum",
)
_HEADLINES = {
    "green": "Good",
    "amber": "Check this result",
    "red": "Do not use this result",
}


def write_report(
    path: str | Path,
    *,
    title: str,
    fixed_name: str,
    moving_name: str,
    pictures: Sequence[Picture],
    card_rows: Sequence[tuple[str, str, str]],
    verdict: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    versions: Mapping[str, str] | None,
    seconds: float | Mapping[str, float] | None,
    python_call: str,
    linear: ArrayLike | None = None,
    translate: Translate = str,
) -> Path:
    """Writes the report; the file appears only when it is complete.

    Args:
        path: Where to write, such as ``report.html``.
        title: Headline.
        fixed_name: What the fixed image is called.
        moving_name: What the moving image is called.
        pictures: See `pictures.panels.comparison_pictures`; may be empty.
        card_rows: Measure, before, after, as `card.card_rows` gives them.
        verdict: ``verdict`` (green, amber, red), ``sentence`` and ``reasons``; best the whole
            quality card, whose further figures are then shown, too.
        history: Course of the objective: entries with ``stage``, ``level`` and ``value``.
        provenance: As `pipeline.run` gives it; anything may be missing.
        versions: Program and version.
        seconds: Time in all, or by stage.
        python_call: Lines of Python that repeat the run.
        linear: 4 x 4 matrix, fixed to moving RAS mm, for the summary of the transform.
        translate: Gives the page's own words in the user's language.

    Returns:
        The path.

    Raises:
        FileFormatError: If the file cannot be written.
    """
    page = _Page(translate)
    body = [
        page.head(title, fixed_name, moving_name, provenance, verdict.get("seconds") or seconds),
        page.verdict(verdict),
        page.facts(card_rows),
        page.comparisons(pictures),
        page.quality(card_rows),
        page.labels(verdict),
        page.transform(linear, verdict, provenance),
        page.curve(history),
        page.method(provenance),
        page.settings(provenance),
        page.origin(provenance, versions, seconds),
        page.repeat(python_call),
        page.foot(),
    ]
    text = PAGE.substitute(
        title=_e(title),
        style=STYLE.strip(),
        body="\n".join(part for part in body if part),
        language="en" if translate is str else "",
    )
    return _write(Path(path), text)


@dataclass(frozen=True)
class _Page:
    """The parts of the page, each as HTML; empty where there is nothing to say."""

    translate: Translate

    def head(
        self,
        title: str,
        fixed: str,
        moving: str,
        provenance: Mapping[str, Any],
        seconds: float | Mapping[str, float] | None,
    ) -> str:
        known = [as_text(provenance.get("algorithm")), as_text(provenance.get("preset")),
                 duration_text(seconds), date_text(provenance.get("date"))]  # fmt: skip
        facts = " &middot; ".join(_e(fact) for fact in known if fact)
        return (
            f"<header><h1>{_e(title)}</h1>"
            f'<p class="pair">{self.t("Fixed")}: <b>{_e(fixed)}</b><br>'
            f"{self.t('Moving')}: <b>{_e(moving)}</b><br>"
            f'<span class="quiet">{facts}</span></p></header>'
        )

    def verdict(self, verdict: Mapping[str, Any]) -> str:
        color = verdict.get("verdict")
        known = color if color in _HEADLINES else "unknown"
        headline = _HEADLINES.get(known, "Not judged")
        sentence = as_text(verdict.get("sentence"))
        others = [as_text(r) for r in verdict.get("reasons") or () if r != verdict.get("sentence")]
        items = "".join(f"<li>{_e(reason)}</li>" for reason in others)
        return (
            f'<section class="verdict {known}"><strong>{self.t(headline)}</strong>{_e(sentence)}'
            f"{f'<ul>{items}</ul>' if items else ''}</section>"
        )

    def facts(self, rows: Sequence[tuple[str, str, str]]) -> str:
        found = {name: (before, after) for name, before, after in rows}
        items = []
        for name in _FACTS:
            if name in found:
                before, after = (_e(text) for text in found[name])
                value = f"{before} &rarr; {after}" if before and before != "-" else after
                items.append(f"<li>{self.t(name)}<b>{value}</b></li>")
        return f'<ul class="facts">{"".join(items)}</ul>' if items else ""

    def comparisons(self, pictures: Sequence[Picture]) -> str:
        kinds = list(dict.fromkeys(picture.kind for picture in pictures))
        blocks = [self._comparison(kind, [p for p in pictures if p.kind == kind]) for kind in kinds]
        if not blocks:
            return ""
        remark = self.t("The patient's right (R) is on the left of axial and coronal pictures; "
                        "sagittal pictures look from the left, anterior (A) on the left. All "
                        "pictures have the same scale.")  # fmt: skip
        head = f'<section><h2>{self.t("Before and after")}</h2><p class="quiet">{remark}</p>'
        return head + "".join(blocks) + "</section>"

    def _comparison(self, kind: str, pictures: Sequence[Picture]) -> str:
        name, legend = COMPARISONS.get(kind, (kind, ""))
        rows = list(dict.fromkeys(p.when for p in pictures))
        first = [p for p in pictures if p.when == rows[0]]
        columns = " ".join(f"minmax(0, {p.width}fr)" for p in first)
        width = sum(p.width for p in first) / max(p.height for p in first) * _ROW_MM
        cells = ["<span></span>"]
        cells += [f'<span class="plane">{self.t(p.plane.capitalize())}</span>' for p in first]
        for when in rows:
            label = self.t(when.capitalize())
            cells.append(f'<span class="when">{label}</span>')
            cells += [
                f'<img src="data:image/png;base64,{_base64(p.png)}" width="{p.width}" '
                f'height="{p.height}" alt="{self.t(name)}, {self.t(p.plane)}, {label}">'
                for p in pictures
                if p.when == when
            ]
        style = (
            f"grid-template-columns: 1.5em {columns}; --print-width: {min(width, _PAGE_MM):.0f}mm"
        )
        return (
            f'<div class="comparison"><h3>{self.t(name)}</h3><p class="quiet">{self.t(legend)}</p>'
            f'<div class="planes" style="{style}">{"".join(cells)}</div></div>'
        )

    def quality(self, rows: Sequence[tuple[str, str, str]]) -> str:
        if not rows:
            return ""
        lines = [
            f'<tr><td>{self.t(name)}</td><td class="number">{_e(before)}</td>'
            f'<td class="number">{_e(after)}</td>'
            f'<td class="meaning">{self.t(MEANINGS.get(name, ""))}</td></tr>'
            for name, before, after in rows
        ]
        head = (
            f'<tr><th>{self.t("Measure")}</th><th class="number">{self.t("Before")}</th>'
            f'<th class="number">{self.t("After")}</th><th>{self.t("What it means")}</th></tr>'
        )
        return self._section("Quality", f'<table class="quality">{head}{"".join(lines)}</table>')

    def labels(self, card: Mapping[str, Any]) -> str:
        scores = card.get("dice_per_label")
        if not isinstance(scores, Mapping) or not scores:
            return ""
        rows = [(str(label), f"{score:.3f}") for label, score in scores.items()]
        table = self._table(("Label", "Dice after"), rows, numbers=True)
        return self._section("Overlap of each label", table)

    def transform(
        self, linear: ArrayLike | None, card: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> str:
        rows: list[tuple[str, str]] = []
        if linear is not None:
            center = center_of(provenance.get("fixed"))
            found = linear_summary(linear, (0, 0, 0) if center is None else center)
            where = ("Translation of the middle of the fixed image" if center is not None
                     else "Translation of the origin")  # fmt: skip
            rows += [
                ("Rotation in all", f"{found['angle_deg'][0]:.2f}°"),
                ("Rotation about the R, A and S axis", axes_text(found["rotation_deg"], "{:.2f}°")),
                (where, axes_text(found["translation_mm"], "{:.2f} mm")),
                ("Scale along R, A and S", axes_text(found["scale"], "{:.4f}")),
                ("Largest shear", f"{found['shear'][0]:.4f}"),
                ("Volume factor", f"{found['volume'][0]:.4f}"),
            ]
        for name, key in (("Deformation, mean", "deformation_mean_mm"),
                          ("Deformation, maximum", "deformation_max_mm"),
                          ("Displacement in all, mean", "displacement_mean_mm"),
                          ("Displacement in all, maximum", "displacement_max_mm")):  # fmt: skip
            if isinstance(card.get(key), (int, float)):
                rows.append((name, f"{card[key]:.2f} mm"))
        if not rows:
            return ""
        remark = self.t("From the fixed to the moving image, right, anterior and superior being "
                        "positive; the bending comes first, the linear part after it.")  # fmt: skip
        return self._section("Transform", self._table((), rows) + f'<p class="quiet">{remark}</p>')

    def curve(self, history: Sequence[Mapping[str, Any]]) -> str:
        drawing = objective_curve(history, self.translate)
        if not drawing:
            return ""
        remark = self.t(
            "What the optimization makes small, for each stage over its iterations. Dashed lines "
            "part the resolutions, whose values cannot be compared. Where several starts are tried "
            "in turn the line jumps."
        )
        return self._section("Course", f'{drawing}<p class="quiet">{remark}</p>')

    def method(self, provenance: Mapping[str, Any]) -> str:
        found = []
        for stage in stages_of(provenance):
            with contextlib.suppress(DeepRegError):
                found.append(registry.spec(as_text(stage.get("algorithm"))))
        if not found:
            return ""
        texts = [f"<p><b>{self.t(s.title)}.</b> {self.t(s.summary)}</p>" for s in found]
        sources = dict.fromkeys(reference for s in found for reference in s.references)
        items = "".join(
            f"<li>{_e(r.authors)} ({r.year}). {_e(r.title)}. {_e(r.venue)}. {_e(r.link)}</li>"
            for r in sources
        )
        references = f'<ol class="references quiet">{items}</ol>' if items else ""
        return self._section("Method", "".join(texts) + references)

    def settings(self, provenance: Mapping[str, Any]) -> str:
        tables = []
        for stage in stages_of(provenance):
            parameters = stage.get("parameters")
            if isinstance(parameters, Mapping) and parameters:
                rows = [(str(key), as_text(value)) for key, value in parameters.items()]
                name = _e(as_text(stage.get("algorithm")))
                tables.append(f"<div><h3>{name}</h3>{self._table((), rows)}</div>")
        content = f'<div class="settings">{"".join(tables)}</div>'
        return self._section("Settings", content) if tables else ""

    def origin(
        self,
        provenance: Mapping[str, Any],
        versions: Mapping[str, str] | None,
        seconds: float | Mapping[str, float] | None,
    ) -> str:
        images = (("Fixed image", "fixed"), ("Moving image", "moving"))
        rows = [(name, image_text(provenance.get(key))) for name, key in images]
        for name, key in (("Device", "device"), ("Resolution", "resolution"),
                          ("Interpolation", "interpolation"), ("Fill value", "fill"),
                          ("Remarks", "remarks")):  # fmt: skip
            rows.append((name, as_text(provenance.get(key))))
        rows.append(("Date", date_text(provenance.get("date"))))
        if provenance.get("stopped_early"):
            rows.append(("Stopped early", self.translate("yes, by the user")))
        if isinstance(seconds, Mapping):
            rows.append(("Time", ", ".join(f"{k} {v:.1f} s" for k, v in seconds.items())))
        known = versions or provenance.get("versions") or {}
        rows.append(("Versions", ", ".join(f"{k} {v}" for k, v in known.items())))
        rows = [row for row in rows if row[1]]
        return self._section("Origin", self._table((), rows)) if rows else ""

    def repeat(self, python_call: str) -> str:
        if not python_call.strip():
            return ""
        lead = self.t("These lines repeat the run in Python, or in Slicer's Python console:")
        content = f'<div class="whole"><p>{lead}</p><pre>{_e(python_call)}</pre></div>'
        return self._section("How to repeat it", content)

    def foot(self) -> str:
        return f"<footer><b>{self.t('Not a medical device.')}</b> {self.t(DISCLAIMER)}</footer>"

    def t(self, text: str) -> str:
        """Returns a text of the page translated and safe in HTML."""
        return _e(self.translate(text)) if text else ""

    def _section(self, title: str, content: str) -> str:
        return f"<section><h2>{self.t(title)}</h2>{content}</section>"

    def _table(
        self, head: Sequence[str], rows: Iterable[tuple[str, str]], numbers: bool = False
    ) -> str:
        kind = ' class="number"' if numbers else ""
        lines = [f"<tr><td>{self.t(name)}</td><td{kind}>{_e(value)}</td></tr>"
                 for name, value in rows]  # fmt: skip
        if head:
            lines.insert(0, f"<tr><th>{self.t(head[0])}</th><th{kind}>{self.t(head[1])}</th></tr>")
        return f'<table class="narrow">{"".join(lines)}</table>'


def _e(text: str) -> str:
    return escape(str(text), quote=True)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _write(path: Path, text: str) -> Path:
    """Writes beside the file first, so that nobody ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            temporary.write_text(text, encoding="utf-8", newline="\n")
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise FileFormatError(
            f"The report cannot be written to '{path}' ({error.strerror or error}); choose another "
            "place."
        ) from error
    return path
