"""`regraft sweep`: every arm of a recipe x lists of settings x seeds -> run folders, a table, a report."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from regraft.cli.arguments import parse
from regraft.errors import Interrupted, UsageError
from regraft.training.source import parse_yaml
from regraft.training.sweep import Planned, Sweep, left_to_train, plan, write_plan

EXAMPLE = "regraft sweep digits --only sparse --topology.density 0.05 0.1 --seed 0 1"
SETTING = re.compile(r"--(seed|\w[\w-]*\.[^=]+)(?:=(.*))?$")


@dataclass(frozen=True)
class Arguments:
    """Train a recipe (`regraft list recipes`, or a YAML file) with every combination of settings and seeds.

    Any setting of `regraft train`, with one value or several: `--topology.density 0.02 0.05 --topology.rule set rigl
    --seed 0 1 2` trains 12 networks, into folders such as `density=0.02,rule=set/seed-0`. The arms of a recipe are a
    further list. What is finished already is left as it is, what was interrupted goes on: give the same command again.
    """

    source: tyro.conf.Positional[str] = "digits"
    """Recipe name or file; it comes before the settings."""
    out: Path | None = None
    """Folder to write to (runs/<name>-sweep)."""
    only: tuple[str, ...] = ()
    """Names of the arms to train, of all in the recipe."""
    workers: int | None = None
    """Runs at a time (as many as the cores have room for; one where there is a GPU)."""
    threads: int = 1
    """Threads of each run. Bits depend on it: keep it for all runs that shall be compared or resumed."""
    backend: Literal["local", "ray"] = "local"
    """Processes of this machine, or tasks of ray (on the cluster that RAY_ADDRESS names, if it is set)."""
    estimate: bool = False
    """Time 30 steps of every arm, print the hours, and end; nothing is written."""
    emit: Literal["slurm"] | None = None
    """Write array jobs instead of training."""


def run(arguments: list[str]) -> int:
    """Parse, plan; then estimate, or write jobs, or train and report. Exit code 1 if a run did not come to its end."""
    flags, settings, seeds = split(arguments)
    given = parse(Arguments, flags, verb="sweep", example=EXAMPLE, default=Arguments())
    for name in ("workers", "threads"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}: give at least 1")
    sweep = plan(given.source, settings, seeds, given.only)
    folder = given.out or Path("runs") / f"{sweep.name}-sweep"
    left = left_to_train(sweep, folder)
    command = shlex.join(["regraft", "sweep", *arguments])
    if given.estimate:
        return _estimate(sweep, left, given)
    if given.emit:
        return _emit(sweep, left, folder, command, given)
    return _train(sweep, left, folder, command, given)


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[Any]], list[int]]:
    """Flags of `Arguments`, settings by dotted name with their values, and seeds.

    >>> split(["digits", "--topology.density", "0.05", "0.1", "--workers", "2", "--seed", "0"])
    (['digits', '--workers', '2'], {'topology.density': [0.05, 0.1]}, [0])
    """
    flags: list[str] = []
    settings: dict[str, list[Any]] = {}
    into: list[Any] | None = None
    name = ""
    for word in arguments:
        setting = SETTING.match(word)
        if setting:
            name = setting[1].replace("-", "_")
            into = settings.setdefault(name, [])
            if setting[2] is not None:
                into.append(_value(name, setting[2]))
        elif word.startswith("--") or word == "-h":
            into = None
            flags.append(word)
        elif into is not None:
            into.append(_value(name, word))
        else:
            flags.append(word)
    for name, values in settings.items():
        if not values:
            raise UsageError(f"--{name} has no value: give one or several, separated by spaces")
    return flags, settings, settings.pop("seed", [])


def _value(name: str, word: str) -> Any:
    value = parse_yaml(word, f"--{name}")
    pieces = word.split(",")
    if len(pieces) > 1 and all(re.fullmatch(r"[-+.\deE]+", piece) for piece in pieces):
        raise UsageError(f"--{name} is {word!r}: separate values by spaces, --{name} {' '.join(pieces)}")
    if name == "seed" and (not isinstance(value, int) or isinstance(value, bool)):
        raise UsageError(f"--seed is {word!r}: give whole numbers")
    return value


def _on_gpu(runs: Sequence[Planned]) -> bool:
    from regraft.training.build import device_of

    return any(device_of(run.recipe).type == "cuda" for run in runs)


def _workers(given: Arguments, runs: Sequence[Planned]) -> int:
    from regraft.training.pool import usable_cores

    return given.workers or (1 if _on_gpu(runs) else max(1, usable_cores() // given.threads))


def _estimate(sweep: Sweep, left: Sequence[Planned], given: Arguments) -> int:
    import torch

    from regraft.training.estimate import STEPS, estimate, makespan

    before = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    try:
        by_label = {label: estimate(_first(left, label).recipe) for label in dict.fromkeys(run.label for run in left)}
    finally:
        torch.set_num_threads(before)
    width = max((len(label) for label in by_label), default=4)
    print(f"{'arm':<{width}}  ms a step  ms an event  s an epoch's end  hours a run  runs left    hours")
    for label, one in by_label.items():
        runs = sum(run.label == label for run in left)
        hours = one.total / 3600
        print(
            f"{label:<{width}}  {1e3 * one.step:9.1f}  {1e3 * one.event:11.1f}  {one.epoch_end:16.2f}"
            f"  {hours:11.4f}  {runs:9}  {hours * runs:7.4f}"
        )
    seconds = {run.path: by_label[run.label].total for run in left}
    workers = _workers(given, left)
    print(
        f"\n{len(sweep.runs) - len(left)} of {len(sweep.runs)} runs are finished. The others are "
        f"{sum(seconds.values()) / 3600:.4f} hours of work: {makespan(left, seconds, workers) / 3600:.4f} hours with "
        f"--workers {workers} --threads {given.threads}.\nFrom {STEPS} steps of each arm, timed alone: workers that "
        f"share memory and caches are slower. Nothing was written."
    )
    return 0


def _first(runs: Sequence[Planned], label: str) -> Planned:
    return next(run for run in runs if run.label == label)


def _emit(sweep: Sweep, left: Sequence[Planned], folder: Path, command: str, given: Arguments) -> int:
    from regraft.training.slurm import write_jobs

    if not left:
        print(f"all {len(sweep.runs)} runs in {folder} are finished: there is nothing to submit")
        return 0
    write_plan(sweep, folder, command)
    lines = write_jobs(
        left, folder, name=sweep.name, workers=_workers(given, left), threads=given.threads, gpu=_on_gpu(left)
    )
    print(f"{len(left)} of {len(sweep.runs)} runs are left. Look at time, memory and partition, then submit from here:")
    print(*(f"  {line}" for line in lines), sep="\n")
    print(f"At the end, the table and the report: {command.replace(' --emit slurm', '')}")
    return 0


def _train(sweep: Sweep, left: Sequence[Planned], folder: Path, command: str, given: Arguments) -> int:
    from regraft.cli.report import show
    from regraft.training.pool import Processes, Ray, train_all

    failed: dict[str, str] = {}
    if left:
        backend = {"local": Processes, "ray": Ray}[given.backend](folder, given.threads, _on_gpu(left))
        workers = min(given.workers or backend.workers, len(left))
        write_plan(sweep, folder, command)
        signals: list[int] = []
        try:
            with View(len(sweep.runs), len(sweep.runs) - len(left)) as view, _terminable(signals):
                failed = train_all(left, backend, workers, view.tell)
        except KeyboardInterrupt:
            number = signals[0] if signals else signal.SIGINT
            raise Interrupted(
                number, f"{folder} stopped; every run in it has saved where it stood. Go on with: {command}"
            ) from None
    paths = [folder / run.path for run in sweep.runs if (folder / run.path / "result.json").exists()]
    if paths:
        show(paths, folder / "report.html")
    if not failed:
        return 0
    print(f"\n{len(failed)} of {len(sweep.runs)} runs did not come to their end:")
    for path, why in failed.items():
        print(f"  {path}: {why}")
    print(f"Train them again, or go on with them: {command}")
    return 1


@contextlib.contextmanager
def _terminable(signals: list[int]) -> Iterator[None]:
    """SIGTERM is as Ctrl-C here; it is noted in `signals`."""

    def stop(number: int, _frame: Any) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class View:
    """What one sees meanwhile: bars on a terminal, plain lines elsewhere. `tell` takes note of a run's record."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console()
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
        self._bars = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._live = console.is_terminal
        self._tasks: dict[str, Any] = {}
        self._total, self._done = total, done
        self._all = self._bars.add_task("runs", total=total, completed=done, said="")

    def __enter__(self) -> View:
        if self._live:
            self._bars.start()
        elif self._done:
            print(f"{self._done} of {self._total} runs are finished already", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def tell(self, run: Planned, record: dict[str, Any]) -> None:
        """Show one record."""
        from regraft.training.worker import line_of

        line = line_of(record)
        if record["kind"] == "end":
            self._done += 1
            line = record["failed"] or f"done ({self._done} of {self._total})"
            self._bars.update(self._all, advance=1)
            if run.path in self._tasks:
                self._bars.remove_task(self._tasks.pop(run.path))
        elif record["kind"] == "start":
            self._tasks[run.path] = self._bars.add_task(run.path, total=record["epochs"], said="")
        elif record["kind"] == "epoch" and run.path in self._tasks:
            said = f"loss {record['train']['loss']:.4f}"
            self._bars.update(self._tasks[run.path], completed=record["epoch"], said=said)
        if line is None or (self._live and record["kind"] not in ("end", "warning")):
            return
        self._bars.console.print(f"{run.path}: {line}", markup=False, highlight=False, soft_wrap=True)
