"""The CMake files name every Python file of both packages, and no test. Run with stand-in macros."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MACROS = """
set(Slicer_FOUND TRUE)
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/empty.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/empty.cmake")
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR lib)
macro(slicerMacroBuildScriptedModule)
  file(APPEND "${CMAKE_BINARY_DIR}/named.txt" "${ARGN}")
endmacro()
macro(ctkMacroCompilePythonScript)
  file(APPEND "${CMAKE_BINARY_DIR}/named.txt" ";${ARGN}")
endmacro()
macro(slicer_add_python_unittest)
endmacro()
"""


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    config = tmp_path_factory.mktemp("slicer")
    (config / "SlicerConfig.cmake").write_text(MACROS)
    (config / "UseSlicer.cmake").write_text("")
    (config / "empty.cmake").write_text("")
    build = tmp_path_factory.mktemp("build")
    command = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DSlicer_DIR={config}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (build / "named.txt").read_text().split(";")


def test_every_file_of_both_packages_is_installed(named):
    module = {str(f.relative_to(ROOT / "DeepReg")) for f in (ROOT / "DeepReg").rglob("*.py")}
    library = {str(f.relative_to(ROOT)) for f in (ROOT / "DeepRegLib").rglob("*.py")}
    assert module | library <= set(named)
    assert "DeepReg.py" in named
    assert "DeepRegLib/algorithms/greedy.py" in named


def test_sample_data_and_models_are_installed_beside_the_library(named):
    resources = [
        str(file.relative_to(ROOT))
        for folder in ("Models", "SampleData")
        for file in (ROOT / "Resources" / folder).rglob("*")
        if file.is_file()
    ]
    assert any(name.endswith(".nii.gz") for name in resources)
    assert "Resources/Models/README.md" in resources
    assert set(resources) <= set(named)


def test_a_model_is_found_where_it_is_installed(named, tmp_path):
    """What CMake names keeps its place relative to the library; there it is looked for."""
    for name in named:
        if name.startswith(("DeepRegLib/", "Resources/Models/")) and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    code = (
        "from DeepRegLib import models; "
        "print([str(folder) for folder in models.model_folders() if folder in models.SHIPPED])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str([str(tmp_path / "Resources" / "Models")]), done.stderr


def test_the_entry_of_the_extension_index_is_what_its_checks_accept():
    """The conditions of scripts/check_description_files.py in Slicer/ExtensionsIndex."""
    content = (ROOT / "DeepReg.json").read_bytes()
    assert b"\r" not in content
    entry = json.loads(content)
    known = {"$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies",
             "build_subdirectory", "enabled", "tier"}  # fmt: skip
    assert set(entry) <= known
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert entry["category"] == "Registration"
    assert 1 <= entry["tier"] <= 5
    repository = entry["scm_url"].removesuffix(".git")
    assert repository.startswith("https://")
    assert repository.rsplit("/", 1)[1].startswith("Slicer")
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"project\(DeepReg\)", cmake)
    assert f'set(EXTENSION_HOMEPAGE "{repository}")' in cmake
    assert f'set(EXTENSION_DEPENDS "{" ".join(entry["build_dependencies"])}")' in cmake
    icon = re.search(r'set\(EXTENSION_ICONURL "\S+/main/(\S+)"\)', cmake)
    assert (ROOT / icon.group(1)).is_file()


def test_icons_are_installed_and_tests_are_not(named):
    assert any(name.endswith("Icons/DeepReg.png") for name in named)
    assert not [name for name in named if "Testing" in name or Path(name).name.startswith("test_")]
