"""Trains the models that come with DeepReg, on images that are generated from label maps.

Usage: python tools/train_models.py SYSTEM [SYSTEM ...] [--maps FOLDER] [--threads N]

One recipe for all: images of the contrast of T1 from the label maps of twenty heads, brain only,
at 3 mm, lying as the sample image of the MNI152 brain lies; the maps of four people validate.
Systems that learn from a teacher, from label maps or from few examples, and so need the same images
again and again, get forty of them, drawn once by that recipe, as anybody would give their own. A
training that was interrupted goes on. The model goes to Resources/Models, with its card.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "Resources" / "Models"
BUILD = ROOT / "build" / "models"
REFERENCE = ROOT / "Resources" / "SampleData" / "MNI152_T1_brain.nii.gz"
TERMS = "Apache-2.0, as the label maps; for research, not for diagnosis or treatment"
#: Mostly pairs of different people, in poses that keep the brain inside the frame.
RECIPE: dict[str, Any] = {
    "contrast": "t1", "brain_only": True, "two_people": 0.75, "thick": 0.1,
    "rotation_deg": 6.0, "scale": 0.05, "shift_mm": 3.0,
}  # fmt: skip
#: Steps, parameters and settings of each system, where they differ from the usual ones.
SYSTEMS: dict[str, dict[str, Any]] = {
    "vxm": {"steps": 1500},
    "vxm_prob": {"steps": 3000},
    "faim": {"steps": 1500},
    "icnet": {"steps": 1200},
    "dlir": {"steps": 1500},
    "dual_prnet": {"steps": 1000},
    "pmrn": {"steps": 1000},
    # Half of the usual features, and two patches of four pairs: pairs take longer than patches.
    "error_map": {
        "steps": 2200,
        "parameters": {"channels": (16, 32), "hidden": (256, 64), "mixed": 4, "patches": 2},
    },
    "deep_similarity": {"steps": 2500, "settings": {"batch": 2}},
    "cvae": {"steps": 2500},
    "coop_ae": {"steps": 1500},
    "ssemnet": {"steps": 800},
    "flownet_ssm": {"steps": 2500, "drawn": True},
    "deepatlas": {"steps": 1500, "drawn": True},
}
#: Images that are drawn once.
DRAWN = 40


def options(system: str, maps: Path, steps: int) -> dict[str, Any]:
    """What is trained, and how."""
    from DeepRegLib.training.options import is_unfinished

    own = SYSTEMS[system]
    name = f"{system}_brain_t1"
    images: dict[str, Any] = {"generated": str(maps), "recipe": {**RECIPE, **own.get("recipe", {})}}
    if own.get("drawn"):
        images = {"data": str(BUILD / "heads"), "images": "*_t1.nii.gz", "labels": "*_seg.nii.gz"}
    return {
        "algorithm": system,
        **images,
        "atlas": str(REFERENCE),
        "spacing": 3.0,
        "shape": (48, 64, 48),
        "name": name,
        "parameters": own.get("parameters", {}),
        "settings": {"steps": steps, "precision": "bfloat16", "validate_every": max(steps // 8, 1),
                     **own.get("settings", {})},
        "anatomy": "brain without skull, whole",
        "contrast": "T1",
        "terms": TERMS,
        "cache": str(BUILD / "prepared"),
        "resume": is_unfinished(name),
        "overwrite": not is_unfinished(name),
    }  # fmt: skip


def draw_heads(maps: Path) -> None:
    """Writes images and label maps that are drawn by the recipe, unless they are there."""
    import torch

    from DeepRegLib.io.images import write_image
    from DeepRegLib.registration.base import Image
    from DeepRegLib.training.generated import GeneratedPairs
    from DeepRegLib.training.options import TrainingOptions
    from DeepRegLib.training.session import make_source

    folder = BUILD / "heads"
    if len(list(folder.glob("*_seg.nii.gz"))) == DRAWN:
        return
    folder.mkdir(parents=True, exist_ok=True)
    source = make_source(TrainingOptions.of(options("vxm", maps, 1)))
    assert isinstance(source, GeneratedPairs)
    generator = torch.Generator().manual_seed(0)
    for number in range(DRAWN):
        batch = source.draw(1, generator)
        assert batch.fixed_labels is not None
        labels = batch.fixed_labels.to(torch.int16)
        for kind, data in (("t1", batch.fixed), ("seg", labels)):
            write_image(Image(data, source.grid), folder / f"head{number:02d}_{kind}.nii.gz")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("systems", nargs="+", choices=SYSTEMS, metavar="SYSTEM")
    parser.add_argument("--maps", type=Path, help="folder of label maps (FreeSurfer's numbers)")
    parser.add_argument("--steps", type=int, help="steps in place of those of the system")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    # Read when the library is imported: models are trained beside what a user has.
    os.environ["DEEPREG_MODELS"] = str(BUILD)
    import torch

    from DeepRegLib.bar import bar
    from DeepRegLib.registration.base import Progress
    from DeepRegLib.training.options import TrainingOptions
    from DeepRegLib.training.session import train

    torch.set_num_threads(given.threads)
    data = Path(os.environ.get("DEEPREG_DATA", ROOT.parent / "shared" / "data"))
    maps = given.maps or data / "label_maps_head"
    for system in given.systems:
        steps = given.steps or SYSTEMS[system]["steps"]
        if SYSTEMS[system].get("drawn"):
            draw_heads(maps)
        with bar() as listener:
            trained = train(TrainingOptions.of(options(system, maps, steps)), Progress(listener))
        assert trained is not None
        MODELS.mkdir(exist_ok=True)
        shutil.copy2(trained.path, MODELS / trained.path.name)
        print(f"{trained.path.name}: {trained.card.figures}", flush=True)


if __name__ == "__main__":
    main()
