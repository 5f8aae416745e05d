"""Events of a camera, integrated into frames: how often each pixel fired, in each of T parts of a recording."""

from __future__ import annotations

from typing import Literal

import numpy as np

from regraft.errors import UsageError


def integrate(
    t: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    p: np.ndarray,
    lengths: np.ndarray,
    *,
    steps: int,
    height: int,
    width: int,
    by: Literal["time", "count"] = "time",
) -> np.ndarray:
    """Counts of events in `steps` frames of each recording, `[N, steps, 2, height, width]` uint8; at most 255.

    Args:
        t, x, y, p: time, column, row and polarity (0: darker, 1: brighter) of all events `[E]`, those of one recording
            after those of the other.
        lengths: events of each recording `[N]`; none may be empty. They add up to E.
        steps: T.
        height, width: H and W; `0 <= y < H` and `0 <= x < W`.
        by: `time`: parts of equal duration, from a recording's own first to its last event, so that a frame's counts
            show how much happens. `count`: parts with equally many events, as they are stored.

    Polarity is the channel: 0 holds what got darker. The order of events matters for `count` only.
    """
    if by not in ("time", "count"):
        raise UsageError(f"by is {by!r}: give 'time' or 'count'")
    starts = np.cumsum(lengths) - lengths
    recording = np.repeat(np.arange(len(lengths)), lengths)
    if by == "time":
        first = np.minimum.reduceat(t, starts)
        duration = np.maximum.reduceat(t, starts) - first + 1
        step = (t - first[recording]) * steps // duration[recording]
    else:
        step = (np.arange(len(t)) - starts[recording]) * steps // lengths[recording]
    cell = (((recording * steps + step) * 2 + p) * height + y) * width + x
    counts = np.bincount(cell, minlength=len(lengths) * steps * 2 * height * width)
    return np.minimum(counts, 255).astype(np.uint8).reshape(len(lengths), steps, 2, height, width)
