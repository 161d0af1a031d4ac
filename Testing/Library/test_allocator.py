"""Freed memory stays with a process of our own, and goes back between two jobs."""

import subprocess
import sys

import pytest

from DeepRegLib import allocator

CODE = """
import resource
import torch
from DeepRegLib.allocator import hand_back_freed_memory, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.ones(1_000_000) for _ in range(12)]  # 4 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

torch.set_num_threads(1)
usual = faults()
assert keep_freed_memory()
kept = faults()
before = resident()
hand_back_freed_memory()
print(usual, kept, before - resident())
"""

glibc = pytest.mark.skipif(allocator._glibc() is None, reason="a C library without mallopt")


@glibc
def test_memory_is_kept_and_handed_back():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    usual, kept, handed_back = (int(word) for word in done.stdout.split())
    pages = 48_000_000 // 4096
    assert usual > 10 * pages, "the system gives the same memory anew each time"
    assert kept < 2 * pages, "only the first blocks are new"
    assert handed_back > pages // 2


def test_nothing_is_done_where_the_library_does_not_know_it(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "win32")
    assert not allocator.keep_freed_memory()
    allocator.hand_back_freed_memory()


@glibc
def test_a_refusal_is_told(monkeypatch):
    class Refusing:
        def mallopt(self, number, value):
            return 0

    monkeypatch.setattr(allocator, "_glibc", Refusing)
    assert allocator.keep_freed_memory() is False
