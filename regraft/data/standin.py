"""A stand-in for data that is not at hand: seeded, tiny, learnable, of any shape. For smoke runs and tests."""

from __future__ import annotations

import numpy as np


def standin(
    split: str, seed: int = 0, *, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10, samples: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """A stand-in for data that is not at hand: noisy copies of one random pattern a class.

    `(x, y)`: x `[samples, *shape]` float32, y `[samples]` int64.
    """
    patterns = np.random.default_rng(seed).normal(size=(classes, *shape))
    rng = np.random.default_rng([seed, split == "test"])
    y = np.arange(samples) % classes
    x = patterns[y] + 0.5 * rng.normal(size=(samples, *shape))
    return x.astype(np.float32), y.astype(np.int64)
