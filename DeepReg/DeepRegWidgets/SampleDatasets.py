"""The sample pair in Slicer's module Sample Data; it comes with the extension."""

from __future__ import annotations

from pathlib import Path

import slicer
from slicer.i18n import tr as _

_ICONS = Path(__file__).resolve().parent.parent / "Resources" / "Icons"
CATEGORY = "DeepReg"
#: Name in the scene, file: fixed first.
PAIR = (
    ("MNI152", "MNI152_T1_brain.nii.gz"),
    ("Colin27", "Colin27_T1_brain.nii.gz"),
)


def registerSampleData() -> None:
    """Lists the pair and its two volumes in the module Sample Data."""
    import SampleData

    logic = SampleData.SampleDataLogic
    if hasattr(logic, "registerCustomSampleDataCategory"):
        logic.registerCustomSampleDataCategory(CATEGORY, title=_("Registration (DeepReg)"))
    samples = {"BrainPair": PAIR, **{pair[0]: (pair,) for pair in PAIR}}
    for sample, chosen in samples.items():
        logic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=sample,
            thumbnailFileName=str(_ICONS / f"{sample}.png"),
            uris=[sampleFile(file).as_uri() for _name, file in chosen],
            fileNames=[file for _name, file in chosen],
            nodeNames=[name for name, _file in chosen],
            customDownloader=lambda source, pairs=chosen: _loadAndShow(pairs),
        )


def loadSamplePair():
    """Loads the pair and returns (fixed, moving)."""
    return tuple(_load(name, file) for name, file in PAIR)


def sampleFile(name: str) -> Path:
    """Returns the path of a sample file, in a source tree or an installed extension.

    Raises:
        FileNotFoundError: If it is in neither.
    """
    import DeepRegLib

    path = Path(DeepRegLib.__file__).resolve().parent.parent / "Resources" / "SampleData" / name
    if not path.is_file():
        raise FileNotFoundError(
            _("The sample file {path} is missing; reinstall DeepReg.").format(path=path)
        )
    return path


def _loadAndShow(pairs) -> list:
    from .Layers import showLayers  # the samples are registered when Slicer starts

    nodes = [_load(*pair) for pair in pairs]
    showLayers(
        background=nodes[0], foreground=nodes[1] if len(nodes) > 1 else None,
        foregroundOpacity=0.5, fit=True,
        rotateToVolumePlane=slicer.app.layoutManager() is not None,
    )  # fmt: skip
    return nodes


def _load(name: str, file: str):
    return slicer.util.loadVolume(str(sampleFile(file)), {"name": name, "show": False})
