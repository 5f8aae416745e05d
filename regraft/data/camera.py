"""An event camera: each pixel reports that its log intensity has risen or fallen by a threshold since its last event.

The model is the ideal one of Gallego et al. 2022 (Event-based Vision: A Survey, section 2.4) with two imperfections of
real sensors that v2e simulates too (Hu, Liu and Delbruck 2021, v2e: From Video Frames to Realistic DVS Events):
thresholds that differ from pixel to pixel, and events without a cause. There is no refractory period, no finite
bandwidth and no leak. Polarity is the channel, as everywhere in this room: 0 holds what got darker (OFF), 1 what got
brighter (ON).
"""

from __future__ import annotations

import numpy as np

LOWEST = 0.01  # of a threshold: v2e's bound, without which a pixel of an unlucky draw would never be quiet


def fire(
    level: np.ndarray, reference: np.ndarray, off: np.ndarray | float, on: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The events between two looks at the same pixels.

    Args:
        level: log intensity now, any shape.
        reference: log intensity at each pixel's last event.
        off, on: thresholds above 0, in units of log intensity, for what falls and for what rises.

    Returns:
        Counts of OFF and of ON events, float64 without a fraction, and the new reference. A pixel never has both: it
        reports `floor(|level - reference| / threshold)` events of one sign and its reference moves by that many
        thresholds, so what is left of the change counts at the next look.
    """
    change = level - reference
    falls = np.floor(np.maximum(-change, 0.0) / off)
    rises = np.floor(np.maximum(change, 0.0) / on)
    return falls, rises, reference + rises * on - falls * off


def thresholds(rng: np.random.Generator, shape: tuple[int, ...], mean: float, mismatch: float) -> np.ndarray:
    """One threshold a pixel, normal with standard deviation `mismatch` (Hu et al. 2021), at least `LOWEST`."""
    return np.maximum(rng.normal(mean, mismatch, shape), LOWEST)


def noise(
    rng: np.random.Generator, *, steps: int, size: int, seconds: float, rate: float, hot: int, hot_rate: float
) -> np.ndarray:
    """Events without a cause, `[T, 2, H, W]` int64 counts.

    Shot noise: each pixel fires `rate` times a second (Poisson), ON or OFF alike. Besides, `hot` pixels fire `hot_rate`
    times a second in one polarity each. `seconds` is the time of all steps together.
    """
    shot = rng.integers(0, steps * 2 * size * size, rng.poisson(rate * seconds * size * size))
    broken = rng.integers(0, 2 * size * size, hot)
    times = rng.poisson(hot_rate * seconds / steps, (steps, hot))
    counts = np.bincount(shot, minlength=steps * 2 * size * size).reshape(steps, 2 * size * size)
    for pixel, series in zip(broken, times.T, strict=True):  # one may be drawn twice
        counts[:, pixel] += series
    return counts.reshape(steps, 2, size, size)
