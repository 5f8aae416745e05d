"""What the page shows of single layers: degrees, receptive fields and rasters, packed small."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from regraft.report.arrays import Activity, FirstLayer

BARS = 24
UNITS, CHANNELS, INPUTS = 48, 4, 1024
"""Output units, input channels and inputs of a unit that are drawn at most."""
LIMIT, ABSENT = 95, -128


def degrees(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In-degree of each output unit, int64 `[out]`, and out-degree of each input unit, `[in]`.

    `mask` is bool `[out, in, ...]`; each kernel position is a connection of its own.
    """
    flat = mask.reshape(*mask.shape[:2], -1).sum(axis=2, dtype=np.int64)
    return flat.sum(axis=1), flat.sum(axis=0)


def histogram(values: np.ndarray, bars: int = BARS) -> dict[str, Any]:
    """Bars of equal whole width over whole numbers: `low` and `width`, `counts`, and `mean` and `zero` of all."""
    low, high = int(values.min()), int(values.max())
    width = max(1, math.ceil((high - low + 1) / bars))
    counts = np.bincount((values - low) // width)
    return {
        "low": low,
        "width": width,
        "counts": counts.tolist(),
        "mean": float(values.mean()),
        "zero": int((values == 0).sum()),
    }


def degree_histograms(masks: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One entry a layer: its name, and the histograms of its in-degrees and out-degrees."""
    found = []
    for name, mask in masks.items():
        entering, leaving = degrees(mask)
        found.append({"layer": name, "in": histogram(entering), "out": histogram(leaving)})
    return found


def tiles(weights: np.ndarray) -> np.ndarray:
    """Weights `[out, in, ...]` as pictures `[out, channels, rows, columns]`.

    Convolutions have one picture a channel. The inputs of a fully connected layer become square pictures where their
    number is a square times 1, 2 or 3 channels, else one row.
    """
    out = weights.shape[0]
    if weights.ndim == 3:
        return weights[:, None]
    if weights.ndim > 3:
        return weights.reshape(out, -1, *weights.shape[-2:])
    inputs = weights.shape[1]
    for channels in (1, 3, 2):
        side = math.isqrt(inputs // channels)
        if side > 1 and channels * side * side == inputs:
            return weights.reshape(out, channels, side, side)
    return weights.reshape(out, 1, 1, inputs)


def receptive_fields(layer: FirstLayer, cells: int) -> dict[str, Any]:
    """The first layer at birth and at the end, of some evenly spaced units, at most `cells` weights each (one unit
    at least).

    Values are signed bytes: -127 to 127 for weights from `-limit` to `limit` (the 95th percentile of abs(w) of both,
    so that a few large weights leave the others their colours), -128 where there is no connection. `stream`: birth,
    then end, one zlib stream in base64.
    """
    birth, end = (tiles(weights)[:, :CHANNELS, :, :INPUTS] for weights in (layer.birth, layer.end))
    units = min(len(birth), UNITS, max(1, cells // max(1, math.prod(birth.shape[1:]))))
    chosen = np.arange(units) * len(birth) // units
    existing = np.abs(np.concatenate([part[np.isfinite(part)] for part in (layer.birth, layer.end)]))
    limit = float(np.percentile(existing, LIMIT)) if existing.size else 0.0
    limit = limit if 0 < limit < math.inf else 1.0
    born, kept = ~np.isnan(layer.birth), ~np.isnan(layer.end)
    return {
        "layer": layer.name,
        "shape": list(birth.shape[1:]),
        "channels": int(tiles(layer.birth).shape[1]),
        "of": len(birth),
        "units": chosen.tolist(),
        "limit": limit,
        "born": int(born.sum()),
        "kept": int((born & kept).sum()),
        "stream": _packed(np.stack([_bytes(part[chosen], limit) for part in (birth, end)])),
    }


def rasters(activity: Activity) -> dict[str, Any]:
    """One sample's spikes: for each layer `bits`, base64 of its spikes `[T, n]` as one row of bits, high bit first."""
    return {
        "label": activity.label,
        "answer": activity.answer,
        "layers": [
            {
                "layer": raster.layer,
                "of": raster.of,
                "neurons": raster.neurons.tolist(),
                "steps": len(raster.spikes),
                "bits": base64.b64encode(np.packbits(raster.spikes).tobytes()).decode("ascii"),
            }
            for raster in activity.rasters
        ],
    }


def _bytes(weights: np.ndarray, limit: float) -> np.ndarray:
    finite = np.nan_to_num(weights.astype(np.float64), nan=0.0, posinf=limit, neginf=-limit)
    values = np.clip(np.rint(finite / limit * 127), -127, 127).astype(np.int8)
    return np.where(np.isnan(weights), np.int8(ABSENT), values)


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode("ascii")
