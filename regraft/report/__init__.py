"""What one looks at: run folders read, tabulated, judged and drawn. Needs neither torch nor the training room."""

from __future__ import annotations

from regraft.report.html import write_report
from regraft.report.runs import Run, find_runs, read_run
from regraft.report.table import Table
from regraft.report.verdicts import Summary, Verdict, by_arm, compare, summary

__all__ = [
    "Run",
    "Summary",
    "Table",
    "Verdict",
    "by_arm",
    "compare",
    "find_runs",
    "read_run",
    "summary",
    "write_report",
]
