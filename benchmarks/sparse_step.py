"""A training step over existing connections, against density: beside SpikingJelly's, our dense one, and the floor.

    python benchmarks/sparse_step.py [--quick] [--json PATH] [--threads 1] [--workload cifar dvs resnet19]
                                     [--densities 0.5 ... 0.01] [--allocations uniform erk] [--sections step ...]
                                     [--batch N] [--rounds 7]

Of the hidden convolutions of a network only a share exists, the same in each layer (`uniform`) or, at the same count,
by ERK (`-erk`); the first convolution and all linear layers stay whole. Everybody starts from the same masked weights
and keeps them masked: regraft by a static `Topology`, SpikingJelly by a product with the masks after each step.
ResNet-19 has T = 2 here.

- `step`: forward, backward, SGD with momentum, a process a variant, taking turns (`rounds.py`), rows as in
  `train_step.py`. `spikingjelly` is as it comes, `-pages` has our allocator settings, `-tuned` is tuned by hand
  (`rivals.py`); `regraft-dense` is `execute(model)`, `regraft-10%` `execute(model, topology)` at that density; `floor`
  is the convolutions and linear layers alone, dense. A dense step takes as long whichever weights are 0, so one
  process at 10 % stands for all densities: `density` in its rows is what it held while it was timed. `losses` are the
  first and the last of a few steps on `loss_batch` samples, `same_masks` those of the dense networks with this row's
  masks: a training is chaotic, rounding separates the losses slowly, the wrong mathematics at once.
- `parts`: where the time goes, by torch's profiler, its shares multiplied with the seconds of the unobserved step.
- `rewiring`: what an event every 100 steps adds, in shares of 100 plain steps: dense gradients, the event, and the
  next step, which walks through the new connections for the first time.
- `convolutions`: all hidden convolutions of ResNet-19, shortcuts too, forward and both gradients, against oneDNN dense
  (channels-last): the sum in turns, and each layer.
- `teacher`: what the logits of a 2 % network, through the same kernels, add to a step; a dense teacher beside it.

Of one thread CPU seconds count, else the wall clock; with several, ours and the floor also run on one. A variant that
has no figures is in `left_out`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import rivals
import rounds
import torch
from rivals import LEARNING_RATE, MOMENTUM, Floor, Rival, SpikingJelly, Workload, layer_inputs
from rounds import Job, Worker, cpu_features, interleave, rows, start
from step_profile import part_of
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from regraft.distill import Distill, NetworkTeacher
from regraft.execution import Execution, blocked, execute
from regraft.execution.blocked import Form, Spikes
from regraft.execution.pattern import Geometry, Pattern
from regraft.execution.sparse import layer
from regraft.structure import Topology

# 16 images are what a word of spikes holds; at T = 2 they are the 32 of the literature's convolutions.
WORKLOADS = {
    "cifar": rivals.WORKLOADS["cifar"],
    "dvs": rivals.WORKLOADS["dvs"],
    "resnet19": replace(rivals.WORKLOADS["resnet19"], steps=2, batch=16),
}
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
FEW = (0.1, 0.05, 0.02)
"""Densities of the sections behind the first, and of --quick."""
ALLOCATIONS = ("uniform", "erk")
SECTIONS = ("step", "parts", "rewiring", "convolutions", "teacher")
HELD = 0.1
"""Density of a dense network's masks while it is timed."""
EVERY = 100
LOSS_STEPS = 5
LOSS_BATCH = {"cifar": 8, "dvs": 2, "resnet19": 4}
WATCHED = 12
RATE = 0.15
"""Share of the inputs of `convolutions` that fire; no kernel's time depends on it."""
STUDENT, TAUGHT = 0.1, 0.02
ONE_THREAD = "-one-thread"
PARTS = (
    "layers forward",
    "layers backward",
    "neurons forward",
    "neurons backward",
    "in and out of blocks",
    "dense layers",
    "optimiser",
    "wiring",
    "rest",
)
_FUNCTIONS = {
    "_Layer": "layers forward",
    "_LayerBackward": "layers backward",
    **dict.fromkeys(("_Fire", "_Segment", "_Multistep"), "neurons forward"),
    **dict.fromkeys(("_FireBackward", "_SegmentBackward", "_MultistepBackward"), "neurons backward"),
    **dict.fromkeys(("_Block", "_BlockBackward", "_Unblock", "_UnblockBackward"), "in and out of blocks"),
}

Kind = Literal["spikingjelly", "spikingjelly-tuned", "dense", "sparse"]


def wire(model: nn.Module, density: float, allocation: str, rule: str = "static") -> Topology:
    """Masks for the hidden convolutions; the first convolution and the linear layers stay whole."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    first = next(name for name, module in layers.items() if isinstance(module, nn.Conv2d))
    whole = [first, *(name for name, module in layers.items() if isinstance(module, nn.Linear))]
    # The steps put the end of training, after which nothing is rewired, out of reach.
    return Topology(model, density, rule, steps=10**9, every=EVERY, allocation=allocation, exclude=whole)


class Masked:
    """A network of which only some connections exist, at work, always on the same batch.

    Args:
        kind: who computes it, see the head of this file.
        teacher: density of a teacher's network (1: dense, fused), None for plain training.
    """

    def __init__(
        self,
        workload: str,
        kind: Kind,
        density: float,
        allocation: str,
        batch: int,
        rule: str = "static",
        teacher: float | None = None,
    ) -> None:
        self._origin = (workload, kind)
        given = WORKLOADS[workload]
        self.model: nn.Module = given.reference()
        self.topology = wire(self.model, density, allocation, rule)
        self._execution = None
        self._masks: list[tuple[nn.Parameter, Tensor]] = []
        self._kit = None
        if kind in ("dense", "sparse"):
            self._execution = execute(self.model, self.topology if kind == "sparse" else None)
        else:
            tuned = kind == "spikingjelly-tuned"
            self._kit = SpikingJelly(tuned)
            self.model, self._masks = translated(self.model, self.topology, self._kit, once=tuned)
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, MOMENTUM)
        if self._kit is None:
            for hook in ("_before_step", "_after_step"):  # bound when attached, so marked before
                setattr(self.topology, hook, _marked(getattr(self.topology, hook), "wiring"))
            self.topology.attach(self.optimizer)
        self._criterion = Distill(None if teacher is None else _teacher(given, teacher))
        self.x, self.y = given.data(batch)

    def step(self) -> None:
        self._step()

    def _step(self) -> float:
        if self._kit is not None:
            self._kit.between_steps(self.model)
        loss = self._criterion(self.model(self.x), self.y, inputs=self.x)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for parameter, mask in self._masks:
                parameter.mul_(mask)
        self.optimizer.zero_grad()
        return float(loss.detach())

    def losses(self, steps: int) -> list[float]:
        """None: see `losses_at`."""
        del steps
        return []

    def losses_at(self, density: float, allocation: str, batch: int) -> list[float]:
        """Of `LOSS_STEPS` steps from the first weights with such masks, on a batch of its own."""
        fresh = Masked(*self._origin, density, allocation, batch)
        return [fresh._step() for _ in range(LOSS_STEPS)]

    def layers(self) -> dict[str, dict[str, Any]]:
        """Density of each layer, and how it is computed."""
        over = over_connections(self._execution)
        found = {}
        for name, parameter in self.model.named_parameters():
            if parameter.dim() > 1:
                mask = self.topology.masks.get(name)
                density = 1.0 if mask is None else float(mask.sum()) / mask.numel()
                found[name] = {"density": density, "path": "sparse" if name in over else "dense"}
        return found

    def watch(self) -> dict[str, float]:
        """Share of each part in a step, the quickest of a few.

        The profiler's own records lie between the tensors: where one of these no longer fits in its place, the step
        clears new pages, for longer than its kernels take, and all of it would count as the first kernel's to write.
        """
        quickest = min((self._watched_step() for _ in range(WATCHED)), key=lambda spent: sum(spent.values()))
        return {part: seconds / sum(quickest.values()) for part, seconds in quickest.items()}

    def _watched_step(self) -> dict[str, float]:
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as watched, record_function("step"):
            self.step()
        spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for event in watched.events() or ():
            part, around = None, event
            while around is not None and around.name != "step":
                part = part or part_around(around.name)
                around = around.cpu_parent
            if around is not None:
                spent[part or "rest"] += event.self_cpu_time_total
        return spent

    def event(self) -> dict[str, float]:
        """Seconds of a plain step, and what a step with an event and the one behind it take beyond.

        `rewiring_s`, the event without its gradients, is the wall's.
        """
        before = [_seconds(self.step) for _ in range(2)]
        self.topology.step = EVERY - 1
        with_event, behind = _seconds(self.step), _seconds(self.step)
        after = [_seconds(self.step) for _ in range(2)]
        plain = statistics.mean(before + after)
        rewired = self.topology.events[-1]
        return {
            "plain_s": plain,
            "event_step_s": with_event - plain,
            "next_step_s": behind - plain,
            "rewiring_s": rewired.seconds,
            "share": (with_event + behind - 2 * plain) / (EVERY * plain),
            "exchanged": sum(rewired.grown.values()) / sum(rewired.connections.values()),
        }


def translated(
    reference: Any, topology: Topology, kit: SpikingJelly, *, once: bool
) -> tuple[nn.Module, list[tuple[nn.Parameter, Tensor]]]:
    """The network in SpikingJelly's words, and its masked weights with their masks."""
    names = [name for name, p in reference.named_parameters() if p.dim() > 1]
    masks = {name: mask.clone() for name, mask in topology.masks.items()}
    model = Rival(reference, kit, once=once)
    found = []
    for name, p in zip(names, (p for p in model.parameters() if p.dim() > 1), strict=True):
        if name in masks:
            assert p.shape == masks[name].shape
            assert not p.detach()[~masks[name]].any()
            found.append((p, torch.empty_like(p).copy_(masks[name])))  # in the weight's own memory order
    return model, found


def over_connections(execution: Execution | None) -> set[str]:
    """Names of the weights whose layers went over existing connections alone in the last step."""
    return set() if execution is None else {name for name, why in execution.choices.items() if not why}


def part_around(name: str) -> str | None:
    """The part that an operation of that name begins, if it begins one."""
    if name in PARTS:
        return name
    function = name.removeprefix("autograd::engine::evaluate_function: ")
    if function in _FUNCTIONS:
        return _FUNCTIONS[function]
    return {"convolution": "dense layers", "optimiser": "optimiser"}.get(part_of(name, set()) or "")


def _marked(inner: Callable[..., Any], part: str) -> Callable[..., Any]:
    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return inner(*args, **kwargs)

    return marked


def _teacher(given: Workload, density: float) -> NetworkTeacher:
    model = given.reference(seed=1)
    execute(model, wire(model, density, "uniform") if density < 1 else None)
    return NetworkTeacher(model)


def _seconds(call: Callable[[], Any]) -> float:
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = now()
    call()
    return now() - begun


class Convolutions:
    """The hidden convolutions of a workload alone: forward and both gradients, on spikes.

    Args:
        density: of existing connections, or None: oneDNN's dense ones, channels-last.
    """

    def __init__(self, workload: str, density: float | None, batch: int) -> None:
        given = WORKLOADS[workload]
        model = given.reference()
        one, _ = given.data(1)
        called = [(conv, shape) for conv, shape in layer_inputs(model, one) if isinstance(conv, nn.Conv2d)][1:]
        masks = {} if density is None else wire(model, density, "uniform").masks
        names = {id(module): name for name, module in model.named_modules()}
        torch.manual_seed(2)
        self._made: dict[str, _Dense | _Sparse] = {}
        for conv, shape in called:
            x = (torch.rand(shape[0] * batch, *shape[1:]) < RATE).float()
            name = names[id(conv)]
            mask = masks.get(f"{name}.weight")
            self._made[name] = _Dense(conv, x) if mask is None else _Sparse(conv, x, mask, given.steps)
        self._spent: dict[str, list[tuple[float, float]]] = {name: [] for name in self._made}

    def step(self) -> None:
        for name, each in self._made.items():
            forward = _seconds(each.forward)
            self._spent[name].append((forward, _seconds(each.backward)))

    def losses(self, steps: int) -> list[float]:
        """Nothing is trained."""
        del steps
        return []

    def layers(self) -> dict[str, dict[str, float]]:
        """Seconds of each: the steps' medians; of the weights' gradient alone, that of three more calls."""
        found = {}
        for name, each in self._made.items():
            forward, backward = (statistics.median(column) for column in zip(*self._spent[name], strict=True))
            onto = []
            for _ in range(3):
                each.forward(onto_input=False)
                onto.append(_seconds(lambda each=each: each.backward(onto_input=False)))
            found[name] = {"forward_s": forward, "backward_s": backward, "of_weights_s": statistics.median(onto)}
        return found


class _Dense:
    def __init__(self, conv: nn.Conv2d, x: Tensor) -> None:
        self.conv = conv.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.gradient = torch.rand_like(self.conv(self.x).detach())

    def forward(self, *, onto_input: bool = True) -> None:
        self.y = self.conv(self.x.requires_grad_(onto_input))

    def backward(self, *, onto_input: bool = True) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.y, [self.conv.weight, *([self.x] if onto_input else [])], self.gradient)

    def result(self) -> Tensor:
        """`[T*N, C, H, W]`."""
        return self.y.detach()


class _Sparse:
    def __init__(self, conv: nn.Conv2d, x: Tensor, mask: Tensor, steps: int) -> None:
        form, halo = blocked.form_of(x, steps), 1
        self.weight = conv.weight
        kernel, stride, padding, dilation = ((p[0], p[1]) for p in (conv.kernel_size, *_settings(conv)))
        numbers = (stride[0], padding[0], dilation[0], conv.groups, halo)
        sizes = (conv.in_channels, form.height, form.width, conv.out_channels)
        self.pattern = Pattern(mask, Geometry(*sizes, kernel, *numbers))
        self.edge = blocked.carrier(form, x.dtype)
        self.spikes = Spikes(form, blocked.empty_sets(form, halo), halo, self.edge)
        blocked.exchange("block_spikes", form, x, self.spikes.bits, halo)
        self.forward()
        self.gradient = _in_blocks(self.current.form)

    def forward(self, *, onto_input: bool = True) -> None:
        self.edge.requires_grad_(onto_input)
        # In a network the sums that normalisation needs come with the layer.
        self.current = layer(self.spikes, self.weight, None, self.pattern, sums=True)

    def backward(self, *, onto_input: bool = True) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.current.y, [self.weight, *([self.edge] if onto_input else [])], self.gradient)

    def result(self) -> Tensor:
        """`[T*N, C, H, W]`."""
        return blocked.plain(self.current).detach()


def _settings(conv: nn.Conv2d) -> tuple[Any, Any, Any]:
    return conv.stride, conv.padding, conv.dilation


def _in_blocks(form: Form) -> Tensor:
    """Noise in the lanes of images, 0 in those of none."""
    return blocked.reals(torch.rand(form.steps * form.images, form.channels, form.height, form.width), form.steps).y


def make(workload: str, *arguments: Any) -> Masked:
    """The task of a worker."""
    return Masked(workload, *arguments)


def floor(workload: str, batch: int) -> Floor:
    """The task of the floor's worker."""
    return Floor(WORKLOADS[workload], batch, bf16=False)


def convolutions(workload: str, density: float | None, batch: int) -> Convolutions:
    """The task of a worker."""
    return Convolutions(workload, density, batch)


@dataclass(frozen=True)
class Plan:
    """What is to be measured of one workload."""

    workload: str
    batch: int
    loss_batch: int
    densities: Sequence[float]
    allocations: Sequence[str]
    threads: int
    rounds: int
    quick: bool = False

    @property
    def few(self) -> list[float]:
        return [density for density in self.densities if density in FEW] or list(self.densities)

    def job(self, name: str, make: Callable[..., Any], *arguments: Any, pages: bool = True, threads: int = 0) -> Job:
        clock = "cpu" if self.threads == 1 else "wall"
        return Job(name, make, (self.workload, *arguments), threads or self.threads, clock, keep_pages=pages)


def ours(density: float, allocation: str = "uniform") -> str:
    """The name of a variant: `regraft-10%`, `regraft-erk-10%`."""
    return f"regraft-{'erk-' if allocation == 'erk' else ''}{100 * density:g}%"


def step_jobs(plan: Plan) -> tuple[list[Job], dict[str, tuple[float, str]]]:
    """A worker for each variant, and its density and allocation. Where memory ends, the last are left out."""
    jelly = {"spikingjelly": False, "spikingjelly-pages": True, "spikingjelly-tuned": True}
    found: list[Job] = []
    masks: dict[str, tuple[float, str]] = {}

    def add(name: str, make: Callable[..., Any], *arguments: Any, alone: bool, pages: bool = True) -> None:
        found.append(plan.job(name, make, *arguments, pages=pages))
        if alone and plan.threads > 1:
            found.append(plan.job(name + ONE_THREAD, make, *arguments, pages=pages, threads=1))

    for name, pages in jelly.items():
        if not (plan.quick and name.endswith("-tuned")):
            kind = name.removesuffix("-pages")
            masks[name] = (HELD, "uniform")
            add(name, make, kind, HELD, "uniform", plan.batch, alone=False, pages=pages)
    masks["regraft-dense"] = (HELD, "uniform")
    add("regraft-dense", make, "dense", HELD, "uniform", plan.batch, alone=True)
    add("floor", floor, plan.batch, alone=True)
    for allocation in plan.allocations:
        for density in plan.densities:
            name = ours(density, allocation)
            masks[name] = (density, allocation)
            add(name, make, "sparse", density, allocation, plan.batch, alone=allocation == "uniform")
    return found, masks


def references(variant: str) -> list[str]:
    """What a variant is compared with."""
    jelly = ["spikingjelly", "spikingjelly-pages", "spikingjelly-tuned"]
    return [*jelly, "regraft-dense", "floor", variant + ONE_THREAD, variant.replace("erk-", "")]


def measure_steps(plan: Plan, *, parts: bool) -> dict[str, Any]:
    """Rows of whole steps, densities of layers, and where the time goes."""
    planned, masks = step_jobs(plan)
    workers, times, peaks, left_out, first = _in_turns(planned, plan.rounds)
    reasons = _reasons(plan.workload, left_out)
    for name in times:  # on one thread, it is the same network
        masks[name] = masks.get(name.removesuffix(ONE_THREAD), (1.0, "uniform"))
    others = [name for name in ("spikingjelly", "regraft-dense") if name in workers]
    wanted = dict.fromkeys(masks[name] for name in times if name.startswith("regraft"))
    same = {at: {name: _ends(workers[name], *at, plan.loss_batch) for name in others} for at in wanted}
    found = rows(
        times,
        references,
        workload=plan.workload,
        batch=plan.batch,
        jobs={job.name: job for job in planned},
        peaks=peaks,
        density=lambda name: masks[name][0],
    )
    own = {
        name: _ends(worker, *masks[name], plan.loss_batch) for name, worker in workers.items() if "floor" not in name
    }
    for row in found:
        name = row["variant"]
        row["allocation"] = masks[name][1]
        row["losses"] = own.get(name)
        row["same_masks"] = same.get(masks[name]) if name in own else None
        row["loss_batch"] = plan.loss_batch if name in own else None
        row["first_step_s"] = round(first[name], 2)
        row["against_peak_mb"] = round(peaks[row["against"]], 1)
    mine = [name for name in times if name.startswith("regraft") and ONE_THREAD not in name]
    densities = {name: workers[name].ask("layers") for name in mine}
    shares = []
    for name in mine if parts else ():
        seconds = statistics.median(times[name])
        shown = {part: {"share": s, "s": s * seconds} for part, s in workers[name].ask("watch").items()}
        head = {"workload": plan.workload, "variant": name, "density": masks[name][0], "allocation": masks[name][1]}
        shares.append(head | {"batch": plan.batch, "threads": plan.threads, "step_s": seconds, "parts": shown})
    _close(workers)
    return {"rows": found, "densities": densities, "parts": shares, "left_out": reasons}


def measure_rewiring(plan: Plan) -> dict[str, Any]:
    """Rows of what an event adds, growing by gradient (RigL) and at random (SET)."""
    known = {f"{rule}-{ours(density)}": (rule, density) for density in plan.few for rule in ("rigl", "gse", "set")}
    planned = [
        plan.job(name, make, "sparse", density, "uniform", plan.batch, rule) for name, (rule, density) in known.items()
    ]
    workers, left_out, _ = start(planned)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for index in range(-1, plan.rounds):
        for name in list(workers)[:: 1 if index % 2 == 0 else -1]:
            event = workers[name].ask("event")
            if index >= 0:  # the first event of a training also lays out all possible connections, once
                seen[name].append(event)
    _close(workers)
    found = []
    for name, events in seen.items():
        rule, density = known[name]
        shares = [event["share"] for event in events]
        row = {key: statistics.median(event[key] for event in events) for key in events[0]}
        found.append(
            {"workload": plan.workload, "rule": rule, "density": density, "batch": plan.batch}
            | {"threads": plan.threads, "every": EVERY, "rounds": len(events)}
            | row
            | {"share_min": min(shares), "share_max": max(shares)}
            | {"clock": "cpu" if plan.threads == 1 else "wall", "cpu": cpu_features()}
        )
    return {"rewiring": found, "left_out": _reasons(f"{plan.workload} rewiring", left_out)}


def measure_convolutions(plan: Plan) -> dict[str, Any]:
    """Rows of the sums over layers against oneDNN's, and the seconds of each layer."""
    planned = [plan.job("onednn", convolutions, None, plan.batch)]
    planned += [plan.job(ours(density), convolutions, density, plan.batch) for density in plan.few]
    workers, times, peaks, left_out, _ = _in_turns(planned, plan.rounds)
    layers = {name: worker.ask("layers") for name, worker in workers.items()}
    _close(workers)
    called = f"{plan.workload} convolutions"
    found = rows(
        times,
        lambda name: ["onednn"],
        workload=called,
        batch=plan.batch,
        jobs={job.name: job for job in planned},
        peaks=peaks,
        density=lambda name: next((d for d in plan.few if ours(d) == name), 1.0),
    )
    return {"convolutions": found, "layers": {called: layers}, "left_out": _reasons(called, left_out)}


def measure_teacher(plan: Plan) -> dict[str, Any]:
    """Rows of students with a teacher, each against the student alone; `adds` is in shares of its step."""
    students: dict[str, tuple[Kind, float]] = {ours(STUDENT): ("sparse", STUDENT), "regraft-dense": ("dense", HELD)}
    teachers = {"": None, f"+{ours(TAUGHT)}": TAUGHT, "+regraft-dense": 1.0}
    planned = [
        plan.job(student + taught, make, kind, density, "uniform", plan.batch, "static", teacher)
        for student, (kind, density) in students.items()
        for taught, teacher in teachers.items()
    ]
    workers, times, peaks, left_out, _ = _in_turns(planned, plan.rounds)
    _close(workers)
    found = rows(
        times,
        lambda name: [name.partition("+")[0]],
        workload=plan.workload,
        batch=plan.batch,
        jobs={job.name: job for job in planned},
        peaks=peaks,
        density=lambda name: students[name.partition("+")[0]][1],
    )
    found = [row for row in found if "+" in row["variant"] and row["against"] != row["variant"]]
    for row in found:
        row["adds"] = 1 / row["ratio"] - 1
    return {"teacher": found, "left_out": _reasons(f"{plan.workload} teacher", left_out)}


def _in_turns(
    planned: Iterable[Job], count: int
) -> tuple[dict[str, Worker], rounds.Times, dict[str, float], dict[str, str], dict[str, float]]:
    """Workers, their seconds and peaks, those left out, wall seconds of first steps. A first round is not counted."""
    workers, left_out, first = start(planned)
    _, ended = interleave(workers, 1)
    times, lost = interleave(workers, count)
    peaks = {name: worker.peak_mb() for name, worker in workers.items()}  # before losses and the profiler add theirs
    return workers, times, peaks, left_out | ended | lost, first


def _ends(worker: Worker, density: float, allocation: str, batch: int) -> list[float]:
    found = worker.ask("losses_at", density, allocation, batch)
    return [found[0], found[-1]]


def _close(workers: Mapping[str, Worker]) -> None:
    for worker in workers.values():
        worker.close()


def _reasons(workload: str, left_out: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"workload": workload, "variant": name, "reason": reason} for name, reason in left_out.items()]


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line a variant: seconds, memory, how many times faster than each reference, losses and the dense networks'."""
    measured = {row["against"] for row in found if row["against"] != row["variant"]}
    against = [name for name in (*references(""), "onednn") if name in measured]
    cells = "".join(f"{'x ' + name:<24}" for name in against)
    lines = [f"{'variant':<28}{'s/step':>9}{'MB':>7}  {cells}losses (same masks: spikingjelly, regraft-dense)"]
    for variant in dict.fromkeys(row["variant"] for row in found):
        own = {row["against"]: row for row in found if row["variant"] == variant}
        one = next(iter(own.values()))
        cells = "".join(f"{_ratio(own[name]) if name in own and name != variant else '':<24}" for name in against)
        lost = [one.get("losses"), *(one.get("same_masks") or {}).values()]
        seen = ", ".join(f"{pair[0]:.3f} -> {pair[1]:.3f}" for pair in lost if pair)
        lines.append(f"{variant:<28}{one['median_s']:>9.4f}{one['peak_mb']:>7.0f}  {cells}{seen}")
        if beside := [row for name, row in own.items() if ONE_THREAD in name]:
            lines.append(f"{'':<28}x one thread: {_ratio(beside[0])}")
    return "\n".join(lines)


def densities_table(of: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A line a layer, a column a variant: percent of connections, `*` where they alone are computed."""
    names = [name for name in of if name != "regraft-dense"]
    if not names:
        return ""
    lines = [f"{'density (%, * over connections)':<34}" + "".join(f"{name[8:]:>11}" for name in names)]
    for each in of[names[0]]:
        cells = (f"{100 * of[n][each]['density']:.4g}{'*' if of[n][each]['path'] == 'sparse' else ' '}" for n in names)
        lines.append(f"{each:<34}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def parts_table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line a part, a column a variant: its share of the step and its milliseconds."""
    lines = [f"{'part of the step (%, ms)':<26}" + "".join(f"{of['variant'][8:]:>17}" for of in found)]
    for part in PARTS:
        cells = (f"{of['parts'][part]['share']:.1%}{1000 * of['parts'][part]['s']:9.2f}" for of in found)
        lines.append(f"{part:<26}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def rewiring_table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line a rule and density."""
    line = (
        "{rule:<6}{density:>7.0%}: {share:.2%} ({share_min:.2%} to {share_max:.2%}) of {every} plain steps of "
        "{plain_s:.4f} s; the event's step +{event_step_s:.4f} s ({rewiring_s:.4f} s of them rewiring), the next "
        "{next_step_s:+.4f} s; {exchanged:.0%} exchanged"
    )
    return "\n".join(line.format(**row) for row in found)


def layers_table(of: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A line a convolution: milliseconds of oneDNN, and how many times faster each density is, forward and backward."""
    if "onednn" not in of:
        return ""
    names = [name for name in of if name != "onednn"]
    head = "".join(f"{name[8:] + ' fwd, bwd':>18}" for name in names)
    lines = [f"{'convolution (ms, ratios)':<34}{'onednn fwd':>11}{'bwd':>9}{head}"]
    for each, dense in of["onednn"].items():
        own = [of[name][each] for name in names]
        ratios = [(dense["forward_s"] / o["forward_s"], dense["backward_s"] / o["backward_s"]) for o in own]
        cells = "".join(f"{forward:>10.1f}{backward:>8.1f}" for forward, backward in ratios)
        lines.append(f"{each:<34}{1000 * dense['forward_s']:>11.2f}{1000 * dense['backward_s']:>9.2f}{cells}")
    return "\n".join(lines)


def _ratio(row: Mapping[str, Any]) -> str:
    return "{ratio:.2f} ({ratio_min:.2f}-{ratio_max:.2f})".format(**row)


def report(found: Mapping[str, Any]) -> Iterator[str]:
    """What a section found, to be printed."""
    if found.get("rows"):
        yield table(found["rows"])
    if found.get("densities"):
        yield densities_table(found["densities"])
    if found.get("parts"):
        yield parts_table(found["parts"])
    if found.get("rewiring"):
        yield rewiring_table(found["rewiring"])
    if found.get("convolutions"):
        yield table(found["convolutions"])
        yield from (layers_table(of) for of in found["layers"].values())
    for row in found.get("teacher", ()):
        yield f"{row['variant']:<36}adds {row['adds']:.1%} of a step of {row['median_s'] * row['ratio']:.4f} s"
    for reason in found["left_out"]:
        yield "left out: {variant}: {reason}".format(**reason)


def sections(plan: Plan, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each section that was asked for, as it comes."""
    if "step" in wanted or "parts" in wanted:
        yield "step", measure_steps(plan, parts="parts" in wanted)
    if "rewiring" in wanted:
        yield "rewiring", measure_rewiring(plan)
    if "convolutions" in wanted and plan.workload == "resnet19":
        yield "convolutions", measure_convolutions(plan)
    if "teacher" in wanted:
        yield "teacher", measure_teacher(plan)


def main() -> None:
    """Measure and print each section of each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 5 minutes: cifar at 10, 5 and 2 %%, fewer rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS)
    parser.add_argument("--densities", nargs="+", type=float, help="shares of connections, above 0 and below 1")
    parser.add_argument("--allocations", nargs="+", choices=ALLOCATIONS)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--batch", type=int, help="samples a step; unless given, each workload's own")
    parser.add_argument("--rounds", type=int)
    given = parser.parse_args()
    count = given.rounds or (3 if given.quick else 7)
    document = _document(given.threads, count)
    for workload in given.workload or (["cifar"] if given.quick else WORKLOADS):
        batch = given.batch or WORKLOADS[workload].batch
        plan = Plan(
            workload,
            batch,
            min(batch, LOSS_BATCH[workload]),
            given.densities or (FEW if given.quick else DENSITIES),
            given.allocations or (["uniform"] if given.quick else ALLOCATIONS),
            given.threads,
            count,
            given.quick,
        )
        for section, found in sections(plan, given.sections):
            print(f"\n{workload}: {section}. Batch {batch}, {given.threads} thread(s), on {cpu_features()}", flush=True)
            for text in report(found):
                print(text, flush=True)
            found["densities"] = {workload: found["densities"]} if "densities" in found else {}
            for key, value in found.items():
                document[key] = document[key] | value if isinstance(value, dict) else document[key] + value
            if given.json:  # after each section, so that an interrupted run keeps what it has
                given.json.parent.mkdir(parents=True, exist_ok=True)
                given.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _document(threads: int, count: int) -> dict[str, Any]:
    from regraft.training.run import environment

    return {
        "environment": environment() | {"threads": threads},
        "lscpu": rounds.topology().splitlines(),
        "matmul_gain": rounds.matmul_gain(threads) if threads > 1 else None,
        "rounds": count,
        "steps_a_round": rounds.STEPS,
        "loss_steps": LOSS_STEPS,
        "rows": [],
        "densities": {},
        "parts": [],
        "rewiring": [],
        "convolutions": [],
        "layers": {},
        "teacher": [],
        "left_out": [],
    }


if __name__ == "__main__":
    main()
