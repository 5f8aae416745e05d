"""Whole trainings, from start to finish, on one path and on another: the same accuracy, and how much sooner?

    python benchmarks/end_to_end.py cifar100_minutes --densities 0.1 0.05 --seeds 0 1 2 --json PATH
    python benchmarks/end_to_end.py digits --seeds 0 1 2 3 4 --ways plain sparse --against plain --json PATH
    python benchmarks/end_to_end.py cifar100_small --seeds 0 --ways dense --epochs 14  # what an hour gives without

Ways: `plain` without compiled kernels, `dense` with fused neurons and dense products, `sparse` as shipped, which goes
over existing connections where that is faster. Each run is a process of its own, one thread, on a processor of its
own; those of one seed and density run at the same time, as many as there are processors, so that they share what
disturbs them. Seconds are the wall's, of the whole process: data, evaluation and measuring included. Accuracies are
of the last epoch on the test set; differences are paired by seed, with a 95 % t interval.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

WAYS = ("plain", "dense", "sparse")


def main() -> None:
    """Train, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--arm", default="sparse")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=["dense", "sparse"])
    parser.add_argument("--against", choices=WAYS, default="dense", help="the way that the others are compared with")
    parser.add_argument("--epochs", type=int, help="unless given, the recipe's")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(**json.loads(options.one))
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    jobs = [
        {"recipe": options.recipe, "arm": options.arm, "density": density, "seed": seed, "way": way}
        | ({"epochs": options.epochs} if options.epochs else {})
        for density in options.densities
        for seed in options.seeds
        for way in options.ways
    ]
    with ThreadPoolExecutor(cores.qsize()) as pool:
        rows = list(pool.map(lambda job: trained(job, cores), jobs))
    from regraft.training.run import environment

    found = {"environment": environment(), "rows": rows, "compared": compared(rows, options.against)}
    for row in found["compared"]:
        print(row)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def trained(job: dict[str, Any], cores: Queue[int]) -> dict[str, Any]:
    """One run in a process of its own."""
    core = cores.get()
    try:
        with tempfile.TemporaryDirectory() as folder:
            given = {**job, "folder": folder}
            settings = {"OMP_NUM_THREADS": "1", **({"REGRAFT_KERNELS": "off"} if job["way"] == "plain" else {})}
            command = [sys.executable, __file__, job["recipe"], "--one", json.dumps(given)]
            start = time.perf_counter()
            with subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL) as process:
                os.sched_setaffinity(process.pid, {core})
            seconds = time.perf_counter() - start
            if process.returncode:
                sys.exit(f"{job} ended with {process.returncode}")
            result = json.loads((Path(folder) / "run" / "result.json").read_text(encoding="utf-8"))
            made = json.loads((Path(folder) / "run" / "environment.json").read_text(encoding="utf-8"))
    finally:
        cores.put(core)
    row = {**job, "precision": made["precision"], "wall_s": seconds, "train_s": result["seconds"]["train"]}
    row["accuracy"] = result["accuracy"]["last"]
    print(row, flush=True)
    return row


def one(recipe: str, arm: str, density: float, seed: int, way: str, folder: str, epochs: int | None = None) -> None:
    """The training itself."""
    import torch

    from regraft.execution import Calibration
    from regraft.training import build, load_study
    from regraft.training.fit import fit

    torch.set_num_threads(1)
    if way != "sparse":
        build.calibration_of = lambda recipe: Calibration("never", {})
    settings = {"seed": seed, "topology.density": density} | ({"training.epochs": epochs} if epochs else {})
    chosen = load_study(recipe, settings, (arm,)).arms[arm]
    fit(chosen, Path(folder) / "run")


def compared(rows: list[dict[str, Any]], against: str) -> list[dict[str, Any]]:
    """For each density and way: the mean difference of accuracy with its interval, and the ratio of wall times."""
    from scipy import stats

    found = []
    for density in dict.fromkeys(row["density"] for row in rows):
        by_way: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if row["density"] == density:
                by_way.setdefault(row["way"], {})[row["seed"]] = row
        base = by_way.get(against, {})
        for way, of_seed in by_way.items():
            pairs = [(row, base[seed]) for seed, row in of_seed.items() if seed in base]
            if way == against or len(pairs) < 2:
                continue
            differences = [own["accuracy"] - other["accuracy"] for own, other in pairs]
            ratios = [other["wall_s"] / own["wall_s"] for own, other in pairs]
            mean, spread = statistics.fmean(differences), statistics.stdev(differences) / len(pairs) ** 0.5
            margin = float(stats.t.ppf(0.975, len(pairs) - 1)) * spread
            found.append(
                {
                    "density": density,
                    "way": way,
                    "against": against,
                    "seeds": len(pairs),
                    "accuracy": statistics.fmean(own["accuracy"] for own, _ in pairs),
                    "accuracy_against": statistics.fmean(other["accuracy"] for _, other in pairs),
                    "difference": mean,
                    "low": mean - margin,
                    "high": mean + margin,
                    "wall_s": statistics.median(own["wall_s"] for own, _ in pairs),
                    "wall_s_against": statistics.median(other["wall_s"] for _, other in pairs),
                    "ratio": statistics.median(ratios),
                    "ratio_min": min(ratios),
                    "ratio_max": max(ratios),
                }
            )
    return found


if __name__ == "__main__":
    main()
