"""``slicer.app``: the application object."""

from __future__ import annotations

import sys
from pathlib import Path

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .io_manager import IoManager
from .modules import ModuleManager


class CommandOptions:
    """What was asked for on the command line."""

    def __init__(self, testing: bool) -> None:
        self.testingEnabled = testing
        self.noMainWindow = False
        # Slicer ends after the script when testing, unless the script says otherwise.
        self.runPythonAndExit = testing
        self.pythonScript = ""
        self.pythonCode = ""
        self.ignoreSlicerRC = True
        self.additionalModulePaths: list[str] = []


class Application(QtWidgets.QApplication):
    """The part of qSlicerApplication that a scripted module needs."""

    _signatures = {
        "startupCompleted": {"": ""},
        "mrmlSceneChanged": {"vtkMRMLScene*": ""},
        "renderPaused": {"bool": ""},
        "usageEventLogged": {"QString,QString": "", "": ""},
        "aboutToQuit": {"": ""},
        "lastWindowClosed": {"": ""},
        "paletteChanged": {"QPalette": "", "": ""},
        "focusChanged": {"QWidget*,QWidget*": ""},
    }
    startupCompleted = QtCore.Signal()
    mrmlSceneChanged = QtCore.Signal(object)
    renderPaused = QtCore.Signal(bool)
    usageEventLogged = QtCore.Signal(str, str)

    majorVersion = mainApplicationMajorVersion = 5
    minorVersion = mainApplicationMinorVersion = 13
    mainApplicationPatchVersion = 0
    mainApplicationName = "Slicer"
    releaseType = "Preview"
    repositoryRevision = revision = "0"
    repositoryBranch = "main"
    repositoryUrl = "https://github.com/Slicer/Slicer"
    arch = "amd64"
    os = "linux"
    platform = "linux-amd64"
    intDir = "."
    isInstalled = True
    isUsageLoggingSupported = False
    documentationBaseUrl = "https://slicer.readthedocs.io/en/latest/"
    documentationVersion = "latest"
    documentationLanguage = "en"

    def __init__(self, testing: bool, scene, logic, home: Path) -> None:
        super().__init__(["Slicer"])
        self.setApplicationName("Slicer")
        self.setApplicationVersion("5.13.0")
        self.setOrganizationName("NA-MIC")
        for part in ("home", "temporary", "settings", "cache"):
            (home / part).mkdir()
        self.slicerHome = str(home / "home")
        self.temporaryPath = str(home / "temporary")
        self.cachePath = str(home / "cache")
        self.extensionsInstallPath = str(home / "home")
        self.defaultScenePath = self.startupWorkingPath = str(home)
        self.slicerUserSettingsFilePath = str(home / "settings" / "Slicer.ini")
        self.slicerRevisionUserSettingsFilePath = str(home / "settings" / "Slicer-0.ini")
        self.launcherExecutableFilePath = sys.executable
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.IniFormat)
        for scope in (QtCore.QSettings.UserScope, QtCore.QSettings.SystemScope):
            QtCore.QSettings.setPath(QtCore.QSettings.IniFormat, scope, str(home / "settings"))
        self._options = CommandOptions(testing)
        self._scene, self._logic = scene, logic
        logic.SetTemporaryPath(self.temporaryPath)
        self._modules = ModuleManager(self)
        self._io = IoManager(scene)
        self._layout_manager = None
        self._window = None
        self._paused = 0
        self._settings = {}
        self.exit_code = 0

    # Windows

    def topLevelWidgets(self):
        """The main window and the dialog in front of it.

        Slicer's list holds every widget without a parent. PySide would wrap each anew, and ends
        the process when one of them is just being destroyed.
        """
        found = (self._window, self.activeModalWidget())
        return [widget for widget in found if widget is not None]

    # Scene and modules

    def mrmlScene(self):
        return self._scene

    def applicationLogic(self):
        return self._logic

    def moduleManager(self):
        return self._modules

    def moduleLogic(self, name: str):
        return self._modules.module(name).logic()

    def coreIOManager(self):
        return self._io

    def ioManager(self):
        return self._io

    def layoutManager(self):
        return self._layout_manager

    def setLayoutManager(self, manager) -> None:
        self._layout_manager = manager

    def openNodeModule(self, node, role="", context="") -> None:
        slicer.util.selectModule("Data")

    # Settings and paths

    def _settings_of(self, path: str):
        if path not in self._settings:
            self._settings[path] = QtCore.QSettings(path, QtCore.QSettings.IniFormat)
        return self._settings[path]

    def userSettings(self):
        return self._settings_of(self.slicerUserSettingsFilePath)

    def settings(self):
        return self.userSettings()

    def revisionUserSettings(self):
        return self._settings_of(self.slicerRevisionUserSettingsFilePath)

    def moduleDocumentationUrl(self, name: str) -> str:
        return f"{self.documentationBaseUrl}user_guide/modules/{name.lower()}.html"

    def toSlicerHomeAbsolutePath(self, path: str) -> str:
        return str(Path(self.slicerHome) / path)

    def startupEnvironment(self):
        return QtCore.QProcessEnvironment.systemEnvironment()

    environment = startupEnvironment

    # Running

    def commandOptions(self):
        return self._options

    def testingEnabled(self) -> bool:
        return self._options.testingEnabled

    def setRenderPaused(self, pause: bool) -> None:
        if pause:
            self.pauseRender()
        else:
            self.resumeRender()

    def pauseRender(self) -> None:
        self._paused += 1
        if self._paused == 1:
            self.renderPaused.emit(True)

    def resumeRender(self) -> None:
        self._paused = max(self._paused - 1, 0)
        if self._paused == 0:
            self.renderPaused.emit(False)
            if self._layout_manager is not None:
                self._layout_manager._schedule_all()

    def exit(self, code: int = 0) -> None:
        self.exit_code = code
        QtCore.QCoreApplication.exit(code)

    def restart(self) -> None:
        from .dialogs import dialogs

        dialogs.ask("message", "restart", None)

    def confirmRestart(self, reason: str = "") -> bool:
        from .dialogs import dialogs

        return bool(dialogs.ask("confirm", reason or "Restart?", False))

    def openUrl(self, url: str) -> bool:
        return QtGui.QDesktopServices.openUrl(QtCore.QUrl(url))

    def logUsageEvent(self, component: str, event: str) -> None:
        self.usageEventLogged.emit(component, event)

    def isCodePageUtf8(self) -> bool:
        return True

    def translate(self, context: str, text: str) -> str:
        return text

    def loadFiles(self, paths) -> None:
        for path in paths:
            slicer.util.loadNodeFromFile(str(path))

    def pythonConsole(self):
        return None

    def currentLogFile(self) -> str:
        return str(Path(self.temporaryPath) / "Slicer.log")
