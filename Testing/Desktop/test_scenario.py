"""The scenario of a person at the panel, played in the test application as it is in 3D Slicer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 500


@pytest.mark.usefixtures("application")
def test_a_person_at_the_panel(tmp_path):
    """Plays it in a process of its own: it ends the application."""
    command = [
        sys.executable, "Testing/Desktop/run.py", "--testing",
        "--additional-module-path", "DeepReg", "--python-script", "Testing/Slicer/scenario.py",
    ]  # fmt: skip
    # A leak shows from the third run on; `make scenario` plays all twenty.
    environment = {"DEEPREG_SCENARIO_RUNS": "8", **os.environ}
    environment |= {"DEEPREG_SCREENSHOTS": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "The scenario has passed." in done.stdout
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert {p.stem for p in tmp_path.glob("*.png")} >= {"1-empty", "4-running", "5-result"}
