"""Each example runs as a stranger would run it, learns, and ends with exactly the connections it asked for."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "fit_by_hand")
PEERS = {"spikingjelly_net": "spikingjelly", "snntorch_net": "snntorch", "norse_net": "norse"}


def example(path: Path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.peers] if path.stem in PEERS else [])


def run(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, cwd=folder, timeout=120, env=environment
    )


def test_fit_equals_a_loop_written_by_hand_to_the_bit(tmp_path):
    pytest.importorskip("sklearn")
    done = run(FOLDER / "fit_by_hand.py", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "22 tensors, different from fit: none" in done.stdout


@pytest.mark.parametrize("path", [example(path) for path in EXAMPLES])
def test_example(path, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip(PEERS.get(path.stem, "torch"))
    done = run(path, tmp_path)
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
