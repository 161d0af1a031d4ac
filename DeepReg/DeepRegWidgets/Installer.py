"""PyTorch at the moment of the first run, through the PyTorch extension, asked for once."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect

import slicer
from slicer.i18n import tr as _

from DeepRegLib.errors import DeepRegError

TORCH_REQUIREMENT = ">=2.4"
SAFETENSORS_REQUIREMENT = "safetensors>=0.4"


def torchVersion() -> str:
    """Returns the version of the installed PyTorch, or an empty text.

    PyTorch is not imported: a broken one could crash, and on Windows an imported one locks the
    files that a repair must replace.
    """
    return _version("torch")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def ensureTorch(log) -> bool:
    """Installs PyTorch if it is missing, after asking.

    Args:
        log: Called with a line for the log.

    Returns:
        Whether PyTorch is there; False if the user did not want it.

    Raises:
        DeepRegError: If it cannot be installed.
    """
    if torchVersion():
        return True
    try:
        import PyTorchUtils
    except ImportError as error:
        raise DeepRegError(
            _(
                "PyTorch is missing. Install the extension PyTorch in the Extensions Manager, "
                "restart 3D Slicer, and press Register again."
            )
        ) from error
    log(_("Installing PyTorch; this can take some minutes"))
    logic = PyTorchUtils.PyTorchUtilsLogic()
    with slicer.util.WaitCursor():
        installed = logic.installTorch(**_arguments(logic.installTorch))
    importlib.invalidate_caches()
    return installed is not None and bool(torchVersion())


def ensureSafetensors(log) -> bool:
    """Installs the small package that reads and writes model files if it is missing, after asking.

    Args:
        log: Called with a line for the log.

    Returns:
        Whether it is there; False if the user did not want it.

    Raises:
        DeepRegError: If it cannot be installed.
    """
    if _version("safetensors"):
        return True
    question = _("Model files need the Python package safetensors (0.5 MB). Install it now?")
    if not slicer.util.confirmOkCancelDisplay(question, _("DeepReg")):
        return False
    log(_("Installing safetensors"))
    try:
        with slicer.util.WaitCursor():
            slicer.util.pip_install(SAFETENSORS_REQUIREMENT)
    except Exception as error:
        # pip fails in many ways, and Slicer raises what its process returned.
        raise DeepRegError(
            _("The package safetensors could not be installed ({error}).").format(error=error)
        ) from error
    importlib.invalidate_caches()
    return bool(_version("safetensors"))


def _arguments(function) -> dict:
    """Returns the arguments that this version of the extension knows; its signature has moved."""
    wished = {"askConfirmation": True, "torchVersionRequirement": TORCH_REQUIREMENT}
    known = inspect.signature(function).parameters
    return {name: value for name, value in wished.items() if name in known}
