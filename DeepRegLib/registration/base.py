"""What goes into a registration, what comes out, and how it reports while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import Cancelled, GeometryError
from ..geometry.grid import Grid
from ..geometry.transform import Transform


@dataclass(frozen=True, eq=False)
class Image:
    """An image, mask or label map with its grid.

    Convention:
        `data` is (1, C, *grid.shape): float32 for images, any integer type for label maps, C = 1
        but for multi-channel images. Masks are label maps: everything above zero counts.

    Args:
        data: The voxels.
        grid: Where they lie.
        pixel_type: numpy name of the type that the voxels had in their file or node, so that a
            moved CT can be written as ``int16`` again.
    """

    data: Tensor
    grid: Grid
    pixel_type: str = "float32"

    def __post_init__(self) -> None:
        if self.data.ndim != 5 or tuple(self.data.shape[2:]) != self.grid.shape:
            raise GeometryError(
                f"An image on {self.grid} has the shape (1, C, *grid.shape), but got "
                f"{tuple(self.data.shape)}."
            )

    @classmethod
    def from_array(cls, array: NDArray, grid: Grid) -> Image:
        """Makes an image from an array of shape grid.shape, its integer type kept for labels."""
        pixel_type = str(array.dtype)
        array = np.ascontiguousarray(array)
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            # torch has few operations on the larger unsigned types.
            array = array.astype(np.int64)
        elif array.dtype.kind == "b":
            array = array.astype(np.uint8)
        elif array.dtype.kind == "f":
            array = array.astype(np.float32)
        return cls(torch.from_numpy(array.copy())[None, None], grid, pixel_type)

    def numpy(self) -> NDArray:
        """Returns the first channel as an array of shape grid.shape."""
        return self.data[0, 0].cpu().numpy()

    def to(self, device: torch.device | str) -> Image:
        """Returns the image on another device."""
        return replace(self, data=self.data.to(device))


@dataclass(frozen=True, eq=False)
class ImagePair:
    """A fixed and a moving image with all that may come with them.

    Args:
        fixed: Image that stays.
        moving: Image that is brought onto the fixed one; may have any other grid.
        fixed_mask: Where the fixed image counts, on any grid; everywhere if omitted.
        moving_mask: Where the moving image counts, on any grid; everywhere if omitted.
        fixed_labels: Label map of the fixed image, for measures.
        moving_labels: Label map of the moving image, for measures.
        fixed_landmarks_ras: (N, 3) points in RAS mm.
        moving_landmarks_ras: (N, 3) corresponding points.
        initial: Transform to start from, fixed to moving.
        initial_is_given: Whether the user (not an earlier stage) gave `initial`.
        landmarks_lead: Whether the landmark pairs are to be met, not only measured.
    """

    fixed: Image
    moving: Image
    fixed_mask: Image | None = None
    moving_mask: Image | None = None
    fixed_labels: Image | None = None
    moving_labels: Image | None = None
    fixed_landmarks_ras: NDArray[np.float64] | None = None
    moving_landmarks_ras: NDArray[np.float64] | None = None
    initial: Transform | None = None
    initial_is_given: bool = False
    landmarks_lead: bool = False

    def to(self, device: torch.device | str) -> ImagePair:
        """Returns the pair with all its tensors on another device."""
        names = ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_labels", "moving_labels",
                 "initial")  # fmt: skip
        moved = {n: v.to(device) for n in names if (v := getattr(self, n)) is not None}
        return replace(self, **moved)

    @property
    def device(self) -> torch.device:
        """Device that the images are on."""
        return self.fixed.data.device


@dataclass(frozen=True)
class Event:
    """A message from a running registration.

    Args:
        kind: ``stage``, ``progress``, ``preview`` or ``message``.
        stage: Algorithm key of the running stage.
        fraction: Share of the whole run that is done, 0 to 1.
        value: Current value of the objective, if there is one.
        text: A sentence for people.
        transform: For a preview, the transform so far.
    """

    kind: str
    stage: str = ""
    fraction: float = 0.0
    value: float | None = None
    text: str = ""
    transform: Transform | None = None


class Progress:
    """Takes reports from a registration and tells it whether to go on.

    Args:
        listener: Called with each event, in the thread of the registration.
        preview_seconds: Shortest time between two previews; none if None.
    """

    def __init__(
        self,
        listener: Callable[[Event], None] | None = None,
        preview_seconds: float | None = None,
    ) -> None:
        self._listener = listener
        self._preview_seconds = preview_seconds
        self._last_preview = time.monotonic()
        self._span = (0.0, 1.0)
        self._stage = ""
        self._cancelled = False
        self._stopped = False

    def cancel(self) -> None:
        """Asks the run to end without a result."""
        self._cancelled = True

    def stop(self) -> None:
        """Asks the run to end with the best so far ("stop and keep")."""
        self._stopped = True

    @property
    def stop_requested(self) -> bool:
        """Whether loops should end and keep what they have."""
        return self._stopped

    def stage(self, name: str, start: float, end: float) -> None:
        """Begins a stage that covers a span of the whole run."""
        self._stage, self._span = name, (start, end)
        self.tell(Event("stage", name, start))

    def update(self, fraction: float, value: float | None = None) -> None:
        """Reports the share of the stage that is done.

        Raises:
            Cancelled: If the user has cancelled.
        """
        if self._cancelled:
            raise Cancelled("The registration was cancelled; nothing was changed.")
        start, end = self._span
        whole = start + (end - start) * min(max(fraction, 0.0), 1.0)
        self.tell(Event("progress", self._stage, whole, value))

    def message(self, text: str) -> None:
        """Passes a sentence on to the user."""
        self.tell(Event("message", self._stage, self._span[0], text=text))

    def wants_preview(self) -> bool:
        """Whether enough time has passed for the next preview."""
        if self._preview_seconds is None:
            return False
        return time.monotonic() - self._last_preview >= self._preview_seconds

    def preview(self, transform: Transform) -> None:
        """Shows the transform so far."""
        self._last_preview = time.monotonic()
        self.tell(Event("preview", self._stage, self._span[0], transform=transform))

    def tell(self, event: Event) -> None:
        """Passes an event on to whoever listens."""
        if self._listener is not None:
            self._listener(event)


@dataclass(eq=False)
class Result:
    """What a registration found.

    Args:
        transform: Fixed to moving.
        inverse: Moving to fixed; made when the run finishes.
        moved: Moving image on the fixed grid; made when the run finishes.
        history: One entry per recorded iteration: stage, level, iteration, value.
        seconds: Seconds per stage, in order.
        quality: The quality card (metrics/report.py).
        provenance: Algorithm, parameters, device, versions.
        extras: Maps that a system is known for, by name, such as an uncertainty in mm.
    """

    transform: Transform
    inverse: Transform | None = None
    moved: Image | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Image] = field(default_factory=dict)


class Registration(Protocol):
    """An algorithm with its parameters set: the class Algorithm of a file in `algorithms/`."""

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair, starting from `pair.initial` if there is one."""
        ...
