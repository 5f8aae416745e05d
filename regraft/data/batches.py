"""Batches as a pure function of (seed, epoch, index): any of them can be made again, in any process."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from regraft.data.augment import Augmentation
from regraft.data.splits import Split
from regraft.errors import UsageError

Batches = Iterator[tuple[Tensor, Tensor]]
Part = tuple[int, int]
"""`(rank, world)`: which of so many processes this one is."""


def count(split: Split, batch: int) -> int:
    """Full batches in one epoch; a last one that is not full is left out (another part of the data each epoch)."""
    return max(1, len(split) // batch)


def training_batches(
    split: Split,
    batch: int,
    *,
    seed: int,
    epoch: int,
    augment: Augmentation | None = None,
    start: int = 0,
    part: Part = (0, 1),
) -> Batches:
    """Shuffled batches `(x, y)` of one epoch. Images `[N, C, H, W]`; events turned to `[T, N, C, H, W]`; float32.

    Args:
        split: where the samples are; batches are made on their device.
        batch: samples in a batch, those of all processes together.
        seed: with `epoch` it fixes the order, with the batch's index the augmentation, whatever was made before.
        epoch: counts from 1.
        augment: how samples are varied.
        start: index of the first batch to make; those before it cost nothing.
        part: `(rank, world)`: a batch's samples from rank N/world on, N/world of them.

    Raises:
        UsageError: a batch that cannot be shared evenly, or a `start` or `part` out of range.
    """
    rank, world = _checked(part)
    if batch % world:
        raise UsageError(f"data.batch is {batch}: {world} processes cannot share it evenly, so give a multiple")
    if not 0 <= start <= count(split, batch):
        raise UsageError(f"start is {start}: an epoch has batches 0 to {count(split, batch) - 1}")
    return _shuffled(split, batch, seed, epoch, augment or Augmentation(), start, rank, world)


def _shuffled(
    split: Split, batch: int, seed: int, epoch: int, augment: Augmentation, start: int, rank: int, world: int
) -> Batches:
    generator = torch.Generator().manual_seed(_mix(seed, epoch))
    order = torch.randperm(len(split), generator=generator).to(split.x.device)
    height, width = split.x.shape[-2:]
    for index in range(start, count(split, batch)):
        chosen = order[index * batch : (index + 1) * batch]
        share = slice(len(chosen) * rank // world, len(chosen) * (rank + 1) // world)
        own = torch.Generator().manual_seed(_mix(seed, epoch, index))
        draw = augment.draw(len(chosen), height, width, own).share(share)  # of the whole batch, whoever makes it
        x = augment.move(split.x[chosen[share]], draw)
        yield as_input(augment.cut(_normalised(x, split), draw)), split.y[chosen[share]]


def plain_batches(split: Split, batch: int, part: Part = (0, 1)) -> Batches:
    """All samples in order, not augmented; the last batch may be smaller.

    Of several processes (`part` = `(rank, world)`) each makes whole batches: rank, rank + world, ...

    Raises `UsageError` for a `part` out of range.
    """
    rank, world = _checked(part)
    return _ordered(split, batch, rank, world)


def _ordered(split: Split, batch: int, rank: int, world: int) -> Batches:
    for start in range(rank * batch, len(split), world * batch):
        yield as_input(_normalised(split.x[start : start + batch], split)), split.y[start : start + batch]


def as_input(x: Tensor) -> Tensor:
    """What a model takes: images as they are, events `[N, T, ...]` with time first."""
    return x if x.ndim == 4 else x.transpose(0, 1)


def _normalised(x: Tensor, split: Split) -> Tensor:
    """Samples as float32, by the constants of their data set where it has any."""
    x = x.float()
    return x if split.normal is None else split.normal.apply(x)


def _checked(part: Part) -> Part:
    rank, world = part
    if not 0 <= rank < world:
        raise UsageError(f"part is ({rank}, {world}): give (rank, world) with 0 <= rank < world")
    return part


def _mix(*parts: int) -> int:
    """One seed of several, such that neighbours do not share streams."""
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ part) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63
