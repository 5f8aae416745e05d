"""The report: one HTML file that opens from disk, loads nothing and sends nothing.

Text and tables are written here, by a template that escapes everything; charts are drawn by a small script in the
page from the data of `figures.page_data`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

import regraft
from regraft.errors import RegraftError, UsageError, nearest
from regraft.report.figures import embed, forest, page_data
from regraft.report.headline import best_arms, caution, commands, sentences
from regraft.report.runs import Run, labels
from regraft.report.table import COLUMNS, Table, density, percent
from regraft.report.verdicts import MINIMUM_SEEDS, Summary, Verdict, by_arm, compare, summary

_TEMPLATES = Path(__file__).parent / "templates"
_COLOURS = 8
_MISSING = object()


def write_report(
    runs: Sequence[Run], path: Path | str, *, baseline: str | None = None, confidence: float = 0.95
) -> Path:
    """Write the report of these runs into one HTML file and return its path.

    With 3 or more seeds an arm, it holds the verdicts of `compare` against `baseline` (by default the first arm).

    Raises:
        UsageError: no runs, or a baseline that is not among them.
        RunError: a wiring file is damaged.
    """
    runs = list(runs)
    if not runs:
        raise UsageError("a report needs at least one run: give a run folder, or a folder of run folders")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(runs, baseline=baseline, confidence=confidence)
    # Written beside and moved over, so that a reader never opens half a page.
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8", errors="replace")  # a damaged name may hold half a surrogate pair
    os.replace(partial, path)
    return path


def render(runs: Sequence[Run], *, baseline: str | None = None, confidence: float = 0.95) -> str:
    """The page of `write_report` as a string."""
    runs = list(runs)
    table = Table.of(runs)
    colours, best = _colours(runs), best_arms(runs, table.rows)
    heads, differences = _differences(runs)
    data = page_data(runs)
    for series, colour in zip(data["runs"], colours, strict=True):
        series["colour"] = colour
    judged = _verdicts(runs, baseline, confidence)
    data["forest"] = judged.pop("forest")
    return _template().render(
        title=_title(runs),
        lede=[*sentences(runs, best)],
        caution=caution(runs),
        commands=commands(best),
        captions=table.captions,
        columns=COLUMNS,
        groups=[{"name": name, "span": len([*group])} for name, group in groupby(COLUMNS, lambda column: column.group)],
        rows=[
            {"cells": cells, "colour": colour, "finished": row.finished}
            for cells, colour, row in zip(table.cells(), colours, table.rows, strict=True)
        ],
        neurons=_neurons(runs),
        bytes=_bytes(runs),
        agreements=_agreements(runs, colours),
        mapped=any(own["maps"] for own in data["runs"]),
        missing=_missing(runs, data["runs"]),
        heads=heads,
        differences=differences,
        details=[*_details(runs)],
        confidence=f"{100 * confidence:g}",
        version=regraft.__version__,
        data=embed(data),
        css=_file("report.css"),
        charts=_file("charts.js"),
        js=_file("report.js"),
        layers=_file("layers.js"),
        wiring=_file("wiring.js"),
        **judged,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")


@cache
def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _colours(runs: list[Run]) -> list[int]:
    """One colour an arm: runs that differ in the seed alone share it."""
    names = list(dict.fromkeys(run.name for run in runs))
    return [names.index(run.name) % _COLOURS for run in runs]


def _title(runs: list[Run]) -> str:
    if len(runs) == 1:
        return runs[0].name
    parents = {run.folder.resolve().parent for run in runs}
    return parents.pop().name if len(parents) == 1 else ", ".join(dict.fromkeys(run.name for run in runs))


def _neurons(runs: list[Run]) -> list[list[str]]:
    rows = []
    for run, label in zip(runs, labels(runs), strict=True):
        counts = (run.result or {}).get("neurons")
        if counts:
            rows.append([label, *(_count(counts.get(key)) for key in ("of", "removable", "constant", "silent"))])
    return rows


def _bytes(runs: list[Run]) -> list[list[str]]:
    """What the parameters take, dense and without absent connections; runs that know it."""
    kinds = ("dense", "rows", "bits")
    return [
        [label, *(_size(run.result["bytes"], kind) for kind in kinds)]
        for run, label in zip(runs, labels(runs), strict=True)
        if run.result and run.result.get("bytes")
    ]


def _size(sizes: Mapping[str, int], kind: str) -> str:
    share = f" ({density(sizes[kind] / sizes['dense'])} %)" if kind != "dense" and sizes["dense"] else ""
    return f"{_count(sizes[kind])}{share}"


def _agreements(runs: list[Run], colours: list[int]) -> list[dict[str, Any]]:
    """Student and teacher on the test set, of runs whose teacher is a network."""
    rows = []
    for run, label, colour in zip(runs, labels(runs), colours, strict=True):
        shares = (run.result or {}).get("agreement")
        if run.result and shares:
            kinds = ("both", "student", "teacher", "neither")
            rows.append(
                {
                    "label": label,
                    "colour": colour,
                    "kind": str((run.result.get("teacher") or {}).get("kind") or "–"),
                    "same": percent(shares["same"], run.result["test_samples"]),
                    "parts": [(kind, f"{100 * shares[kind]:.2f}") for kind in kinds[:3]],
                    "cells": [percent(shares[kind], run.result["test_samples"]) for kind in kinds],
                }
            )
    return rows


def _missing(runs: list[Run], series: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What each section cannot show because a run folder lacks it; nothing is left out without a word."""
    first = [run.name for run in runs]
    firsts = [
        (run, own)
        for index, (run, own) in enumerate(zip(runs, series, strict=True))
        if first.index(run.name) == index and own["close"]
    ]

    def lack(what: str, why: str, lacks: Callable[[Run, dict[str, Any]], bool]) -> list[str]:
        names = [own["label"] for run, own in firsts if lacks(run, own)]
        return [f"No {what} of {', '.join(names)}: {why}."] if names else []

    return {
        "wiring": [
            *lack("wiring maps", "no wiring.safetensors", lambda run, own: bool(run.layers) and not own["maps"]),
            *lack(
                "receptive fields",
                "no weights of birth in wiring.safetensors, or no last.safetensors",
                lambda run, own: bool(run.layers) and not own["fields"],
            ),
            *lack("degrees", "no last.safetensors", lambda run, own: bool(run.layers) and not own["degrees"]),
        ],
        "structure": lack(
            "survival of the first connections",
            "the log does not tell it",
            lambda run, own: any(event.get("survival") is None for event in run.events),
        ),
        "activity": lack("spikes", "no activity.safetensors", lambda run, own: run.finished and not own["raster"]),
        "cost": lack(
            "way from dense",
            "its result.json does not tell it",
            lambda run, own: run.result is not None and not run.result["synops"].get("dense"),
        )
        + lack(
            "size",
            "its result.json does not tell it",
            lambda run, own: run.result is not None and not run.result.get("bytes"),
        ),
        "calibration": lack(
            "calibration",
            "its result.json does not tell it",
            lambda run, own: run.result is not None and not (run.result.get("calibration") or {}).get("student"),
        ),
    }


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _differences(runs: list[Run]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Labels, and the settings that are not the same in all recipes with each arm's value.

    The name is left out, for the labels say it. Runs that differ in the seed alone are shown once.
    """
    flat = [{key: value for key, value in _flat(run.recipe) if key != "name"} for run in runs]
    apart = [{key: value for key, value in settings.items() if key != "seed"} for settings in flat]
    first = {run.name: index for index, run in reversed([*enumerate(runs)])}
    if len(first) < len(runs) and all(apart[index] == apart[first[run.name]] for index, run in enumerate(runs)):
        heads = list(dict.fromkeys(run.name for run in runs))
        flat = [apart[first[name]] for name in heads]
    else:
        heads = labels(runs)
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = ((key, [settings.get(key, _MISSING) for settings in flat]) for key in keys)
    return heads, [
        (key, ["–" if value is _MISSING or value is None else str(value) for value in values])
        for key, values in rows
        if any(value != values[0] for value in values)
    ]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _details(runs: list[Run]) -> Iterator[dict[str, str]]:
    for run, label in zip(runs, labels(runs), strict=True):
        yield {
            "label": label,
            "command": run.result["command"] if run.result else "",
            "recipe": run.recipe_text.strip(),
            "environment": json.dumps(run.environment, indent=2, ensure_ascii=False),
        }


def _verdicts(runs: list[Run], baseline: str | None, confidence: float) -> dict[str, Any]:
    """Rows of the verdict table and of its chart; why there are none, if seeds are many enough but do not pair."""
    values = by_arm(runs)
    if baseline is not None and baseline not in values:
        raise UsageError(f"the baseline {baseline!r} is not a finished arm of this report; {nearest(baseline, values)}")
    empty: dict[str, Any] = {"verdicts": [], "verdict_problem": "", "baseline": "", "forest": []}
    if len(values) < 2 or max(map(len, values.values())) < MINIMUM_SEEDS:
        return empty
    chosen = baseline or next(iter(values))
    try:
        verdicts = compare(values, chosen, confidence=confidence)
    except RegraftError as error:
        return empty | {"verdict_problem": str(error), "baseline": chosen}
    means = summary(values)
    rows = [_verdict_row(verdict, means[verdict.arm]) for verdict in verdicts]
    return {"verdicts": rows, "verdict_problem": "", "baseline": chosen, "forest": forest(verdicts, means)}


def _verdict_row(verdict: Verdict, over_seeds: Summary) -> dict[str, Any]:
    def points(value: float) -> str:
        return f"{100 * value:+.2f}".replace("-", "−")

    cells = [
        str(verdict.n),
        f"{100 * over_seeds.mean:.2f} ± {100 * over_seeds.sd:.2f}",
        points(verdict.mean),
        f"{points(verdict.low)} to {points(verdict.high)}" if verdict.low > float("-inf") else "not defined",
        f"{verdict.p:.3f}" if verdict.p >= 0.001 else "< 0.001",
        f"{100 * verdict.detectable:.2f}" if verdict.detectable == verdict.detectable else "–",
    ]
    return {"arm": verdict.arm, "cells": cells, "word": verdict.word}
