"""What the Python console can ask for, and the panel through it: register, train, check, ..."""

from __future__ import annotations

from slicer.i18n import tr as _

from .Worker import closeWorker, isWarm, sharedWorker, workerLog


class ConsoleCalls:
    """The calls of `DeepRegLogic` that start something in the worker process."""

    #: What was started and may still run.
    _runs: tuple = ()

    def register(
        self, fixedNode, movingNode, algorithm="greedy", *, preset="balanced", settings=None,
        device="auto", fixedMask=None, fixedSegment="", movingMask=None, movingSegment="",
        fixedPoints=None, movingPoints=None, fixedLabels=None, movingLabels=None,
        initialTransform=None, startFromScene=True, followLandmarks=False,
        interpolation="auto", fillValue=None, gridSpacing=0.0, maps=(),
        outputVolume=None, outputTransform=None, outputInverse=None,
        wantVolume=True, wantInverse=False, companions=(), hardenCompanions=False,
        applyToMoving=False, wait=True, onEvent=None, onDone=None, onError=None,
    ):  # fmt: skip
        """Registers two volumes.

        Args:
            fixedNode: Volume that stays where it is.
            movingNode: Volume that is brought onto it.
            algorithm: Key, or keys joined by ``+``; a deformable algorithm alone runs its linear
                stages first. See `algorithms`.
            preset: ``fast``, ``balanced`` or ``accurate``.
            settings: Values by parameter name, or ``algorithm.parameter``.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            fixedMask: Label map or segmentation where the fixed image counts.
            fixedSegment: Id or name of one segment of it.
            movingMask: The same for the moving image.
            movingSegment: The same for the moving image.
            fixedPoints: Point list on the fixed image.
            movingPoints: The same points on the moving image, in the same order.
            fixedLabels: Structures on the fixed image, to measure their overlap (Dice).
            movingLabels: The same structures on the moving image.
            initialTransform: Transform of any kind to start from.
            startFromScene: Start where both volumes lie on screen.
            followLandmarks: Bend the start so that the landmark pairs agree.
            interpolation: ``auto``, ``linear`` or ``nearest``.
            fillValue: Value where the moving image has no voxel.
            gridSpacing: Spacing in mm of the deformation in the transform; 0: the fixed image's.
            maps: Maps to add: ``jacobian``.
            outputVolume: Volume to overwrite with the moved one; a new one if None.
            outputTransform: Transform to overwrite; a new one if None.
            outputInverse: Transform to overwrite with the inverse; a new one if None.
            wantVolume: Whether to add the moved volume.
            wantInverse: Whether to add the inverse.
            companions: Nodes that go along with the moving volume.
            hardenCompanions: Copy and harden them instead of putting them under the transform.
            applyToMoving: Put the moving volume itself under the transform.
            wait: Return when it is done; otherwise at once, with the run.
            onEvent: Called with each `DeepRegLib.job.JobEvent`.
            onDone: Called with the `DeepRegLib.bridge.outcome.Outcome`.
            onError: Called with the exception.

        Returns:
            The `Outcome` (`transform`, `moved`, `inverse`, `maps`, `quality`, …) or, without
            waiting, a `RegistrationRun` with `cancel()`, `stopAndKeep()`, `finished`, `outcome`.

        Raises:
            ValueError: If a node or a setting does not fit; the scene is as it was.
            DeepRegLib.errors.DeepRegError: If the run failed; the scene is as it was.
        """
        from DeepRegLib.bridge.outcome import Wanted
        from DeepRegLib.bridge.request import RegistrationRequest

        for node, name in ((fixedNode, _("fixed")), (movingNode, _("moving"))):
            checkVolume(node, name)
        request = RegistrationRequest(
            fixedNode, movingNode, algorithm, preset, settings or {}, device,
            fixedMask, fixedSegment, movingMask, movingSegment, fixedPoints, movingPoints,
            fixedLabels, movingLabels, initialTransform, startFromScene, followLandmarks,
            interpolation, fillValue, gridSpacing, tuple(maps),
        )  # fmt: skip
        wanted = Wanted(wantVolume, wantInverse, True, outputVolume, outputTransform, outputInverse)
        run = self.startRun(
            request, wanted, companions, hardenCompanions, applyToMoving, byTimer=not wait,
            onEvent=onEvent, onDone=onDone, onError=onError,
        )  # fmt: skip
        return run.wait() if wait else run

    def startRun(self, request, wanted, companions=(), harden=False, applyToMoving=False,
                 byTimer=True, **callbacks):  # fmt: skip
        """Starts a run and returns it; see `DeepRegWidgets.RegistrationRun`."""
        from .RegistrationRun import RegistrationRun

        return self._start(
            RegistrationRun(
                sharedWorker(), request, wanted, companions, harden, applyToMoving, **callbacks
            ),
            byTimer,
        )

    def train(self, volumes=(), algorithm="vxm", *, data="", wait=True, onEvent=None, onDone=None,
              onError=None, **options):  # fmt: skip
        """Trains a model of a system that learns, which `register` then finds by itself.

        Args:
            volumes: Volumes to learn from, two at least; a pair (volume, segmentation or label
                map) where the structures are known.
            algorithm: Key; see `algorithms` for those that need a training.
            data: In place of volumes: folder of images, CSV table, or BIDS data set.
            wait: Return when it is done; otherwise at once, with the run.
            onEvent: Called with each `DeepRegLib.job.JobEvent`.
            onDone: Called with what is returned.
            onError: Called with the exception.
            **options: Options of `DeepRegLib.training.options.TrainingOptions`, such as ``name``,
                ``spacing``, ``settings={"steps": 1000}``, ``parameters={...}``.

        Returns:
            A dictionary (``model``, ``path``, ``card``, ``figures``, ``history`` …) or, without
            waiting, a `TrainingRun`.

        Raises:
            DeepRegLib.errors.DeepRegError: If the training failed; the scene is as it was.
        """
        from DeepRegLib.bridge.training import TrainingRequest

        pairs = [v if isinstance(v, (tuple, list)) else (v, None) for v in volumes]
        for node, _labels in pairs:
            checkVolume(node, _("training"))
        request = TrainingRequest(algorithm, pairs, str(data), options)
        return self._outcome(self.startTraining, request, wait, onEvent, onDone, onError)

    def startTraining(self, request, byTimer=True, **callbacks):
        """Starts a training and returns it; see `DeepRegWidgets.TrainingRun`."""
        from .TrainingRun import TrainingRun

        return self._start(TrainingRun(sharedWorker(), request, **callbacks), byTimer)

    def check(
        self, fixedNode, movingNode, transform=None, *, model="", threshold=2.0, step=2,
        device="auto", fixedMask=None, fixedSegment="", wait=True, onEvent=None, onDone=None,
        onError=None,
    ):  # fmt: skip
        """Estimates how far a registration is off, in mm at every voxel of the fixed volume.

        The transform may come from any program, and the volumes may be under transforms.

        Args:
            fixedNode: Volume that stays.
            movingNode: Volume as it was before the registration.
            transform: Transform of any kind that aligns the moving volume when put above it; None
                checks both volumes as they lie on screen.
            model: Model by name or file; the newest of 'error_map' if empty.
            threshold: Errors above this many mm are too large.
            step: Voxels of the model between places that are judged, 1, 2 or 4.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            fixedMask: Label map or segmentation where errors count.
            fixedSegment: Id or name of one segment of it.
            wait: Return when it is done; otherwise at once, with the run.
            onEvent: Called with each `DeepRegLib.job.JobEvent`.
            onDone: Called with what is returned.
            onError: Called with the exception.

        Returns:
            A `DeepRegLib.bridge.check.Checked` (`volume`, `verdict`, `sentence`, `report`) or,
            without waiting, a `CheckRun`.

        Raises:
            ValueError: If a node or a value does not fit; the scene is as it was.
            DeepRegLib.errors.DeepRegError: If the check failed; the scene is as it was.
        """
        from DeepRegLib.bridge.check import CheckRequest

        for node, name in ((fixedNode, _("fixed")), (movingNode, _("moving"))):
            checkVolume(node, name)
        request = CheckRequest(
            fixedNode, movingNode, transform, fixedMask, fixedSegment, model, step, threshold,
            device,
        )  # fmt: skip
        return self._outcome(self.startCheck, request, wait, onEvent, onDone, onError)

    def startCheck(self, request, byTimer=True, **callbacks):
        """Starts a check and returns it; see `DeepRegWidgets.CheckRun`."""
        from .CheckRun import CheckRun

        return self._start(CheckRun(sharedWorker(), request, **callbacks), byTimer)

    def transport(
        self, fixedNode, movingNode, subjectNode, *, model="", strength=1.0, alignment="affine",
        device="auto", wait=True, onEvent=None, onDone=None, onError=None,
    ):  # fmt: skip
        """Applies the deformation of one subject to another one, by a trained model of ``cvae``.

        Args:
            fixedNode: Volume of a subject after a change, such as a later scan.
            movingNode: Volume of the same subject before it.
            subjectNode: Volume of another subject, before the change.
            model: Model by name or file; the newest of 'cvae' if empty.
            strength: Factor of the deformation's code.
            alignment: ``affine`` or ``rigid``: how the moving volume and the other subject are
                aligned with the fixed one beforehand; ``screen`` takes them as they lie.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            wait: Return when it is done; otherwise at once, with the run.
            onEvent: Called with each `DeepRegLib.job.JobEvent`.
            onDone: Called with what is returned.
            onError: Called with the exception.

        Returns:
            A `DeepRegLib.bridge.transport.Carried` (`transform`, `volume`, `report`) or, without
            waiting, a `TransportRun`.

        Raises:
            ValueError: If a node or a value does not fit; the scene is as it was.
            DeepRegLib.errors.DeepRegError: If it failed; the scene is as it was.
        """
        from DeepRegLib.bridge.transport import TransportRequest

        names = (_("fixed"), _("moving"), _("subject's"))
        for node, name in zip((fixedNode, movingNode, subjectNode), names):
            checkVolume(node, name)
        request = TransportRequest(
            fixedNode, movingNode, subjectNode, model, strength, alignment, device
        )
        return self._outcome(self.startTransport, request, wait, onEvent, onDone, onError)

    def startTransport(self, request, byTimer=True, **callbacks):
        """Starts to carry a deformation over; see `DeepRegWidgets.TransportRun`."""
        from .TransportRun import TransportRun

        return self._start(TransportRun(sharedWorker(), request, **callbacks), byTimer)

    def population(
        self, fixedNode, transforms=(), *, folder="", modes=3, linear=False, model=None,
        device="auto", wait=True, onEvent=None, onDone=None, onError=None,
    ):  # fmt: skip
        """Finds what many registrations with one fixed volume differ in, and who is atypical.

        Args:
            fixedNode: Their common fixed volume.
            transforms: Transforms of any kind, three at least, each of which aligns a volume with
                the fixed one when put above it.
            folder: In place of them: a folder of transform files, or one that ``batch`` wrote.
            modes: Number of modes.
            linear: Whether the linear parts of the transforms count, too.
            model: Model of ``coop_ae`` that judges the deformations; empty for the newest, None
                for none.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            wait: Return when it is done; otherwise at once, with the run.
            onEvent: Called with each `DeepRegLib.job.JobEvent`.
            onDone: Called with what is returned.
            onError: Called with the exception.

        Returns:
            A `DeepRegLib.bridge.population.Population` (`transform`, `shown`, `report`, and
            `move(1.5, -0.5)` along its modes) or, without waiting, a `PopulationRun`.

        Raises:
            ValueError: If a node or a value does not fit; the scene is as it was.
            DeepRegLib.errors.DeepRegError: If it failed; the scene is as it was.
        """
        from DeepRegLib.bridge.population import PopulationRequest

        checkVolume(fixedNode, _("fixed"))
        request = PopulationRequest(
            fixedNode, tuple(transforms), str(folder), modes, linear, model, device
        )
        return self._outcome(self.startPopulation, request, wait, onEvent, onDone, onError)

    def startPopulation(self, request, byTimer=True, **callbacks):
        """Starts to examine a population; see `DeepRegWidgets.PopulationRun`."""
        from .PopulationRun import PopulationRun

        return self._start(PopulationRun(sharedWorker(), request, **callbacks), byTimer)

    def workerLog(self):
        """Returns the last lines that the worker process wrote."""
        return workerLog()

    def workerIsWarm(self):
        """Tells whether the worker process runs already and need not start."""
        return isWarm()

    def close(self):
        """Cancels what runs and ends the worker process."""
        for run in self._runs:
            run.cancel()
        self._runs = ()
        closeWorker()

    def _outcome(self, start, request, wait, onEvent, onDone, onError):
        """Returns the outcome of a run, or without waiting the run."""
        run = start(request, byTimer=not wait, onEvent=onEvent, onDone=onDone, onError=onError)
        return run.wait() if wait else run

    def _start(self, run, byTimer):
        run.start(byTimer)
        self._runs = (*(r for r in self._runs if not r.finished), run)
        return run


def checkVolume(node, name):
    """Refuses what is no scalar volume.

    Raises:
        ValueError: With a sentence that says what came.
    """
    if node is None:
        raise ValueError(_("The {name} volume is missing.").format(name=name))
    if not hasattr(node, "IsA") or not node.IsA("vtkMRMLScalarVolumeNode"):
        what = node.GetClassName() if hasattr(node, "GetClassName") else type(node).__name__
        text = _("The {name} volume must be a scalar volume node, but is a {what}.")
        raise ValueError(text.format(name=name, what=what))
