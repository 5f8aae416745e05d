"""What one sees while a study trains: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from regraft.training.study import Study, with_teachers


class Progress:
    """A context that is told of each record of the log (`watch`)."""

    def __init__(self, study: Study) -> None:
        self._arms = with_teachers(study).arms
        self._rows: dict[str, dict[str, Any]] = {name: {"state": "waiting"} for name in self._arms}
        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._start = time.perf_counter()

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
            self._live.update(self._table())
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def watch(self, record: dict[str, Any]) -> None:
        """Take note of one record."""
        name = record["run"]
        row = self._rows.setdefault(name, {})
        kind = record["kind"]
        if kind == "start":
            row |= {"state": "training", "epochs": record["epochs"]}
            self._say(f"{name}: training, {record['epochs']} epochs")
        elif kind == "skip":
            row["state"] = "already finished"
            self._say(f"{name}: finished already in {record['folder']}, left as it is")
        elif kind == "birth":
            row["density"] = record["density"]
            existing, of = (sum(layer[key] for layer in record["layers"].values()) for key in ("connections", "of"))
            self._say(f"{name}: born with {existing:,} of {of:,} connections in {len(record['layers'])} layers")
        elif kind == "resume":
            row |= {"density": record["density"], "events": record["events"]}
            self._say(f"{name}: going on after step {record['step']:,}")
        elif kind == "paths":
            self._say(f"{name}: {_paths(record['choices'])}")
        elif kind == "event":
            row |= {"events": row.get("events", 0) + 1, "density": record["density"]}
        elif kind == "epoch":
            row |= record
            row["state"] = "done" if record["epoch"] == row.get("epochs") else "training"
            self._say(self._line(name, row))
        if self._live is not None:
            self._live.update(self._table())

    def _line(self, name: str, row: dict[str, Any]) -> str:
        valid = f", validation accuracy {row['valid']['accuracy']:.4f}" if row["valid"] else ""
        return (
            f"{name}: epoch {row['epoch']}/{row.get('epochs', '?')}, loss {row['train']['loss']:.4f}{valid}, "
            f"density {row['density']:.4f}, {row.get('events', 0)} events, {row['seconds']:.1f} s"
        )

    def _say(self, text: str) -> None:
        if self._live is None:
            print(text, flush=True, file=sys.stdout)

    def _table(self) -> Table:
        table = Table(
            box=None, pad_edge=False, caption=f"{time.perf_counter() - self._start:.0f} s", caption_justify="left"
        )
        for heading in ("arm", "epoch", "loss", "validation", "density", "events", "seconds", ""):
            table.add_column(heading, justify="left" if heading in ("arm", "") else "right")
        for name, row in self._rows.items():
            begun = "epoch" in row
            valid = f"{row['valid']['accuracy']:.4f}" if begun and row["valid"] else ""
            table.add_row(
                name,
                f"{row['epoch']}/{row['epochs']}" if begun else "",
                f"{row['train']['loss']:.4f}" if begun else "",
                valid,
                f"{row['density']:.4f}" if "density" in row else "",
                str(row.get("events", "")),
                f"{row['seconds']:.1f}" if begun else "",
                row.get("state", ""),
            )
        return table


def _paths(choices: dict[str, str]) -> str:
    """One line: how many layers go over their connections, and why the others do not."""
    dense = [f"{layer} ({why})" for layer, why in choices.items() if why]
    line = f"{len(choices) - len(dense)} of {len(choices)} layers over their connections, in fp32"
    return f"{line}; dense: {', '.join(dense)}" if dense else line
