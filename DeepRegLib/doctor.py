"""Checks what DeepReg runs on and says in plain language what to do. Standard library only.

Packages are tried in processes of their own, because a broken one can crash, hang, or lock files
that a repair must replace.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

OK, WARN, FAIL = "ok", "warn", "fail"
#: Python that the library supports.
_LEAST_PYTHON = (3, 10)
#: Free space for temporary files, in GB: a job keeps its images and transforms there.
_WARN_DISK_GB, _FAIL_DISK_GB = 5.0, 0.5
_WARN_MEMORY_GB = 4.0
#: Windows opens no file with a longer path, unless told to; torch's longest inner path has 130.
_LONGEST_FOLDER = 120
_SECONDS = 180.0

_TORCH = """
import json, torch
found = {"version": str(torch.__version__), "build": torch.version.cuda or torch.version.hip or "",
         "threads": torch.get_num_threads(), "gpus": [], "archs": []}
assert float(torch.ones(3).add(1).sum()) == 6.0
try:
    import numpy
    found["numpy"] = bool(torch.from_numpy(numpy.ones(3)).sum() == 3)
except Exception as error:
    found["numpy_error"] = str(error)
if torch.cuda.is_available():
    found["archs"] = torch.cuda.get_arch_list()
    for number in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(number)
        gpu = {"name": p.name, "capability": f"sm_{p.major}{p.minor}", "gb": p.total_memory / 2**30}
        try:
            device = torch.device("cuda", number)
            gpu["free_gb"] = torch.cuda.mem_get_info(device)[0] / 2**30
            gpu["works"] = float(torch.ones(8, device=device).sum()) == 8.0
        except Exception as error:
            gpu["error"] = str(error).splitlines()[0]
        found["gpus"].append(gpu)
print("FOUND " + json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """Something that was checked.

    Args:
        name: What was checked.
        status: ``ok``, ``warn`` (works, but) or ``fail``.
        text: What was found and, if it is not fine, what to do.
    """

    name: str
    status: str
    text: str


def examine() -> list[Finding]:
    """Checks everything; never raises, whatever is broken."""
    findings = [_python(), *_torch()]
    findings += [_package(*p) for p in (
        ("numpy", True, "all computation"), ("SimpleITK", True, "reading and writing files"),
        ("safetensors", False, "trained models"), ("tqdm", False, "the progress bar"),
    )]  # fmt: skip
    return [*findings, _disk(), _memory(), _threads()]


def _python() -> Finding:
    text = f"{platform.python_version()}, {platform.architecture()[0]}, {platform.platform()}"
    if sys.version_info < _LEAST_PYTHON:
        return Finding("Python", FAIL, f"{text}; 3.10 or later is needed: update 3D Slicer.")
    if sys.maxsize < 2**32:
        return Finding("Python", FAIL, f"{text}; PyTorch needs a 64-bit Python.")
    if os.name == "nt" and len(sys.prefix) > _LONGEST_FOLDER:
        return Finding("Python", WARN, f"{text}; the path of its folder has {len(sys.prefix)} "
                       "letters, too many for PyTorch on Windows: install it in a shorter "
                       "one.")  # fmt: skip
    return Finding("Python", OK, text)


def _torch() -> list[Finding]:
    found, error = _try(_TORCH)
    if found is None:
        missing = importlib.util.find_spec("torch") is None
        what = "is not installed" if missing else f"does not work ({error})"
        return [Finding("PyTorch", FAIL, f"it {what}; in 3D Slicer, install it with the module "
                        "'PyTorch Utils' of the extension PyTorch, elsewhere see "
                        "https://pytorch.org/get-started.")]  # fmt: skip
    findings = [Finding("PyTorch", OK, f"{found['version']}, {found['threads']} threads")]
    if not found.get("numpy"):
        findings.append(Finding("PyTorch and numpy", FAIL, "they do not fit together "
                                f"({found.get('numpy_error', 'wrong sum')}); reinstall PyTorch, or "
                                "install the numpy that it was built for."))  # fmt: skip
    return [*findings, *_gpus(found)]


def _gpus(found: dict[str, Any]) -> list[Finding]:
    driver = _nvidia()
    if found["gpus"]:
        return [_gpu(gpu, found, driver) for gpu in found["gpus"]]
    if not driver:
        return [Finding("GPU", WARN, "no NVIDIA GPU was found; everything runs on the CPU, only "
                        "slower.")]  # fmt: skip
    if not found["build"]:
        return [Finding("GPU", WARN, f"there is one ({driver}), but this PyTorch is built for the "
                        "CPU; reinstall it for CUDA with the module 'PyTorch Utils'.")]  # fmt: skip
    return [Finding("GPU", WARN, f"there is one ({driver}), but PyTorch for CUDA {found['build']} "
                    "cannot reach it; update the NVIDIA driver, then restart.")]  # fmt: skip


def _gpu(gpu: dict[str, Any], found: dict[str, Any], driver: str) -> Finding:
    about = (f"{gpu['name']}, {gpu['capability']}, {gpu['gb']:.1f} GB, CUDA {found['build']}"
             + (f", {driver}" if driver else ""))  # fmt: skip
    if not gpu.get("works"):
        fits = ", ".join(found["archs"])
        return Finding("GPU", WARN, f"{about}; it does not work ({gpu.get('error', 'wrong sum')}); "
                       f"this PyTorch is built for {fits}: install a version for "
                       f"{gpu['capability']}, or choose the device cpu.")  # fmt: skip
    free = gpu.get("free_gb", 0.0)
    if free < 2.0:
        return Finding("GPU", WARN, f"{about}; only {free:.1f} GB are free: close other programs "
                       "that use it.")  # fmt: skip
    return Finding("GPU", OK, f"{about}, {free:.1f} GB free")


def _nvidia() -> str:
    """Returns what NVIDIA's own tool says of the driver and the first GPU; empty if nothing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "its driver does not answer"
    lines = answer.stdout.strip().splitlines()
    return f"driver {lines[0]}" if answer.returncode == 0 and lines else ""


def _package(name: str, needed: bool, purpose: str) -> Finding:
    code = f"import json, {name}; print('FOUND ' + json.dumps({{'v': str({name}.__version__)}}))"
    if importlib.util.find_spec(name) is None:
        found, error = None, "not installed"
    else:
        found, error = _try(code)
    if found is not None:
        return Finding(name, OK, found["v"])
    what = f"{error}; it is needed for {purpose}: install it with 'pip install {name}'."
    return Finding(name, FAIL if needed else WARN, what)


def _disk() -> Finding:
    folder = tempfile.gettempdir()
    try:
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return Finding("Temporary files", FAIL, f"'{folder}' cannot be used ({error.strerror}).")
    text = f"{free:.1f} GB free in '{folder}'"
    status = FAIL if free < _FAIL_DISK_GB else WARN if free < _WARN_DISK_GB else OK
    advice = "" if status == OK else "; make room, or point the variable TMPDIR (TEMP) elsewhere."
    return Finding("Temporary files", status, text + advice)


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows
        return Finding("Memory", OK, "its size is not known here")
    if total < _WARN_MEMORY_GB:
        return Finding("Memory", WARN, f"{total:.1f} GB is little for 3-D images; crop them first.")
    return Finding("Memory", OK, f"{total:.1f} GB")


def _threads() -> Finding:
    count = os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    if limit and limit.isdigit() and int(limit) < count:
        return Finding("Processors", WARN, f"{count}, but OMP_NUM_THREADS limits them to {limit}.")
    return Finding("Processors", OK, str(count))


def _try(code: str) -> tuple[dict[str, Any] | None, str]:
    """Runs code in a process of its own; returns what it found, or why it failed."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              timeout=_SECONDS, check=False, errors="replace")  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    for line in done.stdout.splitlines():
        if line.startswith("FOUND "):
            return json.loads(line[6:]), ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return None, lines[-1].strip() if lines else f"exit code {done.returncode}"
