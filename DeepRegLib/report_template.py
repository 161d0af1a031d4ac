"""The frame of the report page: HTML and styles, and what the figures mean in plain words."""

from __future__ import annotations

from string import Template

#: Nothing is loaded from elsewhere and nothing runs: the page says so to the browser, too.
PAGE = Template("""<!DOCTYPE html>
<html lang="$language">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="DeepReg">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

STYLE = """
@page { size: A4; margin: 14mm 14mm 16mm; }
* { box-sizing: border-box; }
html { background: #fff; }
body { margin: 0; background: #fff; color: #1c2128; line-height: 1.45;
  font: 15px/1.45 "Segoe UI", "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
main { max-width: 960px; margin: 0 auto; padding: 28px 24px 40px; }
h1 { font-size: 25px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 30px 0 8px; padding-bottom: 4px; border-bottom: 1px solid #cfd5dc;
  break-after: avoid; }
h3 { font-size: 15px; margin: 16px 0 2px; break-after: avoid; }
p { margin: 4px 0 8px; }
.pair { color: #424a53; margin: 0 0 14px; overflow-wrap: anywhere; }
.pair b { color: #1c2128; }
.quiet { color: #57606a; font-size: 13px; }
.verdict { border: 1px solid; border-left-width: 10px; border-radius: 4px; padding: 12px 16px;
  margin: 12px 0 16px; break-inside: avoid; }
.verdict strong { display: block; font-size: 18px; }
.verdict ul { margin: 6px 0 0; padding-left: 20px; }
.green { border-color: #1a7f37; background: #eaf6ec; } .green strong { color: #116329; }
.amber { border-color: #bf8700; background: #fff6db; } .amber strong { color: #7a4f01; }
.red { border-color: #c4281c; background: #fdecea; } .red strong { color: #a11a10; }
.unknown { border-color: #6e7781; background: #f3f4f6; } .unknown strong { color: #424a53; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 26px; margin: 0 0 6px; padding: 0;
  list-style: none; break-inside: avoid; }
.facts li { font-size: 13px; color: #57606a; }
.facts b { display: block; font-size: 16px; color: #1c2128; font-variant-numeric: tabular-nums; }
.settings { display: grid; gap: 0 28px;
  grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); align-items: start; }
.settings > div { break-inside: avoid; }
.comparison { break-inside: avoid; margin: 0 0 14px; }
.planes { display: grid; gap: 4px 6px; align-items: center; margin-top: 6px;
  max-width: min(100%, calc(1.9 * var(--print-width))); }
.planes .plane { text-align: center; font-size: 12px; color: #57606a; }
.planes .when { writing-mode: vertical-rl; transform: rotate(180deg); text-align: center;
  font-size: 13px; font-weight: 600; color: #424a53; }
.planes img { display: block; width: 100%; height: auto; border: 1px solid #cfd5dc; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 6px 0 10px; }
th, td { text-align: left; vertical-align: top; padding: 5px 10px 5px 0;
  border-bottom: 1px solid #e3e7eb; overflow-wrap: anywhere; }
th { color: #424a53; font-weight: 600; border-bottom-color: #aeb6bf; }
td.number, th.number { text-align: right; white-space: nowrap; padding-right: 18px;
  font-variant-numeric: tabular-nums; }
table.quality td:first-child { white-space: nowrap; }
td.meaning { color: #57606a; font-size: 13px; }
tr { break-inside: avoid; }
table.narrow { width: auto; min-width: 45%; }
.settings table.narrow { width: 100%; font-size: 13px; }
pre { background: #f5f7f9; border: 1px solid #dde2e7; border-radius: 4px; padding: 10px 12px;
  white-space: pre-wrap; overflow-wrap: anywhere; break-inside: avoid;
  font: 13px/1.45 Consolas, Menlo, "DejaVu Sans Mono", "Liberation Mono", monospace; }
svg { display: block; max-width: 100%; height: auto; break-inside: avoid; }
ol.references { padding-left: 20px; margin: 4px 0 8px; }
ol.references li { margin-bottom: 4px; }
footer { margin-top: 28px; padding-top: 10px; border-top: 1px solid #cfd5dc; font-size: 13px;
  color: #424a53; break-inside: avoid; }
@media print { body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  h1 { font-size: 17pt; } h2 { font-size: 12.5pt; margin-top: 16pt; } h3 { font-size: 10.5pt; }
  table { font-size: 9.5pt; } th, td { padding-top: 2.5px; padding-bottom: 2.5px; }
  .whole { break-inside: avoid; } .quiet, td.meaning, footer { font-size: 8.5pt; }
  pre { font-size: 8.5pt; } .planes { max-width: var(--print-width); } }
"""

#: What each row of the quality card means; the rows are named in `card.ROWS`.
MEANINGS: dict[str, str] = {
    "Normalized mutual information": "How much one image tells about the other; 1 is nothing. "
    "Also holds for images of different kinds.",
    "Correlation (NCC)": "Agreement of the gray values, -1 to 1; 1 is the best. Says little "
    "between images of different kinds.",
    "Overlap of the images": "Share of the fixed object that lies inside the moving image.",
    "Dice, mean over labels": "Overlap of the label maps, 0 (none) to 1 (the same).",
    "Landmark error, mean": "Distance between corresponding landmarks.",
    "Landmark error, median": "Half of the landmarks are closer than this.",
    "Landmark error, maximum": "The worst landmark.",
    "Estimated error (TRE)": "How far points on the surface of the object are from where they "
    "belong, in the mean, as a trained network estimates it from both images; linear transforms "
    "only.",
    "Model of the estimate": "The trained network, and what it was trained for.",
    "Folded voxels": "Where the deformation turns tissue inside out; should be 0.",
    "Jacobian, 1st percentile": "Strongest compression: volume in the moving image for one unit in "
    "the fixed image; 1 in 100 voxels is below.",
    "Jacobian, 99th percentile": "Strongest expansion, likewise; 1 in 100 voxels is above.",
    "SDlogJ": "How unevenly volumes change (standard deviation of the logarithm of the Jacobian "
    "determinant); 0 for linear transforms.",
    "Deformation, mean": "How far the bending moves tissue, without the linear part.",
    "Deformation, maximum": "The farthest that the bending moves any tissue.",
    "Displacement, mean": "How far points move in all, linear part and bending together.",
    "Displacement, maximum": "The farthest that any point moves in all.",
    "Inverse consistency, mean": "How far a point misses itself after going to the moving image "
    "and back.",
    "Inverse consistency, 95 %": "19 of 20 points miss by less.",
    "Inverse consistency, maximum": "The largest such miss.",
    "Time": "Duration of the run.",
    "Peak memory": "Largest use of memory during the run.",
}

#: Heading and legend of each kind of picture, in the order of the page.
COMPARISONS: dict[str, tuple[str, str]] = {
    "blend": ("Blend", "Fixed and moving image, half and half. Double contours show where they do "
              "not match."),
    "checkerboard": ("Checkerboard", "Tiles of the fixed image (cool) and of the moving image "
                     "(warm) in turn. Contours should run on across the edges of the tiles."),
    "difference": ("Difference", "White: the same gray value. Red: the moving image is brighter; "
                   "blue: it is darker. The scale is the same before and after. Of little meaning "
                   "between images of different kinds."),
    "red_cyan": ("Red and cyan", "The fixed image in red, the moving image in cyan; where they "
                 "agree the picture is gray."),
    "edges": ("Contours", "Contours of the moving image over the fixed image."),
}  # fmt: skip

DISCLAIMER = (
    "DeepReg is research software and not a medical device. It is not meant for diagnosis, for "
    "planning or for guiding a treatment. The figures cannot prove that a registration is right: "
    "look at the images before you rely on it."
)
