"""The scene with all that the running application puts into it."""

from __future__ import annotations

from pathlib import Path

import slicer

SLICE_VIEWS = (
    ("Red", "R", "Axial", (0.952941176471, 0.290196078431, 0.2)),
    ("Green", "G", "Coronal", (0.43137254902, 0.690196078431, 0.294117647059)),
    ("Yellow", "Y", "Sagittal", (0.929411764706, 0.835294117647, 0.298039215686)),
)


def make_scene(home: Path):
    """The scene, the application's logic, and the color logic."""
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetMRMLScene(scene)
    logic.SetHomeDirectory(str(home))
    (home / "share" / "ColorFiles").mkdir(parents=True)
    logic.SetShareDirectory("share")
    colors = slicer.vtkSlicerColorLogic()
    colors.SetMRMLApplicationLogic(logic)
    colors.SetMRMLScene(scene)
    logic.SetColorLogic(colors)
    (home / "downloads").mkdir()
    cache = slicer.vtkCacheManager()
    cache.SetMRMLScene(scene)
    cache.SetRemoteCacheDirectory(str(home / "downloads"))
    scene.SetCacheManager(cache)
    return scene, logic, colors


def add_application_nodes(scene) -> None:
    """Singletons that the application's modules create."""
    if scene.GetSingletonNode("default", "vtkMRMLCrosshairNode") is None:
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetSingletonTag("default")
        crosshair.SetCrosshairName("default")
        scene.AddNode(crosshair)
    if slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene) is None:
        scene.AddNode(slicer.vtkMRMLSubjectHierarchyNode())
