"""The checks of `tools/check_extension.py`: this repository passes, and broken copies are caught."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import check_extension as checks

LEFT_OUT = shutil.ignore_patterns(
    ".*",
    "build",
    "dist",
    "Testing",
    "*.nii.gz",
    "*.json.gz",
    "results",
    "__pycache__",
    "*.egg-info",
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine") / "repository"
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    return folder


@pytest.fixture
def repository(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "repository"))


def edit(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{file.name} no longer holds {old!r}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def entry(repository, **changes):
    """Changes keys of the catalog entry; None takes one away."""
    file = repository / "DeepReg.json"
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    content = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(content), encoding="utf-8")


def png(width, height):
    """The beginning of a PNG file."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(20)


def write(repository, name, text):
    file = repository / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def carriage_returns(root):
    file = root / "DeepReg.json"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


BROKEN = {
    "carriage returns": ("catalog entry", "line feeds", carriage_returns),
    "not JSON": ("catalog entry", "cannot be checked", lambda r: write(r, "DeepReg.json", "{")),
    "no entry": ("catalog entry", "there are 0", lambda r: (r / "DeepReg.json").unlink()),
    "two entries": ("catalog entry", "there are 2", lambda r: write(r, "Other.json", "{}")),
    "a list": ("catalog entry", "not an object", lambda r: write(r, "DeepReg.json", "[]")),
    "unknown key": ("catalog entry", "'color'", lambda r: entry(r, color="red")),
    "key of 1.0.2": ("catalog entry", "dicom", lambda r: entry(r, dicom_support_rule="x")),
    "no schema": ("catalog entry", "schema", lambda r: entry(r, **{"$schema": None})),
    "old schema": ("catalog entry", "1.0.1", lambda r: entry(r, **{"$schema": "v0.json"})),
    "no url": ("catalog entry", "'scm_url'", lambda r: entry(r, scm_url=None)),
    "tier 9": ("catalog entry", "tier", lambda r: entry(r, tier=9)),
    "tier true": ("catalog entry", "tier", lambda r: entry(r, tier=True)),
    "dependencies": ("catalog entry", "list", lambda r: entry(r, build_dependencies="PyTorch")),
    "category": ("catalog entry", "category", lambda r: entry(r, category="Wizardry")),
    "extension named Slicer": ("names", "leave", lambda r: (r / "DeepReg.json").rename(r / "SlicerDeepReg.json")),
    "repository not named Slicer": ("names", "begin with Slicer", lambda r: entry(r, scm_url="https://github.com/a/DeepReg.git")),
    "ssh address": ("names", "https", lambda r: entry(r, scm_url="ssh://github.com/a/SlicerDeepReg.git")),
    "project": ("CMake project", "DeepRegs", lambda r: edit(r / "CMakeLists.txt", "project(DeepReg)", "project(DeepRegs)")),
    "project in a comment": ("CMake project", "not named", lambda r: edit(r / "CMakeLists.txt", "project(DeepReg)", "# project(DeepReg)")),
    "not packed": ("CMake project", "CPACK", lambda r: edit(r / "CMakeLists.txt", "include(${Slicer_EXTENSION_CPACK})", "")),
    "no CMake": ("CMake project", "cannot be checked", lambda r: (r / "CMakeLists.txt").unlink()),
    "no contributors": ("metadata", "CONTRIBUTORS", lambda r: edit(r / "CMakeLists.txt", "EXTENSION_CONTRIBUTORS", "EXTENSION_PEOPLE")),
    "homepage": ("metadata", "HOMEPAGE", lambda r: entry(r, scm_url="https://github.com/b/SlicerOther.git")),
    "other dependencies": ("metadata", "differ", lambda r: entry(r, build_dependencies=["PyTorch", "SlicerIGT"])),
    "without PyTorch": ("metadata", "lacks PyTorch", lambda r: edit(r / "CMakeLists.txt", '"PyTorch"', '"NA"')),
    "icon gone": ("icon and screenshots", "missing", lambda r: (r / "Resources/DeepReg.png").unlink()),
    "icon is text": ("icon and screenshots", "no PNG", lambda r: write(r, "Resources/DeepReg.png", "x" * 99)),
    "icon tiny": ("icon and screenshots", "16 x 16", lambda r: (r / "Resources/DeepReg.png").write_bytes(png(16, 16))),
    "icon wide": ("icon and screenshots", "square", lambda r: (r / "Resources/DeepReg.png").write_bytes(png(128, 256))),
    "screenshot huge": ("icon and screenshots", "9000", lambda r: (r / "Resources/Screenshots/registration.png").write_bytes(png(9000, 800))),
    "screenshot of many bytes": ("icon and screenshots", "5 MB", lambda r: (r / "Resources/Screenshots/registration.png").write_bytes(png(900, 800) + bytes(6_000_000))),
    "other branch": ("icon and screenshots", "does not begin", lambda r: entry(r, scm_revision="release")),
    "no licence": ("licence", "no LICENSE", lambda r: (r / "LICENSE").unlink()),
    "empty licence": ("licence", "no licence text", lambda r: write(r, "LICENSE", "Apache")),
    "pip_install": ("torch is left to PyTorch", "mine.py:2", lambda r: write(r, "DeepReg/mine.py", "import slicer\nslicer.util.pip_install('torch>=2')\n")),
    "pip_install in a list": ("torch is left to PyTorch", "mine.py:2", lambda r: write(r, "DeepRegLib/mine.py", "def f():\n    pip_install(['numpy', 'torchvision'])\n")),
    "pip by subprocess": ("torch is left to PyTorch", "mine.py:2", lambda r: write(r, "DeepReg/mine.py", "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'pip', 'install', 'torch'])\n")),
    "third party": ("imports at file scope", "mine.py:1 imports torch", lambda r: write(r, "DeepReg/mine.py", "import torch\n")),
    "third party in try": ("imports at file scope", "imports pandas", lambda r: write(r, "DeepReg/DeepRegWidgets/mine.py", "try:\n    x = 1\nexcept ImportError:\n    from pandas.io import json\n")),
    "third party in a class": ("imports at file scope", "imports yaml", lambda r: write(r, "DeepReg/mine.py", "class A:\n    import yaml\n")),
    "syntax": ("imports at file scope", "cannot be checked", lambda r: write(r, "DeepReg/mine.py", "def")),
    "no picture": ("README", "no picture", lambda r: edit(r / "README.md", "![", "[")),
    "no summary": ("README", "summary", lambda r: write(r, "README.md", "# DeepReg\n\nYes.\n\n# Install\n\n# Tutorial\n\n# Citation\n\n![x](Resources/DeepReg.png)")),
    "no sections": ("README", "tutorial", lambda r: write(r, "README.md", f"# DeepReg\n\n{'Word ' * 20}\n\n![x](Resources/DeepReg.png)")),
    "picture not there": ("links", "gone.png", lambda r: write(r, "docs/more.md", "text ![a\nb](../gone.png) text")),
    "HTML picture not there": ("links", "lost.png", lambda r: write(r, "docs/more.md", '<img width="3" src="lost.png">')),
    "page not there": ("links", "nowhere.md", lambda r: write(r, "docs/deep/more.md", "[a](nowhere.md#part)")),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_copy_is_caught(repository, case):
    check, words, damage = BROKEN[case]
    damage(repository)
    found = checks.faults(repository, [check])[check]
    assert any(words in text for text in found), found


def test_every_check_is_shown_a_broken_copy():
    assert {check for check, *_ in BROKEN.values()} | {"size"} == set(checks.CHECKS)


def test_a_large_repository_is_caught(repository, monkeypatch):
    assert not list(checks.check_size(repository))
    monkeypatch.setattr(checks, "_LIMIT_MB", 0.5)
    assert any("at most 0.5" in text for text in checks.check_size(repository))
    # What is not part of a checkout does not count, nor what git keeps of earlier commits.
    monkeypatch.setattr(checks, "_LIMIT_MB", 100)
    for name in ("build/large.bin", ".git/objects/pack/large.pack"):
        write(repository, name, "x" * 60_000_000)
    assert not list(checks.check_size(repository))
    write(repository, "Resources/large.bin", "x" * 60_000_000)
    assert list(checks.check_size(repository))


def test_good_code_passes(repository):
    write(
        repository, "DeepReg/mine.py",
        "from __future__ import annotations\nimport json\nimport qt, ctk, vtk.util\n"
        "import numpy as np\nfrom typing import TYPE_CHECKING\nfrom .other import x\n"
        "from DeepRegLib.job import Job\nfrom slicer.i18n import tr as _\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    import torch\n    raise ValueError('pip install torch first')\n"
        "slicer.util.pip_install('safetensors')\n",
    )  # fmt: skip
    write(repository, "docs/mine.md", "[a](https://x.org/y.png) ![b](more.md)\n```\n[c](d.md)\n```")
    write(repository, "docs/more.md", "[part](#part) [file](mine.md?raw=1#x)")
    found = checks.faults(repository)
    for name in ("torch is left to PyTorch", "imports at file scope", "links"):
        assert not [text for text in found[name] if "mine" in text or "more" in text]


def test_this_repository_passes():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_extension.py")], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert len(lines) == len(checks.CHECKS) and all(line.startswith("ok") for line in lines)


def test_a_failure_is_printed_and_is_the_exit_status(repository, capsys):
    (repository / "LICENSE").unlink()
    assert checks.main([str(repository)]) == 1
    output = capsys.readouterr().out
    assert "FAILED  licence\n          there is no LICENSE at the root\n" in output
