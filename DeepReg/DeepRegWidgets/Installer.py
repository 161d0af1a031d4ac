"""PyTorch at the moment of the first run, through the PyTorch extension, asked for once."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect

import slicer
from slicer.i18n import tr as _

from DeepRegLib.errors import DeepRegError

TORCH_REQUIREMENT = ">=2.4"


def torchVersion() -> str:
    """Returns the version of the installed PyTorch, or an empty text.

    PyTorch is not imported: a broken one could crash, and on Windows an imported one locks the
    files that a repair must replace.
    """
    try:
        return importlib.metadata.version("torch")
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


def _arguments(function) -> dict:
    """Returns the arguments that this version of the extension knows; its signature has moved."""
    wished = {"askConfirmation": True, "torchVersionRequirement": TORCH_REQUIREMENT}
    known = inspect.signature(function).parameters
    return {name: value for name, value in wished.items() if name in known}
