"""A progress bar in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .registration.base import Event


@contextmanager
def bar(quiet: bool = False) -> Iterator[Callable[[Event], None]]:
    """Shows a bar on the error stream while a run reports, if that is a terminal.

    Args:
        quiet: Show neither the bar nor the remarks.

    Yields:
        The listener for a `Progress`.
    """
    try:
        from tqdm import tqdm
    except ImportError:  # a convenience that Slicer's Python may lack
        yield lambda event: _remark(event, quiet)
        return
    form = "{desc:<12}{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
    with tqdm(total=100.0, bar_format=form, leave=False, disable=True if quiet else None) as shown:

        def listen(event: Event) -> None:
            _remark(event, quiet, shown.clear)
            if event.stage:
                shown.set_description_str(event.stage, refresh=False)
            if event.value is not None:
                shown.set_postfix_str(f"{event.value:.4g}", refresh=False)
            if event.kind in ("stage", "progress"):
                shown.update(max(0.0, 100.0 * event.fraction - shown.n))

        yield listen


def _remark(event: Event, quiet: bool, clear: Callable[[], object] = lambda: None) -> None:
    if event.kind == "message" and not quiet:
        clear()
        sys.stderr.write(event.text + "\n")
