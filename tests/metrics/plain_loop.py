"""The truth the counters are held against: one addition at a time, in plain Python, from shapes and values alone."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def count(layer: nn.Module, mask: Tensor, x: Tensor, weigh=lambda value: value) -> int:
    """Sum of `weigh(value)` over every input value that meets an existing connection; `x` is `[N, C, *space]`."""
    if isinstance(layer, nn.Linear):
        return sum(
            weigh(value) for row in x.reshape(-1, x.shape[-1]).tolist() for out in mask.tolist()
            for value, there in zip(row, out, strict=True) if there
        )  # fmt: skip
    with torch.no_grad():
        space = layer(x).shape[2:]
    transposed = "Transpose" in type(layer).__name__
    total = 0
    for sample in x:
        for first, second in itertools.product(range(mask.shape[0]), range(mask.shape[1])):
            if transposed:  # weight [in, out / groups]
                channel = first
            else:  # weight [out, in / groups]
                channel = first // (layer.out_channels // layer.groups) * (layer.in_channels // layer.groups) + second
            for tap in itertools.product(*map(range, layer.kernel_size)):
                if mask[(first, second, *tap)]:
                    total += _tap(layer, sample[channel], tap, tuple(space), transposed, weigh)
    return total


def _tap(layer, plane: Tensor, tap: tuple, space: tuple, transposed: bool, weigh) -> int:
    """One connection, everywhere it is used."""
    pads = [
        layer.dilation[a] * (layer.kernel_size[a] - 1) // 2
        if layer.padding == "same"
        else 0
        if layer.padding == "valid"
        else layer.padding[a]
        for a in range(len(tap))
    ]
    total = 0
    walk = itertools.product(*map(range, plane.shape if transposed else space))
    for place in walk:
        other = [place[a] * layer.stride[a] + tap[a] * layer.dilation[a] - pads[a] for a in range(len(tap))]
        limits = space if transposed else plane.shape
        if all(0 <= o < limit for o, limit in zip(other, limits, strict=True)):
            total += weigh(plane[place if transposed else tuple(other)].item())
    return int(total)
