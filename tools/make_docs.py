"""Writes docs/algorithms.md from the specs of the algorithms. Usage: python tools/make_docs.py."""

from __future__ import annotations

from pathlib import Path

from DeepRegLib import registry
from DeepRegLib.spec import PRESETS, AlgorithmSpec, Parameter, Value

TARGET = Path(__file__).resolve().parents[1] / "docs" / "algorithms.md"
HEAD = """# Algorithms

Made from the algorithm files by `make docs`; edit those, not this page. Run one with
`python -m DeepRegLib register FIXED MOVING --algorithm KEY`, several joined by `+`; set a parameter
with `--set NAME=VALUE` or, for one stage only, `--set KEY.NAME=VALUE`.

| key | name | family | transform | contrasts | runs after |
|---|---|---|---|---|---|
"""
JUDGES = """
## Systems that judge a registration

They register nothing, so no list of algorithms shows them; they are trained as algorithms are, with
`python -m DeepRegLib train --algorithm KEY` or in the panel's section Training. See
[check.md](check.md).
"""


def page() -> str:
    """Returns the whole page."""
    specs = list(registry.specs().values())
    rows = [
        f"| [`{s.key}`](#{s.title.lower().replace(' ', '-')}) | {s.title} | {s.family} | "
        f"{s.transform} | {', '.join(s.modalities)} | {' + '.join(s.stages) or '–'} |"
        for s in specs
    ]
    judges = list(registry.estimators().values())
    judging = [JUDGES, *(_section(s, "###") for s in judges)] if judges else []
    sections = [_section(s) for s in specs] + judging
    return HEAD + "\n".join(rows) + "\n" + "".join(sections)


def _section(spec: AlgorithmSpec, mark: str = "##") -> str:
    key = "" if spec.key in registry.specs() else f" (`{spec.key}`)"
    lines = [f"\n{mark} {spec.title}{key}\n", f"{spec.summary}\n"]
    for r in spec.references:
        lines.append(
            f"- {r.authors}: *{r.title}*. {r.venue}, {r.year}. [{r.doi or r.url}]({r.link})"
        )
    lines += ["", "| parameter | " + " | ".join(PRESETS) + " | range | meaning |",
              "|---" * (len(PRESETS) + 3) + "|"]  # fmt: skip
    for p in spec.parameters:
        values = " | ".join(_text(p.for_preset(preset)) for preset in PRESETS)
        lines.append(f"| `{p.name}` | {values} | {_range(p)} | {p.help} |")
    return "\n".join(lines) + "\n"


def _range(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(parameter.choices)
    if parameter.minimum is None and parameter.maximum is None:
        return parameter.unit or "–"
    low = "" if parameter.minimum is None else f"{parameter.minimum:g}"
    high = "" if parameter.maximum is None else f"{parameter.maximum:g}"
    return f"{low} … {high} {parameter.unit}".strip()


def _text(value: Value) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{item:g}" for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
