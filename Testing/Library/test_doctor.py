import json

import pytest

from DeepRegLib import doctor
from DeepRegLib.cli import main
from DeepRegLib.doctor import FAIL, OK, WARN, Finding

GPU = {"name": "NVIDIA T4", "capability": "sm_75", "gb": 15.0, "free_gb": 14.0, "works": True}
TORCH = {"version": "2.13.0", "build": "13.0", "threads": 4, "gpus": [GPU], "archs": ["sm_75"],
         "numpy": True}  # fmt: skip


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_this_machine_is_well():
    findings = by_name(doctor.examine())
    assert {"Python", "PyTorch", "GPU", "numpy", "SimpleITK", "Temporary files", "Memory",
            "Processors"} <= set(findings)  # fmt: skip
    assert not [f for f in findings.values() if f.status == FAIL]
    assert all(f.text for f in findings.values())


@pytest.fixture
def torch_says(monkeypatch):
    def install(answer, driver="driver 570.1, NVIDIA T4", error=""):
        monkeypatch.setattr(doctor, "_try", lambda code: (answer, error))
        monkeypatch.setattr(doctor, "_nvidia", lambda: driver)
        return by_name(doctor._torch())

    return install


def test_a_gpu_that_works(torch_says):
    found = torch_says(TORCH)["GPU"]
    assert found.status == OK and "sm_75" in found.text and "15.0 GB" in found.text


def test_torch_is_missing_or_broken(torch_says, monkeypatch):
    found = torch_says(None, error="ImportError: libc10.so: cannot open")["PyTorch"]
    assert found.status == FAIL and "libc10.so" in found.text
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = torch_says(None)["PyTorch"]
    assert found.status == FAIL and "is not installed" in found.text


@pytest.mark.parametrize(
    ("change", "driver", "expected"),
    [
        ({"gpus": [], "build": ""}, "driver 570", "built for the CPU"),
        ({"gpus": []}, "driver 390", "update the NVIDIA driver"),
        ({"gpus": []}, "", "no NVIDIA GPU"),
        ({"gpus": [{**GPU, "works": None, "error": "no kernel image", "capability": "sm_120"}]},
         "driver 570", "install a version for sm_120"),
        ({"gpus": [{**GPU, "free_gb": 0.4}]}, "driver 570", "close other programs"),
    ],
)  # fmt: skip
def test_a_gpu_that_does_not_help(change, driver, expected, torch_says):
    found = torch_says({**TORCH, **change}, driver)["GPU"]
    assert found.status == WARN and expected in found.text


def test_numpy_that_does_not_fit(torch_says):
    answer = {**TORCH, "numpy": None, "numpy_error": "compiled using NumPy 1.x"}
    found = torch_says(answer)["PyTorch and numpy"]
    assert found.status == FAIL and "NumPy 1.x" in found.text


def test_a_package_that_crashes_is_told_of():
    found, error = doctor._try("import os; os._exit(9)")
    assert found is None and "9" in error
    found, error = doctor._try("raise ImportError('broken wheel')")
    assert found is None and "broken wheel" in error


def test_little_room(monkeypatch):
    usage = doctor.shutil.disk_usage("/")
    for free, status in ((1e11, OK), (2e9, WARN), (1e8, FAIL)):
        monkeypatch.setattr(
            doctor.shutil, "disk_usage", lambda _, f=free: usage._replace(free=int(f))
        )
        assert doctor._disk().status == status


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("Python", OK, "3.12")])
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "OK    Python: 3.12\n"
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("PyTorch", FAIL, "is missing.")])
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["status"] == "fail"
