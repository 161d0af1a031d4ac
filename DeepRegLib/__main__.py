"""Lets ``python -m DeepRegLib`` run the command line."""

from __future__ import annotations

import os
import sys

from .allocator import keep_freed_memory
from .cli import main

if __name__ == "__main__":
    # Threads that wait must not spin: beside other programs that makes a run many times slower.
    # OpenMP reads this when torch is loaded, which happens later, inside the commands.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    keep_freed_memory()
    sys.exit(main())
