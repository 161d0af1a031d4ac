"""A picture of the tool "Population", for docs/population.md.

    DEEPREG_SCREENSHOTS=Resources/Screenshots/panel \
        python Testing/Desktop/run.py --testing --python-script Testing/Desktop/pictures_population.py

The transforms of ten "people" are made up: wider or narrower in the middle, longer or shorter, and
one with something of his own. Nothing stays but the picture.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import slicer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import panel_support as desk
from pictures import SAMPLES, bring, picture, run

PEOPLE = 10


def near(points, center, width):
    """1 at a place and nothing far from it, with the way from it in units of its width."""
    away = (points - np.array(center)) / width
    return np.exp(-(away**2).sum(-1, keepdims=True) / 2), away


def deformation(points, number):
    """How a person differs from the atlas, in mm."""
    rng = np.random.default_rng(100 + number)
    wide, long = rng.normal(0, 1, 2)
    middle, away = near(points, (0, -18, 16), 24.0)
    u = middle * away * np.array([1.0, 0.4, 0.5]) * 5.0 * wide
    whole, away = near(points, (0, -18, 16), 45.0)
    u += whole * away * np.array([0.0, 1.0, 0.2]) * 4.0 * long
    for _ in range(4):
        bump, _ = near(points, rng.normal(0, 35, 3) + [0, -18, 16], 18.0)
        u += bump * rng.normal(0, 0.5, 3)
    if number == 6:
        bump, _ = near(points, (-30, -40, 25), 14.0)
        u += bump * np.array([9.0, 3.0, 0.0])
    return u


def take():
    """Takes the picture."""
    from DeepRegLib.bridge import mrml

    slicer.util.selectModule("DeepReg")
    panel = slicer.util.getModuleWidget("DeepReg")
    ui = panel.ui
    atlas = slicer.util.loadVolume(str(SAMPLES / "MNI152_T1_brain.nii.gz"))
    atlas.SetName("MNI152")
    fine = mrml.grid_of(atlas)
    grid = fine.resized([max(8, n // 3) for n in fine.shape])
    points = grid.to_ras(np.moveaxis(np.indices(grid.shape), 0, -1))
    for number in range(1, PEOPLE + 1):
        person = desk.add_volume(np.zeros((2, 2, 2), "f4"), f"Person {number}")
        u = np.moveaxis(deformation(points, number), -1, 0)
        name = f"Person {number} to MNI152"
        mrml.add_warp(slicer.mrmlScene, name, np.eye(4), u, grid, fixed=atlas, moving=person)
    ui.toolsButton.collapsed = ui.populationBox.collapsed = False
    ui.checkBox.collapsed = True
    ui.populationFixedSelector.setCurrentNode(atlas)
    desk.until(lambda: ui.populationTable.rowCount == PEOPLE, 10, "the transforms")
    ui.populationAllButton.click()
    ui.populationButton.click()
    desk.until(lambda: not panel.parts.population.running, 300, "the end")
    panel.parts.population.sliders.show([2.0])
    bring(panel, ui.populationShowButton)
    picture("17-population")


run(take)
