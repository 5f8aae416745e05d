"""Augmentation of whole batches at once, on the device. What happens to each sample is drawn first, on the CPU.

So the same seed moves the same samples on every device, and a process that makes a share of a batch moves it as one
that makes all of it. All steps and channels of a sample are moved as one: a gesture does not jump.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How training samples are varied; 0 or False leaves one out.

    Args:
        crop: pixels p: a sample is padded by p on each side, and a window of its own size is cut out anywhere.
        fill: what the padding holds: `zero` as stored, that is before normalisation (the usual for CIFAR: He et al.
            2016, section 4.2), or the values at the `edge`.
        flip: half of the samples are mirrored, left to right.
        roll: moved by up to so many pixels in each direction; what leaves at one side enters at the other, so no event
            is lost (Li et al. 2022, "Neuromorphic Data Augmentation").
        cutout: side of a square that is 0 after normalisation, the mean; its centre may be any pixel, so parts of it
            may lie outside (DeVries & Taylor 2017, section 3.2).
    """

    crop: int = 0
    fill: Literal["zero", "edge"] = "zero"
    flip: bool = False
    roll: int = 0
    cutout: int = 0

    def draw(self, samples: int, height: int, width: int, generator: torch.Generator) -> Draw:
        """What happens to each of so many samples; `generator` lives on the CPU."""

        def integers(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (samples,), generator=generator)

        still = torch.zeros(samples, dtype=torch.int64)
        crop = integers(0, 2 * self.crop + 1) - self.crop, integers(0, 2 * self.crop + 1) - self.crop
        flip = integers(0, 2) if self.flip else still
        roll = (integers(-self.roll, self.roll + 1), integers(-self.roll, self.roll + 1)) if self.roll else [still] * 2
        centre = (integers(0, height), integers(0, width)) if self.cutout else [still] * 2
        return Draw(torch.stack([*crop, flip, *roll, *centre]))

    def move(self, x: Tensor, draw: Draw) -> Tensor:
        """`[N, ..., H, W]` of any type: cropped, flipped and rolled, in one gather."""
        if not (self.crop or self.flip or self.roll):
            return x
        n, h, w = len(x), x.shape[-2], x.shape[-1]
        down, right, flip, roll_down, roll_right = draw.values[:5].to(x.device)[:, :, None]
        rows = torch.arange(h, device=x.device) + down
        columns = torch.arange(w, device=x.device)
        columns = torch.where(flip.bool(), w - 1 - columns, columns) + right
        outside = ((rows < 0) | (rows >= h))[:, :, None] | ((columns < 0) | (columns >= w))[:, None, :]
        rows = (rows.clamp(0, h - 1) - roll_down) % h
        columns = (columns.clamp(0, w - 1) - roll_right) % w
        source = (rows[:, :, None] * w + columns[:, None, :]).reshape(n, 1, h * w)
        flat = x.reshape(n, -1, h * w)
        moved = flat.gather(2, source.expand_as(flat))
        if self.crop and self.fill == "zero":
            moved = moved.masked_fill(outside.reshape(n, 1, h * w), 0)
        return moved.reshape(x.shape)

    def cut(self, x: Tensor, draw: Draw) -> Tensor:
        """`[N, ..., H, W]`, normalised: a square of each sample becomes 0."""
        if not self.cutout:
            return x
        n, h, w = len(x), x.shape[-2], x.shape[-1]
        top, left = (draw.values[5:7].to(x.device) - self.cutout // 2)[:, :, None]
        rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
        inside = ((rows >= top) & (rows < top + self.cutout))[:, :, None] & (
            (columns >= left) & (columns < left + self.cutout)
        )[:, None, :]
        return x.reshape(n, -1, h, w).masked_fill(inside[:, None], 0).reshape(x.shape)


@dataclass(frozen=True)
class Draw:
    """What happens to each sample of a batch, `[7, N]` int64: crop down and right, flip, roll, cutout's centre."""

    values: Tensor

    def share(self, part: slice) -> Draw:
        """The same for some of the samples."""
        return Draw(self.values[:, part])
