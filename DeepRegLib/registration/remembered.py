"""Keeps what one stage made of its images for the next stage, which would make the same again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, ref

from .base import Image

T = TypeVar("T")


class Remembered(Generic[T]):
    """What was made last of a fixed image, as long as it lives.

    Images do not change, so the very same images with the same settings give the same.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Image, tuple[Hashable, T]] = WeakKeyDictionary()

    def get(
        self,
        fixed: Image,
        others: tuple[Image | None, ...],
        settings: Hashable,
        make: Callable[[], T],
    ) -> T:
        """Returns what was made of the same images with the same settings, or makes it.

        Args:
            fixed: Forgets everything when it goes.
            others: The further images.
            settings: What else the result depends on.
            make: Makes it anew; must not keep hold of the fixed image.
        """
        key = (tuple(None if image is None else ref(image) for image in others), settings)
        found = self._kept.get(fixed)
        if found is None or found[0] != key:
            found = key, make()
            self._kept[fixed] = found
        return found[1]
