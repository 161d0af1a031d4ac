"""Registration of a pair by a network: finds the model, shows it the pair, places its answer."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import registry
from ..errors import FileFormatError, ParameterError
from ..geometry.grid import Grid
from ..geometry.transform import Transform
from ..memory import is_out_of_memory
from ..models import ModelCard, ModelFile, find_model, list_models
from ..networks.model_file import fill
from .base import Image, ImagePair, Progress, Result
from .model_frame import ModelFrame, labels_onto_frame, normalized, onto_frame
from .pair_fit import FitSettings, fit
from .placement import placed
from .preprocess import mask_on_grid
from .tiles import Tiling, predict_in_tiles, windows
from .trainable import Batch, Prediction, Trainable

#: Least steps of a network without a model.
_SCRATCH_STEPS = 150
#: Voxels of the grid of a network without a model, by the kind of device.
_SCRATCH_VOXELS = {"cpu": 64**3, "cuda": 128**3}
#: Larger grids are registered in windows at once, because a computer whose memory runs out may end
#: the process; a GPU tells, and then windows follow.
_MOST_VOXELS = {"cpu": 12_000_000}
#: Edges of the windows in voxels, one after the other as long as memory runs out.
_EDGES = (160, 112, 80)
#: Shares of the progress: the images are ready, the fit is done.
_READY, _FITTED = 0.05, 0.9
_SEED = 20260

_T = TypeVar("_T")


class LearnedRegistration(Trainable):
    """Registers pairs with a trained network, or with one that is fitted to the very pair.

    A file in `algorithms/` derives its class ``Algorithm`` from this and has `build`,
    `training_loss` and `predict`; its `SPEC` has the parameters ``model`` and ``pair_steps``, and
    marks those that training decides. The weights are a fresh copy for each pair, so that what is
    fitted to one never reaches the next.
    """

    #: Whether windows of large images can be registered one by one; not for linear maps, control
    #: points, or codes of a whole image.
    in_tiles: bool = True
    #: Whether the steps on a pair may look at its label maps, which otherwise only measure.
    fits_labels: bool = False
    #: Learning rate of the steps on a pair, with the weights of a model and with random ones.
    pair_rate: float = 1e-4
    scratch_rate: float = 5e-4

    @property
    def key(self) -> str:
        """Key in the registry, which is the name of the file."""
        return type(self).__module__.rpartition(".")[2]

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair; see `registration.base.Registration`.

        Raises:
            ParameterError: If there is no such model, or it belongs to another algorithm.
            FileFormatError: If the model is damaged or does not fit.
            InputError: If the network's answer is not finite.
        """
        progress.update(0.01)
        file = self.model()
        with _own_randomness(pair.device):
            if file is None:
                progress.message(
                    f"There is no trained model for '{self.key}'; its network is fitted to this "
                    "pair alone, which takes longer and gives less."
                )
                system, network = self, self.build()
                frame = _frame_without_model(pair, self.multiple)
            else:
                system, network = self.trained(file)
                card = _card(file)
                progress.message(f"The model is '{file.name}'{_described(card)}.")
                for name in self._overruled(system):
                    progress.message(f"The model has its own '{name}'; the given one has no use.")
                frame = ModelFrame(card.spacing_mm, card.shape)
            if 1 in pair.fixed.grid.shape:
                progress.message("Networks see volumes; what they make of a slice may be poor.")
            view = see(pair, frame, self.multiple, self.fits_labels)
            progress.update(_READY)
            run = _Run(system, network.to(pair.device).eval(), view, pair, progress)
            return run.result(file, int(self.values["pair_steps"]))

    def model(self) -> ModelFile | None:
        """Returns the model that the parameters ask for; None if none is named and there is none.

        Raises:
            ParameterError: If there is no such model, or it belongs to another algorithm.
            FileFormatError: If the file is damaged, or none of DeepReg's models.
        """
        name = str(self.values["model"])
        if not name.strip() and not list_models(self.key):
            return None
        return find_model(self.key, name)

    def trained(self, file: ModelFile) -> tuple[LearnedRegistration, nn.Module]:
        """Returns the system as a model was trained, and its network with the model's weights.

        Raises:
            FileFormatError: If the model is damaged, or made for another version of the system.
        """
        card = _card(file)
        known = {p.name: p for p in registry.spec(self.key).parameters if p.training}
        unknown = sorted(set(card.parameters) - set(known))
        if unknown:
            raise FileFormatError(
                f"The model '{file.name}' was trained with a parameter '{unknown[0]}' that this "
                f"version of '{self.key}' does not have; update DeepReg, or train it again."
            )
        values = {name: p.default for name, p in known.items()}
        try:
            values.update({n: known[n].parse(value) for n, value in card.parameters.items()})
        except ParameterError as error:
            raise FileFormatError(
                f"The model '{file.name}' does not fit this version of DeepReg: {error}"
            ) from error
        system = type(self)(**{**self.values, **values})
        network = system.build()
        fill(network, file.path)
        return system, network

    def _overruled(self, system: LearnedRegistration) -> list[str]:
        """Returns the parameters that were given on purpose but are decided by the model."""
        return [
            p.name
            for p in registry.spec(self.key).parameters
            if p.training
            and self.values[p.name] != system.values[p.name]
            and self.values[p.name] not in (p.default, *p.presets.values())
        ]


@dataclass(frozen=True, eq=False)
class View:
    """What a network sees of a pair.

    Args:
        grid: Grid of the network, in the fixed space.
        batch: Both images on it, the moving one through the start of the pair.
    """

    grid: Grid
    batch: Batch


def see(pair: ImagePair, frame: ModelFrame, multiple: int = 16, labels: bool = False) -> View:
    """Returns a pair as a network sees it.

    What a mask leaves out is background. One mask alone holds for both images, as a network would
    take what is missing in one of them for a change.

    Args:
        pair: The images.
        frame: Voxel size and shape that the network was trained on.
        multiple: See `ModelFrame.grid`.
        labels: Whether the label maps of the pair go along.
    """
    start = pair.initial or Transform()
    fixed, moving = (masked(pair.fixed, pair.fixed_mask), masked(pair.moving, pair.moving_mask))
    grid = frame.grid(fixed, multiple)
    onto = [
        onto_frame(normalized(fixed), fixed.grid, grid),
        onto_frame(normalized(moving), moving.grid, grid, start),
    ]
    if pair.moving_mask is None:
        onto[1] = _within(onto[1], pair.fixed_mask, grid, Transform())
    if pair.fixed_mask is None:
        onto[0] = _within(onto[0], pair.moving_mask, grid, start)
    given = ((pair.fixed_labels, Transform()), (pair.moving_labels, start))
    regions = [
        labels_onto_frame(map_.data, map_.grid, grid, t) if labels and map_ is not None else None
        for map_, t in given
    ]
    return View(grid, Batch(onto[0], onto[1], frame.spacing_mm, regions[0], regions[1]))


class _Run:
    """One pair on its way through one network."""

    def __init__(
        self, system: LearnedRegistration, network: nn.Module, view: View, pair: ImagePair,
        progress: Progress,
    ) -> None:  # fmt: skip
        self._system, self._network, self._view = system, network, view
        self._pair, self._progress = pair, progress
        self._history: list[dict[str, Any]] = []
        self._tiles = 1

    def result(self, file: ModelFile | None, steps: int) -> Result:
        scratch = file is None
        steps = max(steps, _SCRATCH_STEPS) if scratch else steps
        rate = self._system.scratch_rate if scratch else self._system.pair_rate
        if steps and not self._progress.stop_requested:
            self._with_less(lambda edge: self._fit(FitSettings(steps, rate, scratch), edge))
        if scratch and not self._history:
            # Stopped before the first step: random weights are worse than the start.
            return Result(self._pair.initial or Transform())
        prediction = self._with_less(self._predict)
        result = placed(prediction, self._view.grid, self._pair)
        result.history = self._history
        result.provenance = self._provenance(file, prediction)
        if self._progress.wants_preview():
            self._progress.preview(result.transform)
        self._progress.update(1.0)
        return result

    def _fit(self, settings: FitSettings, edge: int | None) -> None:
        self._history = []
        batches = [self._view.batch]
        if edge is not None:
            batches = [part for _, part in windows(self._view.batch, self._tiling(edge))]

        def report(done: int, value: float, network: nn.Module) -> bool:
            self._progress.update(_READY + (_FITTED - _READY) * done / settings.steps, value)
            if self._progress.wants_preview() and edge is None:
                with torch.no_grad():
                    self._progress.preview(self._answered(self._predict(None)).transform)
            return self._progress.stop_requested

        before = {name: value.clone() for name, value in self._network.state_dict().items()}
        try:
            self._history = fit(self._system, self._network, batches, settings, report)
        except BaseException:
            self._network.load_state_dict(before)
            raise

    def _predict(self, edge: int | None) -> Prediction:
        batch = self._view.batch
        with torch.no_grad():
            if edge is None:
                return self._system.predict(
                    self._network, batch.fixed, batch.moving, batch.spacing_mm
                )
            tiling = self._tiling(edge)
            self._tiles = len(tiling.starts)
            self._progress.message(
                f"The images are large for the memory; the network sees them in {self._tiles} "
                "overlapping windows."
            )
            start = _FITTED if self._history else _READY
            return predict_in_tiles(
                self._system, self._network, batch, tiling,
                lambda done: self._progress.update(start + (1.0 - start) * 0.99 * done),
            )  # fmt: skip

    def _answered(self, prediction: Prediction) -> Result:
        return placed(prediction, self._view.grid, self._pair)

    def _tiling(self, edge: int) -> Tiling:
        return Tiling.of(self._view.batch.shape, edge, self._system.multiple)

    def _with_less(self, work: Callable[[int | None], _T]) -> _T:
        """Does something with the whole images, then with smaller and smaller windows of them."""
        shape = self._view.batch.shape
        edges: list[int | None] = []
        if self._system.in_tiles:
            edges += [edge for edge in _EDGES if edge < max(shape)]
        most = _MOST_VOXELS.get(self._pair.device.type, math.inf)
        if not edges or math.prod(shape) <= most:
            edges.insert(0, None)
        for edge in edges[:-1]:
            try:
                return work(edge)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Out of the except clause, so that the tensors of the attempt are free by now.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return work(edges[-1])

    def _provenance(self, file: ModelFile | None, prediction: Prediction) -> dict[str, Any]:
        grid = self._view.grid
        said: dict[str, Any] = {
            "model": None if file is None else _about(file),
            "pair_steps": len(self._history),
            "network_grid": {"shape": list(grid.shape), "spacing_mm": self._view.batch.spacing_mm},
            "windows": self._tiles,
        }
        return {**said, "values": prediction.values} if prediction.values else said


@contextlib.contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Random numbers that are the same for each pair, and leave those of everyone else alone."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_SEED)
        yield


def masked(image: Image, mask: Image | None) -> Image:
    """Returns an image whose voxels outside a mask have the least value that is inside."""
    inside = mask_on_grid(mask, image.grid, image.data.device)
    if inside is None or not bool(inside.any()):
        return image
    data = image.data[:, :1].float()
    floor = data[inside > 0].min()
    return replace(image, data=torch.where(inside > 0, data, floor))


def _within(shown: Tensor, mask: Image | None, grid: Grid, transform: Transform) -> Tensor:
    """Returns an image on a grid with zeros outside a mask of the fixed or the moving image."""
    if mask is None:
        return shown
    return shown * (transform.warp((mask.data[:, :1] > 0).float(), mask.grid, grid) >= 0.5)


def _frame_without_model(pair: ImagePair, multiple: int) -> ModelFrame:
    """Voxels as large as a network that has to learn here can afford, around the object."""
    fixed = masked(pair.fixed, pair.fixed_mask)
    finest = min(fixed.grid.spacing_mm)
    least = (multiple, multiple, multiple)
    grid = ModelFrame(finest, least).grid(fixed, multiple)
    most = _SCRATCH_VOXELS.get(pair.device.type, 64**3)
    return ModelFrame(finest * max(1.0, (grid.size / most) ** (1 / 3)), least)


def _card(file: ModelFile) -> ModelCard:
    if file.card is None:
        raise FileFormatError(file.problem)
    return file.card


def _described(card: ModelCard) -> str:
    about = ", ".join(text for text in (card.anatomy, card.contrast) if text)
    return f" ({about})" if about else ""


def _about(file: ModelFile) -> dict[str, Any]:
    """What the provenance says of a model."""
    card = _card(file)
    return {
        "name": file.name, "file": str(file.path), "bundled": file.bundled,
        "spacing_mm": card.spacing_mm, "shape": list(card.shape), "anatomy": card.anatomy,
        "contrast": card.contrast, "data": card.data, "terms": card.terms,
        "figures": dict(card.figures), "library": card.library,
        "structure_names": dict(card.training.get("structure_names") or {}),
    }  # fmt: skip
