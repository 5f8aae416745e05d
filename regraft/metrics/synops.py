"""Synaptic operations: what a plain loop over spikes and existing connections would count, in exact integers.

Input values all in {0, 1}: one accumulate (AC) for each spike arriving at each existing connection. Whole numbers
`n` up to `MOST_SPIKES` (spikes summed by a residual path or a pool, event counts): `n` ACs. Anything else (images,
rates, negative or fractional values): one multiply-accumulate (MAC) for each value at each existing connection,
zeros included, as papers count an ordinary network; `macs_nonzero` leaves the zeros out (NeuroBench's
"Effective_MACs"). Which of these an input is, is decided over all data for each call of a layer in the forward pass
(a rate that happens to be 0 or 1 throughout one batch stays a rate, so the figures do not depend on the batch size).

Padding with zeros adds nothing; stride, dilation and groups count as they are. Bias, normalisation, pooling and
neuron updates are not counted, nor is anything that does not pass through a Linear or Conv module.

The count is linear in the input, so inputs are summed over samples and time first and meet the mask only once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import ShapeError
from regraft.metrics.connections import CONVOLUTIONS, TRANSPOSED, Layer
from regraft.metrics.exact import peak, summed

MOST_SPIKES = 64  # a value above this is a grey level, not a number of spikes


def spatial_axes(layer: Layer) -> int:
    """0 for Linear, 1 to 3 for convolutions."""
    return 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)


def fan_out(layer: Layer, mask: Tensor) -> Tensor:
    """Existing connections that leave an input channel through each kernel element: int64 `[in, *kernel]`."""
    mask = mask.to("cpu", torch.int64)
    if isinstance(layer, nn.Linear):
        return mask.sum(0)
    if isinstance(layer, TRANSPOSED):
        return mask.sum(1)
    grouped = mask.unflatten(0, (layer.groups, -1)).sum(1)  # [groups, in / groups, *kernel]
    return grouped.flatten(0, 1)


def operations(layer: Layer, mask: Tensor, arrivals: Tensor, out_size: tuple[int, ...]) -> int:
    """Operations that `arrivals` cause at the existing connections of `layer`, as an exact integer.

    Args:
        mask: bool, the shape of the weight.
        arrivals: int64 `[in, *space]`: how much arrives at each input position (spikes summed over samples and time).
        out_size: the spatial size of the output, `()` for Linear.
    """
    arrivals = arrivals.to("cpu", torch.int64)
    if isinstance(layer, nn.Linear):
        return int((arrivals * fan_out(layer, mask)).sum())
    low, high = zip(*_padding(layer), strict=True)
    if layer.padding_mode != "zeros":  # copies of real values: they do arrive
        amounts = [amount for pair in reversed(list(zip(low, high, strict=True))) for amount in pair]
        arrivals = F.pad(arrivals.double()[None], amounts, mode=layer.padding_mode)[0].long()
        low = (0,) * len(low)
    meeting = torch.zeros(layer.in_channels, *layer.kernel_size, dtype=torch.int64)
    for element in itertools.product(*map(range, layer.kernel_size)):
        window = tuple(
            _reach(layer, axis, offset, arrivals.shape[axis + 1], out_size[axis], low[axis])
            for axis, offset in enumerate(element)
        )
        meeting[(slice(None), *element)] = arrivals[(slice(None), *window)].flatten(1).sum(1)
    return int((meeting * fan_out(layer, mask)).sum())


def _padding(layer: nn.Module) -> Iterator[tuple[int, int]]:
    """Padding before and after, one pair for each spatial axis."""
    assert isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED))
    for axis, kernel in enumerate(layer.kernel_size):
        if layer.padding == "same":
            total = layer.dilation[axis] * (kernel - 1)
            yield total // 2, total - total // 2
        else:
            amount = 0 if layer.padding == "valid" else int(layer.padding[axis])
            yield amount, amount


def _reach(layer: nn.Module, axis: int, offset: int, size: int, out: int, low: int) -> slice:
    """The input positions along `axis` which kernel element `offset` connects to an output that exists."""
    assert isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED))
    stride, shift = layer.stride[axis], offset * layer.dilation[axis] - low
    first = max(0, -(shift // stride))  # the smallest n with n * stride + shift >= 0
    if isinstance(layer, TRANSPOSED):  # output = input * stride + shift
        last = min(size - 1, (out - 1 - shift) // stride)
        return slice(first, max(first, last + 1))
    last = min(out - 1, (size - 1 - shift) // stride)  # input = output * stride + shift
    if last < first:
        return slice(0, 0)
    return slice(first * stride + shift, last * stride + shift + 1, stride)


@dataclass(frozen=True)
class LayerOperations:
    """Operations of one layer over all samples and all T, exact integers.

    Attributes:
        acs, macs: see the module's text.
        macs_nonzero: the MACs without those whose input is 0.
        repeats: T where the layer is computed once for a static input although the network runs T steps, else 1;
            `acs * repeats` and `macs * repeats` are the T-fold figures of papers.
        positions: outputs of one channel in one step (all T where the number of steps is not known). Outputs at the
            border count in full here, as in the usual FLOPs of a dense layer.
    """

    name: str
    acs: int
    macs: int
    macs_nonzero: int
    repeats: int
    positions: float


@dataclass
class _Tally:
    """Sums of one layer while the data go through; keys are (call in the forward pass, input size, output size)."""

    spikes: dict[tuple, Tensor] = field(default_factory=dict)
    nonzero: dict[tuple, Tensor] = field(default_factory=dict)
    values: dict[tuple, int] = field(default_factory=dict)
    real: set[int] = field(default_factory=set)  # calls that got something other than spikes
    outputs: int = 0
    calls: int = 0  # in the forward pass now running
    rows: int = 0  # likewise
    once: bool = True


class OperationsRecorder:
    """Listens to the inputs of the weighted layers of a model; `result` turns what it heard into operations."""

    def __init__(self, layers: dict[str, Layer], steps: int | None) -> None:
        self.layers = layers
        self.steps = steps
        self.samples = 0
        self._now = 0
        self._tallies = {name: _Tally() for name in layers}

    def listen(self) -> Iterator[Any]:
        """Registers the hooks; yields their handles."""
        for name, layer in self.layers.items():

            def hook(_: nn.Module, args: tuple, kwargs: dict, out: Any, name: str = name) -> None:
                self._hear(name, args[0] if args else kwargs["input"], out)

            yield layer.register_forward_hook(hook, with_kwargs=True)

    def begin(self, samples: int) -> None:
        """A forward pass over that many samples begins."""
        self.samples += samples
        self._now = samples
        for tally in self._tallies.values():
            tally.rows = tally.calls = 0

    def end(self) -> None:
        """The forward pass is over: was a layer seen once for each sample only?"""
        for tally in self._tallies.values():
            if tally.rows:
                tally.once = tally.once and tally.rows == self._now

    def _hear(self, name: str, x: Tensor, out: Tensor) -> None:
        layer, tally = self.layers[name], self._tallies[name]
        axes = spatial_axes(layer)
        size, out_size = tuple(x.shape[x.dim() - axes :]), tuple(out.shape[out.dim() - axes :])
        leading = x.shape[: x.dim() - axes - 1]
        rows = x.reshape(-1, *x.shape[x.dim() - axes - 1 :])
        unfolded = tuple(leading[:2]) == (self.steps, self._now)
        tally.rows += leading[:2].numel() if unfolded else (leading[0] if leading else 1)
        tally.outputs += rows.shape[0] * torch.Size(out_size).numel()
        call, tally.calls = tally.calls, tally.calls + 1
        key = (call, size, out_size)
        highest = None if call in tally.real else peak(x, MOST_SPIKES)
        if highest is None:
            tally.real.add(call)
        else:
            _add(tally.spikes, key, summed(rows, MOST_SPIKES))
        _add(tally.nonzero, key, summed(rows if highest in (0, 1) else rows != 0, 1))
        tally.values[key] = tally.values.get(key, 0) + rows.shape[0]

    def unheard(self) -> list[str]:
        """Layers that were never called as modules."""
        return [name for name, tally in self._tallies.items() if not tally.outputs]

    def result(self, masks: dict[str, Tensor]) -> tuple[LayerOperations, ...]:
        """The operations of every layer that was called, in the order of the model."""
        return tuple(self._layer(name, masks[name]) for name, tally in self._tallies.items() if tally.outputs)

    def _layer(self, name: str, mask: Tensor) -> LayerOperations:
        layer, tally = self.layers[name], self._tallies[name]
        if mask.shape != layer.weight.shape:
            raise ShapeError(f"the mask of {name} is {tuple(mask.shape)}, its weight {tuple(layer.weight.shape)}")

        def total(sums: dict[tuple, Tensor], real: bool) -> int:
            calls = {key: arrivals for key, arrivals in sums.items() if (key[0] in tally.real) == real}
            return sum(operations(layer, mask, arrivals, key[2]) for key, arrivals in calls.items())

        every = {key: torch.full_like(tally.nonzero[key], n) for key, n in tally.values.items()}
        repeats = self.steps if tally.once and self.steps is not None else 1
        steps = 1 if tally.once or self.steps is None else self.steps
        return LayerOperations(
            name=name,
            acs=total(tally.spikes, real=False),
            macs=total(every, real=True),
            macs_nonzero=total(tally.nonzero, real=True),
            repeats=repeats,
            positions=tally.outputs / (self.samples * steps),
        )


def _add(sums: dict[tuple, Tensor], key: tuple, value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value
