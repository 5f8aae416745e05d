"""Data sets by name, or the user's own: everything in memory, with a validation split taken from the training set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.data.augment import Augmentation
from regraft.data.cifar import CIFAR10_FACTS, CIFAR100_FACTS, cifar10, cifar100
from regraft.data.digits import DIGITS_FACTS, digits
from regraft.data.gestures import GESTURES, SAMPLES, synthetic_gestures
from regraft.data.nmnist import NMNIST_FACTS, nmnist
from regraft.data.splits import Dataset, Facts, Split
from regraft.data.standin import standin
from regraft.errors import RegraftError, UsageError
from regraft.names import check_call, lookup

DATA: dict[str, Callable[..., Any]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "digits": digits,
    "nmnist": nmnist,
    "standin": standin,
    "synthetic_gestures": synthetic_gestures,
}
FACTS: dict[str, Facts] = {
    "cifar10": CIFAR10_FACTS,
    "cifar100": CIFAR100_FACTS,
    "digits": DIGITS_FACTS,
    "nmnist": NMNIST_FACTS,
    "standin": Facts(samples=(64, 64), shape=(1, 8, 8)),
    "synthetic_gestures": Facts(
        samples=(SAMPLES["train"], SAMPLES["test"]),
        shape=(2, 32, 32),
        classes=len(GESTURES),
        names=tuple(GESTURES),
        augmentation=Augmentation(roll=2),  # which arm moves is the class: no flip
    ),
}


def load(
    name: str,
    *,
    validation: float = 0.2,
    seed: int = 0,
    folder: str | Path | None = None,
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """The data set, with `validation` of each class of its training set held out.

    A source is called with the split, `train` or `test`, and `seed`; it gives arrays or tensors `(x, y)`, or a
    map-style Dataset of `(x, y)` pairs. uint8 samples stay so until a batch is made of them, all others become float32;
    values are not rescaled, but for the data sets that bring their own normalisation.

    Args:
        name: one of `DATA`, or `package.module:function`.
        validation: share of each class.
        seed: of the validation split, and of what the source draws.
        folder: where data sets lie (REGRAFT_DATA of the environment, or `data`, if not given).
        steps: T, for events. A source gets `folder` and `steps` if it has an argument of that name.
        options: further arguments of the source.

    Raises:
        UsageError: an unknown name or option, or a source whose samples and labels do not fit.
        DataError: files that are missing or damaged.
        MissingExtraError: the data set needs a library that is not installed.
    """
    make = lookup(name, DATA, "data set")
    further = {**_offered(make, {"folder": folder, "steps": steps}), **(options or {})}
    check_call(make, f"data set {name!r}", "train", seed, **further)
    train, test = (_split(_made(make, name, split, seed, further), name, split) for split in ("train", "test"))
    if train.x.shape[1:] != test.x.shape[1:]:
        raise UsageError(
            f"data set {name!r}: samples are {tuple(train.x.shape[1:])} in 'train' and {tuple(test.x.shape[1:])} "
            f"in 'test': give both the same shape"
        )
    facts = FACTS.get(name, Facts())
    held = _held_out(train.y, validation, seed)
    return Dataset(
        name=name,
        train=Split(train.x[~held], train.y[~held], facts.normal),
        valid=Split(train.x[held], train.y[held], facts.normal),
        test=Split(test.x, test.y, facts.normal),
        classes=facts.classes or int(max(train.y.max(), test.y.max())) + 1,
        augmentation=facts.augmentation or Augmentation(crop=max(1, train.x.shape[-1] // 8), fill="edge"),
        names=facts.names,
    )


def _offered(make: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given arguments that the source has a name for."""
    try:
        known = inspect.signature(make).parameters
    except (TypeError, ValueError):  # no function, which `check_call` tells; some builtins
        return {}
    return {key: value for key, value in given.items() if value is not None and key in known}


def _made(make: Callable[..., Any], name: str, split: str, seed: int, further: Mapping[str, Any]) -> Any:
    """What the source gives; a failure of somebody's own function is told in one line, with its cause behind it."""
    try:
        return make(split, seed, **further)
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
        x, y = torch.as_tensor(given[0]), torch.as_tensor(given[1])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{where}: samples and labels should be arrays or tensors ({error})") from error
    x = x if x.dtype == torch.uint8 else x.float()
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
