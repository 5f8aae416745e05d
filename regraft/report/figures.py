"""What the charts of the page draw: runs turned into plain series, and group maps packed small.

Everything here is JSON: numbers with five significant digits, null where a run has none (or a number that is not
finite). The page's script draws it and computes nothing but what its reader changes.
"""

from __future__ import annotations

import base64
import json
import math
import statistics
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from regraft.report.arrays import read_activity, read_first_layer, read_masks
from regraft.report.layers import degree_histograms, rasters, receptive_fields
from regraft.report.runs import Run, labels, read_wiring
from regraft.report.table import dense_twin
from regraft.report.verdicts import Summary, Verdict

Maps = Mapping[str, Mapping[int, np.ndarray]]
"""Group maps of one run: layer -> step -> `[rows, cols]`."""

DATA_BUDGET = 1_200_000
"""Characters of data that a page aims to stay below, so that the file stays below 1.5 MB."""
MAP_BUDGET = 600_000
"""Characters that all group maps of a page may take together; larger ones are pooled until they fit."""
FIELD_BUDGET = 80_000
"""Weights of first layers that all runs together show, at birth and at the end each."""
CHARACTERS = 4
"""Of a number of a curve at least, with its comma."""
POINTS, CLOSE = 400, 32
"""Points of a curve at most, and runs that are shown layer by layer at most."""


def page_data(runs: Sequence[Run], *, budget: int = DATA_BUDGET, map_budget: int = MAP_BUDGET) -> dict[str, Any]:
    """The data of the whole page, ready for `json.dumps(..., allow_nan=False)`.

    Where many long runs would make it larger than `budget`, all of it is made coarser by halves, 4 times at most.

    Raises:
        RunError: a file with arrays is damaged.
    """
    runs = list(runs)
    maps = [read_wiring(run) for run in runs]
    scales = [1.0, 0.5, 0.25, 0.125, 0.0625]
    while len(scales) > 1 and CHARACTERS * _numbers(runs, scales[0]) > budget:
        scales.pop(0)  # without the trouble of making it first
    data = _page_data(runs, maps, scales[0], map_budget)
    for scale in scales[1:]:
        if len(embed(data)) <= budget:
            break
        data = _page_data(runs, maps, scale, map_budget)
    return data


def _numbers(runs: Sequence[Run], scale: float) -> int:
    """About how many numbers the curves of all runs hold."""
    points = _points_at(scale)
    return sum(
        min(points, len(run.epochs)) * (8 + len(run.layers)) + min(points, len(run.events)) * (4 + 3 * len(run.layers))
        for run in runs
    )


def _points_at(scale: float) -> int:
    return max(16, int(POINTS * scale))


def _page_data(runs: list[Run], maps: Sequence[Maps], scale: float, map_budget: int) -> dict[str, Any]:
    places = {id(run): index for index, run in enumerate(runs)}
    names = [run.name for run in runs]
    # One run an arm is shown layer by layer: its other seeds look much the same.
    close = [index for index, name in enumerate(names) if names.index(name) == index][: max(1, int(CLOSE * scale))]
    cells, points = int(FIELD_BUDGET * scale / len(close)), _points_at(scale)
    series = []
    shown = [own if index in close else {} for index, own in enumerate(maps)]
    for index, (run, label, own, packed) in enumerate(
        zip(runs, labels(runs), shown, _packed_within(shown, int(scale * map_budget)), strict=True)
    ):
        twin = dense_twin(run, runs)
        series.append(
            _series(run, label, points, {step for steps in own.values() for step in steps})
            | {"maps": packed, "dense": None if twin is None else places[id(twin)]}
            | (_close(run, cells) if index in close else {"degrees": [], "fields": None, "raster": None})
            | {"close": index in close}
        )
    return {"runs": series, "frontier": frontier(runs)}


def frontier(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One point an arm for the charts of accuracy against cost; `run` is the place of the arm's first run.

    `accuracy` at the last epoch with `low` and `high`, the smallest and largest of its `n` seeds; `operations`
    (ACs + MACs a sample) and `connections`: means over seeds, `seeds` each seed's `[operations, connections,
    accuracy]`; `teacher`, mean accuracy of the teachers. `best_operations`, `best_connections`: no other arm is as
    accurate for less, or better for as little (the Pareto front).
    """
    arms: dict[str, list[Run]] = {}
    for run in runs:
        if run.result is not None:
            arms.setdefault(run.name, []).append(run)
    names = [run.name for run in runs]
    points = []
    for name, own in arms.items():
        seeds = [
            (
                run.result["synops"]["acs"] + run.result["synops"]["macs"],
                run.result["connections"]["existing"],
                run.result["accuracy"]["last"],
            )
            for run in own
            if run.result
        ]
        operations, connections, accuracy = (statistics.fmean(values) for values in zip(*seeds, strict=True))
        taught = [run.result["teacher"].get("accuracy") for run in own if run.result and run.result.get("teacher")]
        known = [value for value in taught if value is not None]
        points.append(
            {
                "run": names.index(name),
                "n": len(seeds),
                "operations": operations,
                "connections": connections,
                "accuracy": accuracy,
                "low": min(seed[2] for seed in seeds),
                "high": max(seed[2] for seed in seeds),
                "seeds": [list(seed) for seed in seeds],
                "teacher": statistics.fmean(known) if known else None,
            }
        )
    for cost in ("operations", "connections"):
        for point in points:
            point[f"best_{cost}"] = not any(_dominates(other, point, cost) for other in points)
    return compact(points)


def _dominates(one: Mapping[str, Any], other: Mapping[str, Any], cost: str) -> bool:
    at_least = one[cost] <= other[cost] and one["accuracy"] >= other["accuracy"]
    return at_least and (one[cost] < other[cost] or one["accuracy"] > other["accuracy"])


def _close(run: Run, cells: int) -> dict[str, Any]:
    first, activity = read_first_layer(run), read_activity(run)
    return compact(
        {
            "degrees": degree_histograms(read_masks(run)),
            "fields": None if first is None else receptive_fields(first, cells),
            "raster": None if activity is None else rasters(activity),
        }
    )


def thinned(records: Sequence[Any], points: int, keep: Collection[int] = ()) -> list[Any]:
    """At most about `points` records, evenly spaced, with the first, the last, and those at the places `keep`."""
    if len(records) <= points:
        return list(records)
    chosen = {round(k * (len(records) - 1) / (points - 1)) for k in range(points)} | set(keep)
    return [record for place, record in enumerate(records) if place in chosen]


def compact(value: Any) -> Any:
    """Numbers with five significant digits, whole ones as they are, NaN and infinities as null; containers alike."""
    if isinstance(value, Mapping):
        return {str(key): compact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [compact(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def forest(verdicts: Sequence[Verdict], summaries: Mapping[str, Summary]) -> list[dict[str, Any]]:
    """One row of the chart of paired differences for each verdict, in percentage points."""
    return [
        {
            "arm": v.arm,
            "word": v.word,
            "n": v.n,
            **{key: _points(getattr(v, key)) for key in ("mean", "low", "high", "detectable")},
            "arm_mean": _points(summaries[v.arm].mean),
            "arm_sd": _points(summaries[v.arm].sd),
            "p": compact(v.p),
        }
        for v in verdicts
    ]


def pack_maps(maps: Maps, pool: int = 1) -> dict[str, Any] | None:
    """Group maps of one run, layer -> step -> `[rows, cols]`, as one zlib stream in base64; None without maps.

    Layers follow each other; within a layer its steps, each as the difference to the one before modulo 2**bits, for
    few groups change at an event. `pool` sums that many groups each way. Little-endian, 8 bits where they suffice.
    """
    if not maps:
        return None
    pooled = {layer: [_pool(steps[step], pool) for step in sorted(steps)] for layer, steps in maps.items()}
    largest = max(int(array.max()) for arrays in pooled.values() for array in arrays)
    bits = 8 if largest < 2**8 else 16 if largest < 2**16 else 32
    dtype = np.dtype(f"<u{bits // 8}")
    parts, index = [], []
    for layer, arrays in pooled.items():
        stack = np.stack(arrays).astype(dtype)
        rows, cols = stack.shape[1:]
        index.append(
            {"layer": layer, "rows": rows, "cols": cols, "max": int(stack.max()), "steps": sorted(maps[layer])}
        )
        delta = stack.copy()
        delta[1:] -= stack[:-1]
        parts.append(delta.tobytes())
    stream = base64.b64encode(zlib.compress(b"".join(parts), 9)).decode("ascii")
    return {"bits": bits, "pool": pool, "index": index, "stream": stream}


def _packed_within(maps: Sequence[Maps], budget: int) -> list[dict[str, Any] | None]:
    """Maps of all runs packed into `budget` characters: first fewer frames, then coarser ones."""
    for frames, pool in ((10**9, 1), (32, 1), (16, 1), (16, 2), (16, 4), (8, 8), (4, 16), (2, 64)):
        packed = []
        for one in maps:
            steps = sorted({step for own in one.values() for step in own})
            kept = set(thinned(steps, frames))
            fewer = {layer: {step: own[step] for step in own if step in kept} for layer, own in one.items()}
            content = pack_maps({layer: own for layer, own in fewer.items() if own}, pool)
            packed.append(content and content | {"frames": len(kept), "of": len(steps)})
        if sum(len(one["stream"]) for one in packed if one) <= budget:
            break
    return packed


def _pool(array: np.ndarray, pool: int) -> np.ndarray:
    array = array.astype(np.int64)
    for axis in (0, 1):
        array = np.add.reduceat(array, np.arange(0, array.shape[axis], pool), axis=axis)
    return array


def _points(share: float) -> float | None:
    return compact(100 * share)


def _series(run: Run, label: str, points: int, mapped: Collection[int]) -> dict[str, Any]:
    epochs = thinned(run.epochs, points)
    keep = [k for k, event in enumerate(run.events) if event["step"] in mapped]
    numbers = thinned(range(len(run.events)), points, keep)
    events = [run.events[number] for number in numbers]
    layers = run.layers
    births = {name: layer["connections"] for name, layer in layers.items()}
    neurons = list(dict.fromkeys(name for record in epochs for name in record.get("rates") or {}))
    return compact(
        {
            "label": label,
            "name": run.name,
            "seed": run.seed,
            "finished": run.finished,
            "epochs": {
                "epoch": [record["epoch"] for record in epochs],
                "step": [record["step"] for record in epochs],
                **{
                    f"{split}_{what}": [(record.get(split) or {}).get(what) for record in epochs]
                    for split in ("train", "valid")
                    for what in ("accuracy", "loss")
                },
                "label_loss": [record["train"].get("label_loss") for record in epochs],
                "distill_loss": [record["train"].get("distill_loss") for record in epochs],
            },
            "rates": {name: [(record.get("rates") or {}).get(name) for record in epochs] for name in neurons},
            "layers": [
                {"name": name, "of": layer["of"], "shape": layer.get("shape")} for name, layer in layers.items()
            ],
            "structure": {
                "step": [0, *(event["step"] for event in events)],
                "number": [0, *(number + 1 for number in numbers)],
                "density": [run.birth["density"] if run.birth else None, *(event["density"] for event in events)],
                "exploration": [
                    run.birth["density"] if run.birth else None,
                    *(event.get("exploration") for event in events),
                ],
                "survival": [1.0 if run.birth else None, *(event.get("survival") for event in events)],
                "connections": {
                    name: [births[name], *(event["connections"].get(name) for event in events)] for name in layers
                },
                "dropped": {name: [0, *(event["dropped"].get(name, 0) for event in events)] for name in layers},
                "grown": {name: [0, *(event["grown"].get(name, 0) for event in events)] for name in layers},
            },
            **_outcome(run),
        }
    )


def _outcome(run: Run) -> dict[str, Any]:
    """What only a finished run knows."""
    if run.result is None:
        return {"result": None}
    result = run.result
    kept = ("accuracy", "density", "synops", "energy", "neurons", "teacher", "calibration")
    return {"result": {key: result.get(key) for key in kept}}


def embed(data: Any) -> str:
    """JSON that can stand in a script tag whatever text it holds: `<`, `>`, `&` and line separators are escaped."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
