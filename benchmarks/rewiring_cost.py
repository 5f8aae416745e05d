"""What rewiring costs: the share of training time spent in events, at the default schedule (every 100 steps).

    python benchmarks/rewiring_cost.py [--json PATH] [--rounds 5]

Two networks, two rules each. A round is 100 optimiser steps with one event at its end; rounds of the rules alternate.
The share is event / round in CPU seconds of this process, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import regraft
from regraft.models import resnet_small, tiny_vgg
from regraft.training.run import environment

EVERY = 100


class Training:
    """A network, a rule and a batch of noise: enough to time a step and an event."""

    def __init__(self, model: nn.Module, x: torch.Tensor, rule: str, rounds: int) -> None:
        self.model, self.x = model, x
        self.y = torch.arange(len(x)) % 10
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.topology = regraft.Topology(model, 0.1, rule, steps=2 * EVERY * (rounds + 1), every=EVERY)
        self.topology.attach(self.optimizer)
        self.criterion = regraft.Distill()

    def round(self) -> tuple[float, float]:
        """CPU seconds of 100 steps, and of the event among them (from its trigger to the cleaned state)."""
        spent = 0.0
        rewire = self.topology._event

        def timed(step: int) -> None:
            nonlocal spent
            start = time.process_time()
            rewire(step)
            spent += time.process_time() - start

        self.topology._event = timed  # type: ignore[method-assign]
        start = time.process_time()
        for _ in range(EVERY):
            loss = self.criterion(self.model(self.x), self.y, inputs=self.x)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        total = time.process_time() - start
        self.topology._event = rewire  # type: ignore[method-assign]
        return total, spent


def main() -> None:
    """Measure and print one row a network and rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = {
        "tiny_vgg 8x8, T=4, batch 64": lambda: (tiny_vgg(), torch.randn(64, 1, 8, 8)),
        "resnet_small 32x32, T=2, batch 16": lambda: (resnet_small(classes=10, steps=2), torch.randn(16, 3, 32, 32)),
    }
    rows = []
    for name, make in cases.items():
        rules = {rule: Training(*make(), rule, options.rounds) for rule in ("rigl", "set")}
        shares: dict[str, list[float]] = {rule: [] for rule in rules}
        seconds: dict[str, list[float]] = {rule: [] for rule in rules}
        for _ in range(options.rounds):
            for rule, training in rules.items():
                total, spent = training.round()
                shares[rule].append(spent / total)
                seconds[rule].append(total)
        for rule, found in shares.items():
            row = {
                "network": name,
                "rule": rule,
                "share_median": statistics.median(found),
                "share_min": min(found),
                "share_max": max(found),
                "seconds_per_100_steps": statistics.median(seconds[rule]),
                "rounds": options.rounds,
            }
            rows.append(row)
            median, low, high = (100 * row[f"share_{key}"] for key in ("median", "min", "max"))
            print(
                f"{name:<36} {rule:<5} {median:.3f} % ({low:.3f} to {high:.3f}) of {row['seconds_per_100_steps']:.1f} s"
            )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"environment": environment(), "clock": "cpu", "every": EVERY, "rows": rows}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
