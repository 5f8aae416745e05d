"""The table of results: what each arm reached, and what it cost, from one list of columns.

The terminal, Markdown and the HTML page show the same cells; only the frame differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from regraft.report.runs import Run, labels

NONE = "–"
"""Shown where a run has no such number."""

_PLAIN_WIDTH = 120
_ARM_WIDTH = 12
_TURNED_HEAD, _TURNED_COLUMN = 24, 20


@dataclass(frozen=True)
class Row:
    """The numbers of one arm. Accuracies and densities are shares of 1; None where the run has no such number."""

    arm: str
    finished: bool
    test_samples: int | None = None
    accuracy: float | None = None
    selected: float | None = None
    existing: int | None = None
    of: int | None = None
    connections: float | None = None
    parameters: float | None = None
    operations: float | None = None
    synaptic: float | None = None
    acs: float | None = None
    macs: float | None = None
    joule: float | None = None
    seconds: float | None = None
    teacher_seconds: float | None = None
    teacher_accuracy: float | None = None


@dataclass(frozen=True)
class Column:
    """One column: its title (`group` stands above it), its unit, and how a row's cell reads."""

    title: str
    cell: Callable[[Row], str]
    group: str = ""
    unit: str = ""
    left: bool = False

    @property
    def head(self) -> str:
        """Group, title and unit in one line, for frames without a second header row."""
        return " ".join(part for part in (self.group, self.title, f"({self.unit})" if self.unit else "") if part)


def percent(value: float | None, samples: int | None = None) -> str:
    """A share of 1 in per cent: one decimal, two where 2,000 or more samples give it a meaning.

    >>> percent(0.9472), percent(0.9472, 10000), percent(None)
    ('94.7', '94.72', '–')
    """
    if value is None:
        return NONE
    return f"{100 * value:.{2 if samples is not None and samples >= 2000 else 1}f}"


def density(value: float | None) -> str:
    """A density in per cent with three significant digits, for 0.63 % and 100 % are both common.

    >>> density(0.1), density(0.0063), density(1.0)
    ('10.0', '0.630', '100')
    """
    if value is None:
        return NONE
    share = 100 * value
    return f"{share:.{0 if share >= 99.95 else 1 if share >= 9.995 else 2 if share >= 0.9995 else 3}f}"


def si(value: float | None, unit: str = "") -> str:
    """A quantity with three significant digits and an SI prefix.

    >>> si(34210), si(6.13e-8, "J"), si(0)
    ('34.2 k', '61.3 nJ', '0')
    """
    if value is None:
        return NONE
    if value == 0:
        return f"0 {unit}".strip()
    for power, prefix in (
        (12, "T"),
        (9, "G"),
        (6, "M"),
        (3, "k"),
        (0, ""),
        (-3, "m"),
        (-6, "µ"),
        (-9, "n"),
        (-12, "p"),
    ):
        scaled = value / 10.0**power
        # 999.9 would be written 1000: the next prefix has it as 1.00
        if abs(scaled) >= 0.9995 or power == -12:
            digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
            if not prefix and not unit and float(value).is_integer():
                digits = 0
            return f"{scaled:.{digits}f} {prefix}{unit}".strip()
    raise AssertionError("unreachable")


def _connections(row: Row) -> str:
    return NONE if row.existing is None else f"{row.existing:,} of {row.of:,}"


def _seconds(row: Row) -> str:
    if row.seconds is None:
        return NONE
    teacher = f" (+ {row.teacher_seconds:.1f} teacher)" if row.teacher_seconds else ""
    return f"{row.seconds:.1f}{teacher}"


COLUMNS: tuple[Column, ...] = (
    Column("arm", lambda row: row.arm if row.finished else f"{row.arm} (unfinished)", left=True),
    Column("last", lambda row: percent(row.accuracy, row.test_samples), "accuracy", "%"),
    Column("selected", lambda row: percent(row.selected, row.test_samples), "accuracy", "%"),
    Column("teacher", lambda row: percent(row.teacher_accuracy, row.test_samples), "accuracy", "%"),
    Column("existing", _connections, "connections"),
    Column("conn.", lambda row: density(row.connections), "density", "%"),
    Column("param.", lambda row: density(row.parameters), "density", "%"),
    Column("oper.", lambda row: density(row.operations), "density", "%"),
    Column("synop.", lambda row: density(row.synaptic), "density", "%"),
    Column("ACs", lambda row: si(row.acs), "per sample"),
    Column("MACs", lambda row: si(row.macs), "per sample"),
    Column("energy", lambda row: si(row.joule, "J"), "per sample"),
    Column("s", _seconds, "training"),
)


@dataclass(frozen=True)
class Table:
    """Rows and captions; `print()`, `markdown()` and `cells()` render them. `Table.of(runs)` makes one."""

    rows: tuple[Row, ...]
    captions: tuple[str, ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Table:
        """The table of these runs, in their order."""
        runs = list(runs)
        rows = tuple(_row(run, label, runs) for run, label in zip(runs, labels(runs), strict=True))
        return cls(rows, tuple(_captions(runs)))

    def cells(self) -> list[list[str]]:
        """One list of strings a row, in the order of `COLUMNS`."""
        return [[column.cell(row) for column in COLUMNS] for row in self.rows]

    def markdown(self) -> str:
        """A Markdown table with its captions beneath."""
        lines = [
            _markdown_line(column.head for column in COLUMNS),
            _markdown_line(":--" if column.left else "--:" for column in COLUMNS),
            *(_markdown_line(cells) for cells in self.cells()),
        ]
        return "\n".join([*lines, "", *(f"{_escape_markdown(caption)}  " for caption in self.captions), ""])

    def print(self, console: Console | None = None) -> None:
        """Print to the terminal; plain text, 120 columns wide, where the output is not a terminal."""
        console = console or Console()
        if not console.is_terminal:
            console = Console(file=console.file, width=_PLAIN_WIDTH, color_system=None)
        console.print(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table; turned on its side, a few arms at a time, where the terminal is too narrow for it."""
        frame = self._frame()
        wide = Measurement.get(console, options.update(max_width=10_000), frame).maximum
        # Only the arms' names may wrap.
        spare = max((len(row.arm) for row in self.rows), default=0) - _ARM_WIDTH
        if wide - max(0, spare) <= options.max_width:
            yield frame
        else:
            at_once = max(1, (options.max_width - _TURNED_HEAD) // _TURNED_COLUMN)
            yield from (self._turned(start, at_once) for start in range(0, len(self.rows), at_once))
        yield from (Text(caption, style="dim") for caption in self.captions)

    def _frame(self) -> RichTable:
        frame = RichTable(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, header_style="bold")
        # rich cannot span columns: a group's name stands over the widest of its columns.
        above = {column.group: column for column in sorted(COLUMNS, key=lambda column: len(column.title))}
        for column in COLUMNS:
            group = column.group if above[column.group] is column else ""
            head = Text("\n".join((group, column.title, column.unit)).rstrip())
            frame.add_column(
                head, justify="left" if column.left else "right", no_wrap=column is not COLUMNS[0], overflow="fold"
            )
        for cells in self.cells():
            # Text, not markup: an arm may be called "[b]". A teacher's seconds go to a second line.
            frame.add_row(*(Text(cell.replace(" teacher)", "\nteacher)")) for cell in cells))
        return frame

    def _turned(self, start: int, count: int) -> RichTable:
        cells = self.cells()[start : start + count]
        frame = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
        frame.add_column("", no_wrap=True)
        for arm, *_ in cells:
            frame.add_column(Text(arm), justify="right", overflow="fold")
        for index, column in enumerate(COLUMNS[1:], start=1):
            frame.add_row(Text(column.head), *(Text(row[index]) for row in cells))
        return frame


def _row(run: Run, label: str, runs: list[Run]) -> Row:
    if run.result is None:
        return _unfinished(run, label)
    result = run.result
    teacher = result.get("teacher") or {}
    return Row(
        arm=label,
        finished=True,
        test_samples=result["test_samples"],
        accuracy=result["accuracy"]["last"],
        selected=result["accuracy"]["selected"],
        existing=result["connections"]["existing"],
        of=result["connections"]["of"],
        connections=result["density"]["connections"],
        parameters=result["density"]["parameters"],
        operations=result["density"]["operations"],
        synaptic=_synaptic(run, runs),
        acs=result["synops"]["acs"],
        macs=result["synops"]["macs"],
        joule=result["energy"]["joule"],
        seconds=result["seconds"]["train"],
        teacher_seconds=teacher.get("seconds"),
        teacher_accuracy=teacher.get("accuracy"),
    )


def _unfinished(run: Run, label: str) -> Row:
    """What the log knows: the connections of the last event. No accuracy: that of the test split comes at the end."""
    if run.birth is None:
        return Row(arm=label, finished=False)
    of = sum(layer["of"] for layer in run.layers.values())
    now = run.events[-1]["connections"] if run.events else {n: v["connections"] for n, v in run.layers.items()}
    existing = sum(now.values())
    return Row(arm=label, finished=False, existing=existing, of=of, connections=existing / of if of else None)


def dense_twin(run: Run, runs: Sequence[Run]) -> Run | None:
    """The finished dense run of the same model and data, of the same seed if there is one; itself if it is dense."""
    twins = [
        other
        for other in sorted(runs, key=lambda other: (other is not run, other.seed != run.seed))
        if other.result is not None
        and other.result["density"]["connections"] == 1
        and other.recipe.get("model") == run.recipe.get("model")
        and other.recipe.get("data") == run.recipe.get("data")
    ]
    return twins[0] if twins else None


def _synaptic(run: Run, runs: list[Run]) -> float | None:
    """ACs and MACs of this run over those of its dense twin."""
    dense = dense_twin(run, runs)
    if run.result is None or dense is None or dense.result is None:
        return None
    own, whole = (sum(result["synops"][kind] for kind in ("acs", "macs")) for result in (run.result, dense.result))
    return own / whole if whole else None


def _captions(runs: list[Run]) -> Iterator[str]:
    samples = sorted({run.result["test_samples"] for run in runs if run.result})
    if samples:
        counts = " or ".join(f"{count:,}" for count in samples)
        yield (
            f"Accuracy on {counts} test samples: at the last epoch, and at the epoch selected on the validation split; "
            f"beside it the teacher's."
        )
    yield (
        "Density: connections and parameters that exist, operations of one step (MACs of what exists over dense), "
        "synaptic operations measured (ACs + MACs over those of the dense run of the same model and data)."
    )
    for mac, ac in sorted({_constants(run.result) for run in runs if run.result}):
        yield (
            f"Energy: MACs × {mac:g} pJ + ACs × {ac:g} pJ per sample over all time steps; "
            f"memory traffic, neuron updates, biases and normalisation are not in it."
        )
    if any(run.result and (run.result.get("teacher") or {}).get("seconds") for run in runs):
        yield "A distilled arm costs its own training and its teacher's."
    for run, label in zip(runs, labels(runs), strict=True):
        if not run.finished:
            done = f"after epoch {run.epochs[-1]['epoch']}" if run.epochs else "before its first epoch ended"
            yield f"{label} is unfinished: its log stops {done}."


def _constants(result: Any) -> tuple[float, float]:
    return result["energy"]["mac_pj"], result["energy"]["ac_pj"]


def _markdown_line(cells: Iterator[str] | Sequence[str]) -> str:
    return "| " + " | ".join(_escape_markdown(cell) for cell in cells) + " |"


def _escape_markdown(text: str) -> str:
    for sign in "\\|<>*_`[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
