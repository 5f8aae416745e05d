"""The allocator's settings, in a process of their own: they stay for its lifetime."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys, torch
from regraft.execution import keep_pages
taken = keep_pages() if sys.argv[1] == "keep" else True
def use():
    for _ in range(5):
        torch.ones(40_000_000).add_(1)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_pages_are_not_faulted_in_again():
    faults = {}
    for mode in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", MEASURE, mode], capture_output=True, text=True, check=True)
        taken, count = done.stdout.split()
        assert taken == "True"
        faults[mode] = int(count)
    assert faults["keep"] < 100 < 1000 < faults["leave"]
