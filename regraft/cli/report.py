"""`regraft report`: finished runs side by side, in the terminal and as one HTML page that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from regraft.cli.arguments import parse


@dataclass(frozen=True)
class Report:
    """Table and HTML page of finished runs: run folders, or a folder of them."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs/digits"),)
    """Run folders, or folders that hold run folders."""
    out: Path | None = None
    """The page to write (report.html in the first folder)."""


def run(arguments: list[str]) -> int:
    """Parse, print the table and write the page."""
    given = parse(Report, arguments, verb="report", example="regraft report runs/digits", default=Report())
    return show(given.folders, given.out or given.folders[0] / "report.html")


def show(folders: Sequence[Path], page: Path) -> int:
    """Print the table of all runs in `folders`, write the page, and say where everything lies."""
    from regraft.errors import RunError
    from regraft.report import Table, find_runs, write_report

    runs = [run for folder in folders for run in find_runs(folder)]
    Table.of(runs).print()
    try:
        write_report(runs, page)
    except OSError as error:
        raise RunError(f"cannot write the report to {page}: {error.strerror}; name another file with --out") from None
    print("\nnetworks and logs  " + "\n                   ".join(f"{run.folder}/" for run in runs))
    print(f"report             {page}")
    return 0
