"""Choices that tools have in common: a trained model, and volumes that follow other sections."""

from __future__ import annotations

import slicer

from DeepRegLib import models
from DeepRegLib.errors import DeepRegError

from .ModelList import chooseModelFile, description, fillModels, knownModels
from .Texts import message


class ToolModel:
    """The choice of a trained model: a list, a file, and a way to train one.

    Args:
        algorithm: Key of the system.
        combo: Lists the models.
        browse: Button that asks for a file.
        train: Button that is there while there is no model.
        label: Says what the chosen model is for.
        absent: What to say when there is no model.
        onTrain: Called with the key of the system when a model is to be trained.
        onChosen: Called with a name or path when the user chooses one; empty for the newest.
    """

    def __init__(self, algorithm, combo, browse, train, label, absent, onTrain, onChosen):
        self._algorithm, self._absent = algorithm, absent
        self._combo, self._train, self._label = combo, train, label
        self._onTrain, self._onChosen = onTrain, onChosen
        self._showing = False
        combo.connect("currentIndexChanged(int)", self._onModel)
        browse.connect("clicked(bool)", self._onBrowse)
        train.connect("clicked(bool)", self._onTrainClicked)

    def isThere(self, chosen: str) -> bool:
        """Tells whether there is a model, or one was chosen."""
        return bool(chosen or knownModels(self._algorithm))

    def show(self, chosen: str) -> None:
        """Lists the models, and shows the chosen one."""
        known = knownModels(self._algorithm)
        self._showing = True
        try:
            fillModels(self._combo, known, chosen)
        finally:
            self._showing = False
        self._train.visible = not known
        self._label.text = self._text(known, chosen)

    def problems(self, chosen: str) -> list:
        """Returns (level, sentence) of what is wrong with the chosen model."""
        try:
            if chosen:
                models.find_model(self._algorithm, chosen)
        except DeepRegError as error:
            return [("error", str(error))]
        return []

    def _text(self, known, chosen: str) -> str:
        """Returns what the model was made for, or what to do without one, as rich text."""
        if not known and not chosen:
            return message("warning", self._absent)
        try:
            model = known[0] if not chosen else models.find_model(self._algorithm, chosen)
        except DeepRegError:
            return ""  # The message above the button tells of it.
        return description(model)

    def _onModel(self, index) -> None:
        if not self._showing:
            self._onChosen(self._combo.itemData(index) or "")

    def _onBrowse(self, checked=False) -> None:
        path = chooseModelFile()
        if path:
            self._onChosen(path)

    def _onTrainClicked(self, checked=False) -> None:
        self._onTrain(self._algorithm)


class Follower:
    """Has nodes of a tool go along with those of other sections until others are chosen.

    Args:
        pairs: Parameters of the tool, and those that they follow.
    """

    def __init__(self, pairs):
        self._pairs = pairs
        self._given = None

    def follow(self, node) -> None:
        """Goes along, unless the user has chosen something else.

        Args:
            node: The wrapped parameter node.
        """
        chosen = [getattr(node, own) for own in self._pairs]
        wanted = [getattr(node, other) for other in self._pairs.values()]
        isOwn = any(item is not None for item in chosen) and not _same(chosen, self._given)
        if isOwn and not _same(chosen, wanted):
            return
        self._given = wanted
        if not _same(chosen, wanted):
            with slicer.util.NodeModify(node.parameterNode):
                for own, item in zip(self._pairs, wanted):
                    setattr(node, own, item)

    def forget(self) -> None:
        """Begins anew with another parameter node."""
        self._given = None

    def giveUp(self, node) -> None:
        """Takes what is chosen now as if it had come from the other sections."""
        self._given = [getattr(node, own) for own in self._pairs]


def _same(some, others) -> bool:
    return others is not None and all(a is b for a, b in zip(some, others))
