"""Run folders as training writes them, small and with numbers that a person can check."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

LAYERS = {"stem.weight": [8, 1, 3, 3], "fc.weight": [10, 40]}
EVENTS = (4, 8, 12)

RESULT: dict[str, Any] = {
    "format": 1,
    "name": "sparse",
    "recipe_hash": "5e1f",
    "seed": 0,
    "command": "regraft train digits --only sparse",
    "accuracy": {"last": 0.95, "selected": 0.955, "selected_epoch": 4, "valid_last": 0.94, "valid_selected": 0.96},
    "test_samples": 360,
    "connections": {"existing": 47, "of": 472},
    "density": {"connections": 47 / 472, "parameters": 0.11, "operations": 0.12, "synaptic": None},
    "synops": {
        "acs": 20_000.0, "macs": 1_000.0, "macs_repeated": 4_000.0, "steps": 4,
        "dense": {"step": 60_000.0, "steps": 240_000.0, "acs": 180_000.0, "macs": 10_000.0},
    },
    "energy": {"joule": (20_000 * 0.9 + 1_000 * 4.6) * 1e-12, "mac_pj": 4.6, "ac_pj": 0.9},
    "neurons": {
        "of": 58, "removable": 3, "constant": 1, "silent": 2,
        "layers": [{"name": "conv", "of": 8, "removable": 3, "constant": 1, "silent": 2}],
    },
    "bytes": {"dense": 2000, "rows": 400, "bits": 300},
    "seconds": {"train": 21.34, "rewiring": 0.05},
    "teacher": None,
    "agreement": {"same": 0.8, "both": 0.75, "student": 0.2, "teacher": 0.04, "neither": 0.01},
    "calibration": {
        "bins": 3,
        "student": {"ece": 0.05, "count": [0, 60, 300], "confidence": [None, 0.5, 0.9], "accuracy": [None, 0.4, 0.96]},
        "teacher": None,
    },
}  # fmt: skip

Write = Callable[..., Path]


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    out = copy.deepcopy(base)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        node = out
        for part in path:
            node = node[part]
        node[last] = value
    return out


def log_records(epochs: int = 5, distill: float | None = None) -> Iterator[dict[str, Any]]:
    counts = {"stem.weight": 17, "fc.weight": 30}
    layers = {n: {"connections": counts[n], "of": int(np.prod(s)), "shape": s} for n, s in LAYERS.items()}
    yield {"kind": "birth", "step": 0, "layers": layers, "density": 0.0996, "mask_hash": "a"}
    for epoch in range(1, epochs + 1):
        for step in (s for s in EVENTS if 3 * (epoch - 1) < s <= 3 * epoch):
            moved = {"stem.weight": 2, "fc.weight": 5}
            yield {
                "kind": "event", "step": step, "dropped": moved, "grown": moved, "connections": counts,
                "density": 0.0996, "mask_hash": "b", "exploration": 0.0996 + step / 100, "seconds": 0.01,
                "survival": 1 - step / 40,
            }  # fmt: skip
        yield {
            "kind": "epoch", "epoch": epoch, "step": 3 * epoch, "seconds": 1.0, "lr": 0.1,
            "train": {"loss": 2 / epoch, "accuracy": 0.5, "label_loss": 1 / epoch, "distill_loss": distill},
            "valid": {"loss": 2.1 / epoch, "accuracy": 0.6}, "rates": {"conv": 0.2, "fc": 0.1},
        }  # fmt: skip


def wiring(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"{step:08d}/{layer}": rng.integers(0, 9, size=(shape[0], shape[1])).astype(np.int32)
        for step in (0, *EVENTS)
        for layer, shape in LAYERS.items()
    }


def births(seed: int = 0) -> dict[str, np.ndarray]:
    """The weights of the first layer at birth, 0 where there is no connection."""
    rng = np.random.default_rng(seed)
    shape = LAYERS["stem.weight"]
    return {"birth/stem.weight": (rng.normal(size=shape) * (rng.random(shape) < 0.3)).astype(np.float32)}


def last(seed: int = 1) -> dict[str, np.ndarray]:
    """The network at the end: weights and masks."""
    rng = np.random.default_rng(seed)
    masks = {layer: rng.random(shape) < 0.3 for layer, shape in LAYERS.items()}
    weights = {layer: (rng.normal(size=mask.shape) * mask).astype(np.float32) for layer, mask in masks.items()}
    return {
        **{f"model/{layer}": weight for layer, weight in weights.items()},
        **{f"masks/{layer}": mask for layer, mask in masks.items()},
    }


def activity(seed: int = 2, steps: int = 4) -> dict[str, np.ndarray]:
    """One test sample's spikes."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {"sample": np.array([7, 7], np.int32)}
    for layer, of in (("conv", 512), ("fc", 10)):
        shown = min(of, 47)
        found[f"spikes/{layer}"] = (rng.random((steps, shown)) < 0.2).astype(np.uint8)
        found[f"neurons/{layer}"] = (np.arange(shown) * of // shown).astype(np.int32)
        found[f"of/{layer}"] = np.array([of], np.int32)
    return found


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a run folder `tmp_path/study/<folder>`; dotted keywords change its result, `recipe` its recipe."""

    def make(
        name: str = "sparse",
        *,
        folder: str | None = None,
        finished: bool = True,
        recipe: dict[str, Any] | None = None,
        records: list[dict[str, Any]] | None = None,
        maps: dict[str, np.ndarray] | None = None,
        **changes: Any,
    ) -> Path:
        path = tmp_path / "study" / (folder or name)
        path.mkdir(parents=True)
        seed = changes.get("seed", 0)
        settings = {
            "name": name,
            "seed": seed,
            "data": {"name": "digits", "batch": 64},
            "model": {"name": "tiny_vgg", "steps": 4},
            "topology": {"density": 0.1, "rule": "rigl"},
            "distill": {"teacher": "none"},
            "training": {"epochs": 5},
        }
        (path / "recipe.yaml").write_text(yaml.safe_dump(merge(settings, recipe or {}), sort_keys=False))
        (path / "environment.json").write_text(json.dumps({"regraft": "0.1.0", "torch": "2.13.0"}))
        lines = [json.dumps(record) for record in (records or log_records(distill=changes.get("teacher") and 0.5))]
        (path / "log.jsonl").write_text("\n".join(lines) + "\n")
        save_file({**wiring(), **births()} if maps is None else maps, path / "wiring.safetensors")
        save_file(last(), path / "last.safetensors")
        if finished:
            save_file(activity(), path / "activity.safetensors")
            result = merge(RESULT, {"name": name, **{key.replace("__", "."): v for key, v in changes.items()}})
            (path / "result.json").write_text(json.dumps(result))
        return path

    return make


@pytest.fixture
def dense(write: Write) -> Path:
    """The dense run that others are measured against: 200,000 ACs and 40,000 MACs a sample."""
    return write(
        "dense",
        recipe={"topology.density": 1.0},
        accuracy__last=0.97,
        accuracy__valid_selected=0.98,
        connections={"existing": 472, "of": 472},
        density={"connections": 1.0, "parameters": 1.0, "operations": 1.0, "synaptic": None},
        synops=RESULT["synops"] | {"acs": 200_000.0, "macs": 40_000.0, "macs_repeated": 160_000.0},
        agreement=None,
    )
