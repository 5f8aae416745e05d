"""Data sets by name, or the user's own: everything in memory, with a validation split taken from the training set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regraft.data.digits import digits
from regraft.data.standin import standin
from regraft.errors import RegraftError, UsageError
from regraft.names import check_call, lookup

DATA: dict[str, Callable[[str, int], Any]] = {"digits": digits, "standin": standin}


@dataclass(frozen=True)
class Split:
    """Samples `[N, C, H, W]` (images) or `[N, T, C, H, W]` (events), and labels `[N]` int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        """The same on another device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Form:
    """What a model has to know of data: K classes, C channels, H (samples are square), and whether they are static.

    Static samples are images, the same at each time step; others are events, `[N, T, C, H, W]`.
    """

    classes: int
    channels: int
    size: int
    static: bool


@dataclass(frozen=True)
class Dataset:
    """Three splits."""

    name: str
    train: Split
    valid: Split
    test: Split
    classes: int

    def to(self, device: torch.device | str) -> Dataset:
        """The same on another device."""
        return replace(self, train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device))

    @property
    def form(self) -> Form:
        """What a model has to know of the data."""
        shape = self.train.x.shape
        return Form(self.classes, shape[-3], shape[-2], static=len(shape) == 4)


def load(name: str, *, validation: float = 0.2, seed: int = 0) -> Dataset:
    """The data set, with `validation` of each class of its training set held out.

    A source is called with the split, `train` or `test`, and `seed`; it gives arrays or tensors `(x, y)`, or a
    map-style Dataset of `(x, y)` pairs. Samples become float32, whatever they were; values are not rescaled.

    Raises:
        UsageError: an unknown name, or a source whose samples and labels do not fit.
        MissingExtraError: the data set needs a library that is not installed.
    """
    make = lookup(name, DATA, "data set")
    check_call(make, f"data set {name!r}", "train", seed)
    train, test = (_split(_made(make, name, split, seed), name, split) for split in ("train", "test"))
    if train.x.shape[1:] != test.x.shape[1:]:
        raise UsageError(
            f"data set {name!r}: samples are {tuple(train.x.shape[1:])} in 'train' and {tuple(test.x.shape[1:])} "
            f"in 'test': give both the same shape"
        )
    held = _held_out(train.y, validation, seed)
    return Dataset(
        name=name,
        train=Split(train.x[~held], train.y[~held]),
        valid=Split(train.x[held], train.y[held]),
        test=test,
        classes=int(max(train.y.max(), test.y.max())) + 1,
    )


def _made(make: Callable[[str, int], Any], name: str, split: str, seed: int) -> Any:
    """What the source gives; a failure of somebody's own function is told in one line, with its cause behind it."""
    try:
        return make(split, seed)
    except RegraftError:
        raise
    except Exception as error:
        raise UsageError(
            f"data set {name!r}, {split!r}: its function failed: {type(error).__name__}: {error}"
        ) from error


def _split(given: Any, name: str, split: str) -> Split:
    where = f"data set {name!r}, {split!r}"
    if not (isinstance(given, tuple) and len(given) == 2):
        if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
            raise UsageError(f"{where}: it gave {type(given).__name__}: give (x, y) or a Dataset")
        given = _stacked(given, where)
    try:
        x, y = torch.as_tensor(given[0]).float(), torch.as_tensor(given[1])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{where}: samples and labels should be arrays or tensors ({error})") from error
    if x.ndim not in (4, 5) or y.ndim != 1 or len(x) != len(y):
        raise UsageError(
            f"{where}: samples {tuple(x.shape)} and labels {tuple(y.shape)} do not fit: "
            f"give [N, C, H, W] (images) or [N, T, C, H, W] (events), and [N]"
        )
    if not len(y):
        raise UsageError(f"{where}: there are no samples")
    if not torch.equal(y.long().to(y.dtype), y) or y.min() < 0:
        raise UsageError(f"{where}: labels should be whole numbers 0, 1, ... K-1, but there is {_odd(y):g}")
    if not x.isfinite().all():
        raise UsageError(f"{where}: some samples hold values that are not finite: leave them out, or fill them")
    return Split(x, y.long())


def _stacked(pairs: Any, where: str) -> tuple[Tensor, Tensor]:
    """A map-style Dataset as two tensors."""
    if not len(pairs):
        raise UsageError(f"{where}: there are no samples")
    try:
        samples, labels = zip(*(pairs[i] for i in range(len(pairs))), strict=True)
        return torch.stack([torch.as_tensor(x) for x in samples]), torch.stack([torch.as_tensor(y) for y in labels])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{where}: a Dataset should give pairs (x, y) of one shape ({error})") from error


def _odd(y: Tensor) -> float:
    """The first label that is no class index."""
    wrong = (y.long().to(y.dtype) != y) | (y < 0)
    return float(y[wrong][0])


def _held_out(y: Tensor, share: float, seed: int) -> Tensor:
    """`[N]` bool: the same share of each class, by seed."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique().tolist():
        members = (y == label).nonzero().squeeze(1)
        held[members[torch.randperm(len(members), generator=generator)[: round(share * len(members))]]] = True
    return held
