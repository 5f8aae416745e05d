"""The existing connections of a layer, in the orders in which kernels walk through them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.kernels.sparse import Phase, Rows

BAND, FEW = 16, 5
"""Output channels whose errors fit the nearest cache, and connections of an input channel to these from which on it
pays to sum band by band (measured on Zen 4)."""


@dataclass(frozen=True)
class Geometry:
    """A convolution and the size of its input. A linear layer is one whose kernel is as large as the input.

    `halo`: empty pixels around the input's spikes, at least `padding`.
    """

    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: int
    padding: int
    dilation: int
    groups: int
    halo: int

    @property
    def out_height(self) -> int:
        return (self.height + 2 * self.padding - self.dilation * (self.kernel[0] - 1) - 1) // self.stride + 1

    @property
    def out_width(self) -> int:
        return (self.width + 2 * self.padding - self.dilation * (self.kernel[1] - 1) - 1) // self.stride + 1


@dataclass(frozen=True)
class Step:
    """Connections by band of output channels and input channel, for the input pixels (row + stride i, column + stride
    j)."""

    row: int
    column: int
    bands: int
    first: Tensor
    at: Tensor
    source: Tensor


class Pattern:
    """Connections in the order of the weight tensor, and by input channel.

    Args:
        mask: bool, in the shape of the weights.
        geometry: of the layer.

    Attributes:
        index: int64, where each connection stands in the flat weights.
        margin: empty pixels that the error signal needs around itself.
    """

    def __init__(self, mask: Tensor, geometry: Geometry) -> None:
        g = geometry
        self.geometry = g
        self.index = mask.flatten().nonzero().flatten()
        per_group, (high, wide) = g.in_channels // g.groups, g.kernel
        size = per_group * high * wide
        out = self.index // size
        rest = self.index % size
        channel = rest // (high * wide) + out // (g.out_channels // g.groups) * per_group
        row, column = rest // wide % high * g.dilation, rest % wide * g.dilation
        self._first = _starts(out, g.out_channels)
        self._at = ((row * g.in_channels + channel) * (g.width + 2 * g.halo) + column).int()
        self.margin, self._phases = self._by_input(out, channel, row, column)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def rows(self) -> Rows:
        """By output channel, for a kernel; valid while this pattern lives."""
        return Rows(self._first.data_ptr(), self._at.data_ptr())

    @property
    def phases(self) -> list[Phase]:
        """By input channel, for a kernel; valid while this pattern lives."""
        return [Phase(p.row, p.column, p.bands, *map(Tensor.data_ptr, (p.first, p.at, p.source))) for p in self._phases]

    def _by_input(self, out: Tensor, channel: Tensor, row: Tensor, column: Tensor) -> tuple[int, list[Step]]:
        """Input pixels get error from the output pixels that read them, which depends on their place mod stride."""
        g, s = self.geometry, self.geometry.stride
        reached, margin = [], 0
        for i in range(s):
            for j in range(s):
                down, right = i + g.padding - row, j + g.padding - column
                here = ((down % s == 0) & (right % s == 0)).nonzero().flatten()
                down, right = (torch.div(d[here], s, rounding_mode="floor") for d in (down, right))
                reached.append((i, j, here, down, right))
                if len(here):
                    last = [(size - k + s - 1) // s for size, k in ((g.height, i), (g.width, j))]
                    beyond = int(down.max()) + last[0] - g.out_height, int(right.max()) + last[1] - g.out_width
                    margin = max(margin, -int(down.min()), -int(right.min()), *beyond)
        across = g.out_width + 2 * margin
        steps = []
        for i, j, here, down, right in reached:
            bands = -(-g.out_channels // BAND)
            bands = bands if len(here) >= FEW * bands * g.in_channels else 1
            unit = channel[here] + (out[here] // BAND * g.in_channels if bands > 1 else 0)
            order = torch.argsort(unit, stable=True)
            here, down, right = here[order], down[order], right[order]
            at = (((down + margin) * g.out_channels + out[here]) * across + right + margin).int()
            first = _starts(unit, bands * g.in_channels)
            steps.append(Step(i, j, bands, first, at, here.int()))
        return margin, steps


def _starts(unit: Tensor, units: int) -> Tensor:
    """Where the connections of each unit begin, and where the last ends."""
    first = torch.zeros(units + 1, dtype=torch.int64)
    first[1:] = torch.bincount(unit, minlength=units).cumsum(0)
    return first
