"""Who may import whom, and what has only one place. Every rule is also shown a bad example."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "DeepRegLib"
#: May import: the standard library and each other only.
LIGHT = {"spec", "registry", "job", "errors", "card", "models"}
HEAVY = {"torch", "numpy", "SimpleITK", "vtk", "slicer", "safetensors", "scipy"}
#: Package of DeepRegLib -> packages of DeepRegLib that it may import.
ALLOWED = {
    "kernels": {"kernels", "errors"},
    "geometry": {"geometry", "kernels", "errors"},
    "losses": {"losses", "geometry", "kernels", "errors"},
    "networks": {"networks", "geometry", "models", "errors"},
    "metrics": {"metrics", "losses", "geometry", "registration", "card", "errors"},
    "registration": {
        "registration",
        "losses",
        "geometry",
        "kernels",
        "networks",
        "models",
        "memory",
        "spec",
        "registry",
        "errors",
    },
    # Networks and losses reach a training through the system that it trains.
    "training": {
        "training",
        "registration",
        "geometry",
        "networks",
        "metrics",
        "io",
        "pipeline",
        "models",
        "memory",
        "spec",
        "registry",
        "errors",
        "__version__",
    },
    "estimators": {"registration", "losses", "geometry", "networks", "training", "spec", "errors"},
    "algorithms": {"registration", "losses", "geometry", "networks", "training", "spec", "errors"},
    "io": {"io", "geometry", "registration", "errors"},
    "bridge": {"bridge", "geometry", "registration", "io", "pictures", "errors", "job"},
    "pictures": {"pictures", "geometry", "errors"},
}
ONLY_IN = {
    "SimpleITK": ("io", "api.py", "inputs.py", "outputs.py", "doctor.py"),
    "slicer": ("bridge",),
    "vtk": ("bridge", "pictures"),
    "triton": ("kernels",),
    "safetensors": ("networks", "training"),
}
FORBIDDEN = {"qt", "ctk", "PythonQt", "PySide6", "scipy", "deepreg", "pickle"}


def library_files():
    return sorted(LIBRARY.rglob("*.py"))


def imports(tree, file):
    """Yields (dotted name, line) of every import; relative ones as DeepRegLib.…"""
    package = ("DeepRegLib", *file.relative_to(LIBRARY).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            if node.module:
                yield module, node.lineno
            else:
                yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def import_faults(source, file):
    """Lists what a file of the library imports against the rules."""
    faults = []
    parts = file.relative_to(LIBRARY).parts
    where = parts[0] if len(parts) > 1 else Path(parts[0]).stem
    for name, line in imports(ast.parse(source), file):
        top = name.split(".")[0]
        inner = name.split(".")[1] if top == "DeepRegLib" and "." in name else None
        if top in FORBIDDEN:
            faults.append(f"{file.name}:{line} imports {name}")
        if top in ONLY_IN and where not in ONLY_IN[top] and parts[0] not in ONLY_IN[top]:
            faults.append(f"{file.name}:{line} imports {name} outside {ONLY_IN[top]}")
        if where in LIGHT and (top in HEAVY or (inner and inner not in LIGHT)):
            faults.append(f"{file.name}:{line} imports {name}, but has to stay light")
        if inner and where in ALLOWED and inner not in ALLOWED[where]:
            faults.append(f"{file.name}:{line}: {where} imports {inner}")
        if parts == ("geometry", "grid.py") and top == "torch":
            faults.append(f"{file.name}:{line}: the grid is numpy only")
        if top == "DeepReg":
            faults.append(f"{file.name}:{line} imports the Slicer module")
    return faults


def code_faults(source, file):
    """Lists calls and literals that have one place only."""
    faults = []
    parts = file.relative_to(LIBRARY).parts
    tree = ast.parse(source)
    for node in ast.walk(tree):
        names_it = isinstance(node, ast.Attribute) and node.attr == "grid_sample"
        imports_it = isinstance(node, ast.alias) and node.name == "grid_sample"
        if (names_it or imports_it) and parts != ("geometry", "sampling.py"):
            faults.append(f"{file.name}:{node.lineno}: grid_sample outside geometry/sampling.py")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
            faults.append(f"{file.name}:{node.lineno}: {ast.unparse(node)} runs code of the file")
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and (node.func.id == "print" and parts[0] not in ("cli", "__main__.py"))
        ):
            faults.append(f"{file.name}:{node.lineno}: print outside the command line")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _code_lines(node) > 60:
            faults.append(
                f"{file.name}:{node.lineno}: {node.name} has more than 60 lines; split it"
            )
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append(f"{file.name}:{node.lineno}: bare except")
        if isinstance(node, (ast.List, ast.Tuple)) and parts != ("io", "itk_transform.py"):
            numbers = [_number(item) for item in node.elts]
            if numbers in ([-1, -1, 1], [-1, -1, 1, 1]):
                faults.append(f"{file.name}:{node.lineno}: LPS flip outside io/itk_transform.py")
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        if re.search(r"\b(filterwarnings|simplefilter)\(", ast.unparse(node)):
            faults.append(f"{file.name}:{node.lineno}: global warning filter")
    return faults


def empty_assertions(source):
    """Lists assertions that hold whatever the code does."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assert)
        and ((isinstance(node.test, ast.Constant) and node.test.value) or
             (isinstance(node.test, ast.Tuple) and node.test.elts))
    ]  # fmt: skip


def _code_lines(function):
    """Lines of a function without its docstring and signature."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def _number(node):
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand)
        return None if inner is None else -inner
    return (
        node.value
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
        else None
    )


@pytest.mark.parametrize("file", library_files(), ids=lambda f: str(f.relative_to(LIBRARY)))
def test_library_file(file):
    source = file.read_text(encoding="utf-8")
    faults = import_faults(source, file) + code_faults(source, file)
    assert not faults, "\n".join(faults)
    assert len(source.splitlines()) <= 400, f"{file.name} has more than 400 lines; split it"


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("spec.py", "import numpy"),
        ("job.py", "from .geometry import grid"),
        ("models.py", "import torch"),
        ("models.py", "from safetensors import safe_open"),
        ("models.py", "from .networks.model_file import fill"),
        ("networks/unet.py", "from ..registration.base import Image"),
        ("networks/blocks.py", "from ..losses.lncc import LNCC"),
        ("registration/learned.py", "from ..training.pairs import PreparedPairs"),
        ("registration/learned.py", "from ..pipeline import run"),
        ("registration/learned.py", "from safetensors.torch import load_file"),
        ("training/trainer.py", "from ..algorithms.vxm import Algorithm"),
        ("training/subjects.py", "from ..bridge import mrml"),
        ("training/checkpoint.py", "import pickle"),
        ("geometry/grid.py", "import torch"),
        ("geometry/field.py", "from ..losses import lncc"),
        ("losses/mse.py", "from ..registration.base import Image"),
        ("losses/lncc.py", "import triton"),
        ("kernels/operations.py", "from ..geometry.sampling import sample"),
        ("algorithms/greedy.py", "from .rigid import Algorithm"),
        ("algorithms/greedy.py", "from ..io.images import read_image"),
        ("registration/dense.py", "import SimpleITK"),
        ("metrics/report.py", "import slicer"),
        ("registration/dense.py", "from ..bridge import mrml"),
        ("bridge/mrml.py", "import qt"),
        ("pictures/png.py", "import slicer"),
        ("pictures/panels.py", "from ..registration.base import Image"),
    ],
)
def test_import_rules_catch(place, source):
    assert import_faults(source, LIBRARY / place)


@pytest.mark.parametrize(
    "source",
    [
        "F.grid_sample(a, b)",
        "print('x')",
        "state = torch.load(path)",
        "torch.save(network.state_dict(), path)",
        "try:\n    f()\nexcept:\n    pass",
        "flip = np.diag([-1, -1, 1, 1])",
        "flip = (-1.0, -1.0, 1.0)",
        "from torch.nn.functional import grid_sample",
        "warnings.simplefilter('ignore')",
        "def f():\n" + "    x = 1\n" * 61,
        "import warnings\nwarnings.filterwarnings('ignore')",
    ],
)
def test_code_rules_catch(source):
    assert code_faults(source, LIBRARY / "registration" / "dense.py")


def test_rules_let_good_code_pass():
    good = (
        "def f():\n    with warnings.catch_warnings():\n        warnings.simplefilter('ignore')\n"
    )
    assert not code_faults(
        good + "        return np.diag([1, -1, 1])", LIBRARY / "losses" / "mse.py"
    )
    assert not code_faults("F.grid_sample(a, b)", LIBRARY / "geometry" / "sampling.py")
    assert not code_faults("flip = (-1.0, -1.0, 1.0)", LIBRARY / "io" / "itk_transform.py")
    assert not import_faults("from .grid import Grid", LIBRARY / "geometry" / "field.py")
    assert not import_faults("from .. import kernels", LIBRARY / "losses" / "lncc.py")
    assert not import_faults("import safetensors.torch", LIBRARY / "networks" / "model_file.py")
    assert not import_faults("from ..models import ModelCard", LIBRARY / "networks" / "x.py")
    assert not import_faults("from .. import registry", LIBRARY / "training" / "trainer.py")
    assert not import_faults("import triton", LIBRARY / "kernels" / "triton_boxes.py")
    assert not import_faults("from ..losses.lncc import LNCC", LIBRARY / "algorithms" / "greedy.py")


def test_assertions_of_the_tests_can_fail():
    assert empty_assertions("assert True") == [1]
    assert empty_assertions("assert (x == 1, 'message')") == [1]
    assert empty_assertions("assert x") == []
    for file in (ROOT / "Testing").rglob("*.py"):
        assert not empty_assertions(file.read_text(encoding="utf-8")), file.name


def test_the_slicer_module_never_imports_torch():
    for file in (ROOT / "DeepReg").rglob("*.py"):
        names = {n.split(".")[0] for n, _ in imports(ast.parse(file.read_text()), LIBRARY / "x.py")}
        assert "torch" not in names, file.name


def test_listing_algorithms_needs_nothing_heavy():
    code = (
        "import sys, DeepRegLib, DeepRegLib.job\n"
        "from DeepRegLib import models, registry\n"
        "assert 'greedy' in registry.specs()\n"
        "models.list_models()\n"
        f"print(sorted(set(sys.modules) & set({sorted(HEAVY)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_no_machine_paths_in_the_repository():
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/[\w.]")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        file = ROOT / name
        if file.suffix in {".py", ".md", ".txt", ".toml", ".json", ".cmake", ""} and file.is_file():
            found = pattern.search(file.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{name}: {found and found.group()}"
