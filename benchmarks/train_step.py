"""A training step of regraft beside those of SpikingJelly, snnTorch, norse and a hand-written PyTorch loop.

    python benchmarks/train_step.py [--quick] [--json PATH] [--threads 1] [--workload cifar dvs resnet19]
                                    [--variants ...] [--batch N] [--rounds 7]

A step is forward, backward and SGD with momentum on a batch that is there already. Each variant is a process of its own
(`rounds.py`), its networks are in `rivals.py`. Without a suffix a library runs as it comes; `-tuned` is tuned by hand,
`-bf16` under autocast (where the processor multiplies in bfloat16, unless named with --variants), `-compiled` by
torch.compile. `floor` is the convolutions and linear layers alone. A variant has a row against each of: SpikingJelly as
it comes, tuned, and tuned in bf16; the fastest of all rivals in this run; the floor of its precision; itself on one
thread, if there are several. Of one thread CPU seconds count, else the wall clock.

Beside each row: `losses`, the first and the last of 20 steps from the same weights on the same few samples
(`loss_batch`), and `first_step_s`, wall seconds of the first step with whatever it compiles. A training is chaotic:
rounding separates the losses slowly, the wrong mathematics at once.

All workers stay alive: the whole set on `dvs` holds about 15 GB. A variant that has no figures is in `left_out`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rivals import VARIANTS, WORKLOADS, make
from rounds import (
    STEPS,
    Job,
    cpu_features,
    fastest,
    interleave,
    losses,
    matmul_gain,
    rows,
    start,
    topology,
)

from regraft.kernels.processor import fast_bf16

QUICK = {
    "workloads": ["cifar", "dvs"],
    "variants": ["spikingjelly", "spikingjelly-tuned", "regraft", "floor"],
    "rounds": 3,
}
LOSS_STEPS = 20
LOSS_BATCH = {"cifar": 4, "dvs": 1, "resnet19": 1}
COMPILE_LIMIT_S = 300.0
"""torch.compile of a loop over T = 16 has been seen not to end in 240 s."""
ONE_THREAD = "-one-thread"
ALONE = ("regraft", "regraft-bf16", "floor", "floor-bf16")
"""With several threads, these also run on one, by the wall clock."""


def jobs(workload: str, names: Iterable[str], batch: int, loss_batch: int, threads: int) -> list[Job]:
    """A worker for each variant."""
    found = []
    for name in names:
        variant = VARIANTS[name]
        arguments = (workload, name, batch, loss_batch)
        limit = COMPILE_LIMIT_S if variant.compiled else 600.0
        clock = "cpu" if threads == 1 else "wall"
        found.append(Job(name, make, arguments, threads, clock, keep_pages=variant.tuned, limit_s=limit))
        if threads > 1 and name in ALONE:
            found.append(Job(name + ONE_THREAD, make, arguments, 1, "wall", keep_pages=variant.tuned))
    return found


def references(variant: str, best: str | None) -> list[str | None]:
    """What a variant is compared with."""
    floor = "floor-bf16" if "bf16" in variant else "floor"
    jelly = ["spikingjelly", "spikingjelly-tuned", "spikingjelly-tuned-bf16"]
    return [*jelly, best, floor, variant + ONE_THREAD]


def measure(workload: str, planned: list[Job], batch: int, loss_batch: int, rounds: int) -> dict[str, Any]:
    """The rows of a workload, and the reasons of those without."""
    workers, left_out, first = start(planned)
    found_losses, ended = losses(workers, LOSS_STEPS)
    times, lost = interleave(workers, rounds)
    peaks = {name: worker.peak_mb() for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    best = fastest(times, (name for name, variant in VARIANTS.items() if variant.rival))
    found = rows(
        times,
        lambda variant: references(variant, best),
        workload=workload,
        batch=batch,
        jobs={job.name: job for job in planned},
        peaks=peaks,
    )
    for row in found:
        own = found_losses[row["variant"]]
        row["losses"] = [own[0], own[-1]] if own else None
        row["loss_batch"] = loss_batch if own else None
        row["first_step_s"] = round(first[row["variant"]], 2)
    reasons = [
        {"workload": workload, "variant": name, "reason": reason} for name, reason in (left_out | ended | lost).items()
    ]
    return {"rows": found, "left_out": reasons, "fastest_rival": {workload: best}}


def table(found: list[dict[str, Any]]) -> str:
    """A line a variant: seconds, memory, how many times faster than each reference, losses."""
    against = sorted({row["against"] for row in found}, key=[*VARIANTS, *(name + ONE_THREAD for name in ALONE)].index)
    lines = [f"{'variant':<26}{'s/step':>9}{'MB':>7}  " + "".join(f"{'x ' + name:<28}" for name in against) + "losses"]
    for variant in dict.fromkeys(row["variant"] for row in found):
        own = {row["against"]: row for row in found if row["variant"] == variant}
        one = next(iter(own.values()))
        cells = ("{ratio:.2f} ({ratio_min:.2f}-{ratio_max:.2f})".format(**own[a]) if a in own else "" for a in against)
        seen = " -> ".join(f"{loss:.3f}" for loss in one["losses"] or ())
        lines.append(
            f"{variant:<26}{one['median_s']:>9.3f}{one['peak_mb']:>7.0f}  "
            + "".join(f"{cell:<28}" for cell in cells)
            + seen
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print a table a workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 5 minutes: fewer variants and rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--batch", type=int, help="samples a step; unless given, each workload's own")
    parser.add_argument("--rounds", type=int)
    given = parser.parse_args()
    names = given.variants or [
        name
        for name, variant in VARIANTS.items()
        if (fast_bf16() or not variant.bf16) and (not given.quick or name.removesuffix("-bf16") in QUICK["variants"])
    ]
    rounds = given.rounds or (QUICK["rounds"] if given.quick else 7)
    document = _document(given.threads, rounds)
    for workload in given.workload or (QUICK["workloads"] if given.quick else WORKLOADS):
        batch = given.batch or WORKLOADS[workload].batch
        loss_batch = min(batch, LOSS_BATCH[workload])
        planned = jobs(workload, names, batch, loss_batch, given.threads)
        found = measure(workload, planned, batch, loss_batch, rounds)
        document["rows"] += found["rows"]
        document["left_out"] += found["left_out"]
        document["fastest_rival"] |= found["fastest_rival"]
        print(f"\n{workload}, batch {batch}, {given.threads} thread(s), {rounds} rounds, on {cpu_features()}")
        print(table(found["rows"]))
        for reason in found["left_out"]:
            print("left out: {variant}: {reason}".format(**reason), flush=True)
        if given.json:  # after each workload, so that an interrupted run keeps what it has
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _document(threads: int, rounds: int) -> dict[str, Any]:
    from regraft.training.run import environment

    return {
        "environment": environment() | {"threads": threads},
        "lscpu": topology().splitlines(),
        "matmul_gain": matmul_gain(threads) if threads > 1 else None,
        "rounds": rounds,
        "steps_a_round": STEPS,
        "loss_steps": LOSS_STEPS,
        "fastest_rival": {},
        "rows": [],
        "left_out": [],
    }


if __name__ == "__main__":
    main()
