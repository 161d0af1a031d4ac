"""Pairs with the deformation that a teacher found: the optimization engine, run once on each pair.

A system that learns from fields (or momenta) gets them from an algorithm that needs no training. A
fixed number of pairs is drawn from whatever the user trains on, each is registered, and images and
answer are kept on disk under a key of all that they depend on. Training then draws from these; what
is changed at random in them (intensities, left and right) leaves the answer exact.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..pipeline import choose_device
from ..registration.base import Progress
from ..registration.model_frame import ModelFrame
from ..registration.source import BatchSource
from ..registration.trainable import Batch
from .augment import Augmentation
from .cache import Cache, key_of
from .lesson import Teacher
from .prepared import compact
from .schedule import mixed_seed

#: Goes into all keys; another one teaches everything anew.
_VERSION = 1
#: Megabytes of pairs that are held in memory; the others are read when needed.
_MEMORY_MB = 2000.0
_LABELS = ("fixed_labels", "moving_labels")
#: Changes of intensity in each draw; those of the source are in the images already.
SHADES = Augmentation(gamma=0.1, contrast=0.05, bias=0.05, noise=0.02)


class TaughtPairs:
    """Pairs of any source with what a teacher says of them; a `BatchSource`.

    Pair number i is drawn with random numbers of its own, so that asking for more pairs keeps
    those that are there. Several processes may share the folder, and then share the work.

    Args:
        source: Where the pairs come from; validation remains that of the source.
        teacher: Who registers them.
        count: Number of pairs; those that the teacher fails on are left out.
        folder: Keeps them.
        progress: Gets events, and can cancel.
        flip: Probability that left and right change places in a draw.
        shades: Changes of intensity in a draw; it must not move anything.
        device: Where the teacher computes.

    Raises:
        InputError: If the teacher fails on all pairs, or `shades` moves images.
        Cancelled: If the user cancelled; what was taught is kept.
    """

    def __init__(
        self,
        source: BatchSource,
        teacher: Teacher,
        count: int,
        folder: Path,
        progress: Progress | None = None,
        *,
        flip: float = 0.5,
        shades: Augmentation | None = None,
        device: str = "auto",
    ) -> None:
        self._source, self._teacher, self._count = source, teacher, count
        self._shades, self._flip = shades or SHADES, flip
        if self._shades != self._shades.still():
            raise InputError("What a teacher said holds only for images that are not moved.")
        self._cache, self._device = Cache(folder), choose_device(device)[0]
        self._held: dict[str, dict[str, Tensor]] = {}
        self._held_mb = 0.0
        progress = progress or Progress()
        keys = self._taught(progress)
        self._keys = [key for key in keys if not self._fault(key)]
        self._tell(keys, progress)

    @property
    def frame(self) -> ModelFrame:
        """Voxel size and shape of all batches."""
        return self._source.frame

    def __len__(self) -> int:
        return len(self._keys)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pairs for one training step, on the CPU."""
        chosen = torch.randint(len(self._keys), (count,), generator=generator).tolist()
        flipped = (torch.rand(count, generator=generator) < self._flip).tolist()
        pairs = [
            mirrored(self.pair(index)) if flip and self._symmetric(index) else self.pair(index)
            for index, flip in zip(chosen, flipped)
        ]
        batch = _stacked(pairs)
        shaded = self._shades(batch, generator)
        return replace(shaded, truth=batch.truth, momentum=batch.momentum)

    def pair(self, index: int) -> Batch:
        """Returns one of the taught pairs as the teacher saw it, with its answer."""
        entry = self._entry(self._keys[index])
        momentum = None
        if "momentum" in entry:
            momentum = (entry["momentum"].float() * entry["momentum_size"])[None]
        labels = [entry.get(name) for name in _LABELS]
        fixed_labels, moving_labels = (
            None if known is None else known.to(torch.int64)[None, None] for known in labels
        )
        return Batch(
            entry["fixed"].float()[None, None], entry["moving"].float()[None, None],
            self.frame.spacing_mm, fixed_labels, moving_labels,
            truth=entry["truth"].float()[None], momentum=momentum,
        )  # fmt: skip

    def validation(self) -> Sequence[Batch]:
        """Returns the pairs of the source for validation."""
        return self._source.validation()

    def structures(self) -> list[int]:
        """Returns the labels that occur in the source, without the background."""
        return self._source.structures()

    def labeled(self) -> TaughtPairs:
        """Returns the taught pairs whose images both have a label map.

        Raises:
            InputError: If there are none.
        """
        fewer = copy.copy(self)
        fewer._keys = [key for key in self._keys if _has_labels(self._entry(key))]
        if not fewer._keys:
            raise InputError("None of the taught pairs has label maps; give label maps.")
        return fewer

    def describe(self) -> dict[str, Any]:
        """Returns what the card of a model says of the data, with the teacher."""
        about = {"algorithm": self._teacher.key, "values": dict(self._teacher.values)}
        return {
            **self._source.describe(), "teacher": about, "taught_pairs": len(self._keys),
            "taught_changes": {"flip": self._flip, **asdict(self._shades)},
        }  # fmt: skip

    def _taught(self, progress: Progress) -> list[str]:
        """Sees to it that all pairs are taught, and returns their keys in order."""
        progress.message(
            f"'{self._teacher.key}' registers {self._count} pairs to learn from; those that are "
            "there already are taken."
        )
        numbers: dict[str, int] = {}
        for index in range(self._count):
            progress.update(0.0)
            numbers[self._key(self._drawn(index))] = index
        done = 0.0

        def report(fraction: float) -> None:
            nonlocal done
            done = fraction
            progress.update(fraction)

        # Its events only serve to cancel in the midst of a pair.
        inner = Progress(lambda event: progress.update(done))
        tasks = {key: partial(self._answer, index, inner) for key, index in numbers.items()}
        self._cache.fill(tasks, report)
        return list(numbers)

    def _drawn(self, index: int) -> Batch:
        """Draws a pair, its images rounded to what is kept of them."""
        generator = torch.Generator().manual_seed(mixed_seed(0, index, "taught"))
        batch = self._source.draw(1, generator)
        return replace(batch, fixed=batch.fixed.half().float(), moving=batch.moving.half().float())

    def _key(self, batch: Batch) -> str:
        teacher = self._teacher
        content = (batch.fixed.half(), batch.moving.half(), batch.fixed_labels, batch.moving_labels)
        return key_of(
            _VERSION, "taught", teacher.key, dict(teacher.values), teacher.margin,
            batch.spacing_mm, list(batch.shape), [_digest(values) for values in content],
        )  # fmt: skip

    def _answer(self, index: int, progress: Progress) -> dict[str, Tensor]:
        """Returns what is kept of a pair; of one that the teacher fails on, only why."""
        batch = self._drawn(index)
        images = (batch.fixed.to(self._device), batch.moving.to(self._device))
        if not all(bool(torch.isfinite(image).all()) for image in images):
            return _failure("the images have values that are no numbers")
        lesson = self._teacher.teach(*images, batch.spacing_mm, progress)
        if lesson.fault:
            return _failure(lesson.fault)
        entry = {
            "fixed": batch.fixed[0, 0].half(), "moving": batch.moving[0, 0].half(),
            "truth": lesson.displacement[0].cpu().half(),
            "symmetric": torch.tensor(lesson.symmetric),
        }  # fmt: skip
        if lesson.momentum is not None:
            # Its size depends on the similarity, and half precision has few very small numbers.
            size = lesson.momentum.abs().max().clamp(min=1e-20).cpu()
            entry["momentum"] = (lesson.momentum[0].cpu() / size).half()
            entry["momentum_size"] = size
        for name in _LABELS:
            labels = getattr(batch, name)
            if labels is not None:
                entry[name] = compact(labels[0, 0])
        return entry

    def _symmetric(self, index: int) -> bool:
        return bool(self._entry(self._keys[index])["symmetric"])

    def _fault(self, key: str) -> str:
        """Returns why a pair is left out; empty if it is not."""
        failure = self._entry(key).get("failure")
        return "" if failure is None else bytes(failure.tolist()).decode()

    def _tell(self, keys: Sequence[str], progress: Progress) -> None:
        faults = [fault for key in keys if (fault := self._fault(key))]
        if not self._keys:
            raise InputError(
                f"'{self._teacher.key}' could register none of the {self._count} pairs "
                f"({faults[0]}). Look at the images, and at how they are aligned."
            )
        if faults:
            reasons = "; ".join(sorted(set(faults))[:3])
            progress.message(
                f"{len(faults)} of {self._count} pairs are left out, as the teacher failed on "
                f"them: {reasons}."
            )

    def _entry(self, key: str) -> dict[str, Tensor]:
        if key in self._held:
            return self._held[key]
        entry = self._cache.get(key)
        if entry is None:
            raise InputError(
                f"What a teacher said of a pair is missing or damaged in '{self._cache.folder}'; "
                "begin the training again, and it is made anew."
            )
        size = sum(t.numel() * t.element_size() for t in entry.values()) / 2**20
        if self._held_mb + size <= _MEMORY_MB:
            self._held[key] = entry
            self._held_mb += size
        return entry


def mirrored(batch: Batch) -> Batch:
    """Returns pairs with left and right exchanged: images, labels, displacements and momenta.

    The first tensor axis runs to R, so a vector field v(x) becomes S v(S x), where S changes the
    sign of the first component. The lattice of a momentum has to be as symmetric as the images.
    """
    parts: dict[str, Any] = {}
    for name in ("fixed", "moving", *_LABELS, "truth", "momentum"):
        values = getattr(batch, name)
        if values is None:
            continue
        parts[name] = values.flip(2)
        if name in ("truth", "momentum"):
            parts[name][:, 0].neg_()
    return replace(batch, **parts)


def _stacked(pairs: Sequence[Batch]) -> Batch:
    """Joins pairs to one batch; label maps that are not known are -1 if others are."""
    parts: dict[str, Any] = {}
    for name in ("fixed", "moving", "truth", "momentum"):
        values = [getattr(pair, name) for pair in pairs]
        parts[name] = None if values[0] is None else torch.cat(values)
    maps = {name: [getattr(pair, name) for pair in pairs] for name in _LABELS}
    if any(known is not None for side in maps.values() for known in side):
        unknown = torch.full((1, 1, *pairs[0].shape), -1)
        for name, side in maps.items():
            parts[name] = torch.cat([unknown if known is None else known for known in side])
    return Batch(spacing_mm=pairs[0].spacing_mm, **parts)


def _has_labels(entry: Mapping[str, Tensor]) -> bool:
    return all(name in entry and int(entry[name].min()) >= 0 for name in _LABELS)


def _digest(values: Tensor | None) -> str:
    """Returns a hash of the content of a tensor."""
    if values is None:
        return ""
    return hashlib.sha256(values.cpu().contiguous().numpy().tobytes()).hexdigest()


def _failure(reason: str) -> dict[str, Tensor]:
    return {"failure": torch.tensor(list(reason.encode()), dtype=torch.uint8)}
