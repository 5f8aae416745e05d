"""Peak memory of a training step against the number of time steps.

    python benchmarks/memory.py [--json PATH] [--steps 1 2 4 8 16] [--variants spikingjelly regraft ...] [--batch 32]

The *cifar* network of `rivals.py` in a process of its own for each T, two training steps each; what the process held
before the first one (torch, the weights) is part of the peak. `mb_a_step` is the slope of a line through all T.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rivals
from rivals import VARIANTS, WORKLOADS
from rounds import Job, LeftOut, Worker, cpu_features


def at(steps: int, variant: str, batch: int) -> Any:
    """The network, at another T."""
    WORKLOADS["cifar"] = replace(WORKLOADS["cifar"], steps=steps)
    return rivals.make("cifar", variant, batch, 1)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--variants", choices=VARIANTS, nargs="+", default=["spikingjelly", "loop", "regraft-plain", "regraft"]
    )
    given = parser.parse_args()
    rows = [row for variant in given.variants for row in measured(variant, given.steps, given.batch)]
    found = {"workload": "cifar", "batch": given.batch, "cpu": cpu_features(), "rows": rows, "mb_a_step": {}}
    for variant in given.variants:
        own = [(row["steps"], row["peak_mb"]) for row in rows if row["variant"] == variant and "peak_mb" in row]
        if len(own) > 1:
            found["mb_a_step"][variant] = round(float(np.polyfit(*np.array(own).T, 1)[0]), 1)
    print(found["mb_a_step"])
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measured(variant: str, steps: list[int], batch: int) -> list[dict[str, Any]]:
    """A row for each T."""
    rows: list[dict[str, Any]] = []
    for t in steps:
        row: dict[str, Any] = {"variant": variant, "steps": t}
        try:
            worker = Worker(Job(variant, at, (t, variant, batch), 1, "cpu", keep_pages=VARIANTS[variant].tuned))
            worker.first_step()
            worker.round()
            row["peak_mb"] = round(worker.peak_mb(), 1)
            worker.close()
        except LeftOut as reason:
            row["left_out"] = str(reason)
        rows.append(row)
        print(row, flush=True)
    return rows


if __name__ == "__main__":
    main()
