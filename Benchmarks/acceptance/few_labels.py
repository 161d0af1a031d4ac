"""People of whom only some have a label map."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from DeepRegLib.training.prepared import PreparedSet


def few_labels(prepared: PreparedSet, count: int | None) -> PreparedSet:
    """Returns the subjects, of whom only the first so many have a label map; all if None."""
    return prepared if count is None else _FewLabels(prepared, count)


class _FewLabels(PreparedSet):
    """Subjects of whom the first have a label map."""

    def __init__(self, prepared: PreparedSet, count: int) -> None:
        vars(self).update(vars(prepared))
        self._hidden_from = count
        self.subjects = tuple(
            subject if index < count else replace(subject, labels=None)
            for index, subject in enumerate(prepared.subjects)
        )

    def _entry(self, index: int) -> dict[str, Tensor]:
        entry = super()._entry(index)
        if index < self._hidden_from:
            return entry
        return {name: value for name, value in entry.items() if name != "labels"}
