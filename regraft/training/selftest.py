"""A few seconds of training on stand-in data, with the promises that can be checked in them; and how fast torch is."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from regraft.errors import RegraftError
from regraft.training.build import Parts, assemble
from regraft.training.checkpoint import read_tensors
from regraft.training.estimate import training_steps
from regraft.training.load import save
from regraft.training.pool import usable_cores
from regraft.training.recipe import Recipe, override

RECIPE = override(
    Recipe(),
    {
        "name": "selftest",
        "data.name": "standin",
        "data.batch": 16,
        "data.augment": False,
        "model.steps": 2,
        "model.options": {"widths": [[8], [16]], "hidden": 32},
        "topology.density": 0.3,
        "topology.rule": "rigl",
        "topology.every": 5,
        "training.epochs": 20,
        "training.device": "cpu",
    },
)
LONG_ENOUGH = 0.15  # seconds that one speed is measured
WORTH = 1.2  # times as fast as fp32, from which on bf16 is advised


@dataclass(frozen=True)
class Check:
    """One promise, whether it was kept, and what was seen."""

    name: str
    passed: bool
    said: str


@dataclass(frozen=True)
class Speed:
    """`gflops`: 1e9 multiplications and additions a second of a `matmul` or a `convolution`, fp32 or bf16."""

    operation: str
    precision: str
    threads: int
    gflops: float


def self_test() -> list[Check]:
    """Train the same tiny sparse spiking network twice, on one thread, and look at it after every step."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a network this small only waits for more
    try:
        return list(_checks())
    except (RegraftError, RuntimeError) as error:
        return [Check("training runs", False, " ".join(str(error).split()))]
    finally:
        torch.set_num_threads(before)


def _checks() -> Iterator[Check]:
    parts = assemble(RECIPE)
    counts = {name: int(mask.sum()) for name, mask in parts.topology.masks.items()}
    losses, nonzero, moved = [], 0, 0
    for step in training_steps(RECIPE, parts):
        losses.append(step.loss)
        nonzero += _absent_not_zero(parts)
        moved += sum(abs(int(mask.sum()) - counts[name]) for name, mask in parts.topology.masks.items())
    events, total = len(parts.topology.events), sum(counts.values())
    yield Check("absent weights are exactly 0", nonzero == 0, f"{len(losses)} steps, {nonzero} exceptions")
    yield Check(
        "the number of connections holds",
        moved == 0 and events > 0,
        f"{total} of {parts.topology.possible}, {events} rewirings, {moved} exceptions",
    )
    epoch = len(losses) // RECIPE.training.epochs
    first, last = statistics.fmean(losses[:epoch]), statistics.fmean(losses[-epoch:])
    yield Check("the loss falls", last < 0.9 * first, f"from {first:.3f} to {last:.3f}")
    again = assemble(RECIPE)
    repeated = [step.loss for step in training_steps(RECIPE, again)]
    hashes = [one.topology.mask_hash for one in (parts, again)]
    same = repeated == losses and hashes[0] == hashes[1]
    yield Check("the same seed gives the same bits", same, f"mask hashes {hashes[0]} and {hashes[1]}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save(path, parts.model, parts.topology, {})
        tensors, _ = read_tensors(path)
    state = parts.model.state_dict()
    lost = [name for name, t in state.items() if not torch.equal(tensors.get(f"model/{name}", torch.empty(0)), t)]
    yield Check("a checkpoint comes back as it was", not lost, f"{len(lost)} of {len(state)} tensors differ")


def _absent_not_zero(parts: Parts) -> int:
    weights = dict(parts.model.named_parameters())
    return sum(int((weights[name][~mask] != 0).sum()) for name, mask in parts.topology.masks.items())


def speeds() -> list[Speed]:
    """GFLOP/s of the two operations that training consists of, on one thread and on all usable cores."""
    before = torch.get_num_threads()
    found = []
    try:
        for threads in sorted({1, usable_cores()}):
            torch.set_num_threads(threads)
            for name, precision in ((n, p) for n in ("matmul", "convolution") for p in ("fp32", "bf16")):
                flops, work = _work(name, torch.float32 if precision == "fp32" else torch.bfloat16)
                found.append(Speed(name, precision, threads, flops / _seconds(work) / 1e9))
    finally:
        torch.set_num_threads(before)
    return found


def bf16_gain(found: list[Speed]) -> float:
    """How many times faster bf16 is than fp32: the convolution, each on the number of threads that suits it best."""
    return best(found, "bf16").gflops / best(found, "fp32").gflops


def best(found: list[Speed], precision: str) -> Speed:
    """The fastest convolution."""
    own = [speed for speed in found if (speed.operation, speed.precision) == ("convolution", precision)]
    return max(own, key=lambda speed: speed.gflops)


def _work(name: str, dtype: torch.dtype) -> tuple[float, Callable[[], object]]:
    """Operations of one call, and the call."""
    if name == "matmul":
        n = 512
        a, b = (torch.rand(n, n).to(dtype) for _ in range(2))
        return 2.0 * n**3, lambda: a @ b
    x, weight = torch.rand(8, 64, 32, 32).to(dtype), torch.rand(64, 64, 3, 3).to(dtype)
    return 2.0 * x.numel() * 64 * 9, lambda: functional.conv2d(x, weight, padding=1)


def _seconds(work: Callable[[], object]) -> float:
    """Of one call: the fastest of as many as fit, for others use the machine too."""
    work()
    fastest, start = float("inf"), time.perf_counter()
    while True:
        begun = time.perf_counter()
        work()
        now = time.perf_counter()
        fastest = min(fastest, now - begun)
        if now - start > LONG_ENOUGH:
            return fastest
