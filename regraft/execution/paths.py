"""How each call of a program is computed: densely, or over existing connections on blocks of 16 images.

A convolution goes over its existing connections where that is faster, and then its neurons work on blocks too. What
is in blocks stays there from layer to layer, and comes out where somebody else reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regraft.execution import blocked, native
from regraft.execution.blocked import Current, Spikes
from regraft.execution.fire import fire_of
from regraft.execution.fused import BatchNorm, norm_step
from regraft.execution.hooks import hooked
from regraft.execution.pattern import Geometry, Pattern
from regraft.execution.plan import Call, Program, Segment, slots_in
from regraft.execution.sparse import fire, layer, moments
from regraft.execution.wiring import Frozen, Wiring

DENSITY = {"fp32": 0.4, "bf16": 0.25}  # above it the dense path is faster
Given = tuple[Tensor | None, Tensor | None, Any]


@dataclass
class Sparse:
    """A convolution that may go over its connections alone, and the segment that reads it as input `place`."""

    conv: nn.Conv2d
    name: str
    segment: Segment
    place: int
    version: int = -1
    density: float = 1.0
    pattern: Pattern | None = None
    everything: Pattern | None = None


class Paths:
    """The choices for one program; they follow the wiring.

    Args:
        names: of parameters, by `id`, as the wiring knows them.
    """

    def __init__(self, program: Program, names: Mapping[int, str], wiring: Wiring | Frozen) -> None:
        self._wiring = wiring
        self._layers: dict[int, Sparse] = {}
        readers: dict[int, list[Call]] = {}
        for call in program.calls:
            for slot in set(slots_in((call.args, call.kwargs))):
                readers.setdefault(slot, []).append(call)
        kept = set(slots_in(program.result))
        for call in program.calls:
            if not isinstance(call.what, nn.Conv2d) or not _expressible(call.what) or call.slot in kept:
                continue
            name, reading = names.get(id(call.what.weight), ""), readers.get(call.slot, [])
            if name in wiring.masks and len(reading) == 1 and isinstance(reading[0].what, Segment):
                place = [arg.index for arg in reading[0].args].index(call.slot)
                self._layers[call.slot] = Sparse(call.what, name, reading[0].what, place)
        self._halo = max((_one(each.conv.padding) for each in self._layers.values()), default=0)
        self._readers = {slot: [call.slot for call in calls] for slot, calls in readers.items()}

    @property
    def layers(self) -> list[Sparse]:
        """Those that may be sparse, their density as it is now."""
        for each in self._layers.values():
            self._look(each)
        return list(self._layers.values())

    def call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], dense: Callable[..., Tensor]) -> Any:
        """What one call gives; `dense(segment, *inputs)` computes a segment outside of blocks."""
        if self._over_connections(call.slot):
            return self._layer(self._layers[call.slot], args[0])
        if isinstance(call.what, Segment):
            if any(isinstance(x, Current) for x in args) or self._wanted(call.slot):
                return self._segment(call.what, args, dense)
            return dense(call.what, *map(_out, args))
        if isinstance(call.what, nn.Identity) and not hooked(call.what):
            return args[0]
        return call.what(*all_out(args), **all_out(kwargs))

    def _over_connections(self, slot: int) -> bool:
        each = self._layers.get(slot)
        if each is None or hooked(each.conv):
            return False
        self._look(each)
        return each.density <= DENSITY["bf16" if torch.is_autocast_enabled("cpu") else "fp32"]

    def _look(self, each: Sparse) -> None:
        mask = self._wiring.masks[each.name]
        if each.version != mask._version:
            each.version, each.pattern = mask._version, None
            each.density = float(mask.sum()) / mask.numel()

    def _wanted(self, slot: int) -> bool:
        """Whether a layer that goes over connections reads the slot."""
        return any(self._over_connections(reader) for reader in self._readers.get(slot, []))

    def _layer(self, each: Sparse, x: Tensor | Current | Spikes) -> Current:
        conv, neuron = each.conv, each.segment.neuron
        if isinstance(x, Tensor):
            x = blocked.reals(x.to(conv.weight.dtype), 1 if neuron.static else neuron.steps)
        if each.pattern is None or each.pattern.geometry != self._geometry(conv, x):
            each.pattern = Pattern(self._wiring.masks[each.name], self._geometry(conv, x))
        everything = None
        if torch.is_grad_enabled() and self._wiring.dense_gradient_due:
            if each.everything is None or each.everything.geometry != each.pattern.geometry:
                each.everything = Pattern(torch.ones_like(self._wiring.masks[each.name]), each.pattern.geometry)
            everything = each.everything
        norm = each.segment.norms[each.place]
        near = None if norm is None or norm.running_mean is None else norm.running_mean.to(conv.weight.dtype, copy=True)
        sums = norm is not None and (norm.training or norm.running_mean is None)
        return layer(x, conv.weight, conv.bias, each.pattern, everything=everything, shift=near, sums=sums)

    def _geometry(self, conv: nn.Conv2d, x: Current | Spikes) -> Geometry:
        return Geometry(
            x.form.channels,
            x.form.height,
            x.form.width,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            _one(conv.stride),
            _one(conv.padding),
            _one(conv.dilation),
            conv.groups,
            x.halo if isinstance(x, Spikes) else self._halo,
        )

    def _segment(self, segment: Segment, args: tuple[Any, ...], dense: Callable[..., Tensor]) -> Spikes | Tensor:
        how, form = (
            fire_of(segment.neuron),
            blocked.form_of(args[0], 1) if isinstance(args[0], Tensor) else args[0].form,
        )
        if how is None or form.rows == 0 or any(hooked(module) for module in segment.modules):
            return dense(segment, *map(_out, args))
        steps = 1 if how.repeat else how.steps
        if steps > 1 and all(isinstance(x, Tensor) for x in args):  # its spikes are fewer, and sets: block these
            return blocked.spikes(_wide(dense(segment, *args)), steps, self._halo)
        terms, norms = [], []
        for x, norm in zip(args, segment.norms, strict=True):
            term, given = _term(x, norm, steps, len(terms) == 1 and isinstance(terms[0], Spikes))
            terms.append(term)
            norms.append(given)
        even = form.height % 2 == 0 and form.width % 2 == 0
        spikes = fire(how, segment.neuron.decay, terms, norms, segment.pool is not None and even, self._halo)
        return spikes if even or segment.pool is None else segment.pool(blocked.plain(spikes))


def _term(x: Any, norm: BatchNorm | None, steps: int, second: bool) -> tuple[Current | Spikes, Given]:
    """An input of a neuron in blocks, and what normalises it. Only one of two may be spikes (`second`: one is)."""
    if isinstance(x, Spikes) and (norm is not None or second):
        x = blocked.plain(x)
    if norm is None:
        return (blocked.reals(_wide(x), steps) if isinstance(x, Tensor) else x), (None, None, None)
    step = norm_step(norm)
    if isinstance(x, Tensor):
        x = _wide(x)
    if not step.batch:
        mean, var = step.running
        assert mean is not None
        assert var is not None
        given = mean.double(), (var.double() + step.eps).rsqrt(), False
    elif isinstance(x, Tensor):
        found = native.moments(native.laid_out(x.detach()), None, None, step.eps, step.momentum, step.running)
        assert found.mean is not None
        assert found.inverse is not None
        given = found.mean.double(), found.inverse.double(), True
    else:
        assert isinstance(x, Current)
        mean, var, inverse = moments(x, step.eps)
        if step.running[0] is not None and step.running[1] is not None:
            unbiased = var * (x.form.rows / max(1, x.form.rows - 1))
            step.running[0].lerp_(mean.to(step.running[0]), step.momentum)
            step.running[1].lerp_(unbiased.to(step.running[1]), step.momentum)
        given = mean, inverse, True
    return (blocked.reals(x, steps) if isinstance(x, Tensor) else x), (norm.weight, norm.bias, given)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _out(x: Any) -> Any:
    """`x` as everybody else takes it."""
    return blocked.plain(x) if isinstance(x, Current | Spikes) else x


def all_out(value: Any) -> Any:
    """`value` with nothing in blocks, whatever it is made of."""
    if isinstance(value, tuple | list):
        return type(value)(all_out(item) for item in value)
    if isinstance(value, dict):
        return {key: all_out(item) for key, item in value.items()}
    return _out(value)


def _expressible(conv: nn.Conv2d) -> bool:
    """Whether kernels have words for it: zeros around, the same in both directions, strides 1 and 2."""
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    alike = all(len(set(pair)) == 1 for pair in (conv.stride, conv.padding, conv.dilation))
    kind = conv.weight.dtype in blocked.TYPES and conv.weight.device.type == "cpu"
    return alike and conv.stride[0] <= 2 and kind and native.available()


def _one(pair: Any) -> int:
    return pair[0] if isinstance(pair, tuple) else pair
