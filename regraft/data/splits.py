"""Data in memory: three splits of samples and labels, and what has to be known of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regraft.data.archive import Archive
from regraft.data.augment import Augmentation


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, in the unit in which samples are stored."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, x: Tensor) -> Tensor:
        """`[..., C, H, W]` float32 -> `(x - mean) / std`."""
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std


@dataclass(frozen=True)
class Split:
    """Samples `[N, C, H, W]` (images) or `[N, T, C, H, W]` (events), and labels `[N]` int64.

    Samples that came as uint8 stay so, a quarter of the memory; they become float32, and are normalised by `normal`,
    when a batch is made.
    """

    x: Tensor
    y: Tensor
    normal: Normalisation | None = None

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        """The same on another device."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))


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
class Facts:
    """What is known of a data set before it is read. `samples` are those of train and test."""

    samples: tuple[int, int] | None = None
    shape: tuple[int, int, int] | None = None
    names: tuple[str, ...] = ()
    classes: int | None = None
    normal: Normalisation | None = None
    augmentation: Augmentation | None = None
    archive: Archive | None = None


@dataclass(frozen=True)
class Dataset:
    """Three splits. `augmentation` is what its training samples bear; `names` are the classes', where they have any."""

    name: str
    train: Split
    valid: Split
    test: Split
    classes: int
    augmentation: Augmentation
    names: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Dataset:
        """The same on another device."""
        return replace(self, train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device))

    @property
    def form(self) -> Form:
        """What a model has to know of the data."""
        shape = self.train.x.shape
        return Form(self.classes, shape[-3], shape[-2], static=len(shape) == 4)
