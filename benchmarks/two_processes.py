"""The wiring on each of two processes under `torchrun` (gloo) after every event, and on one process alone.

    python benchmarks/two_processes.py --json results/two_processes.json

Random growth on a network without normalisation (whose statistics every process takes on its own share): two
processes see together what one sees, so all three hold the same wiring. With normalisation, and growth by gradient,
the two still agree with each other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from regraft.neurons import LIF
from regraft.training.recipe import Recipe, override

BASE = {"data.name": "standin", "data.batch": 16, "topology.density": 0.3, "topology.every": 4, "training.epochs": 20}
CASES = {
    "random growth, no normalisation": {"topology.rule": "set", "model.name": "two_processes:plain", "model.steps": 2},
    "gradient growth, batch normalisation": {"topology.rule": "rigl", "model.steps": 2},
}


def plain(*, classes: int, steps: int, **_: Any) -> nn.Module:
    """A network without normalisation: events fold, `[N, 1, 8, 8]` to logits `[T, N, K]`."""
    layers = [nn.Flatten(), nn.Linear(64, 64), LIF(steps=steps, static=True), nn.Linear(64, classes)]
    return nn.Sequential(*layers, nn.Unflatten(0, (steps, -1)))


def train(case: str, out: Path) -> None:
    """One process of a run: it writes the hashes that it held when all were compared."""
    from regraft.structure import topology
    from regraft.training.fit import fit

    compare, held = topology.agree, []

    def noting(own: str, step: int) -> None:
        held.append((step, own))
        compare(own, step)

    topology.agree = noting
    fit(override(Recipe(name="run"), {**BASE, **CASES[case]}), out / "run")
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(held[-20:]), encoding="utf-8")


def hashes(case: str, world: int) -> list[list[tuple[int, str]]]:
    """Of each process, (step, hash) of its last events."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    here = Path(__file__).resolve()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, *launch, str(here), "--case", case, "--out", folder], check=True, env=env)
        return [json.loads(Path(folder, f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(world)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        return train(given.case, given.out)
    found: dict[str, Any] = {}
    for case in CASES:
        [one], (first, second) = hashes(case, 1), hashes(case, 2)
        found[case] = {
            "events_compared": len(first),
            "two_processes_agree": first == second,
            "equal_to_one_process": first == one,
            "steps_and_hashes": {"one": one, "rank 0": first, "rank 1": second},
        }
        print(f"{case}: {len(first)} events, ranks agree: {first == second}, equal to one process: {first == one}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
