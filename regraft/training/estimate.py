"""How long a training will take, from a few steps of it."""

from __future__ import annotations

import heapq
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from regraft.data import Split, plain_batches, training_batches
from regraft.execution import execute
from regraft.metrics import measure
from regraft.training.build import Parts, assemble, augmentation_of, device_of, teacher_recipe
from regraft.training.evaluate import evaluate
from regraft.training.load import load
from regraft.training.recipe import Recipe, override
from regraft.training.step import forward, update
from regraft.training.sweep import Planned

STEPS = 30
WARM = 3  # the first steps allocate, and choose algorithms
EVENT_EVERY = 5  # a rewiring event has to be among the steps, more than once


@dataclass(frozen=True)
class Step:
    """One optimiser step: its loss, seconds, and whether it rewired."""

    loss: float
    seconds: float
    event: bool


@dataclass(frozen=True)
class Estimate:
    """Seconds: `step` of one optimiser step, `event` what a rewiring event adds to it, `epoch_end` of the evaluation
    after each epoch, `end` of the measurement at the end; `total` of the whole training."""

    step: float
    event: float
    epoch_end: float
    end: float
    total: float


def estimate(recipe: Recipe, steps: int = STEPS) -> Estimate:
    """Train `steps` steps of the recipe and measure on a few batches; nothing is written.

    A trained teacher's place is taken by one that is not trained: it costs the same. Raises what `fit` raises before
    it makes a folder.
    """
    brief = override(recipe, {"topology.every": min(recipe.topology.every, EVENT_EVERY)})
    parts = assemble(brief, _teacher(recipe))
    taken = list(islice(training_steps(brief, parts), WARM + steps))
    taken = taken[WARM:] or taken
    plain, rewiring = ([one.seconds for one in taken if one.event == which] for which in (False, True))
    step = statistics.median(plain or rewiring)
    event = max(0.0, statistics.median(rewiring) - step) if rewiring else 0.0
    data, epochs = parts.data, recipe.training.stop or recipe.training.epochs
    total = parts.steps * epochs // recipe.training.epochs
    events = min(total, parts.topology.until) // recipe.topology.every if parts.topology.last_event else 0
    model = parts.model
    look = _per_sample(data.test, device_of(recipe), lambda batches: evaluate(model, batches))
    count = _per_sample(data.test, device_of(recipe), lambda batches: measure(model.eval(), batches))
    epoch_end = look * len(data.valid)
    # As `fit` ends: the last network and the selected one on the test set, and operations on both splits.
    end = 2 * look * len(data.test) + count * (len(data.test) + (len(data.valid) or len(data.test)))
    return Estimate(step, event, epoch_end, end, total * step + events * event + epochs * epoch_end + end)


def _teacher(recipe: Recipe) -> nn.Module | None:
    if recipe.distill.teacher == "network":
        loaded = load(str(recipe.distill.run))
        execute(loaded.model.to(device_of(recipe)), loaded.topology)
        return loaded.model
    first = teacher_recipe(recipe)
    return None if first is None else assemble(first).model


def training_steps(recipe: Recipe, parts: Parts) -> Iterator[Step]:
    """Optimiser steps as `fit` takes them, without its log, evaluation and checkpoints."""
    device = device_of(recipe)
    topology, step, epoch = parts.topology, 0, 0
    batches: Iterator[tuple[Tensor, Tensor]] = iter(())
    parts.model.train()
    while step < parts.steps:
        start = _now(device)
        batch = next(batches, None)
        if batch is None:
            epoch += 1
            augment = augmentation_of(recipe, parts.data)
            batches = training_batches(
                parts.data.train, recipe.data.batch, seed=recipe.seed, epoch=epoch, augment=augment
            )
            continue
        x, y = batch
        _, loss = forward(parts, parts.model, x, y)
        update(parts, parts.model, loss, recipe.training.clip)
        step += 1
        parts.criterion.update(parts.model, step)
        seconds = _now(device) - start
        yield Step(float(loss.detach()), seconds, bool(topology.events and topology.events[-1].step == step))


def _per_sample(split: Split, device: torch.device, look: Callable[[list[tuple[Tensor, Tensor]]], object]) -> float:
    """Seconds a sample, from two batches; one before them is not timed."""
    batches = list(islice(plain_batches(split, 256), 3))
    look(batches[:1])
    timed = batches[1:] or batches
    start = _now(device)
    look(timed)
    return (_now(device) - start) / sum(len(y) for _, y in timed)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def makespan(runs: Sequence[Planned], seconds: Mapping[str, float], workers: int) -> float:
    """Seconds until all `runs` are done, `workers` at a time in their order, a student after its teacher.

    `seconds`: by path; what is not there is done already.
    """
    waiting = [run for run in runs if run.path in seconds]
    done: dict[str, float] = {}
    free = [0.0] * workers
    heapq.heapify(free)
    while waiting:
        now = heapq.heappop(free)
        ready = [run for run in waiting if run.teacher not in seconds or done.get(str(run.teacher), math.inf) <= now]
        if not ready:  # all wait for teachers that are being trained
            heapq.heappush(free, min(time for time in done.values() if time > now))
            continue
        waiting.remove(ready[0])
        done[ready[0].path] = now + seconds[ready[0].path]
        heapq.heappush(free, done[ready[0].path])
    return max(done.values(), default=0.0)
