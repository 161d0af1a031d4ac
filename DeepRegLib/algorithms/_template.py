"""Name of the method, in one line.

How it works, in a paragraph; how it differs from the publication. Copy this file to
`algorithms/<key>.py` (files that begin with an underscore are not listed) and fill it in: the
panel, the command line, the documentation and the contract tests follow from `SPEC`.
"""

from __future__ import annotations

from typing import Any

from ..geometry.transform import Transform
from ..registration.base import ImagePair, Progress, Result
from ..spec import AlgorithmSpec, Parameter, Reference

# The registry reads SPEC without running the file: write it with literals only.
SPEC = AlgorithmSpec(
    key="_template",
    title="Template",
    family="optimisation",
    summary="One sentence for the person who chooses an algorithm.",
    transform="linear",
    modalities=("same",),
    stages=(),
    references=(
        Reference(authors="Author", title="Title", venue="Venue", year=2019, doi="10.1000/x"),
    ),
    parameters=(
        Parameter(
            name="iterations",
            default=100,
            minimum=0,
            maximum=10000,
            presets={"fast": 50},
            help="One sentence for the tooltip.",
        ),
    ),
)


class Algorithm:
    """One line."""

    def __init__(self, **values: Any) -> None:
        self._iterations = int(values["iterations"])

    def register(self, pair: ImagePair, progress: Progress) -> Result:
        """Registers a pair, starting from `pair.initial` if there is one.

        Report with `progress.update` at least every second: it raises `Cancelled` when the user
        cancels. Leave the loop early when `progress.stop_requested` is true.
        """
        transform = pair.initial or Transform()
        for iteration in range(self._iterations):
            progress.update((iteration + 1) / self._iterations)
            if progress.stop_requested:
                break
        return Result(transform)
