"""One registration, from nodes to nodes, without ever blocking the application.

The nodes are read and the results added in the main thread; see `WorkerRun` for the rest. Nothing
is added to the scene before the worker has succeeded.
"""

from __future__ import annotations

import logging

import numpy as np

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.companions import carry_along
from DeepRegLib.bridge.outcome import (
    Loaded,
    load,
    placing,
    read_transform,
    results_transaction,
)
from DeepRegLib.bridge.overlays import add_map_volume
from DeepRegLib.bridge.request import collect
from DeepRegLib.errors import DeepRegError

from .WorkerRun import Background, WorkerRun

#: Roles of a hardened copy: what it is a copy of, and the transform that made it.
COPY_ROLE, MADE_BY_ROLE = "DeepReg.CopyOf", "DeepReg.MadeBy"
_ALL = object()


class RegistrationRun(WorkerRun):
    """A run in progress.

    Args:
        worker: Process that computes; see `Worker.sharedWorker`.
        request: What to register (`DeepRegLib.bridge.request.RegistrationRequest`).
        wanted: Which results to add (`DeepRegLib.bridge.outcome.Wanted`).
        companions: Nodes that go along with the moving volume.
        harden: Whether companions are copied and hardened, instead of put under the transform.
        applyToMoving: Whether the moving volume itself is put under the transform.
        onEvent: Called with each event of the worker (`DeepRegLib.job.JobEvent`).
        onPreview: Called with (linear, deformation or None, grid or None) of the transform so far.
        onDone: Called with the `Outcome`.
        onError: Called with the exception; `Cancelled` if the user cancelled.
    """

    def __init__(self, worker, request, wanted, companions=(), harden=False, applyToMoving=False,
                 onEvent=None, onPreview=None, onDone=None, onError=None):  # fmt: skip
        WorkerRun.__init__(self, worker, onEvent, onDone, onError)
        self._request, self._wanted = request, wanted
        self._companions, self._harden = list(companions), harden
        self._applyToMoving = applyToMoving
        self._onPreview = onPreview
        self._scene = request.fixed.GetScene() if request.fixed is not None else None
        self._placement = None
        self.carried = []
        #: Linear part of where both volumes lay before the run, fixed to moving.
        self.startLinear = np.eye(4)

    def start(self, byTimer=True) -> None:
        """Begins the run; returns at once.

        Args:
            byTimer: Go on by a timer; otherwise the caller has to call `step` until `finished`.

        Raises:
            DeepRegError: If the nodes cannot be registered; nothing has happened then.
        """
        self._checkFree()
        collected = collect(self._request)
        if collected.start is not None:
            self.startLinear = collected.start.linear
        self._begin(collected.save, byTimer)

    def _take(self, event) -> None:
        self._background = Background(lambda: load(event, self._folder.name))
        self._step = self._placeWhenLoaded

    def _placeWhenLoaded(self) -> None:
        if self._background.done:
            self._placement = self._placing(self._background.result())
            self._step = self._placeOn

    def _placeOn(self) -> None:
        """Adds a part of the results; each gets a turn of the event loop of its own."""
        if next(self._placement, _ALL) is _ALL:
            self._placement = None
            self._step = self._tell

    def _placing(self, loaded: Loaded):
        with results_transaction(self._scene, self._wanted):
            outcome = yield from placing(
                self._scene, self._request, loaded, self._wanted, add_map_volume
            )
            yield
            self._carryAlong(outcome.transform)
            if self._applyToMoving:
                mrml.apply_transform(outcome.transform, self._request.moving, *outcome.with_moving)
        self.outcome = outcome

    def _carryAlong(self, transform) -> None:
        """Takes the companions along; those of an earlier result just change their transform."""
        moving = self._request.moving
        known = [] if self._harden else [c for c in self._companions if followsResult(c, moving)]
        others = [c for c in self._companions if c not in known]
        if others:
            self.carried = carry_along(
                self._scene, transform, moving, others, harden=self._harden,
                fixed=self._request.fixed,
            )  # fmt: skip
        if self._harden:
            replaceCopies(self._scene, others, self.carried, transform)
        mrml.apply_transform(transform, *known)
        self.carried = [*known, *self.carried]

    def _preview(self, event) -> None:
        if self._onPreview is None:
            return
        try:
            parts = read_transform(self._folder.name, event.transforms["transform"])
        except DeepRegError as error:
            logging.debug("A preview could not be read: %s", error)
            return
        self._onPreview(*parts)

    def _end(self) -> None:
        self.finished = True
        if self._placement is not None:
            # Ended half way: what has been added is taken back.
            self._placement.close()
            self._placement = None
        WorkerRun._end(self)


def followsResult(node, moving) -> bool:
    """Tells whether a node hangs under an earlier result for the same moving volume."""
    parent = node.GetParentTransformNode()
    if parent is None or parent is moving.GetParentTransformNode():
        return False
    return parent.GetNodeReference(parent.GetMovingNodeReferenceRole()) is moving


def replaceCopies(scene, companions, copies, transform) -> None:
    """Lets new hardened copies take the place of those that the same transform made before."""
    for companion, copy in zip(companions, copies):
        for old in _copiesOf(scene, companion, transform):
            name = old.GetName()
            parts = [old.GetNthDisplayNode(n) for n in range(old.GetNumberOfDisplayNodes())] if (
                old.IsA("vtkMRMLDisplayableNode")
            ) else []  # fmt: skip
            if old.IsA("vtkMRMLStorableNode"):
                parts.append(old.GetStorageNode())
            scene.RemoveNode(old)
            for part in parts:
                if part is not None:
                    scene.RemoveNode(part)
            copy.SetName(name)
        copy.SetNodeReferenceID(COPY_ROLE, companion.GetID())
        copy.SetNodeReferenceID(MADE_BY_ROLE, transform.GetID())


def _copiesOf(scene, companion, transform) -> list:
    found = []
    for index in range(scene.GetNumberOfNodesByClass(companion.GetClassName())):
        node = scene.GetNthNodeByClass(index, companion.GetClassName())
        isCopy = node.GetNodeReference(COPY_ROLE) is companion
        if isCopy and node.GetNodeReference(MADE_BY_ROLE) is transform:
            found.append(node)
    return found
