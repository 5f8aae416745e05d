"""Each example runs as a stranger would run it, learns, and ends with exactly the connections it asked for."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
PEERS = {"spikingjelly_net": "spikingjelly", "snntorch_net": "snntorch", "norse_net": "norse"}


def example(path: Path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.peers] if path.stem in PEERS else [])


@pytest.mark.parametrize("path", [example(path) for path in EXAMPLES])
def test_example(path, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip(PEERS.get(path.stem, "torch"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr

    density = float(re.search(r"density=([\d.]+)", path.read_text())[1])
    totals = [line.replace(",", "").split() for line in done.stdout.splitlines() if line.startswith("total")]
    assert len(totals) == 2, "one table of the topology, one of the measurement"
    for _, connections, possible, *_ in totals:
        assert int(connections) == math.floor(density * int(possible) + 0.5)
    assert int(re.search(r"(\d+) events", done.stdout)[1]) > 0
    assert float(re.search(r"accuracy ([\d.]+)", done.stdout)[1]) > 0.5


def test_there_are_examples_for_each_way_of_writing_a_network():
    assert {path.stem for path in EXAMPLES} >= {"plain_pytorch", *PEERS}
