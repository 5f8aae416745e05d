"""One run of a sweep in a process of its own: `python -m regraft.training.worker FOLDER RUN`.

The pool of `regraft sweep`, a task of an array job and one of ray all come through here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regraft.errors import Interrupted, RegraftError, RunError, UsageError
from regraft.training.sweep import read_planned

Watch = Callable[[dict[str, Any]], None]


def train_planned(folder: Path, path: str, watch: Watch = lambda record: None) -> None:
    """Train the run at `path` of the plan in `folder`, or go on with it; a finished one is left as it is.

    Raises `RunError` if there is no such run, another recipe's finished one is in its place, or its teacher's run is
    not finished; and whatever `fit` raises.
    """
    run, command = read_planned(folder, path)

    from regraft.training.fit import fit
    from regraft.training.run import finished

    if finished(folder / path, run.recipe):
        watch({"run": run.recipe.name, "kind": "skip", "folder": str(folder / path)})
        return
    if run.teacher is not None and not (folder / run.teacher / "result.json").exists():
        raise RunError(f"its teacher, {folder / run.teacher}, is not finished: train that run first")
    epochs = run.recipe.training.stop or run.recipe.training.epochs
    watch({"run": run.recipe.name, "kind": "start", "epochs": epochs})
    teacher = None if run.teacher is None else folder / run.teacher
    fit(run.recipe, folder / path, teacher_run=teacher, watch=watch, command=command, resume=True)


def line_of(record: dict[str, Any]) -> str | None:
    """A record as a line for people; None for those that say too little."""
    kind = record["kind"]
    if kind == "skip":
        return "finished already"
    if kind == "start":
        return f"training, {record['epochs']} epochs"
    if kind == "warning":
        return f"warning: {record['text']}"
    if kind == "epoch":
        valid = f", validation accuracy {record['valid']['accuracy']:.4f}" if record["valid"] else ""
        return f"epoch {record['epoch']}, loss {record['train']['loss']:.4f}{valid}, {record['seconds']:.1f} s"
    return None


def main(arguments: list[str]) -> int:
    """Train one run; exit code 0, 1 or 2 with one line on stderr, or 128 and the number of the signal that stopped it.

    With `--child`, stdout has one JSON record a line, and when stdin ends (the parent is gone) the run saves and ends.
    """
    parser = argparse.ArgumentParser(prog="python -m regraft.training.worker", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("run")
    parser.add_argument("--child", action="store_true", help="report in JSON; end when stdin does")
    given = parser.parse_args(arguments)
    if given.child:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    records = sys.stdout

    def watch(record: dict[str, Any]) -> None:
        text = json.dumps(record) if given.child else line_of(record)
        if text is None:
            return
        with contextlib.suppress(BrokenPipeError):  # the parent is gone: the run shall still save
            print(text if given.child else f"{given.run}: {text}", file=records, flush=True)

    def show_warning(message: Warning | str, *_: Any) -> None:
        watch({"kind": "warning", "text": " ".join(str(message).split())})

    warnings.showwarning = show_warning  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a user's own function prints is no record
            train_planned(given.folder, given.run, watch)
    except Interrupted as stop:
        return 128 + stop.signal
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except RegraftError as error:
        print("regraft:", " ".join(str(error).split()), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
