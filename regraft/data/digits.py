"""Handwritten digits, 8 x 8, as scikit-learn ships them: real, and nothing to download.

1,797 samples of 13 writers, the test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin & Kaynak
1998). There is no official split of these, so a fifth of each class is the test set, chosen once and for all.
"""

from __future__ import annotations

import numpy as np

from regraft.data.splits import Facts
from regraft.errors import MissingExtraError

TEST_SEED = 20260101  # of the one test split; no setting changes it
MEAN, STD = 4.884, 6.017  # of all pixels, 0..16

DIGITS_FACTS = Facts(samples=(1438, 359), shape=(1, 8, 8), classes=10, names=tuple("0123456789"))


def digits(split: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits of scikit-learn, 10 classes, 8 x 8: real, nothing to download.

    `(x, y)` for `train` or `test`: x `[N, 1, 8, 8]` float32, standardised; y `[N]` int64 in 0..9.

    Raises `MissingExtraError` without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("scikit-learn", "digits", "The digits data set") from None
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(TEST_SEED)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        test[rng.permutation(members)[: round(0.2 * len(members))]] = True
    chosen = test if split == "test" else ~test
    x = ((pixels[chosen] - MEAN) / STD).astype(np.float32).reshape(-1, 1, 8, 8)
    return x, labels[chosen].astype(np.int64)
