"""Batches as a pure function of (seed, epoch, index): any of them can be made again, in any process."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from regraft.data.augment import shift
from regraft.data.registry import Split


def count(split: Split, batch: int) -> int:
    """Full batches in one epoch; a last one that is not full is left out (another part of the data each epoch)."""
    return max(1, len(split) // batch)


def training_batches(
    split: Split, batch: int, *, seed: int, epoch: int, augment: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches `(x, y)` of one epoch. Images `[N, C, H, W]`; events turned to `[T, N, C, H, W]`.

    With `augment`, each sample is moved by up to an eighth of its size.
    """
    generator = torch.Generator().manual_seed(_mix(seed, epoch))
    order = torch.randperm(len(split), generator=generator).to(split.x.device)
    for index in range(count(split, batch)):
        chosen = order[index * batch : (index + 1) * batch]
        x = split.x[chosen]
        if augment:
            own = torch.Generator().manual_seed(_mix(seed, epoch, index))
            x = shift(x, max(1, x.shape[-1] // 8), own)
        yield as_input(x), split.y[chosen]


def plain_batches(split: Split, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples in order, not augmented; the last batch may be smaller."""
    for start in range(0, len(split), batch):
        yield as_input(split.x[start : start + batch]), split.y[start : start + batch]


def as_input(x: Tensor) -> Tensor:
    """What a model takes: images as they are, events `[N, T, ...]` with time first."""
    return x if x.ndim == 4 else x.transpose(0, 1)


def _mix(*parts: int) -> int:
    """One seed of several, such that neighbours do not share streams."""
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ part) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63
