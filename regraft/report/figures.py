"""What the charts of the page draw: runs turned into plain series, and group maps packed small.

Everything here is JSON: numbers with five significant digits, null where a run has none (or a number that is not
finite). The page's script draws it and computes nothing but what its reader changes.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regraft.report.runs import Run, labels, read_wiring
from regraft.report.table import dense_twin
from regraft.report.verdicts import Summary, Verdict

MAP_BUDGET = 900_000
"""Characters that all group maps of a page may take together; larger ones are pooled until they fit."""


def page_data(runs: Sequence[Run], *, map_budget: int = MAP_BUDGET) -> dict[str, Any]:
    """The data of the whole page, ready for `json.dumps(..., allow_nan=False)`."""
    runs = list(runs)
    maps = _packed_within(runs, map_budget)
    twins = [dense_twin(run, runs) for run in runs]
    series = [
        _series(run, label) | {"maps": packed, "dense": None if twin is None else runs.index(twin)}
        for run, label, packed, twin in zip(runs, labels(runs), maps, twins, strict=True)
    ]
    return {"runs": series}


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


def pack_maps(maps: Mapping[str, Mapping[int, np.ndarray]], pool: int = 1) -> dict[str, Any] | None:
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


def _packed_within(runs: list[Run], budget: int) -> list[dict[str, Any] | None]:
    maps = [read_wiring(run) for run in runs]
    pool = 1
    while True:
        packed = [pack_maps(one, pool) for one in maps]
        if pool >= 64 or sum(len(one["stream"]) for one in packed if one) <= budget:
            return packed
        pool *= 2


def _pool(array: np.ndarray, pool: int) -> np.ndarray:
    array = array.astype(np.int64)
    for axis in (0, 1):
        array = np.add.reduceat(array, np.arange(0, array.shape[axis], pool), axis=axis)
    return array


def _points(share: float) -> float | None:
    return compact(100 * share)


def _series(run: Run, label: str) -> dict[str, Any]:
    epochs, events = run.epochs, run.events
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
                "density": [run.birth["density"] if run.birth else None, *(event["density"] for event in events)],
                "exploration": [
                    run.birth["density"] if run.birth else None,
                    *(event.get("exploration") for event in events),
                ],
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
    kept = ("accuracy", "density", "synops", "energy", "neurons", "seconds", "teacher", "test_samples")
    return {"result": {key: result.get(key) for key in kept}}


def embed(data: Any) -> str:
    """JSON that can stand in a script tag whatever text it holds: `<`, `>`, `&` and line separators are escaped."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
