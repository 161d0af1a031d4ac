"""DeepReg: image registration with PyTorch, a scripted module of 3D Slicer.

This first version lists what the bundled library offers and registers two volume nodes from the
Python console; the library runs in a process of its own, so torch is never imported here.
"""

from __future__ import annotations

import ctk
import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class DeepReg(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("DeepReg")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["The DeepReg developers"]
        self.parent.helpText = _(
            "Registers two volumes rigidly, affinely or deformably with PyTorch, on the GPU or the "
            "CPU. This version lists the algorithms; run them from the shell with "
            "PythonSlicer -m DeepRegLib register."
        )
        self.parent.acknowledgementText = _(
            "Not related to the DeepReg toolkit of DeepRegNet. Every algorithm names its source."
        )


class DeepRegWidget(ScriptedLoadableModuleWidget):
    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = DeepRegLogic()
        section = ctk.ctkCollapsibleButton()
        section.text = _("Algorithms")
        self.layout.addWidget(section)
        form = qt.QFormLayout(section)
        for spec in self.logic.algorithms():
            label = qt.QLabel(self.logic.description(spec))
            label.wordWrap = True
            label.openExternalLinks = True
            form.addRow(spec.title, label)
        self.layout.addStretch(1)


class DeepRegLogic(ScriptedLoadableModuleLogic):
    def algorithms(self):
        """Returns the specs of all algorithms; reads them without importing torch."""
        from DeepRegLib import registry

        return list(registry.specs().values())

    def description(self, spec):
        """Returns the summary of an algorithm with links to its publications, as rich text."""
        links = [
            f'<a href="{reference.link}">{reference.authors.split(",")[0]} {reference.year}</a>'
            for reference in spec.references
        ]
        return " ".join([spec.summary, *links])


class DeepRegTest(ScriptedLoadableModuleTest):
    def setUp(self):
        slicer.mrmlScene.Clear()

    def test_algorithmsAreListed(self):
        keys = [spec.key for spec in DeepRegLogic().algorithms()]
        self.assertIn("rigid", keys)
        self.assertIn("greedy", keys)
