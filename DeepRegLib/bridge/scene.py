"""Scenes: all-or-nothing additions, names and folders, saving and opening."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import slicer

from ..errors import FileFormatError

#: Node classes that Slicer's modules register; a bare scene needs them to read its own files.
_MODULE_NODES = (
    "vtkMRMLMarkupsFiducialNode",
    "vtkMRMLMarkupsDisplayNode",
    "vtkMRMLMarkupsFiducialStorageNode",
    "vtkMRMLMarkupsJsonStorageNode",
    "vtkMRMLSegmentationNode",
    "vtkMRMLSegmentationDisplayNode",
    "vtkMRMLSegmentationStorageNode",
    "vtkMRMLSequenceBrowserNode",
    "vtkMRMLColorLegendDisplayNode",
)


def new_scene() -> slicer.vtkMRMLScene:
    """Returns an empty scene, outside Slicer, that knows the node classes used here."""
    scene = slicer.vtkMRMLScene()
    for name in _MODULE_NODES:
        if not scene.IsNodeClassRegistered(name):
            scene.RegisterNodeClass(getattr(slicer, name)())
    colors = slicer.vtkMRMLColorLogic()
    colors.SetMRMLScene(scene)
    # The color tables go when the logic goes, so it lives as long as the scene.
    scene.color_logic = colors
    return scene


@contextmanager
def scene_transaction(scene: slicer.vtkMRMLScene) -> Iterator[None]:
    """Removes every node that was added inside the block if the block fails.

    Change nodes that were there before only as the last thing in the block.

    Example:
        ``with scene_transaction(scene): add_transform(...); add_moved_volume(...)``
    """
    before = set(_node_ids(scene))
    try:
        yield
    except BaseException:
        for id_ in reversed(_node_ids(scene)):
            node = scene.GetNodeByID(id_)
            if id_ not in before and node is not None:
                scene.RemoveNode(node)
        raise


def add_node(scene: slicer.vtkMRMLScene, node: slicer.vtkMRMLNode, name: str) -> slicer.vtkMRMLNode:
    """Adds a finished node under a name that no other node has."""
    unique = name if scene.GetFirstNodeByName(name) is None else scene.GenerateUniqueName(name)
    node.SetName(unique)
    return scene.AddNode(node)


def place_beside(
    scene: slicer.vtkMRMLScene, node: slicer.vtkMRMLNode, other: slicer.vtkMRMLNode
) -> None:
    """Puts a node in the same subject-hierarchy folder as another, where there is a hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is None:
        return
    invalid = slicer.vtkMRMLSubjectHierarchyNode.GetInvalidItemID()
    item, beside = hierarchy.GetItemByDataNode(node), hierarchy.GetItemByDataNode(other)
    if beside == invalid:
        return
    folder = hierarchy.GetItemParent(beside)
    if item == invalid:
        hierarchy.CreateItem(folder, node)
    else:
        hierarchy.SetItemParent(item, folder)


def save_scene(scene: slicer.vtkMRMLScene, folder: str | Path) -> Path:
    """Writes a scene with its data files: ``folder/scene.mrml`` and ``folder/data/``.

    For use outside Slicer; the storage nodes of the scene then name the new files.

    Returns:
        Path of the scene file, which Slicer opens by dropping it on its window.

    Raises:
        FileFormatError: If a file cannot be written.
    """
    folder = Path(folder).resolve()
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    path = folder / "scene.mrml"
    scene.SetRootDirectory(str(folder))
    scene.SetURL(str(path))
    taken: set[str] = set()
    for id_ in _node_ids(scene):
        node = scene.GetNodeByID(id_)
        if node.IsA("vtkMRMLStorableNode") and node.GetSaveWithScene():
            _write_data(node, data, taken)
    if not scene.Commit(str(path)):
        raise FileFormatError(f"The scene could not be written to '{path}'; is there room?")
    return path


def open_scene(path: str | Path) -> slicer.vtkMRMLScene:
    """Opens a scene file outside Slicer.

    Raises:
        FileFormatError: If the file is missing or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"There is no scene file '{path}'.")
    scene = new_scene()
    scene.SetURL(str(path))
    if not scene.Connect():
        raise FileFormatError(
            f"The scene '{path}' cannot be read; it is damaged, or some of its data files are gone."
        )
    return scene


def _node_ids(scene: slicer.vtkMRMLScene) -> list[str]:
    return [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]


def _write_data(node: slicer.vtkMRMLStorableNode, folder: Path, taken: set[str]) -> None:
    if not node.AddDefaultStorageNode() or node.GetStorageNode() is None:
        return
    storage = node.GetStorageNode()
    stem = re.sub(r"[^\w.()-]+", "_", node.GetName() or node.GetID()).strip("_.") or "node"
    number = 1
    while (unique := stem if number == 1 else f"{stem}_{number}").lower() in taken:
        number += 1
    taken.add(unique.lower())
    extension = storage.GetDefaultWriteFileExtension()
    path = folder / f"{unique}.{extension}"
    storage.SetFileName(str(path))
    if not storage.WriteData(node):
        raise FileFormatError(f"'{node.GetName()}' could not be written to '{path}'.")
