"""The section Algorithm: which one, what it is, which stages run, with which parameters."""

from __future__ import annotations

import html
import json
from dataclasses import replace

import qt
from slicer.i18n import tr as _

from DeepRegLib import registry
from DeepRegLib.errors import ParameterError

from .ParameterForm import ParameterForm
from .Parameters import settingsOf
from .Section import Section

#: Parameter of learned algorithms that has a place of its own in the panel; see `ModelPart`.
MODEL = "model"
#: The algorithm that refines what a trained model finds.
REFINEMENT = "greedy"


class AlgorithmPart(Section):
    """Which algorithm, what it is, its stages and its parameters.

    Args:
        ui: The panel's widgets.
        onForm: Called when something was entered into the form, also what cannot be used.
    """

    def __init__(self, ui, onForm=None):
        Section.__init__(self, ui)
        self._onForm = onForm
        self._specs = registry.specs()
        self.form = ParameterForm(ui.parametersBox, self._onSettings)
        self._fillAlgorithms()
        ui.algorithmCombo.connect("currentIndexChanged(int)", self._onAlgorithm)
        ui.stagesCombo.connect("currentIndexChanged(int)", self._onStages)

    def _show(self) -> None:
        key = self._node.algorithm if self._node.algorithm in self._specs else "greedy"
        spec = self._specs[key]
        index = self._ui.algorithmCombo.findData(key)
        if self._ui.algorithmCombo.currentIndex != index:
            self._ui.algorithmCombo.currentIndex = index
        self._ui.summaryLabel.text = description(spec)
        self._fillStages(spec)
        stages = [registrationForm(self._specs[k]) for k in self.keys()]
        self.form.setStages(stages, self._node.preset.value, settingsOf(self._node))

    def keys(self) -> list:
        """Returns the keys of all algorithms that run, in order."""
        known = [k for k in stageKeys(self._node.stages) if k in self._specs]
        return known or [self._node.algorithm]

    def _fillAlgorithms(self) -> None:
        """Lists the algorithms under the names of their families, which cannot be chosen."""
        combo = self._ui.algorithmCombo
        families = {}
        for spec in self._specs.values():
            families.setdefault(spec.family, []).append(spec)
        for family, members in families.items():
            combo.addItem(_familyTitle(family))
            heading = combo.model().item(combo.count - 1)
            heading.setEnabled(False)
            font = heading.font()
            font.setItalic(True)
            heading.setFont(font)
            for spec in members:
                combo.addItem(spec.title, spec.key)
                combo.setItemData(combo.count - 1, spec.summary, qt.Qt.ToolTipRole)

    def _fillStages(self, spec) -> None:
        combo = self._ui.stagesCombo
        chains = stageChoices(spec)
        wanted = [stagesText(chain) for chain in chains]
        shown = [combo.itemData(n) for n in range(combo.count)]
        if shown != wanted:
            combo.clear()
            for chain, data in zip(chains, wanted):
                names = [self._specs[key].title for key in chain]
                combo.addItem(" → ".join(names), data)
        index = wanted.index(self._node.stages) if self._node.stages in wanted else 0
        combo.currentIndex = index
        if self._node.stages != wanted[index]:
            self._node.stages = wanted[index]

    def _onAlgorithm(self, index) -> None:
        key = self._ui.algorithmCombo.itemData(index)
        if not self._listens or not key:
            return
        with self._deaf():
            self._node.algorithm = key
            self._node.stages = stagesText([*self._specs[key].stages, key])
        self.update()

    def _onStages(self, index) -> None:
        data = self._ui.stagesCombo.itemData(index)
        if self._listens and data:
            self._node.stages = data
            self.update()

    def _onSettings(self, settings) -> None:
        """Keeps the settings of stages that are not shown at present, and the chosen models."""
        if self._node is None:
            return
        shown = tuple(f"{key}." for key in self.keys())
        others = {
            name: value
            for name, value in settingsOf(self._node).items()
            if not name.startswith(shown) or name.endswith(f".{MODEL}")
        }
        with self._deaf():
            self._node.settings = json.dumps({**others, **settings}, sort_keys=True)
        if self._onForm is not None:
            self._onForm()


def registrationForm(spec):
    """Returns an algorithm with the parameters that count when a pair is registered."""
    shown = (p for p in spec.parameters if not p.training and p.name != MODEL)
    return replace(spec, parameters=tuple(shown))


def stageChoices(spec) -> list:
    """Returns the stages that are offered for an algorithm, lists of keys.

    All stages before it, fewer of them, and the algorithm alone; then the same with a refinement
    behind it, if it learns and finds a deformation.
    """
    chains = [[*spec.stages[n:], spec.key] for n in range(len(spec.stages) + 1)]
    if spec.needs.training and spec.transform != "linear":
        chains += [[*chain, REFINEMENT] for chain in chains]
    return chains


def stagesText(keys) -> str:
    """Returns stages as the library takes them; one alone gets no others in front."""
    return "+".join(keys) if len(keys) > 1 else f"+{keys[0]}"


def stageKeys(stages: str) -> list:
    """Returns the keys of all stages."""
    return stages.removeprefix("+").split("+")


def usedSettings(parameterNode, stages: str = "") -> dict:
    """Returns the settings of some stages, by ``algorithm.parameter``; of those that run.

    What does not fit (a scene of another version, or written by hand) is left out, as in the form.
    """
    specs, used = registry.specs(), {}
    for name, value in settingsOf(parameterNode).items():
        key, _dot, short = name.partition(".")
        if key not in stageKeys(stages or parameterNode.stages) or key not in specs:
            continue
        try:
            used[name] = specs[key].parameter(short).parse(value)
        except ParameterError:
            continue
    return used


def description(spec) -> str:
    """Returns what an algorithm is, needs and gives, with links to its publications."""
    parts = [html.escape(spec.summary)]
    needs = [text for flag, text in _needs(spec.needs) if flag]
    gives = [text for flag, text in _gives(spec) if flag]
    if needs:
        parts.append(_("<b>Needs</b> {things}.").format(things=", ".join(needs)))
    parts.append(_("<b>Gives</b> {things}.").format(things=", ".join(gives)))
    links = [
        f'<a href="{html.escape(r.link)}">{html.escape(r.authors.split(",")[0])} {r.year}</a>'
        for r in spec.references
        if r.link
    ]
    if links:
        parts.append(_("<b>Published in</b> {links}").format(links=", ".join(links)))
    return "<br>".join(parts)


def _needs(needs):
    return (
        (needs.training, _("a trained model")),
        (needs.labels, _("label maps")),
        (needs.landmarks, _("landmarks")),
        (needs.teacher, _("a teacher's transforms")),
    )


def _gives(spec):
    outputs = spec.outputs
    return (
        (spec.transform == "linear", _("a linear transform")),
        (spec.transform != "linear", _("a deformation")),
        (outputs.inverse, _("its inverse")),
        (outputs.uncertainty, _("the uncertainty in mm")),
        (outputs.error_map, _("the predicted error in mm")),
        (outputs.segmentation, _("a segmentation")),
        (outputs.latent_code, _("a latent code")),
        (outputs.trajectory, _("the trajectory")),
    )


def _familyTitle(family: str) -> str:
    titles = {
        "linear": _("Linear"),
        "optimisation": _("Deformable, by optimization"),
        "learned similarity": _("Learned similarity"),
        "error estimation": _("Error estimation"),
        "reinforcement learning": _("Reinforcement learning"),
        "supervised": _("Supervised learning"),
        "weakly supervised": _("Weakly supervised learning"),
        "unsupervised": _("Unsupervised learning"),
        "probabilistic": _("Probabilistic"),
        "joint registration and segmentation": _("Joint registration and segmentation"),
    }
    return titles.get(family, family)
