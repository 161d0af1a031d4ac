"""Registration by a network that compares: it is loaded, or fitted to the pair, then optimized by.

Such a system has no transform to predict. Its network says how alike two images are, and a
transform is changed until they are as alike as can be.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..geometry.transform import Transform
from ..losses.base import Similarity
from ..models import ModelFile
from . import learned
from .base import Event, Image, ImagePair, Progress, Result
from .learned import LearnedRegistration, see
from .model_frame import ModelFrame
from .pair_fit import FitSettings, fit
from .placement import placed

#: Shares of the progress: the images are ready, the network is fitted, the pair is registered.
_READY, _FITTED, _REGISTERED = 0.05, 0.35, 0.97


@dataclass(frozen=True, eq=False)
class Comparison:
    """A network that compares, ready for a pair.

    Args:
        system: The system with the parameters of the model.
        network: Its network, on the device of the pair.
        frame: Voxel size and shape that it was trained on.
        file: Its model; None if it was fitted to the pair alone.
        fit: Loss of each step of the fit.
    """

    system: MetricRegistration
    network: nn.Module
    frame: ModelFrame
    file: ModelFile | None
    fit: list[float] = field(default_factory=list)


class MetricRegistration(LearnedRegistration):
    """Registers by optimizing what a network says of the images.

    A file in `algorithms/` derives its class ``Algorithm`` from this and has, beside the parts of a
    system that learns, `measure` and `optimized`. Its `predict` moves nothing; it gives maps of how
    alike the images are, place by place.
    """

    in_tiles = False

    @abstractmethod
    def measure(
        self, network: nn.Module, spacing_mm: Sequence[float], model_mm: float
    ) -> Similarity:
        """Returns the similarity that a network gives, for any engine.

        Args:
            network: The network.
            spacing_mm: Voxel size of the images along the tensor axes.
            model_mm: Voxel size that it was trained on.
        """

    @abstractmethod
    def optimized(
        self, network: nn.Module, frame: ModelFrame, pair: ImagePair, progress: Progress
    ) -> Result:
        """Registers a pair with a network, from `pair.initial` if there is one.

        Args:
            network: The network, at rest.
            frame: Voxel size and shape that it was trained on.
            pair: The images; what masks leave out is as dark as the darkest that they leave in.
            progress: Gets the share that is done, from 0 to 1.
        """

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair; see `registration.base.Registration`.

        Raises:
            ParameterError: If there is no such model, or it belongs to another algorithm.
            FileFormatError: If the model is damaged or does not fit.
        """
        progress.update(0.0)
        if progress.stop_requested:
            return Result(pair.initial or Transform())
        masked = replace(
            pair,
            fixed=learned.masked(pair.fixed, pair.fixed_mask),
            moving=learned.masked(pair.moving, pair.moving_mask),
        )
        with learned._own_randomness(pair.device):
            ready = self.compared(masked, progress)
            begin = _FITTED if ready.fit else _READY
            part = PartOfProgress(progress, begin, _REGISTERED)
            result = ready.system.optimized(ready.network, ready.frame, masked, part)
        result.extras = _maps(ready, masked, result.transform)
        result.provenance = _provenance(ready, masked)
        progress.update(1.0)
        return result

    def compared(self, pair: ImagePair, progress: Progress) -> Comparison:
        """Returns the network for a pair: loaded, and fitted as the parameters say."""
        file = self.model()
        if file is None:
            progress.message(
                f"There is no trained model for '{self.key}'; its network is fitted to this "
                "pair alone, which takes longer and gives less."
            )
            system: MetricRegistration = self
            network = self.build()
            frame = learned._frame_without_model(pair, self.multiple)
        else:
            found, network = self.trained(file)
            assert isinstance(found, MetricRegistration)
            system, card = found, learned._card(file)
            progress.message(f"The model is '{file.name}'{learned._described(card)}.")
            for name in self._overruled(system):
                progress.message(f"The model has its own '{name}'; the given one has no use.")
            frame = ModelFrame(card.spacing_mm, card.shape)
        ready = Comparison(system, network.to(pair.device).eval(), frame, file)
        progress.update(_READY)
        steps = int(self.values["pair_steps"])
        steps = steps if file is not None else max(steps, learned._SCRATCH_STEPS)
        if steps and not progress.stop_requested:
            ready.fit.extend(_fitted(ready, pair, steps, progress))
        ready.network.eval().requires_grad_(False)
        return ready


class PartOfProgress(Progress):
    """Passes on the progress of a part of a stage as a share of the whole stage.

    Args:
        whole: Progress of the stage.
        begin: Share of the stage that is done when the part begins.
        end: Share that is done when it ends.
    """

    def __init__(self, whole: Progress, begin: float, end: float) -> None:
        super().__init__()
        self._whole, self._begin, self._end = whole, begin, end

    @property
    def stop_requested(self) -> bool:
        """Whether the user asked the whole to stop and keep what there is."""
        return self._whole.stop_requested

    def cancel(self) -> None:
        """Cancels the whole."""
        self._whole.cancel()

    def stop(self) -> None:
        """Stops the whole."""
        self._whole.stop()

    def update(self, fraction: float, value: float | None = None) -> None:
        """Reports the share of the part that is done; see `Progress.update`."""
        share = min(max(fraction, 0.0), 1.0)
        self._whole.update(self._begin + (self._end - self._begin) * share, value)

    def message(self, text: str) -> None:
        """Passes a sentence on."""
        self._whole.message(text)

    def wants_preview(self) -> bool:
        """Whether it is time for the next preview."""
        return self._whole.wants_preview()

    def preview(self, transform: Transform) -> None:
        """Shows the transform so far."""
        self._whole.preview(transform)

    def tell(self, event: Event) -> None:
        """Passes an event on."""
        self._whole.tell(event)


def _fitted(ready: Comparison, pair: ImagePair, steps: int, progress: Progress) -> list[float]:
    """Fits the network to a pair; returns the loss of each step."""
    system, scratch = ready.system, ready.file is None
    rate = system.scratch_rate if scratch else system.pair_rate

    def report(done: int, value: float, network: nn.Module) -> bool:
        progress.update(_READY + (_FITTED - _READY) * done / steps, value)
        return progress.stop_requested

    batch = see(pair, ready.frame, system.multiple).batch
    history = fit(system, ready.network, [batch], FitSettings(steps, rate, scratch), report)
    return [float(entry["value"]) for entry in history]


def _maps(ready: Comparison, pair: ImagePair, transform: Transform) -> dict[str, Image]:
    """Returns the maps of a network for the registered pair, on the grids of the images."""
    view = see(replace(pair, initial=transform), ready.frame, ready.system.multiple)
    with torch.no_grad():
        prediction = ready.system.predict(
            ready.network, view.batch.fixed, view.batch.moving, view.batch.spacing_mm
        )
    return placed(prediction, view.grid, pair).extras


def _provenance(ready: Comparison, pair: ImagePair) -> dict[str, Any]:
    grid = ready.frame.grid(pair.fixed, ready.system.multiple)
    said: dict[str, Any] = {
        "model": None if ready.file is None else learned._about(ready.file),
        "pair_steps": len(ready.fit),
        "network_grid": {"shape": list(grid.shape), "spacing_mm": ready.frame.spacing_mm},
        "windows": 1,
    }
    if ready.fit:
        said["values"] = {"fit_first": ready.fit[0], "fit_last": ready.fit[-1]}
    return said
