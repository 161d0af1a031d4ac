"""The virtual environments of the peers, made on demand under build/peers (ignored by git)."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "peers"
RUNNERS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Peer:
    """A program to compare with.

    Args:
        name: Key of the peer; its runner is ``run_<name>.py``.
        requirements: What pip installs, in order.
        needs_torch: Whether the torch of constraints.txt is installed first.
        needs_affine: Whether it has no linear registration of its own, so that it gets a moving
            image that was brought onto the fixed one by our affine.
    """

    name: str
    requirements: tuple[str, ...] = ()
    needs_torch: bool = False
    needs_affine: bool = False

    @property
    def runner(self) -> Path:
        """The script that registers one pair."""
        return RUNNERS / f"run_{self.name}.py"


SIMPLEITK = "SimpleITK==2.5.7"
PEERS = {
    peer.name: peer
    for peer in (
        Peer("deepreg"),
        Peer("greedy", ("picsl_greedy==1.4.0.3", SIMPLEITK)),
        Peer("ants", ("antspyx==0.6.3", SIMPLEITK)),
        # fireants asks for an old SimpleITK of its own.
        Peer("fireants", ("fireants==1.5.0",), needs_torch=True),
        Peer("convexadam", ("convexadam==0.2.0",), needs_torch=True, needs_affine=True),
        Peer("elastix", ("itk-elastix==0.25.4", SIMPLEITK)),
        Peer("simpleitk", (SIMPLEITK, "numpy")),
    )
}


def python_of(peer: Peer) -> Path:
    """Returns the Python of a peer; makes its environment first where it is missing.

    Raises:
        subprocess.CalledProcessError: If pip cannot install the peer.
    """
    if not peer.requirements:
        return Path(sys.executable)
    folder = FOLDER / peer.name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = "\n".join(peer.requirements)
    stamp = folder / "ready.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making the environment of {peer.name} ...", flush=True)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if peer.needs_torch:
        # Only torch: other pins can contradict those of the peer.
        subprocess.run([*pip, _pinned("torch")], check=True)
    subprocess.run([*pip, *peer.requirements], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _pinned(package: str) -> str:
    """Returns the line of constraints.txt for a package, or its bare name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.split("==")[0] == package), package)
