"""Timing that stands on a shared machine: each variant in a process of its own, one step at a time, in turn.

A processor's speed moves by half between periods, so seconds of different periods say nothing about each other. Here
every worker stays alive and trains a few steps a round, one worker busy at a time; rounds alternate their direction,
and a ratio is the median of the rounds' ratios. A process of its own has its own allocator and its own peak memory.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

STEPS = 2
"""Steps a round: seconds are their mean."""
BUILD_S = 300.0
"""Nobody's network takes so long to build."""
SPARE_MB = 1500
"""Below so much free memory nothing more is started: a machine that swaps measures its disk."""
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")

Clock = Literal["cpu", "wall"]


class Task(Protocol):
    """What a worker holds: a network, its data and its optimiser."""

    def step(self) -> None:
        """One training step."""
        ...

    def losses(self, steps: int) -> list[float]:
        """The losses of so many steps from the beginning; none where nothing is trained."""
        ...


@dataclass(frozen=True)
class Job:
    """How a worker begins.

    Args:
        name: of the variant, in the rows.
        make: builds the task in the worker; a function at the top of a module, so that it can be sent.
        arguments: what `make` is called with.
        threads: of torch.
        clock: `cpu` seconds of the process, or the `wall`.
        keep_pages: before anything large is allocated, tell the allocator to keep what it has.
        limit_s: seconds for the first step.
    """

    name: str
    make: Callable[..., Task]
    arguments: tuple[Any, ...]
    threads: int = 1
    clock: Clock = "cpu"
    keep_pages: bool = False
    limit_s: float = 600.0


class LeftOut(Exception):
    """Why a variant has no figures: its library is missing, or it took too long."""


class Worker:
    """A process that waits for orders.

    Raises `LeftOut` where the task cannot be built.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()
        self._ask("built", BUILD_S)

    def first_step(self) -> float:
        """Wall seconds of a first step, with whatever is compiled for it. Raises `LeftOut` past the limit."""
        return self._ask("first", self.job.limit_s)

    def losses(self, steps: int) -> list[float]:
        """Losses of so many steps from the beginning."""
        return self._ask(("losses", steps))

    def round(self, steps: int = STEPS) -> float:
        """Seconds a step by the job's clock."""
        return self._ask(("round", steps))

    def peak_mb(self) -> float:
        """The most memory that the process has held."""
        return self._ask("peak")

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the task returns."""
        return self._ask(("call", method, arguments))

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, order: Any, limit_s: float | None = None) -> Any:
        try:
            self._pipe.send(order)
            if not self._pipe.poll(limit_s):
                self._process.kill()
                self._process.join()
                raise LeftOut(f"did not finish in {limit_s:g} s")
            kind, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            raise LeftOut(f"its process ended (exit code {self._process.exitcode})") from None
        if kind == "error":
            self.close()
            raise LeftOut(answer)
        return answer


def start(jobs: Iterable[Job]) -> tuple[dict[str, Worker], dict[str, str], dict[str, float]]:
    """Workers that have made their first step, the reasons of those left out, and the wall seconds of first steps."""
    workers: dict[str, Worker] = {}
    left_out: dict[str, str] = {}
    first: dict[str, float] = {}
    for job in jobs:
        if (free := free_mb()) < SPARE_MB:
            left_out[job.name] = f"only {free:.0f} MB of memory are free: choose fewer variants or a smaller batch"
            continue
        try:
            worker = Worker(job)
            first[job.name] = worker.first_step()
            workers[job.name] = worker
        except LeftOut as reason:
            left_out[job.name] = str(reason)
    return workers, left_out, first


Times = dict[str, list[float]]


def losses(workers: dict[str, Worker], steps: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Losses of each worker, and the reasons of those that ended meanwhile, which are taken out of `workers`."""
    found: dict[str, list[float]] = {}
    left_out: dict[str, str] = {}
    for name in list(workers):
        try:
            found[name] = workers[name].losses(steps)
        except LeftOut as reason:
            left_out[name] = str(reason)
            del workers[name]
    return found, left_out


def interleave(workers: dict[str, Worker], rounds: int) -> tuple[Times, dict[str, str]]:
    """Seconds a step of each worker in each round; those that ended meanwhile as in `losses`."""
    times: Times = {name: [] for name in workers}
    left_out: dict[str, str] = {}
    for index in range(rounds):
        for name in list(workers)[:: 1 if index % 2 == 0 else -1]:
            try:
                times[name].append(workers[name].round())
            except LeftOut as reason:
                left_out[name] = str(reason)
                del workers[name], times[name]
    return times, left_out


def compare(times: Mapping[str, Sequence[float]], variant: str, against: str) -> dict[str, float]:
    """How many times faster than `against`: median, least and greatest of the rounds' ratios; median seconds."""
    ratios = [theirs / ours for theirs, ours in zip(times[against], times[variant], strict=True)]
    return {
        "median_s": statistics.median(times[variant]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def fastest(times: Mapping[str, Sequence[float]], among: Iterable[str]) -> str | None:
    """The variant of the shortest median step, None if none of them was measured."""
    return min((name for name in among if name in times), key=lambda name: statistics.median(times[name]), default=None)


def rows(
    times: Mapping[str, Sequence[float]],
    references: Callable[[str], Iterable[str | None]],
    *,
    workload: str,
    batch: int,
    jobs: Mapping[str, Job],
    peaks: Mapping[str, float],
    density: Callable[[str], float] = lambda _: 1.0,
) -> list[dict[str, Any]]:
    """A row for each variant and each of its references that was measured; against itself where there is none.

    `ratio` is how many times faster than `against` the variant is.
    """
    found = []
    for variant in times:
        others = [name for name in dict.fromkeys(references(variant)) if name and name in times and name != variant]
        for against in others or [variant]:
            figures = compare(times, variant, against)
            found.append(
                {
                    "workload": workload,
                    "variant": variant,
                    "density": density(variant),
                    "batch": batch,
                    "threads": jobs[variant].threads,
                    "median_s": figures["median_s"],
                    "against": against,
                    "ratio": figures["ratio"],
                    "ratio_min": figures["ratio_min"],
                    "ratio_max": figures["ratio_max"],
                    "peak_mb": round(peaks[variant], 1),
                    "clock": jobs[variant].clock,
                    "cpu": cpu_features(),
                }
            )
    return found


def cpu_features() -> str:
    """The processor's features that decide the speed of a training step, in the words of Linux."""
    from regraft.kernels.processor import processor_flags

    flags = processor_flags()
    return " ".join(feature for feature in FEATURES if feature in flags) or "unknown"


def topology() -> str:
    """Which logical processors are distinct cores: `lscpu -e`, empty where there is none."""
    try:
        return subprocess.run(["lscpu", "-e"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def matmul_gain(threads: int) -> float:
    """How many times faster a plain product of matrices is on so many threads: what the machine itself can give."""
    import torch

    before, a = torch.get_num_threads(), torch.randn(1024, 1024)
    ratios = []
    for _ in range(9):
        took = []
        for count in (1, threads):
            torch.set_num_threads(count)
            torch.mm(a, a)
            start = time.perf_counter()
            for _ in range(5):
                torch.mm(a, a)
            took.append(time.perf_counter() - start)
        ratios.append(took[0] / took[1])
    torch.set_num_threads(before)
    return statistics.median(ratios)


def free_mb() -> float:
    """Memory that a new process could have, in MB; infinite where the system does not say."""
    return _kilobytes("/proc/meminfo", "MemAvailable", math.inf) / 1000


def _kilobytes(path: str, key: str, otherwise: float) -> float:
    try:
        for line in Path(path).read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1.024
    except OSError:
        pass
    return otherwise


def _peak_mb() -> float:
    # Not ru_maxrss on Linux: a process inherits it from the one that started it.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1000 if sys.platform == "darwin" else 1)
    return _kilobytes("/proc/self/status", "VmHWM", own) / 1000


def _serve(pipe: Connection, job: Job) -> None:
    """A worker's life: build, then answer until the pipe closes."""
    try:
        import torch

        torch.set_num_threads(job.threads)
        if job.keep_pages:
            from regraft.execution.memory import keep_pages

            keep_pages()
        task = None
        while (order := pipe.recv()) is not None:
            match order:
                case "built":
                    task, answer = job.make(*job.arguments), None
                case "peak":
                    answer = _peak_mb()
                case "first":
                    start = time.perf_counter()
                    _started(task).step()
                    answer = time.perf_counter() - start
                case ("losses", steps):
                    answer = _started(task).losses(steps)
                case ("round", steps):
                    answer = _timed(_started(task), steps, job.clock)
                case ("call", method, arguments):
                    answer = getattr(task, method)(*arguments)
                case _:
                    raise ValueError(f"unknown order {order!r}")
            pipe.send(("done", answer))
    except (EOFError, KeyboardInterrupt):
        return
    except ModuleNotFoundError as error:
        pipe.send(("error", f"not installed ({error.name})"))
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"))


def _started(task: Task | None) -> Task:
    if task is None:
        raise ValueError("a worker is asked before it has built its task")
    return task


def _timed(task: Task, steps: int, clock: Clock) -> float:
    now = time.process_time if clock == "cpu" else time.perf_counter
    task.step()  # not counted: the others' turns have emptied the caches, as nothing does in a training
    start = now()
    for _ in range(steps):
        task.step()
    return (now() - start) / steps
