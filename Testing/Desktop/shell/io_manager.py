"""Reads and writes nodes and scenes with MRML's own storage nodes."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import slicer

_BY_ENDING = {
    "MarkupsFile": (".mrk.json", ".fcsv"),
    "SegmentationFile": (".seg.nrrd", ".seg.nhdr", ".seg.vtm"),
    "SceneFile": (".mrml", ".mrb"),
    "VolumeFile": (".nrrd", ".nhdr", ".nii.gz", ".nii", ".mha", ".mhd", ".hdr", ".img", ".dcm"),
    "TransformFile": (".h5", ".tfm", ".mat", ".txt"),
    "ModelFile": (".vtp", ".vtk", ".stl", ".obj", ".ply"),
    "TableFile": (".tsv", ".csv", ".schema.csv"),
    "TextFile": (".json", ".xml"),
}


def _stem(path: Path) -> str:
    name = path.name
    endings = [e for group in _BY_ENDING.values() for e in group if name.lower().endswith(e)]
    return name[: -len(max(endings, key=len))] if endings else path.stem


class IoManager:
    """The part of qSlicerCoreIOManager that ``slicer.util`` uses."""

    def __init__(self, scene) -> None:
        self._scene = scene
        self.defaultSceneFileType = "MRML Scene (.mrml)"

    def fileType(self, filename) -> str:
        name = str(filename).lower()
        for kind, endings in _BY_ENDING.items():
            if name.endswith(endings):
                return kind
        return "NoFile"

    def fileWriterFileType(self, node, format_: str = "") -> str:
        return "NodeFile"

    def loadNodes(self, filetype: str, properties: dict, nodes=None, messages=None) -> bool:
        path = Path(properties["fileName"])
        loader = getattr(self, f"_load_{filetype}", None)
        if not path.is_file() or loader is None:
            return False
        node = loader(path, properties)
        if node is None:
            return False
        if nodes is not None and node is not True:
            nodes.AddItem(node)
        return True

    def _name_for(self, path: Path) -> str:
        name = _stem(path)
        known = self._scene.GetFirstNodeByName(name) is not None
        return self._scene.GenerateUniqueName(name) if known else name

    def _read(self, class_name: str, path: Path, properties: dict):
        name = properties.get("name") or self._name_for(path)
        node = self._scene.CreateNodeByClass(class_name)
        node.UnRegister(None)
        node.SetName(name)
        node = self._scene.AddNode(node)
        node.AddDefaultStorageNode(str(path))
        storage = node.GetStorageNode()
        if storage is not None:
            storage.SetFileName(str(path))
        if storage is None or not storage.ReadData(node):
            self._scene.RemoveNode(node)
            return None
        if hasattr(node, "CreateDefaultDisplayNodes"):
            node.CreateDefaultDisplayNodes()
        return node

    def _load_VolumeFile(self, path: Path, properties: dict):
        logic = slicer.modules.volumes.logic()
        name = properties.get("name") or self._name_for(path)
        options = 1 if properties.get("labelmap") else 0
        if properties.get("singleFile"):
            options |= 8
        node = logic.AddArchetypeVolume(str(path), name, options)
        if node is not None and properties.get("show", True):
            selection = slicer.app.applicationLogic().GetSelectionNode()
            if properties.get("labelmap"):
                selection.SetActiveLabelVolumeID(node.GetID())
            else:
                selection.SetActiveVolumeID(node.GetID())
            slicer.app.applicationLogic().PropagateVolumeSelection(1)
        return node

    def _load_SegmentationFile(self, path: Path, properties: dict):
        return self._read("vtkMRMLSegmentationNode", path, properties)

    def _load_TransformFile(self, path: Path, properties: dict):
        logic = slicer.modules.transforms.logic()
        return logic.AddTransform(str(path), self._scene)

    def _load_MarkupsFile(self, path: Path, properties: dict):
        logic = slicer.modules.markups.logic()
        name = properties.get("name") or _stem(path)
        id_ = logic.LoadMarkups(str(path), name)
        return self._scene.GetNodeByID(id_) if id_ else None

    def _load_ModelFile(self, path: Path, properties: dict):
        return self._read("vtkMRMLModelNode", path, properties)

    def _load_TableFile(self, path: Path, properties: dict):
        return self._read("vtkMRMLTableNode", path, properties)

    def _load_TextFile(self, path: Path, properties: dict):
        return self._read("vtkMRMLTextNode", path, properties)

    def _load_SceneFile(self, path: Path, properties: dict) -> bool:
        if path.suffix.lower() == ".mrb":
            folder = Path(slicer.util.tempDirectory("bundle"))
            with zipfile.ZipFile(path) as bundle:
                bundle.extractall(folder)
            path = next(folder.rglob("*.mrml"))
        self._scene.SetURL(str(path))
        self._scene.SetRootDirectory(str(path.parent))
        clear = properties.get("clear", False)
        loaded = bool(self._scene.Connect() if clear else self._scene.Import())
        # The application's views draw anew after a scene was read, also where they stayed alike.
        for index in range(self._scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
            self._scene.GetNthNodeByClass(index, "vtkMRMLSliceNode").Modified()
        return loaded or None

    # Writing

    def saveNodes(self, filetype: str, properties: dict, messages=None) -> bool:
        path = Path(properties["fileName"])
        if filetype == "SceneFile":
            return self._save_scene(path)
        return self._save_node(self._scene.GetNodeByID(properties["nodeID"]), path, properties)

    def exportNodes(self, parameterSets, uiSettings=None, saveNow=None, messages=None) -> bool:
        return all(self.saveNodes("", parameters) for parameters in parameterSets)

    def _save_node(self, node, path: Path, properties: dict) -> bool:
        if not node.AddDefaultStorageNode(str(path)) or node.GetStorageNode() is None:
            return False
        storage = node.GetStorageNode()
        if not storage.IsA(node.GetDefaultStorageNodeClassName(str(path))):
            self._scene.RemoveNode(storage)
            node.AddDefaultStorageNode(str(path))
            storage = node.GetStorageNode()
        storage.SetFileName(str(path))
        storage.SetUseCompression(int(properties.get("useCompression", 1)))
        return bool(storage.WriteData(node))

    def _save_scene(self, path: Path) -> bool:
        if path.suffix.lower() == ".mrml":
            self._scene.SetRootDirectory(str(path.parent))
            self._scene.SetURL(str(path))
            return bool(self._scene.Commit(str(path)))
        bundled = path.suffix.lower() == ".mrb"
        folder = Path(slicer.util.tempDirectory("save")) / path.stem if bundled else path
        scene_file = self._write_folder(folder)
        if scene_file is None:
            return False
        if bundled:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
                for root, _, names in os.walk(folder):
                    for name in names:
                        file = Path(root) / name
                        bundle.write(file, file.relative_to(folder.parent))
        return True

    def _write_folder(self, folder: Path) -> Path | None:
        data = folder / "Data"
        data.mkdir(parents=True, exist_ok=True)
        kept = (self._scene.GetURL(), self._scene.GetRootDirectory())
        names: dict[str, str | None] = {}
        scene_file = folder / f"{folder.name}.mrml"
        self._scene.SetRootDirectory(str(folder))
        self._scene.SetURL(str(scene_file))
        try:
            for number in range(self._scene.GetNumberOfNodes()):
                node = self._scene.GetNthNode(number)
                if node.IsA("vtkMRMLStorableNode") and node.GetSaveWithScene():
                    if not self._write_data(node, data, names):
                        return None
            return scene_file if self._scene.Commit(str(scene_file)) else None
        finally:
            for id_, name in names.items():
                self._scene.GetNodeByID(id_).SetFileName(name or "")
            self._scene.SetURL(kept[0] or "")
            self._scene.SetRootDirectory(kept[1] or "")

    def _write_data(self, node, data: Path, names: dict[str, str | None]) -> bool:
        if not node.AddDefaultStorageNode() or node.GetStorageNode() is None:
            return True  # nothing to store
        storage = node.GetStorageNode()
        names[storage.GetID()] = storage.GetFileName()
        safe = "".join(c if c.isalnum() or c in "._-()" else "_" for c in node.GetName())
        ending = storage.GetDefaultWriteFileExtension()
        target = data / f"{safe}.{ending}"
        number = 1
        while target.exists():
            number += 1
            target = data / f"{safe}_{number}.{ending}"
        storage.SetFileName(str(target))
        return bool(storage.WriteData(node))
