"""The allocator's settings, in a process of their own: they stay for its lifetime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from regraft.execution.engines import engine

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


PLACES = """
import torch
from regraft.execution.memory import empty, keep_pages
keep_pages()
shape, between, places = (2, 1000, 1001), [], []
for _ in range(10):
    tensor = empty(shape, torch.float32)
    between.append(torch.empty(20))  # what comes behind it stays
    places.append(tensor.data_ptr())
    assert tensor.shape == shape and tensor.dtype == torch.float32 and tensor.is_contiguous()
    del tensor
print(len(set(places)), sum(place % 64 for place in places))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_large_tensor_returns_to_its_place():
    done = subprocess.run([sys.executable, "-c", PLACES], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


HUGE = """
import torch
from regraft.execution import keep_pages
keep_pages()
kept = torch.ones(40_000_000)
print(sum(int(line.split()[1]) for line in open("/proc/self/smaps") if line.startswith("AnonHugePages")))
"""


def huge_pages_may_be_asked_for() -> bool:
    how = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return how.exists() and "[never]" not in how.read_text(encoding="utf-8")


@pytest.mark.skipif(not huge_pages_may_be_asked_for(), reason="the system has no transparent huge pages")
def test_large_tensors_lie_in_huge_pages():
    done = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100_000  # kB, of 160 MB


STEPS = """
import resource, torch, regraft
from torch import nn
from regraft.execution import Calibration
from regraft.models import vgg16
torch.set_num_threads(1)
regraft.execution.keep_pages()
model = vgg16(classes=10, widths=[[8, 8], [16]], steps=2, size=16)
topology = regraft.Topology(model, 0.2, "rigl", steps=2000, every=10)
optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
topology.attach(optimizer)
always = Calibration("always", {f"{kind} fp32": ((1, 1),) for kind in ("convolution", "linear")})
over = regraft.execute(model, topology, always)
x, y = torch.randn(16, 3, 16, 16), torch.randint(0, 10, (16,))
kept = []
for step in range(1200):
    nn.functional.cross_entropy(model(x).mean(0), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    if step in (199, 1199):
        pages = int(open("/proc/self/statm").read().split()[1])
        kept.append(pages * resource.getpagesize() / 1e6)
print(sum(not why for why in over.choices.values()), len(topology.events), kept[1] - kept[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(engine("cpu") is None, reason="the kernels were not built: a C compiler is missing")
def test_a_thousand_steps_take_no_more_memory_than_two_hundred():
    """Over connections, through 100 rewiring events."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    over, events, megabytes = done.stdout.split()
    assert (int(over), int(events)) == (4, 120)
    assert float(megabytes) < 3
