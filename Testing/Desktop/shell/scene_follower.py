"""Calls back when the nodes of a scene changed."""

from __future__ import annotations

import vtk
from shiboken6 import Shiboken


class SceneFollower:
    """Calls ``_on_scene_changed`` after nodes came, went, or were modified."""

    _scene = None

    def _follow(self, scene) -> None:
        self._unfollow()
        self._scene = scene
        self._observed: list[tuple[object, int]] = []
        self._node_tags: dict[str, tuple[object, int]] = {}
        if scene is None:
            return
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent):
            self._observed.append((scene, scene.AddObserver(event, self._on_node_event)))
        for event in (scene.EndBatchProcessEvent, scene.EndCloseEvent, scene.EndImportEvent):
            self._observed.append((scene, scene.AddObserver(event, self._on_event)))

    def _unfollow(self) -> None:
        for object_, tag in getattr(self, "_observed", []):
            object_.RemoveObserver(tag)
        for object_, tag in getattr(self, "_node_tags", {}).values():
            object_.RemoveObserver(tag)
        self._observed, self._node_tags = [], {}

    def _watch(self, nodes) -> None:
        wanted = {node.GetID(): node for node in nodes if node.GetID()}
        for id_ in [i for i in self._node_tags if i not in wanted]:
            object_, tag = self._node_tags.pop(id_)
            object_.RemoveObserver(tag)
        for id_, node in wanted.items():
            if id_ not in self._node_tags:
                tag = node.AddObserver("ModifiedEvent", self._on_event)
                self._node_tags[id_] = (node, tag)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_event(self, caller, event, node) -> None:
        # A scene has many nodes that are no one's concern; they come and go with each closing.
        if not Shiboken.isValid(self) or self._concerned(node):
            self._on_event(caller, event)

    def _concerned(self, node) -> bool:
        """Whether a node that came or went can change what is shown."""
        return True

    def _on_event(self, caller, event) -> None:
        if not Shiboken.isValid(self):
            self._unfollow()
        elif self._scene is not None and not self._scene.IsBatchProcessing():
            if event == "EndImportEvent":
                self._on_imported()
            self._on_scene_changed()

    def _on_imported(self) -> None:
        """Slicer's models remove and add all rows anew after an import."""
