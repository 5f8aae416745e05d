"""What a wiring costs: the share of training time spent in `Topology`, at the default schedule (every 100 steps).

    python benchmarks/rewiring_cost.py [--json PATH] [--rounds 3]

A round is 100 optimiser steps with one event at its end; rounds of the cases alternate. Two shares of a round's CPU
seconds, one thread: `events`, the rewiring itself; `all`, with what the step hooks do at each step (record and mask
gradients, clean weights and optimiser state), which a static wiring needs as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import regraft
from regraft.models import resnet_small, tiny_vgg
from regraft.training.run import environment

EVERY = 100
CASES = [("static", "sgd"), ("rigl", "sgd"), ("rigl", "adamw"), ("set", "sgd"), ("snfs", "sgd")]


class Training:
    """A network, a rule and a batch of noise: enough to time a step and what the topology does in it."""

    def __init__(self, model: nn.Module, x: torch.Tensor, rule: str, optimizer: str, rounds: int) -> None:
        self.model, self.x = model, x
        self.y = torch.arange(len(x)) % 10
        kinds: dict[str, Any] = {"sgd": {"lr": 0.01, "momentum": 0.9}, "adamw": {"lr": 1e-3}}
        make = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
        self.optimizer = make(model.parameters(), **kinds[optimizer])
        self.topology = regraft.Topology(model, 0.1, rule, steps=2 * EVERY * (rounds + 1), every=EVERY)
        self.spent = {"events": 0.0, "all": 0.0}
        # The hooks are bound when attached: wrap them first, so that the clock runs inside them.
        self._time("_event", "events")
        self._time("_before_step", "all")
        self._time("_after_step", "all")
        self.topology.attach(self.optimizer)
        self.criterion = regraft.Distill()

    def _time(self, method: str, what: str) -> None:
        inner: Callable[..., Any] = getattr(self.topology, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.spent[what] += time.process_time() - start

        setattr(self.topology, method, timed)

    def round(self) -> dict[str, float]:
        """The two shares of 100 steps, and their CPU seconds."""
        self.spent = {"events": 0.0, "all": 0.0}
        start = time.process_time()
        for _ in range(EVERY):
            loss = self.criterion(self.model(self.x), self.y, inputs=self.x)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        total = time.process_time() - start
        return {"events": self.spent["events"] / total, "all": self.spent["all"] / total, "seconds": total}


def main() -> None:
    """Measure and print one row a network, rule and optimiser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = {
        "tiny_vgg 8x8, T=4, batch 64": lambda: (tiny_vgg(), torch.randn(64, 1, 8, 8)),
        "resnet_small 32x32, T=2, batch 16": lambda: (resnet_small(classes=10, steps=2), torch.randn(16, 3, 32, 32)),
    }
    rows = []
    for network, make in networks.items():
        trainings = {case: Training(*make(), *case, options.rounds) for case in CASES}
        rounds: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in CASES}
        for _ in range(options.rounds):
            for case, training in trainings.items():
                rounds[case].append(training.round())
        for (rule, optimizer), found in rounds.items():
            row: dict[str, Any] = {"network": network, "rule": rule, "optimizer": optimizer, "rounds": options.rounds}
            for what in ("events", "all"):
                shares = [r[what] for r in found]
                row[what] = {"median": statistics.median(shares), "min": min(shares), "max": max(shares)}
            row["seconds_per_100_steps"] = statistics.median(r["seconds"] for r in found)
            rows.append(row)
            text = {w: "{median:.3%} ({min:.3%} to {max:.3%})".format(**row[w]) for w in ("events", "all")}
            print(f"{network:<34} {rule:<6} {optimizer:<6} events {text['events']}, all {text['all']}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"environment": environment(), "clock": "cpu", "every": EVERY, "rows": rows}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
