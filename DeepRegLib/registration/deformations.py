"""Deformation models of the dense engine: how a force becomes a step of the deformation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import kernels
from ..geometry.field import Field, compose_displacements, fade_window
from ..geometry.inverse import invert_displacement
from ..geometry.sampling import gaussian_smooth
from ..geometry.velocity import exponential, logarithm
from ..losses.volume import divergence_descent, volume_descent
from .landmark_start import LandmarkPull
from .levels import Lattice
from .objective import LevelObjective


@dataclass(frozen=True)
class StepSettings:
    """How steps are made; lengths in voxels of the level's images.

    Args:
        step: Longest vector of one step.
        update_sigma: Gaussian that smooths the force ("fluid" regularity).
        field_sigma: Gaussian that smooths the deformation after each step ("elastic" regularity).
        volume_weight: Weight of the descent of (log det J)².
        rim: Thickness of the rim over which steps fade to zero, in voxels of the lattice.
    """

    step: float
    update_sigma: float
    field_sigma: float
    volume_weight: float
    rim: int = 4


class Stepper:
    """What the models share: a force, made smooth and of a set length."""

    def __init__(self, lattice: Lattice, settings: StepSettings, device: torch.device) -> None:
        self.settings = settings
        a, b, c = (float(r) for r in lattice.relative)
        self.relative = (a, b, c)
        # From voxels of the images to voxels of the lattice.
        unit = min(lattice.image_grid.spacing_mm) / min(lattice.grid.spacing_mm)
        self._step = settings.step * unit
        self._update = [settings.update_sigma * unit / r for r in self.relative]
        self._field = [settings.field_sigma * unit / r for r in self.relative]
        self._window = fade_window(lattice.shape, settings.rim, device)

    def update(self, *forces: Tensor) -> list[Tensor]:
        """Returns smooth steps of forces that share one length; zero where there is no force."""
        smooth = [gaussian_smooth(force, self._update).mul_(self._window) for force in forces]
        longest = torch.stack([self._longest(force) for force in smooth]).max()
        scale = self._step / longest.clamp(min=1e-20)
        return [force.mul_(scale) for force in smooth]

    def smoothed(self, displacement: Tensor) -> Tensor:
        """Returns a deformation after its elastic smoothing."""
        return gaussian_smooth(displacement, self._field)

    def kept_volume(self, update: Tensor, displacement: Tensor) -> Tensor:
        """Adds to a step what takes back the volume change of a deformation so far."""
        weight = self.settings.volume_weight
        if weight > 0.0:
            descent = volume_descent(displacement, self.relative)
            update.add_(descent.mul_(self._window), alpha=weight)
        return update

    def kept_divergence(self, update: Tensor, velocity: Tensor) -> Tensor:
        """The same for a velocity."""
        weight = self.settings.volume_weight
        if weight > 0.0:
            descent = divergence_descent(velocity, self.relative)
            update.add_(descent.mul_(self._window), alpha=weight)
        return update

    def _longest(self, vectors: Tensor) -> Tensor:
        """Largest length in units of the smallest voxel edge, a scalar on the device."""
        fused = kernels.max_norm(vectors, self.relative)
        if fused is not None:
            return fused
        square = torch.zeros_like(vectors[:, :1])
        for axis in range(3):
            part = vectors[:, axis : axis + 1]
            square.addcmul_(part, part, value=self.relative[axis] ** 2)
        return square.max().sqrt_()


class Deformation(Protocol):
    """A model of the deformation at one level.

    Each is made with the objective of the level, the settings, the deformation that the user or an
    earlier stage gave (if any), what the level before carried over (empty at the first), and a
    pull to landmarks, which `Compositive` alone follows.
    """

    def iterate(self) -> Tensor:
        """Makes one step and returns the value before it, a scalar on the device."""
        ...

    def carried(self) -> tuple[Field, ...]:
        """Returns what the next level starts from."""
        ...

    def forward(self) -> Field:
        """Returns the deformation that pulls the moving image onto the fixed one."""
        ...


class Compositive:
    """phi <- phi o (id + step), then smoothed: greedy diffeomorphic registration."""

    def __init__(
        self,
        objective: LevelObjective,
        settings: StepSettings,
        start: Field | None,
        carried: tuple[Field, ...],
        pull: LandmarkPull | None,
    ) -> None:
        self._objective, self._pull = objective, pull
        self._lattice = objective.lattice
        self._stepper = Stepper(self._lattice, settings, objective.device)
        field = carried[0] if carried else start
        self._displacement = self._lattice.carried(field, objective.device)

    def iterate(self) -> Tensor:
        """Makes one step; see `Deformation`."""
        value, force = self._objective.force(self._displacement)
        (update,) = self._stepper.update(force)
        update = self._stepper.kept_volume(update, self._displacement)
        moved = self._stepper.smoothed(compose_displacements(self._displacement, update))
        self._displacement = moved if self._pull is None else self._pull.held(moved)
        return value

    def carried(self) -> tuple[Field, ...]:
        """Returns the deformation; see `Deformation`."""
        return (self.forward(),)

    def forward(self) -> Field:
        """Returns the deformation; see `Deformation`."""
        return Field(self._displacement, self._lattice.grid)


class Symmetric:
    """Two deformations that meet half way, so that neither image is preferred.

    Avants et al. 2008, doi:10.1016/j.media.2007.06.004: the fixed image is pulled through phi_1
    and the moving one through phi_2 to a common middle, and each makes a step against its own
    force. The whole deformation is phi_2 o phi_1^-1, its inverse phi_1 o phi_2^-1. Unlike there,
    the inverse of phi_1 is found once at the end.
    """

    def __init__(
        self,
        objective: LevelObjective,
        settings: StepSettings,
        start: Field | None,
        carried: tuple[Field, ...],
        pull: LandmarkPull | None,
    ) -> None:
        self._objective, self._lattice = objective, objective.lattice
        self._stepper = Stepper(self._lattice, settings, objective.device)
        device = objective.device
        halves = carried or (None, start)
        self._halves = [self._lattice.carried(field, device) for field in halves]

    def iterate(self) -> Tensor:
        """Makes one step of both halves; see `Deformation`."""
        value, *forces = self._objective.forces(*self._halves)
        updates = self._stepper.update(*forces)
        for k, update in enumerate(updates):
            # Either image makes half of the whole step.
            update = self._stepper.kept_volume(update.mul_(0.5), self._halves[k])
            moved = compose_displacements(self._halves[k], update)
            self._halves[k] = self._stepper.smoothed(moved)
        return value

    def carried(self) -> tuple[Field, ...]:
        """Returns both halves; see `Deformation`."""
        return tuple(Field(half, self._lattice.grid) for half in self._halves)

    def forward(self) -> Field:
        """Returns phi_2 o phi_1^-1; see `Deformation`."""
        back, _ = invert_displacement(self._halves[0])
        return Field(compose_displacements(self._halves[1], back), self._lattice.grid)


class Stationary:
    """phi = exp(v) with a stationary velocity v, so that exp(-v) is the inverse.

    The inverse that a user gets is refined numerically (`geometry/inverse.py`) all the same: on a
    voxel grid its round trip misses less than half as much as that of exp(-v).

    Symmetric log-domain registration: both images are pulled half way, by exp(-v/2) and exp(v/2),
    and v takes the difference of both forces (Vercauteren et al. 2008,
    doi:10.1007/978-3-540-85988-8_90, with the first term of the Baker-Campbell-Hausdorff series).
    """

    def __init__(
        self,
        objective: LevelObjective,
        settings: StepSettings,
        start: Field | None,
        carried: tuple[Field, ...],
        pull: LandmarkPull | None,
    ) -> None:
        self._objective, self._lattice = objective, objective.lattice
        self._stepper = Stepper(self._lattice, settings, objective.device)
        self._velocity = self._lattice.carried(carried[0] if carried else start, objective.device)
        if start is not None and not carried:
            self._velocity = logarithm(self._velocity)

    def iterate(self) -> Tensor:
        """Makes one step of the velocity; see `Deformation`."""
        half = self._velocity * 0.5
        value, to_fixed, to_moving = self._objective.forces(exponential(-half), exponential(half))
        (update,) = self._stepper.update(to_moving.sub_(to_fixed))
        update = self._stepper.kept_divergence(update, self._velocity)
        self._velocity = self._stepper.smoothed(self._velocity + update)
        return value

    def carried(self) -> tuple[Field, ...]:
        """Returns the velocity, as vectors of the lattice; see `Deformation`."""
        return (Field(self._velocity, self._lattice.grid),)

    def forward(self) -> Field:
        """Returns exp(v); see `Deformation`."""
        return Field(exponential(self._velocity), self._lattice.grid)


DEFORMATIONS: dict[str, type[Compositive] | type[Symmetric] | type[Stationary]] = {
    "compositive": Compositive,
    "symmetric": Symmetric,
    "stationary": Stationary,
}
