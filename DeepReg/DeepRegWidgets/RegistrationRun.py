"""One registration, from nodes to nodes, without ever blocking the application.

The nodes are read and the results added in the main thread; files are written and read in a
thread; everything else happens in the worker process. Nothing is added to the scene before the
worker has succeeded.
"""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from DeepRegLib.bridge import mrml
from DeepRegLib.bridge.companions import carry_along
from DeepRegLib.bridge.outcome import (
    Loaded,
    Outcome,
    load,
    placing,
    read_transform,
    results_transaction,
)
from DeepRegLib.bridge.overlays import add_map_volume
from DeepRegLib.bridge.request import collect
from DeepRegLib.errors import Cancelled, DeepRegError
from DeepRegLib.job import private_folder

#: Roles of a hardened copy: what it is a copy of, and the transform that made it.
COPY_ROLE, MADE_BY_ROLE = "DeepReg.CopyOf", "DeepReg.MadeBy"
_POLL_MS = 30
_LEND_SECONDS = 0.015
_ALL = object()


class RegistrationRun:
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
        self._worker, self._request, self._wanted = worker, request, wanted
        self._companions, self._harden = list(companions), harden
        self._applyToMoving = applyToMoving
        self._onEvent, self._onPreview = onEvent, onPreview
        self._onDone, self._onError = onDone, onError
        self._scene = request.fixed.GetScene() if request.fixed is not None else None
        self._folder = None
        self._background = None
        self._step = None
        self._placement = None
        self._timer = None
        self.finished = False
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
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
        if self._worker.busy:
            raise DeepRegError(
                _("Another registration is running; wait for its end, or cancel it first.")
            )
        collected = collect(self._request)
        if collected.start is not None:
            self.startLinear = collected.start.linear
        self._worker.poll()  # What a cancelled job left behind is not for this one.
        self._folder = private_folder()
        self._background = _Background(lambda: collected.save(self._folder.name))
        self._step = self._submitWhenSaved
        if byTimer:
            # With a parent it outlives its last call, from which the run may end.
            self._timer = qt.QTimer(slicer.app)
            self._timer.setInterval(_POLL_MS)
            self._timer.connect("timeout()", self.step)
            self._timer.start()

    def wait(self) -> Outcome:
        """Steps until the end while the application stays alive, and returns the outcome.

        Raises:
            DeepRegError: What ended the run.
        """
        while not self.finished:
            self.step()
            slicer.app.processEvents()
            time.sleep(0.01)
        if self.error is not None:
            raise self.error
        return self.outcome

    def step(self) -> None:
        """Does what can be done now, without waiting."""
        if self.finished:
            return
        # Qt's event loop holds Python's lock in Slicer; this lets other threads have it.
        if self._background is not None and not self._background.done:
            self._background.join(_LEND_SECONDS)
        else:
            time.sleep(0.001)
        try:
            self._step()
        except Exception as error:
            self._fail(error)

    def stopAndKeep(self) -> None:
        """Ends the run soon, with the best alignment so far."""
        if not self.finished:
            self._worker.stop_and_keep()

    def cancel(self) -> None:
        """Ends the run at once; the scene stays as it is."""
        if self.finished:
            return
        self._worker.cancel()
        self._fail(Cancelled(_("Cancelled; nothing was changed.")))

    def _submitWhenSaved(self) -> None:
        if self._background.done:
            self._worker.submit(self._background.result())
            self._step = self._listen

    def _listen(self) -> None:
        for event in self._worker.poll():
            if event.kind == "error":
                raise event.exception()
            if event.kind == "preview":
                self._preview(event)
                continue
            if self._onEvent is not None:
                self._onEvent(event)
            if event.kind == "done":
                self._background = _Background(lambda e=event: load(e, self._folder.name))
                self._step = self._placeWhenLoaded
                return

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
                mrml.apply_transform(outcome.transform, self._request.moving)
        self.outcome = outcome

    def _tell(self) -> None:
        self._end()
        if self._onDone is not None:
            self._onDone(self.outcome)

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

    def _fail(self, error: Exception) -> None:
        if self._worker.busy:
            self._worker.cancel()
        self.error = error
        self._end()
        if self._onError is not None:
            self._onError(error)

    def _end(self) -> None:
        self.finished = True
        if self._placement is not None:
            # Ended half way: what has been added is taken back.
            self._placement.close()
            self._placement = None
        if self._timer is not None:
            self._timer.stop()
            self._timer.disconnect("timeout()", self.step)
            self._timer.deleteLater()
            self._timer = None
        if self._background is not None:
            self._background.join()
        self._background = None
        self._step = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


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


class _Background:
    """Something done in a thread: files, never nodes."""

    def __init__(self, function):
        self._function, self._value, self._error = function, None, None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, seconds=None) -> None:
        """Waits until the files are closed, for so long at most."""
        self._thread.join(seconds)

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self):
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            # Raised again in the main thread, by result().
            self._error = error
