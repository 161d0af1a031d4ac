"""``slicer.modules``: the modules' objects, and their manager."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .mrml_widgets import qSlicerScriptedLoadableModuleWidget, qSlicerWidget


class Module(QtCore.QObject):
    """A module as ``slicer.modules.volumes`` gives it."""

    def __init__(self, name: str, logic=None) -> None:
        super().__init__()
        self.name = name
        self.title = name
        self.path = ""
        self.icon = QtGui.QIcon()
        self.categories: list[str] = []
        self.dependencies: list[str] = []
        self.contributors: list[str] = []
        self.helpText = self.acknowledgementText = ""
        self.hidden = False
        self.index = -1
        self._logic = logic
        self._widget = None

    def logic(self):
        return self._logic

    def widgetRepresentation(self):
        if self._widget is None:
            self._widget = self.createNewWidgetRepresentation()
        return self._widget

    def createNewWidgetRepresentation(self):
        widget = qSlicerWidget()
        widget.setLayout(QtWidgets.QVBoxLayout())
        return widget

    def mrmlScene(self):
        return slicer.mrmlScene


class qSlicerScriptedLoadableModule(Module):
    """A module written in Python."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.stem)
        self.path = str(path)

    def load(self) -> None:
        """Imports the file and creates the module's object."""
        folder = str(Path(self.path).parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        spec = importlib.util.spec_from_file_location(self.name, self.path)
        source = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = source
        spec.loader.exec_module(source)
        instance = getattr(source, self.name)(self)
        setattr(slicer.modules, self.name + "Instance", instance)
        if hasattr(instance, "setup"):
            instance.setup()

    def createNewWidgetRepresentation(self):
        widget = qSlicerScriptedLoadableModuleWidget()
        widget._module = self
        widget.setLayout(QtWidgets.QVBoxLayout())
        widget.setMRMLScene(slicer.mrmlScene)
        self.make_panel(widget)
        return widget

    def make_panel(self, widget) -> None:
        """Creates the Python object of the panel inside its C++ widget."""
        panel = getattr(sys.modules[self.name], self.name + "Widget")(widget)
        widget._python = panel
        setattr(slicer.modules, self.name + "Widget", panel)
        panel.setup()


class FactoryManager(QtCore.QObject):
    """Lists what is loaded."""

    def __init__(self, modules: dict[str, Module]) -> None:
        super().__init__()
        self._modules = modules

    def loadedModuleNames(self) -> list[str]:
        return sorted(self._modules)

    registeredModuleNames = instantiatedModuleNames = loadedModuleNames

    def isLoaded(self, name: str) -> bool:
        return name in self._modules

    isRegistered = isInstantiated = isLoaded

    def loadModules(self, names) -> bool:
        return all(name in self._modules for name in names)


class ModuleManager(QtCore.QObject):
    """Loads modules and finds them by name."""

    _signatures = {
        "moduleAboutToBeUnloaded": {"QString": ""},
        "moduleUnloaded": {"QString": ""},
        "moduleLoaded": {"QString": ""},
        "modulesLoaded": {"QStringList": ""},
    }
    moduleAboutToBeUnloaded = QtCore.Signal(str)
    moduleUnloaded = QtCore.Signal(str)
    moduleLoaded = QtCore.Signal(str)
    modulesLoaded = QtCore.Signal(list)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._modules: dict[str, Module] = {}
        self._factory = FactoryManager(self._modules)

    def factoryManager(self) -> FactoryManager:
        return self._factory

    def module(self, name: str):
        return self._modules.get(name)

    def modulesNames(self) -> list[str]:
        return sorted(self._modules)

    def add(self, module: Module) -> Module:
        self._modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)
        if hasattr(slicer, "moduleNames"):
            setattr(slicer.moduleNames, module.name, module.name)
        return module

    def load(self, path: Path) -> Module:
        """Loads a scripted module from its file."""
        module = self.add(qSlicerScriptedLoadableModule(path))
        module.load()
        self.moduleLoaded.emit(module.name)
        return module

    def unload_all(self) -> None:
        """Cleans up the panels, as when the application ends."""
        for name in list(self._modules):
            self.moduleAboutToBeUnloaded.emit(name)


_LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Models": "vtkSlicerModelsLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Units": "vtkSlicerUnitsLogic",
    "Terminologies": "",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
    "SegmentEditor": "",
    "Data": "",
    "SampleData": "",
    "Welcome": "",
}


def make_logics(scene, application_logic, colors) -> dict[str, object]:
    """The logics of the C++ modules, with the scene set."""
    logics = {}
    for module, class_name in _LOGICS.items():
        if module == "Colors":
            application_logic.SetModuleLogic(module, colors)
            logics[module] = colors
        elif class_name and hasattr(slicer, class_name):
            logic = getattr(slicer, class_name)()
            if hasattr(logic, "SetMRMLApplicationLogic"):
                logic.SetMRMLApplicationLogic(application_logic)
            logic.SetMRMLScene(scene)
            application_logic.SetModuleLogic(module, logic)
            logics[module] = logic
        else:
            logics[module] = None
    return logics


def add_core_modules(manager: ModuleManager, logics: dict[str, object]) -> None:
    from .sequence_widgets import SequencesModule

    for name, logic in logics.items():
        manager.add(SequencesModule(name, logic) if name == "Sequences" else Module(name, logic))


def make_namespace() -> types.ModuleType:
    """The empty module ``slicer.modules``."""
    namespace = types.ModuleType("slicer.modules")
    sys.modules["slicer.modules"] = namespace
    return namespace
