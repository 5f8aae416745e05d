"""N-MNIST (Orchard et al. 2015): digits of MNIST on a screen, seen by an event camera that moves in three saccades.

The official files are `N-MNIST/{Train,Test}/<digit>/<number>.bin`, 60,000 and 10,000 of them; any subset is read. Five
bytes an event: column, row, one bit polarity and 23 bits of microseconds, the highest first. Nobody publishes hashes of
these files, so what is checked is that each is a recording: whole events, on the sensor, as long as the saccades.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from regraft.data.archive import Archive, missing, names_in, root_of, unreadable
from regraft.data.augment import Augmentation
from regraft.data.events import integrate
from regraft.data.splits import Facts
from regraft.errors import DataError, UsageError

SIZE = 34
EVENT = 5  # bytes
SHORTEST = 250_000  # microseconds at the last event: three saccades of 100 ms each; 297 to 336 ms in 1,100 recordings
CHUNK = 64  # recordings integrated at once: what is worked on stays in the cache; 256 take three times as long

NMNIST = Archive(
    "N-MNIST",
    "N-MNIST",
    "https://www.garrickorchard.com/datasets/n-mnist",
    {},
    get="get Train.zip and Test.zip from {url} and unpack both in {root}/N-MNIST",
)
NMNIST_FACTS = Facts(
    samples=(60_000, 10_000),
    shape=(2, SIZE, SIZE),
    classes=10,
    names=tuple("0123456789"),
    augmentation=Augmentation(roll=2),  # a mirrored digit is another one, or none
    archive=NMNIST,
)


@dataclass(frozen=True)
class Recording:
    """One file: `number` is its place in MNIST, `digit` its class."""

    number: int
    digit: int
    path: Path


def nmnist(
    split: str,
    seed: int = 0,
    *,
    folder: str | Path | None = None,
    steps: int = 10,
    by: Literal["time", "count"] = "time",
) -> tuple[np.ndarray, np.ndarray]:
    """N-MNIST: digits seen by a moving event camera, 10 classes, 2 x 34 x 34, from the official files or some of them.

    `(x, y)` for `train` or `test`, in the order of MNIST: x `[N, steps, 2, 34, 34]` uint8, counts of events
    (`events.integrate`); y `[N]` int64. `folder` holds `N-MNIST/`; `seed` changes nothing.

    Raises `DataError` for files that are missing or damaged.
    """
    if not (isinstance(steps, int) and 1 <= steps <= 1024):
        raise UsageError(f"steps is {steps!r}: give a whole number from 1 to 1024")
    found = recordings(split, root_of(folder))
    x = np.empty((len(found), steps, 2, SIZE, SIZE), dtype=np.uint8)
    for start in range(0, len(found), CHUNK):
        chunk = found[start : start + CHUNK]
        contents = [_content(recording.path) for recording in chunk]
        lengths = np.array([len(content) // EVENT for content in contents])
        events = np.frombuffer(b"".join(contents), dtype=np.uint8).reshape(-1, EVENT)
        _check_events(events, lengths, chunk)
        columns, rows, polarity = (axis.astype(np.int64) for axis in (events[:, 0], events[:, 1], events[:, 2] >> 7))
        x[start : start + CHUNK] = integrate(
            _microseconds(events), columns, rows, polarity, lengths, steps=steps, height=SIZE, width=SIZE, by=by
        )
    return x, np.array([recording.digit for recording in found])


def recordings(split: str, root: Path) -> list[Recording]:
    """The files of one split, in the order of MNIST. Raises `DataError` if there is none, or one of another name."""
    if split not in ("train", "test"):
        raise UsageError(f"split is {split!r}: give train or test")
    folder = root / NMNIST.folder / split.capitalize()
    found = []
    for digit in range(10):
        for name in names_in(folder / str(digit)) or []:
            path = folder / str(digit) / name
            if not name.endswith(".bin"):
                continue
            if not (name[:-4].isascii() and name[:-4].isdigit() and len(name) < 16):
                raise DataError(f"{path} is no recording: they are called <number>.bin; take it out of the folder")
            found.append(Recording(int(name[:-4]), digit, path))
    if not found:
        raise missing(NMNIST, folder / "0" / "*.bin", root)
    return sorted(found, key=lambda r: (r.number, r.digit))


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():  # to open a pipe would be to wait
            raise DataError(f"{path} should be a recording, but it is no file: take it out of the folder")
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    if not content or len(content) % EVENT:
        raise DataError(
            f"{path} is truncated or damaged: {len(content):,} bytes are not a whole number of {EVENT}-byte events: "
            f"unpack it again, or take it out of the folder"
        )
    return content


def _check_events(events: np.ndarray, lengths: np.ndarray, chunk: list[Recording]) -> None:
    """Raise `DataError` for the first recording with an event off the sensor, or that ends before its saccades."""
    starts = np.cumsum(lengths) - lengths
    outside = np.maximum.reduceat(np.maximum(events[:, 0], events[:, 1]), starts)
    last = np.maximum.reduceat(_microseconds(events), starts)
    for recording, coordinate, end in zip(chunk, outside.tolist(), last.tolist(), strict=True):
        if coordinate >= SIZE or end < SHORTEST:
            what = (
                f"an event at {coordinate}, off the {SIZE} x {SIZE} sensor"
                if coordinate >= SIZE
                else f"its last event is at {end / 1000:.0f} ms, and recordings last 300 ms"
            )
            raise DataError(
                f"{recording.path} is truncated or damaged: {what}: unpack it again, or take it out of the folder"
            )


def _microseconds(events: np.ndarray) -> np.ndarray:
    """`[E, 5]` uint8 -> times `[E]` int64."""
    high, middle, low = (events[:, i].astype(np.int64) for i in (2, 3, 4))
    return (high & 127) << 16 | middle << 8 | low
