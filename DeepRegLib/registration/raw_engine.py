"""Registration to under-sampled raw data: the fixed image is bent until its k-space agrees.

Sought is the deformation phi that takes the points of the scan to those of the fixed image F, with

    |S (a FFT(F o phi) - y)|² / |S y|² + smoothness |grad v|²,    phi = start^-1 o exp(v)

smallest, where y are the samples, S tells which were taken, and v is a stationary velocity on the
grid of the scan. No image of the scan is made, so what was not sampled cannot mislead. The factor a
between the intensities is the best one for each phi; frequency zero does not count, and with it no
offset. Samples of higher frequency may get more weight. The transform of the library leads the
other way, from the fixed image to the scan: start^-1 is undone by the start, exp(v) by exp(-v).

At coarse levels the middle of k-space is the data of the coarse image, without a detour.

References:
    Lustig, Donoho, Pauly 2007, doi:10.1002/mrm.21391 (consistency with the samples).
    Küstner et al. LAPNet: non-rigid registration derived in k-space for magnetic resonance imaging.
    IEEE Transactions on Medical Imaging 40, 2021. doi:10.1109/TMI.2021.3096131.
    Arsigny et al. 2006, doi:10.1007/11866565_113 (exponential and inverse of a velocity).
    Kingma, Ba. Adam: a method for stochastic optimization. ICLR 2015, arXiv:1412.6980.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry.field import Field, fade_window
from ..geometry.grid import Grid
from ..geometry.sampling import gaussian_smooth, sample, voxel_coordinates
from ..geometry.transform import Transform
from ..geometry.velocity import exponential
from .base import Image, ImagePair, Progress, Result
from .folds import without_folds
from .kspace import (
    cropped,
    frequencies,
    fused,
    low_resolution_grid,
    low_resolution_shape,
    middle,
    smooth_phase,
    to_image,
    to_kspace,
)
from .levels import lattice_factors
from .placement import conjugated
from .raw_data import RawData
from .raw_scan import Scan

#: Voxels of the scan for each voxel of the velocity, along an axis.
_COARSER = 2
#: Smoothing of the steps and fading rim, in voxels of the velocity.
_SIGMA, _RIM = 1.0, 3
#: Least samples along an axis that tell the phase of a scan.
_LOW = 8


@dataclass(frozen=True)
class RawSettings:
    """Settings of the engine; see `algorithms/raw_domain.py` for their meaning."""

    smoothness: float
    emphasis: float
    factors: tuple[int, ...]
    iterations: tuple[int, ...]
    step: float
    trust: float


def raw_settings(values: Mapping[str, Any]) -> RawSettings:
    """Makes settings from the parameters of `algorithms/raw_domain.py`."""
    names = RawSettings.__dataclass_fields__
    return RawSettings(**{name: values[name] for name in names})


class RawLevel:
    """The data term of one resolution, as a function of the displacement that bends F.

    Args:
        scan: Samples, and the fixed image as the start shows it on the grid of the scan.
        shape: Samples of the level along each axis.
        emphasis: Power of the frequency that samples are weighted by.
    """

    def __init__(self, scan: Scan, shape: tuple[int, int, int], emphasis: float) -> None:
        raw = scan.raw
        self.grid = low_resolution_grid(raw.grid, shape)
        self.reference = _lowered(scan.reference, shape)
        self._inside = None if scan.inside is None else _lowered(scan.inside, shape).clamp(0, 1)
        self._phase: Tensor | None = None
        if scan.phase is not None:
            phase = to_image(cropped(to_kspace(scan.phase), shape))
            self._phase = phase / phase.abs().clamp(min=1e-6)
        self._weight = _weights(raw, shape, emphasis)
        self._samples = cropped(raw.samples, shape) * self._weight
        self._norm = _square(self._samples).clamp(min=1e-20)
        self._identity = voxel_coordinates(shape, raw.samples.device)

    def __call__(self, displacement: Tensor) -> Tensor:
        """Returns the share of the samples' energy that is not explained, 0 to 1; differentiable.

        Args:
            displacement: (1, 3, *shape), in voxels of `grid`.
        """
        predicted = self.predicted(displacement) * self._weight
        factor = best_factor(predicted, self._samples)
        return _square(factor * predicted - self._samples) / self._norm

    def predicted(self, displacement: Tensor) -> Tensor:
        """Returns the whole k-space of the bent fixed image."""
        bent = sample(self.reference, self._identity + displacement)
        if self._inside is not None:
            bent = bent * self._inside
        return to_kspace(bent if self._phase is None else bent * self._phase)


def best_factor(predicted: Tensor, samples: Tensor) -> Tensor:
    """Returns the number that brings predicted samples nearest to those measured, 0 or more.

    As it is the best one, the objective does not change with it to first order, and it needs no
    tape (variable projection; Golub & Pereyra 1973, doi:10.1137/0710036).
    """
    with torch.no_grad():
        product = (predicted.conj() * samples).real.sum()
        return (product / _square(predicted).clamp(min=1e-20)).clamp(min=0.0)


class Velocity:
    """A stationary velocity on a coarser grid than a level, which Adam improves.

    Args:
        level: The level.
        before: What coarser levels found.
        step: Length of the first steps, in voxels of the velocity along the finest axis.
        device: Where to compute.
    """

    def __init__(
        self, level: RawLevel, before: Field | None, step: float, device: torch.device
    ) -> None:
        whole = level.grid
        factors = lattice_factors(whole, _COARSER)
        a, b, c = (-(-n // f) for n, f in zip(whole.shape, factors))
        self.grid, self._shape = whole.resized((a, b, c)), whole.shape
        spacing = self.grid.spacing_mm
        finest = min(s for s, n in zip(spacing, self.grid.shape) if n > 1)
        # A step is as long in mm along every axis; there is none across a slice.
        unit = [finest / s if n > 1 else 0.0 for s, n in zip(spacing, self.grid.shape)]
        self._unit = torch.tensor(unit, device=device).view(1, 3, 1, 1, 1)
        self._sigmas = [_SIGMA * u for u in unit]
        self._window = fade_window(self.grid.shape, _RIM, device)
        start = Field.identity(self.grid, device) if before is None else before.on_grid(self.grid)
        self._start = start.displacement * self._window
        self._free = torch.zeros_like(self._start, requires_grad=True)
        self._step = step
        self._adam = torch.optim.Adam([self._free], lr=step)

    def values(self) -> Tensor:
        """Returns the velocity, (1, 3, *grid.shape), in voxels of `grid`; differentiable."""
        change = gaussian_smooth(self._free * self._unit, self._sigmas)
        return self._start + change * self._window

    def field(self) -> Field:
        """Returns the velocity without its tape."""
        return Field(self.values().detach(), self.grid)

    def refined(self, velocity: Tensor) -> Tensor:
        """Returns the displacement of a velocity, in voxels of the level; differentiable."""
        return Field(exponential(velocity), self.grid).resized(self._shape).displacement

    def improve(self, value: Tensor, done: float) -> None:
        """Makes a step against the gradient of a value; `done` is the share of the steps."""
        self._adam.param_groups[0]["lr"] = self._step * _falling(done)
        self._adam.zero_grad()
        value.backward()
        self._adam.step()


class RawEngine:
    """Registers a scan by its samples.

    Args:
        settings: See `RawSettings`.
    """

    def __init__(self, settings: RawSettings) -> None:
        self._settings = settings
        self._history: list[dict[str, Any]] = []

    def register(self, pair: ImagePair, scan: Scan, progress: Progress) -> Result:
        """Registers a pair from `pair.initial` (or the stored positions).

        Args:
            pair: The images; only the fixed one and the grid of the moving one are looked at.
            scan: What is known of the moving one.
            progress: Gets events, and can cancel or stop.

        Raises:
            InputError: If factors and iterations differ in number.
        """
        s = self._settings
        if len(s.factors) != len(s.iterations):
            raise InputError(
                f"There are {len(s.factors)} levels but {len(s.iterations)} numbers of iterations; "
                "give one number of iterations for each level."
            )
        self._history = []
        start, grid = pair.initial or Transform(), scan.raw.grid
        found: Field | None = None
        costs = np.array([n / f**3 for n, f in zip(s.iterations, s.factors)])
        ends = np.concatenate([[0.0], np.cumsum(costs) / max(costs.sum(), 1e-9)])
        for index, factor in enumerate(s.factors):
            scan = scan if found is None else rephased(scan, found)
            level = RawLevel(scan, low_resolution_shape(grid, factor), s.emphasis)
            velocity = Velocity(level, found, s.step, scan.device)
            run = _Run(index, (ends[index], ends[index + 1]), start, pair.fixed.grid, progress)
            self._minimize(level, velocity, run)
            found = velocity.field()
            if progress.stop_requested:
                break
        with torch.no_grad():
            transform = joined(start, found, pair.fixed.grid)
            extras, figures = reconstructed(scan, found, s)
        return Result(transform, history=self._history, extras=extras, provenance=figures)

    def _minimize(self, level: RawLevel, velocity: Velocity, run: _Run) -> None:
        total = self._settings.iterations[run.index]
        for iteration in range(total):
            with torch.enable_grad():
                values = velocity.values()
                data = level(velocity.refined(values))
                roughness = squared_gradient(values, velocity.grid)
                value = data + self._settings.smoothness * roughness
                velocity.improve(value, iteration / max(total - 1, 1))
            self._history.append(
                {"level": run.index, "iteration": iteration, "value": float(value.detach()),
                 "data": float(data.detach())}
            )  # fmt: skip
            if run.ends((iteration + 1) / total, float(value.detach()), velocity):
                return


@dataclass(frozen=True, eq=False)
class _Run:
    """Reports the iterations of a level, and tells when it has to end."""

    index: int
    span: tuple[float, float]
    start: Transform
    fixed: Grid
    progress: Progress

    def ends(self, done: float, value: float, velocity: Velocity) -> bool:
        first, last = self.span
        self.progress.update(first + (last - first) * done, value)
        if self.progress.wants_preview():
            with torch.no_grad():
                self.progress.preview(joined(self.start, velocity.field(), self.fixed))
        return self.progress.stop_requested


def squared_gradient(velocity: Tensor, grid: Grid) -> Tensor:
    """Mean squared forward differences of a velocity, in mm per mm; differentiable.

    Args:
        velocity: (1, 3, *grid.shape) in voxels.
        grid: Its grid.
    """
    spacing = torch.tensor(grid.spacing_mm, device=velocity.device).view(1, 3, 1, 1, 1)
    lengths = velocity * spacing
    total = velocity.new_zeros(())
    for axis, size in enumerate(grid.shape):
        if size > 1:
            slope = lengths.diff(dim=2 + axis) / grid.spacing_mm[axis]
            total = total + slope.square().sum() / grid.size
    return total


def joined(start: Transform, velocity: Field | None, fixed: Grid) -> Transform:
    """Returns exp(-v) after the start: from the fixed image to the scan, the library's direction.

    With start(p) = L(p + w(p)), the field on the fixed grid is w plus what exp(-v) does at that
    place in the scan, turned back by L.

    Args:
        start: Fixed to moving.
        velocity: v, on a grid of the moving space; phi = start^-1 o exp(v) leads back.
        fixed: Grid of the result.
    """
    if velocity is None:
        return start
    back = Field(exponential(-velocity.displacement), velocity.grid)
    where = voxel_coordinates(fixed.shape, back.displacement.device)
    shift = torch.zeros_like(where)
    if start.field is not None:
        shift = start.field.to(shift.device).on_grid(fixed).displacement
    shift = shift + conjugated(back, fixed, start.linear, where + shift)
    if 1 in fixed.shape:
        shift[:, fixed.shape.index(1)] = 0.0
    return Transform(start.linear, Field(without_folds(shift), fixed))


def reconstructed(
    scan: Scan, velocity: Field | None, settings: RawSettings
) -> tuple[dict[str, Image], dict[str, Any]]:
    """Returns the images that the samples give, with and without the help of the fixed image.

    ``moving_reconstruction`` is the motion-compensated one: the fixed image, bent onto the scan,
    tells what was not sampled, and the samples tell the rest (`kspace.fused`).
    """
    raw = scan.raw
    level = RawLevel(scan, raw.grid.shape, settings.emphasis)
    still = torch.zeros(1, 3, *raw.grid.shape, device=scan.device)
    bend = still if velocity is None else _bend(velocity, raw.grid)
    guess = _scaled(raw, level.predicted(bend))
    whole = to_image(fused(raw.samples, raw.mask, guess, settings.trust))
    # Magnitudes, in the units of the scan.
    images = {
        "moving_reconstruction": whole.abs(),
        "moving_zero_filled": to_image(raw.samples).abs(),
    }
    extras = {name: Image(values + scan.floor, raw.grid) for name, values in images.items()}
    figures = {
        "raw_data": scan.origin,
        "acceleration": round(raw.acceleration, 3),
        "unexplained_before": round(float(level(still)), 5),
        "unexplained": round(float(level(bend)), 5),
    }
    return extras, figures


def rephased(scan: Scan, velocity: Field) -> Scan:
    """Returns a scan whose phase is known better, now that the fixed image is bent onto it.

    The bent image tells the magnitude of what was not sampled, so that more frequencies than the
    fully sampled center tell the phase.
    """
    if scan.phase is None:
        return scan
    raw = scan.raw
    with torch.no_grad():
        level = RawLevel(scan, raw.grid.shape, 0.0)
        guess = _scaled(raw, level.predicted(_bend(velocity, raw.grid)))
        sizes = [max(_LOW, n // 4) if n > _LOW else n for n in raw.grid.shape]
        return replace(scan, phase=smooth_phase(fused(raw.samples, raw.mask, guess), sizes))


def _bend(velocity: Field, grid: Grid) -> Tensor:
    """Returns the displacement of a velocity on another grid, in its voxels."""
    return Field(exponential(velocity.displacement), velocity.grid).on_grid(grid).displacement


def _scaled(raw: RawData, guess: Tensor) -> Tensor:
    """Returns a k-space times the factor that brings it nearest to the samples."""
    taken = raw.mask.clone()
    a, b, c = (n // 2 for n in raw.grid.shape)
    taken[0, 0, a, b, c] = False
    return guess * best_factor(guess * taken, raw.samples * taken)


def _lowered(image: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Returns a real image at the resolution of a cropped k-space."""
    if tuple(image.shape[2:]) == shape:
        return image
    return to_image(cropped(to_kspace(image), shape)).real


def _weights(raw: RawData, shape: tuple[int, int, int], emphasis: float) -> Tensor:
    """Returns the weights of samples; none for what was not taken, and for frequency zero."""
    length = middle(frequencies(raw.grid), shape).to(raw.samples.device)
    weight = (length / length.max().clamp(min=1e-12)) ** emphasis
    weight[0, 0, shape[0] // 2, shape[1] // 2, shape[2] // 2] = 0.0
    return weight * middle(raw.mask, shape)


def _square(values: Tensor) -> Tensor:
    """Sum of the squared lengths of complex numbers."""
    return torch.view_as_real(values).square().sum()


def _falling(done: float) -> float:
    """Share of the first step length: whole for half of the steps, then down to a tenth."""
    return 1.0 if done < 0.5 else 1.0 - 0.9 * (done - 0.5) / 0.5
