"""Registers one person's brain to an average brain, saves a Slicer scene, makes a picture.

    make demo

Everything goes through the public interface, into an MRML scene as in Slicer, and to
``build/demo``:
``scene.mrml`` with its data files (drop it on Slicer's window) and ``registration.png``.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import slicer

    from DeepRegLib.api import Registered
    from DeepRegLib.registration.base import Event

ROOT = Path(__file__).resolve().parents[1]
#: From the repository's root, so that the call noted in the scene is the same on every machine.
DATA = Path("Resources", "SampleData")
FIXED, MOVING = DATA / "MNI152_T1_brain.nii.gz", DATA / "Colin27_T1_brain.nii.gz"
OUTPUT = Path("build", "demo")
ALGORITHM, PRESET = "rigid+affine+greedy", "balanced"


def main() -> int:
    """Runs the demo; returns the exit status."""
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    # Threads that wait must not spin: on a busy machine that makes a run many times slower. OpenMP
    # reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from DeepRegLib.errors import DeepRegError

    try:
        run()
    except ImportError as error:
        print(f"The demo needs a package that is missing ({error}); run `make setup`.",
              file=sys.stderr)  # fmt: skip
        return 1
    except (DeepRegError, OSError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    return 0


def run() -> None:
    """Registers, fills the scene, saves it and draws the picture."""
    from DeepRegLib.api import register
    from DeepRegLib.bridge import mrml

    for path in (FIXED, MOVING):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; restore it from the repository.")
    started = time.perf_counter()
    print(f"Registering {MOVING.name} to {FIXED.name}: {ALGORITHM}, {PRESET}", flush=True)
    registered = register(FIXED, MOVING, ALGORITHM, preset=PRESET, progress=tell)
    print(f"\n{registered}\n")

    scene = mrml.new_scene()
    with mrml.scene_transaction(scene):
        subject, transform = fill_scene(scene, registered)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    picture = OUTPUT / "registration.png"
    draw(subject, registered.quality, picture)
    mrml.apply_transform(transform, subject.moving)
    scene_file = mrml.save_scene(scene, OUTPUT)
    print(f"Picture      {picture}")
    print(f"Slicer scene {OUTPUT / scene_file.name} (drop it on the window of 3D Slicer)")
    print(f"Took {time.perf_counter() - started:.0f} s in all.")


def tell(event: Event) -> None:
    """Prints where the registration is."""
    if event.kind == "stage":
        print(f"  {event.fraction:4.0%}  {event.stage}", flush=True)
    elif event.kind == "message":
        print(f"        {event.text}", flush=True)


def fill_scene(
    scene: slicer.vtkMRMLScene, registered: Registered
) -> tuple[Any, slicer.vtkMRMLTransformNode]:
    """Puts volumes, transforms, maps and the quality card into a scene.

    Returns:
        The `rendering_sheet.Subject`, and the transform for the moving volume.
    """
    from rendering import set_window
    from rendering_sheet import Subject

    from DeepRegLib.bridge import mrml
    from DeepRegLib.geometry.jacobian import jacobian_determinant

    pair, result = registered.pair, registered.result
    images = {"MNI152": pair.fixed, "Colin27": pair.moving}
    fixed, moving = (
        mrml.add_volume(scene, name, image.numpy().astype(image.pixel_type), image.grid)
        for name, image in images.items()
    )
    set_window(fixed)
    set_window(moving)
    transform = mrml.add_transform(
        scene, "Colin27 to MNI152", result.transform, pair.fixed.grid, "chain", fixed, moving
    )
    mrml.attach_card(transform, result.quality, result.provenance)
    # At 1 mm the inverse would be a file of 127 MB; it is smooth enough for 2 mm.
    mrml.add_transform(
        scene, "MNI152 to Colin27", registered.inverse, pair.moving.grid.with_spacing(2.0),
        "chain", moving, fixed, fade_voxel=0,
    )  # fmt: skip
    moved = result.moved.numpy().round().astype(pair.moving.pixel_type)
    mrml.add_moved_volume(scene, "Colin27 registered", moved, pair.fixed.grid, moving, fixed)
    jacobian = jacobian_determinant(result.transform.field.displacement)[0].numpy()
    map_node = mrml.add_volume(scene, "Jacobian", jacobian, result.transform.field.grid)
    mrml.add_quality_table(scene, "Quality card", result.quality)
    deformation = transform.GetParentTransformNode()
    names = ("MNI152 average", "Colin27")
    return Subject(fixed, moving, transform, deformation, map_node, *names), transform


def draw(subject: Any, quality: dict[str, Any], path: Path) -> None:
    """Draws the picture and writes it."""
    from rendering_sheet import registration_sheet

    facts = [
        f"NCC {quality['ncc_before']:.2f} to {quality['ncc_after']:.2f}",
        f"NMI {quality['nmi_before']:.2f} to {quality['nmi_after']:.2f}",
        f"folded {quality['folds_percent']:.3f} %",
        f"Jacobian {quality['jacobian_p01']:.2f} to {quality['jacobian_p99']:.2f} (1 to 99 %)",
        f"deformation up to {quality['deformation_max_mm']:.1f} mm",
        f"inverse off by {quality['inverse_mean_mm']:.2f} mm",
        f"{quality['seconds']:.0f} s",
    ]
    title = f"DeepReg: one person's brain registered to an average brain ({ALGORITHM})"
    registration_sheet(subject, title, facts, quality["verdict"]).save(path)


if __name__ == "__main__":
    sys.exit(main())
