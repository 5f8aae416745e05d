"""Where a training step of regraft spends its time, and how far it is from its convolutions alone.

    python benchmarks/profile.py [--json PATH] [--workload cifar dvs resnet19] [--variants regraft regraft-bf16]
                                 [--batch N] [--rounds 7] [--threads 1]

The whole step of `fit` without a teacher: a batch from stored samples, augmented as its data set is; forward, loss,
backward; SGD with momentum; a RigL wiring at a tenth of the connections, on the dense path, with an event every 100
steps. Two measurements. The step and the floor (`rivals.Floor`: convolutions and linear layers alone) take turns, each
in its own process, unobserved: seconds and the ratio come from there. Then torch's profiler watches some steps: each
operation belongs to the nearest part around it, itself included, and what belongs to none is the rest (Python, the
loss, residual additions). The profiler's shares are multiplied with the seconds of the unobserved step, and
`watched` says how much longer the watched step took.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rivals import LEARNING_RATE, MOMENTUM, VARIANTS, WORKLOADS, Variant, Workload, autocast, make
from rounds import Job, Task, compare, cpu_features, interleave, losses, start
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

import regraft
from regraft.data import Augmentation, training_batches
from regraft.data.cifar import CIFAR100_FACTS
from regraft.data.splits import Split
from regraft.execution import execute
from regraft.kernels.processor import fast_bf16
from regraft.training.run import environment

EVERY = 100
DENSITY = 0.1
WATCHED = 6
"""Steps without an event that the profiler sees; one with an event follows."""
PARTS: tuple[str, ...] = (
    "convolution",
    "neuron and normalisation",
    "pooling",
    "optimiser",
    "masks",
    "rewiring event",
    "data",
    "copies and casts",
    "rest",
)
# By the start of an operation's name; the first that fits.
_NAMES = {
    "convolution": ("aten::conv", "aten::_conv", "aten::mkldnn_", "aten::linear", "aten::addmm", "aten::mm"),
    "neuron and normalisation": ("aten::batch_norm", "aten::_batch_norm", "aten::native_batch_norm", "aten::cudnn_"),
    "pooling": ("aten::max_pool", "aten::avg_pool", "aten::adaptive_avg_pool", "aten::_adaptive_avg", "aten::_max_"),
    "optimiser": ("Optimizer.step", "Optimizer.zero_grad"),
}
_COPIES = ("aten::copy_", "aten::contiguous", "aten::to", "aten::_to_copy", "aten::clone")
_NODES = {
    "convolution": ("Convolution", "MkldnnConvolution", "Addmm", "Linear", "Mm"),
    "neuron and normalisation": ("NativeBatchNorm", "BatchNorm", "BatchNormImpl"),
    "pooling": ("MaxPool2DWithIndices", "MaxPool2D", "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnMaxPool2D"),
    "copies and casts": ("ToCopy", "Clone", "Copy"),
}


class Whole:
    """`rivals.Training` with data and wiring: what `fit` does in a step."""

    def __init__(self, workload: str, variant: str, batch: int) -> None:
        self.workload, self.variant, self.batch = WORKLOADS[workload], VARIANTS[variant], batch
        self.model = self.workload.reference()
        self.topology = regraft.Topology(self.model, DENSITY, "rigl", steps=1_000_000, every=EVERY)
        if self.variant.tuned:
            execute(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, MOMENTUM)
        _mark(self.topology, "_before_step", "masks")
        _mark(self.topology, "_after_step", "masks")
        _mark(self.topology, "_event", "rewiring event")
        self.topology.attach(self.optimizer)
        self.criterion = regraft.Distill()
        self._batches = _stream(self.workload, batch)

    def step(self) -> None:
        with record_function("data"):
            x, y = next(self._batches)
        with autocast(self.variant.bf16):
            loss = self.criterion(self.model(x), y, inputs=x)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def losses(self, steps: int) -> list[float]:
        del steps
        return []

    def watch(self) -> dict[str, Any]:
        """Share of each part in a step, seconds of an event by the wall clock, and those of a watched step."""
        self.topology.step = EVERY - WATCHED - 1
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as watched:
            for _ in range(WATCHED):
                with record_function("step"):
                    self.step()
            with record_function("step with an event"):
                self.step()
        assert self.topology.step == EVERY
        events = watched.events()
        assert events is not None
        ordinary, last = (_parts(events, name) for name in ("step", "step with an event"))
        # What an event adds: itself, and the recording of gradients that precedes it.
        extra = sum(last[p] for p in ("rewiring event", "masks")) - ordinary["masks"] / WATCHED
        seconds = {part: spent / WATCHED for part, spent in ordinary.items()} | {"rewiring event": extra / EVERY}
        total = sum(seconds.values())
        shares = {part: spent / total for part, spent in seconds.items()}
        return {"shares": shares, "event_s": extra, "watched_s": sum(ordinary.values()) / WATCHED}

    def wall(self) -> float:
        """Seconds of an unobserved step by the wall clock, the profiler's."""
        begun = time.perf_counter()
        for _ in range(WATCHED):
            self.step()
        return (time.perf_counter() - begun) / WATCHED


def whole(workload: str, variant: str, batch: int) -> Task:
    """The task of a worker."""
    return Whole(workload, variant, batch)


def _stream(workload: Workload, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of noise, stored and augmented as the data set of such samples is: uint8, made float in each batch."""
    count = 8 * batch
    shape = workload.shape if workload.static else (workload.steps, *workload.shape)
    high = 256 if workload.static else 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, high, (count, *shape), generator=generator, dtype=torch.uint8)
    y = torch.randint(0, workload.classes, (count,), generator=generator)
    split = Split(x, y, CIFAR100_FACTS.normal if workload.static else None)
    augment = CIFAR100_FACTS.augmentation if workload.static else Augmentation(roll=2)
    epoch = 0
    while True:
        epoch += 1
        yield from training_batches(split, batch, seed=0, epoch=epoch, augment=augment)


def _mark(topology: Any, method: str, part: str) -> None:
    """Hooks are bound when attached, so they are wrapped before."""
    inner = getattr(topology, method)

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return inner(*args, **kwargs)

    setattr(topology, method, marked)


def _parts(events: Any, step: str) -> dict[str, float]:
    """Seconds of each part within the steps of that name."""
    own = {name for each in _functions() for name in (each.__name__, f"{each.__name__}Backward")}
    spent = dict.fromkeys(PARTS, 0.0)
    for event in events:
        part, around = None, event
        while around is not None and around.name != step:
            part = part or part_of(around.name, own)
            around = around.cpu_parent
        if around is not None:
            spent[part or "rest"] += event.self_cpu_time_total / 1e6
    return spent


def part_of(name: str, functions: set[str]) -> str | None:
    """The part that an operation of that name begins, if it begins one; `functions` are our own passes."""
    if name in PARTS:
        return name
    if name in functions or name.startswith("regraft::"):
        return "neuron and normalisation"
    if name.startswith("autograd::engine::evaluate_function: "):
        name = name.partition(": ")[2]
    if "Backward" in name and "::" not in name:
        node = name.partition("Backward")[0]
        return (
            "neuron and normalisation"
            if f"{node}Backward" in functions
            else next((part for part, nodes in _NODES.items() if node in nodes), None)
        )
    if name in _COPIES:
        return "copies and casts"
    return next((part for part, starts in _NAMES.items() if name.startswith(starts)), None)


def _functions() -> Iterator[type]:
    """The passes written by hand in regraft: those of the losses are left to the rest."""
    for each in torch.autograd.Function.__subclasses__():
        if each.__module__.startswith(("regraft.neurons", "regraft.execution", "regraft.kernels")):
            yield each


def measure(workload: str, name: str, batch: int, rounds: int, threads: int) -> dict[str, Any]:
    """The row of a variant."""
    variant: Variant = VARIANTS[name]
    floor = "floor-bf16" if variant.bf16 else "floor"
    clock = "cpu" if threads == 1 else "wall"
    workers, left_out, _ = start(
        [
            Job(name, whole, (workload, name, batch), threads, clock, keep_pages=variant.tuned),
            Job(floor, make, (workload, floor, batch), threads, clock, keep_pages=True),
        ]
    )
    left_out |= losses(workers, 0)[1]
    times, ended = interleave(workers, rounds)
    if left_out | ended:
        return {"workload": workload, "variant": name, "left_out": left_out | ended}
    over = compare(times, floor, name)
    seconds = compare(times, name, floor)["median_s"]
    wall, seen = workers[name].ask("wall"), workers[name].ask("watch")
    peak = workers[name].peak_mb()
    for worker in workers.values():
        worker.close()
    return {
        "workload": workload,
        "variant": name,
        "batch": batch,
        "threads": threads,
        "clock": clock,
        "cpu": cpu_features(),
        "step_s": seconds,
        "floor_s": over["median_s"],
        "over_floor": over["ratio"],
        "over_floor_min": over["ratio_min"],
        "over_floor_max": over["ratio_max"],
        "parts": {part: {"share": share, "s": share * seconds} for part, share in seen["shares"].items()},
        "event_steps": seen["event_s"] / wall,
        "watched": seen["watched_s"] / wall,
        "peak_mb": round(peak, 1),
    }


def table(row: dict[str, Any]) -> str:
    """A line a part, longest first."""
    head = (
        "{workload}, {variant}, batch {batch}: {step_s:.3f} s a step = {over_floor:.2f} ({over_floor_min:.2f}-"
        "{over_floor_max:.2f}) x the convolutions alone ({floor_s:.3f} s); an event costs {event_steps:.2f} steps; "
        "watched steps took {watched:.2f} x"
    ).format(**row)
    parts = sorted(row["parts"].items(), key=lambda item: -item[1]["share"])
    return "\n".join([head, *(f"  {part:<26}{of['s']:>9.4f} s{of['share']:>8.1%}" for part, of in parts)])


def main() -> None:
    """Measure and print a table a workload and variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    own = [name for name, variant in VARIANTS.items() if variant.library == "regraft"]
    parser.add_argument("--variants", nargs="+", choices=own)
    parser.add_argument("--batch", type=int, help="samples a step; unless given, each workload's own")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    names = given.variants or [name for name in own if fast_bf16() or not VARIANTS[name].bf16]
    document: dict[str, Any] = {"environment": environment() | {"threads": given.threads}, "rows": []}
    for workload in given.workload:
        for name in names:
            batch = given.batch or WORKLOADS[workload].batch
            row = measure(workload, name, batch, given.rounds, given.threads)
            document["rows"].append(row)
            print(row if "left_out" in row else table(row), flush=True)
            if given.json:
                given.json.parent.mkdir(parents=True, exist_ok=True)
                given.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
