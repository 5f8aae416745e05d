"""What data is there: whether its files are found, and what is in a set once it is read."""

from __future__ import annotations

import importlib.util
import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from regraft.data.archive import check_size, names_in, root_of
from regraft.data.nmnist import NMNIST, recordings
from regraft.data.registry import DATA, FACTS, load
from regraft.data.splits import Dataset
from regraft.errors import DataError


@dataclass(frozen=True)
class Status:
    """One of our data sets at a glance: `state`, where its files lie or should lie, and what to do if they do not."""

    name: str
    what: str
    samples: str
    shape: str
    classes: str
    state: Literal["found", "made", "missing", "damaged"]
    where: str
    advice: str = ""


def survey(folder: str | Path | None = None) -> list[Status]:
    """All data sets that have a name. Sizes and names of files are looked at, not what is in them."""
    return [status(name, folder) for name in DATA]


def status(name: str, folder: str | Path | None = None) -> Status:
    """One data set at a glance; reads no file."""
    facts, root = FACTS[name], root_of(folder)
    samples = " + ".join(f"{n:,}" for n in facts.samples or ())
    state, where, advice = "made", "nothing to download", ""
    try:
        if name == "digits":
            there = importlib.util.find_spec("sklearn") is not None
            state, where = ("found" if there else "missing"), "in scikit-learn"
            advice = "" if there else "run: pip install 'regraft[digits]'"
        elif facts.archive is not None:
            state, where = "found", str(root / facts.archive.folder)
            for member in facts.archive.members:
                check_size(facts.archive, member, root)
            if facts.archive is NMNIST:
                counts = [len(recordings(split, root)) for split in ("train", "test")]
                samples = " + ".join(
                    f"{n:,}" if n == of else f"{n:,} of {of:,}"
                    for n, of in zip(counts, facts.samples or (), strict=True)
                )
    except DataError as error:
        some = {*(facts.archive.members if facts.archive else ()), "Train", "Test"} & set(names_in(Path(where)) or [])
        state, advice = ("damaged" if some else "missing"), str(error)
    shape = " x ".join(str(n) for n in facts.shape or ())
    shape = f"T x {shape}" if "steps" in inspect.signature(DATA[name]).parameters else shape
    what = (inspect.getdoc(DATA[name]) or "").split("\n")[0]
    return Status(name, what, samples, shape, str(facts.classes or "any"), state, where, advice)


@dataclass(frozen=True)
class Description:
    """A data set that has been read: classes counted, and the training set's mean and deviation of each channel."""

    data: Dataset
    counts: dict[str, list[int]]
    mean: list[float]
    std: list[float]
    low: float
    high: float
    bytes: int
    seconds: float


def describe(
    name: str, folder: str | Path | None = None, *, steps: int = 10, options: Mapping[str, Any] | None = None
) -> Description:
    """Read a data set, so all of its checks, and count. Raises as `load`."""
    start = time.perf_counter()
    data = load(name, validation=0, folder=folder, steps=steps, options=options)
    seconds = time.perf_counter() - start
    splits = {"train": data.train, "test": data.test}
    mean, std = _moments(data.train.x)
    return Description(
        data=data,
        counts={key: torch.bincount(split.y, minlength=data.classes).tolist() for key, split in splits.items()},
        mean=mean,
        std=std,
        low=float(data.train.x.min()),
        high=float(data.train.x.max()),
        bytes=sum(split.x.numel() * split.x.element_size() for split in splits.values()),
        seconds=seconds,
    )


def _moments(x: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of `[N, ..., C, H, W]`; exact for uint8, which is not made larger."""
    means, stds = [], []
    for channel in range(x.shape[-3]):
        values = x[..., channel, :, :]
        if x.dtype == torch.uint8:
            counts = sum(torch.bincount(part.flatten(), minlength=256) for part in values.split(4096))
            weight, value = torch.as_tensor(counts).double() / values.numel(), torch.arange(256).double()
            mean = float((weight * value).sum())
            std = float((weight * (value - mean) ** 2).sum().sqrt())
        else:
            std, mean = (float(v) for v in torch.std_mean(values.double(), correction=0))
        means.append(mean)
        stds.append(std)
    return means, stds
