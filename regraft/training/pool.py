"""Several runs of a sweep at once: as processes on this machine, or as tasks of ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from regraft.errors import MissingExtraError
from regraft.training.sweep import Planned
from regraft.training.worker import Watch, train_planned

Tell = Callable[[Planned, dict[str, Any]], None]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Backend(Protocol):
    """Where runs are trained. `workers` is what fits if nobody says how many."""

    workers: int

    def train(self, run: Planned, watch: Watch) -> str | None:
        """Train one run to its end. Returns None, or in one line why it did not get there."""
        ...

    def stop(self) -> None:
        """Let every run in progress save and end; a second time, end them at once."""
        ...


def train_all(runs: Sequence[Planned], backend: Backend, workers: int, tell: Tell) -> dict[str, str]:
    """Train `runs`, `workers` at a time, a student after its teacher; what fails does not stop the others.

    Returns path -> reason of those that did not come to their end. `tell` is called from other threads, one at a
    time. On Ctrl-C every run saves and ends before `KeyboardInterrupt` goes on.
    """
    waiting, failed = list(runs), {}
    unfinished = {run.path for run in runs}
    busy: dict[Future[str | None], Planned] = {}
    lock = threading.Lock()

    def train(run: Planned) -> str | None:
        def watch(record: dict[str, Any]) -> None:
            with lock:
                tell(run, record)

        return backend.train(run, watch)

    with ThreadPoolExecutor(workers) as threads:
        try:
            while waiting or busy:
                for run in [run for run in waiting if run.teacher in failed]:
                    waiting.remove(run)
                    failed[run.path] = f"its teacher, {run.teacher}, did not come to its end"
                    with lock:
                        tell(run, {"kind": "end", "failed": failed[run.path]})
                for run in [run for run in waiting if run.teacher not in unfinished][: workers - len(busy)]:
                    waiting.remove(run)
                    busy[threads.submit(train, run)] = run
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    run = busy.pop(future)
                    why = future.result()
                    if why is None:
                        unfinished.remove(run.path)
                    else:
                        failed[run.path] = why
                    with lock:
                        tell(run, {"kind": "end", "failed": why})
        except BaseException:
            backend.stop()
            try:
                wait(busy)
            except BaseException:
                backend.stop()
                raise
            raise
    return failed


class Processes:
    """Each run a process of this machine, with `threads` threads of torch."""

    def __init__(self, folder: Path, threads: int, gpu: bool = False) -> None:
        self.workers = 1 if gpu else max(1, usable_cores() // threads)
        self._folder, self._threads = folder, threads
        self._live: set[subprocess.Popen[str]] = set()
        self._stopping = 0

    def train(self, run: Planned, watch: Watch) -> str | None:
        """See `Backend`."""
        command = [sys.executable, "-m", "regraft.training.worker", str(self._folder), run.path, "--child"]
        environment = os.environ | dict.fromkeys(THREADS, str(self._threads))
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # closed when this process ends, however it does: then the run saves, ends
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environment,
                    start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
                )
            except OSError as error:
                return f"its process cannot be started: {error.strerror}"
            self._live.add(process)
            if self._stopping:
                self._signal(process)
            assert process.stdout is not None
            for line in process.stdout:
                with contextlib.suppress(ValueError):
                    watch(json.loads(line))
            code = process.wait()
            self._live.discard(process)
            assert process.stdin is not None
            process.stdin.close()
            process.stdout.close()
            errors.seek(0)
            said = [line for line in errors.read().splitlines() if line.strip()]
        return None if code == 0 else reason(code, said[-1] if said else "")

    def stop(self) -> None:
        """See `Backend`."""
        self._stopping += 1
        for process in list(self._live):
            self._signal(process)

    def _signal(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGTERM if self._stopping < 2 else signal.SIGKILL)


def reason(code: int, said: str) -> str:
    """Why a process that ended with `code` did not come to its end, `said` being its last words.

    >>> reason(1, "regraft: the loss is nan at step 3"), reason(-9, "")
    ('the loss is nan at step 3', 'its process was killed by SIGKILL (out of memory?)')
    """
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"its process was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    return said.removeprefix("regraft: ") or f"its process ended with code {code}"


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Ray:
    """Each run a task of ray, with `threads` cores: on this machine, or on the cluster that RAY_ADDRESS names.

    All its machines must see the folder under the same path. Raises `MissingExtraError` where ray is not installed.
    """

    def __init__(self, folder: Path, threads: int, gpu: bool = False) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingExtraError("ray", "ray", "the backend 'ray'") from None
        ray.init(ignore_reinit_error=True, include_dashboard=False, logging_level="warning", log_to_driver=False)
        self._ray, self._folder, self._threads = ray, folder.resolve(), threads
        self._task = ray.remote(_train).options(num_cpus=threads, num_gpus=int(gpu), max_retries=0)
        self.workers = max(1, int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1)) // (1 if gpu else threads))
        self._live: set[Any] = set()
        self._stopping = 0

    def train(self, run: Planned, watch: Watch) -> str | None:
        """See `Backend`; of a run's records only its beginning is told."""
        watch({"run": run.recipe.name, "kind": "start", "epochs": run.recipe.training.epochs})
        task = self._task.remote(str(self._folder), run.path, self._threads)
        self._live.add(task)
        if self._stopping:
            self._ray.cancel(task)
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return f"ray: {type(error).__name__}: {lines[0] if lines else 'no reason given'}"
        finally:
            self._live.discard(task)

    def stop(self) -> None:
        """See `Backend`."""
        self._stopping += 1
        for task in list(self._live):
            self._ray.cancel(task, force=self._stopping > 1)


def _train(folder: str, path: str, threads: int) -> str | None:
    """A task of ray: what went wrong as one line, for exceptions do not travel well."""
    import torch

    from regraft.errors import RegraftError

    torch.set_num_threads(threads)
    try:
        train_planned(Path(folder), path)
    except RegraftError as error:
        return " ".join(str(error).split())
    return None
