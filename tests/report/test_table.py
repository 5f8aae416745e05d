"""The table: its numbers, and that every frame shows the same cells."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from regraft.report import Table, find_runs
from regraft.report.table import COLUMNS, density, percent, si

TEACHER = {"kind": "sparse", "name": "teacher", "accuracy": 0.9, "density": 0.02, "seconds": 18.0}


def cell(table: Table, arm: str, head: str) -> str:
    column = next(index for index, column in enumerate(COLUMNS) if column.head == head)
    return next(cells[column] for cells in table.cells() if cells[0] == arm)


@pytest.fixture
def study(write, dense):
    write("reverse", teacher=TEACHER, accuracy__last=0.9611)
    return dense.parent


def test_cells_hold_the_numbers_of_the_run(study):
    table = Table.of(find_runs(study))
    shown = {column.head: cell(table, "reverse", column.head) for column in COLUMNS}
    assert shown == {
        "arm": "reverse",
        "accuracy last (%)": "96.1",
        "accuracy selected (%)": "95.5",
        "accuracy teacher (%)": "90.0",
        "connections existing": "47 of 472",
        "density conn. (%)": "9.96",
        "density param. (%)": "11.0",
        "density oper. (%)": "12.0",
        "density synop. (%)": "8.75",  # 21,000 of 240,000
        "per sample ACs": "20.0 k",
        "per sample MACs": "1.00 k",
        "per sample energy": "22.6 nJ",
        "training s": "21.3 (+ 18.0 teacher)",
    }


def test_synaptic_density_needs_the_dense_run_of_the_same_model_and_data(write, study):
    write("other model", recipe={"model.steps": 8})
    write("other data", recipe={"data.name": "cifar10"})
    table = Table.of(find_runs(study))
    assert cell(table, "dense", "density synop. (%)") == "100"
    assert cell(table, "other model", "density synop. (%)") == "–"
    assert cell(table, "other data", "density synop. (%)") == "–"
    alone = Table.of([run for run in find_runs(study) if run.name == "reverse"])
    assert cell(alone, "reverse", "density synop. (%)") == "–"


def test_synaptic_density_prefers_the_dense_run_of_the_same_seed(write, dense):
    ones = {"connections": 1.0, "parameters": 1.0, "operations": 1.0, "synaptic": None}
    half = {"acs": 100_000.0, "macs": 5_000.0, "macs_repeated": 5_000.0, "steps": 4}
    write("dense", folder="dense-1", seed=1, density=ones, synops=half)
    write("sparse", seed=1)
    table = Table.of(find_runs(dense.parent))
    assert cell(table, "sparse", "density synop. (%)") == "20.0"
    assert cell(table, "dense · seed 1", "density synop. (%)") == "100"


def test_an_unfinished_run_shows_what_its_log_knows(write, study):
    write("half", finished=False)
    table = Table.of(find_runs(study))
    assert cell(table, "half (unfinished)", "connections existing") == "47 of 472"
    assert cell(table, "half (unfinished)", "accuracy last (%)") == "–"
    assert "half is unfinished: its log stops after epoch 5." in table.captions


def test_captions_state_constants_and_what_is_not_counted(study):
    captions = " ".join(Table.of(find_runs(study)).captions)
    for words in ("4.6 pJ", "0.9 pJ", "360 test samples", "memory traffic", "its teacher's"):
        assert words in captions


def test_markdown_has_one_line_a_run_and_escapes(write, study):
    write("a|b<script>*", folder="odd")
    lines = Table.of(find_runs(study)).markdown().splitlines()
    bars = [line.replace("\\|", "").count("|") for line in lines if line.startswith("|")]
    assert bars == [len(COLUMNS) + 1] * 5
    assert "a\\|b\\<script\\>\\*" in "\n".join(lines)
    assert lines[1].startswith("| :-- | --: |")


def printed(table: Table, **settings) -> str:
    out = io.StringIO()
    table.print(Console(file=out, **settings))
    return out.getvalue()


def test_plain_text_fits_120_columns_and_cuts_nothing(study):
    table = Table.of(find_runs(study))
    text = printed(table, width=40)  # a pipe of unknown width
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.lstrip().startswith("reverse"))
    assert " ".join(row.split()) == (
        "reverse 96.1 95.5 90.0 47 of 472 9.96 11.0 12.0 8.75 20.0 k 1.00 k 22.6 nJ 21.3 (+ 18.0"
    )


def test_a_narrow_terminal_gets_the_table_on_its_side(study):
    text = printed(Table.of(find_runs(study)), width=70, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 70
    line = next(line for line in text.splitlines() if "accuracy last (%)" in line)
    assert line.split()[-2:] == ["97.0", "96.1"]
    assert "…" not in text


def test_an_arm_may_be_named_like_markup(write):
    write("[bold]x[/bold]", folder="odd")
    text = printed(Table.of(find_runs(write("b").parent)), width=200, force_terminal=True, color_system=None)
    assert "[bold]x[/bold]" in text


def test_numbers_as_text():
    assert [percent(v, n) for v, n in ((0.5, 100), (0.94721, 10_000), (1.0, None), (None, 5))] == [
        "50.0",
        "94.72",
        "100.0",
        "–",
    ]
    assert [density(v) for v in (1.0, 0.9999, 0.5, 0.0999, 0.0123, 0.0063, None)] == [
        "100",
        "100",
        "50.0",
        "9.99",
        "1.23",
        "0.630",
        "–",
    ]
    assert [si(v) for v in (0, 7, 999.9, 34_210, 1_254_000, None)] == ["0", "7", "1.00 k", "34.2 k", "1.25 M", "–"]
    assert [si(v, "J") for v in (6.126e-8, 9.996e-7, 1.5, 2e-13)] == ["61.3 nJ", "1.00 µJ", "1.50 J", "0.20 pJ"]
