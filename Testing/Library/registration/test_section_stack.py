"""Stacks of sections: order, neighbors, axes, and that shaken sections come back into line."""

import json

import numpy as np
import pytest
import torch
from support import make_grid

from DeepRegLib.cli import main
from DeepRegLib.errors import InputError, ParameterError
from DeepRegLib.geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from DeepRegLib.io.images import read_image, write_image
from DeepRegLib.io.itk_transform import read_transform
from DeepRegLib.registration.base import Image, Progress
from DeepRegLib.registration.section_regions import counted, empty_region
from DeepRegLib.registration.section_stack import (
    StackSettings,
    across_sections,
    align_stack,
    outwards,
)

SECTIONS, SIZE = 5, (40, 34)
SMALL = {"channels": "6,8", "layer_weights": "1,1", "factors": "2,1", "iterations": "25,15",
         "spacing": "10"}  # fmt: skip


def smooth_stack():
    """Sections that change slowly from one to the next, (S, H, W), 0.2 to 1."""
    noise = torch.randn(1, 1, SECTIONS, *SIZE, generator=torch.Generator().manual_seed(4))
    image = gaussian_smooth(noise, (2.5, 2.0, 2.0))
    return (0.2 + 0.8 * (image - image.min()) / (image.max() - image.min()))[0, 0]


def shaken(seed=0):
    """The stack with each section but the middle one shifted, and the shifts in pixels."""
    stack = smooth_stack()
    shifts = torch.tensor([[1.5, -2.0], [-2.0, 1.0], [0.0, 0.0], [2.0, 1.5], [-1.0, -2.5]])
    moved = []
    for section, shift in zip(stack, shifts):
        where = voxel_coordinates((1, *SIZE))
        where[:, 1:] -= shift.view(1, 2, 1, 1, 1)
        moved.append(sample(section[None, None, None], where)[0, 0, 0])
    return stack, torch.stack(moved), shifts


def as_image(stack, axis):
    """The sections along a tensor axis of an oblique grid with thick sections."""
    array = stack.movedim(0, axis).numpy()
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 3.0
    return Image.from_array(100.0 * array, make_grid("oblique", array.shape, tuple(spacing)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shaken_sections_come_back_into_line(axis):
    stack, moved, shifts = shaken()
    image, events = as_image(moved, axis), []
    settings = StackSettings(steps=20, values=SMALL)
    found = align_stack(image, None, settings, Progress(events.append))
    assert found.axis == axis == across_sections(image.grid)
    vectors = found.transform.field.displacement.movedim(2 + axis, 2)[0]
    plane = [a for a in range(3) if a != axis]
    assert vectors[axis].abs().max() == 0.0
    inner = (slice(None), slice(8, -8), slice(8, -8))
    reached = torch.stack([vectors[p][inner].mean(dim=(1, 2)) for p in plane], dim=1)
    assert reached[2].abs().max() == 0.0
    left = (reached - shifts).norm(dim=1)
    assert left.mean() < 0.4 * shifts.norm(dim=1).mean(), (reached, shifts)
    seen = found.image.data.movedim(2 + axis, 2)[0, 0] / 100.0
    before, after = ((s - stack)[inner].abs().mean() for s in (moved, seen))
    assert after < 0.5 * before
    # The transform is what made the image, so it can be saved and used like any other.
    again = found.transform.warp(image.data, image.grid, image.grid).movedim(2 + axis, 2)[0, 0]
    assert (again / 100.0 - seen)[inner].abs().max() < 1e-3
    assert found.order[0] == 2 and {e["section"] for e in found.history} == {0, 1, 3, 4}
    fractions = [e.fraction for e in events if e.kind == "progress"]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


def test_passes_use_neighbors_on_both_sides(monkeypatch):
    from DeepRegLib.registration import section_stack

    _, moved, _ = shaken()
    seen, plain = [], section_stack.align

    def spy(references, moving, *rest):
        seen.append([round(r.weight, 3) for r in references])
        return plain(references, moving, *rest)

    monkeypatch.setattr(section_stack, "align", spy)
    values = {**SMALL, "iterations": "1,1"}
    align_stack(as_image(moved, 0), 0, StackSettings(steps=1, passes=2, values=values))
    # Outwards from section 2: 1, 3, 0, 4; then all again, in the same order.
    assert seen[:4] == [[1.0], [1.0, 0.5], [1.0, 0.5], [1.0, 0.5]]
    assert seen[4] == [1.0, 1.0, 0.5, 0.5] and len(seen) == 9


def test_order_and_axis():
    assert outwards(5) == [2, 1, 3, 0, 4] and outwards(4, 0) == [0, 1, 2, 3]
    assert across_sections(make_grid("RAS", (30, 8, 40), (1.0, 1.0, 1.0))) == 1
    assert across_sections(make_grid("RAS", (8, 30, 40), (1.0, 1.0, 2.5))) == 2


def test_what_makes_no_sense_is_refused():
    image = as_image(smooth_stack(), 0)
    with pytest.raises(ParameterError, match="axis"):
        align_stack(image, 3)
    with pytest.raises(ParameterError, match="section 9"):
        align_stack(image, 0, StackSettings(reference=9))
    with pytest.raises(InputError, match="8 voxels"):
        align_stack(image, 1)
    with pytest.raises(ParameterError, match="neighbor"):
        StackSettings(neighbors=0)


def test_stop_keeps_what_is_aligned():
    _, moved, _ = shaken()

    def listen(event):
        if event.fraction > 0.6:
            progress.stop()

    progress = Progress(listen)
    found = align_stack(as_image(moved, 0), 0, StackSettings(steps=2, values=SMALL), progress)
    assert bool(torch.isfinite(found.image.data).all())
    assert len({e["section"] for e in found.history}) < 4


def test_empty_regions():
    image = torch.full((1, 1, 1, 20, 20), 0.5)
    image[..., 4:9, 5:11] = 0.0
    image[..., 15, 15] = 0.0  # a single dark pixel is no hole
    assert torch.equal(empty_region(image)[0, 0, 0].nonzero().amin(0), torch.tensor([4, 5]))
    assert int(empty_region(image).sum()) == 5 * 6
    grid = make_grid("RAS", (1, 20, 20), (1.0, 1.0, 1.0))
    weight = counted(image, grid, None, True, enclosed=False)
    assert int((weight == 0).sum()) == 30
    assert counted(image, grid, None, False) is None
    assert counted(image + 0.1, grid, None, True, enclosed=False) is None


def test_the_command_line(tmp_path):
    _, moved, _ = shaken()
    source, out = tmp_path / "stack.nrrd", tmp_path / "aligned.nrrd"
    image = as_image(moved, 2)
    write_image(image, source)
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    code = main(["sections", str(source), "--output", str(out), "--output-transform",
                 str(tmp_path / "t.nrrd"), "--report", str(tmp_path / "r.json"), "--steps", "3",
                 "--device", "cpu", "--quiet", *settings])  # fmt: skip
    assert code == 0
    aligned = read_image(out)
    assert aligned.grid.matches(image.grid)
    transform = read_transform(tmp_path / "t.nrrd")
    again = transform.warp(image.data, image.grid, aligned.grid)
    inner = (..., slice(6, -6), slice(6, -6), slice(None))
    np.testing.assert_allclose(again[inner], aligned.data[inner], atol=0.5)
    said = json.loads((tmp_path / "r.json").read_text())
    assert said["provenance"]["neighbors"] == 2 and said["history"]
    assert main(["sections", str(source), "--output", str(source), "--quiet"]) == 2
    assert main(["sections", str(source), "--output", str(out), "--neighbors", "0"]) == 2
