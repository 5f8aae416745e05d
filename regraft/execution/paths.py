"""How each call of a program is computed: densely, or over existing connections on blocks of 16 images.

A convolution goes over its existing connections where a measured table says that it is faster, and then its neurons
work on blocks too. What is in blocks stays there from layer to layer, and comes out where somebody else reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regraft.execution import blocked, native
from regraft.execution.blocked import Current, Form, Spikes
from regraft.execution.calibration import Calibration, boundary
from regraft.execution.fire import fire_of
from regraft.execution.fused import BatchNorm, norm_step
from regraft.execution.hooks import hooked, original
from regraft.execution.pattern import Geometry
from regraft.execution.plan import Call, Program, Segment, slots_in
from regraft.execution.sparse import fire, layer, linear, linear_geometry, moments, tiled
from regraft.execution.wiring import Frozen, Wired, Wiring
from regraft.kernels.sparse import LANES
from regraft.neurons import LIF

Given = tuple[Tensor | None, Tensor | None, Any]


@dataclass
class Sparse:
    """A convolution that may go over its connections alone, and the segment, with the slot of its spikes, that reads
    it as input `place`."""

    wired: Wired
    segment: Segment
    slot: int
    place: int

    @property
    def conv(self) -> nn.Conv2d:
        assert isinstance(self.wired.module, nn.Conv2d)
        return self.wired.module


class Paths:
    """The choices for one program; they follow the wiring.

    Args:
        names: of parameters, by `id`, as the wiring knows them.

    Attributes:
        calibration: the table that decides.
        choices: for each wired layer and each convolution of the program, why it is computed densely, as of the last
            forward pass; empty where it goes over its connections. A first layer with few inputs may do so whole: what
            lies behind it is in blocks then from the start.
    """

    def __init__(
        self, program: Program, names: Mapping[int, str], wiring: Wiring | Frozen, calibration: Calibration
    ) -> None:
        self._wiring = wiring
        self.calibration = calibration
        self.choices: dict[str, str] = {}
        self._convolutions: dict[int, Sparse] = {}
        self._linears: dict[int, Wired] = {}
        readers: dict[int, list[Call]] = {}
        for call in program.calls:
            for slot in set(slots_in((call.args, call.kwargs))):
                readers.setdefault(slot, []).append(call)
        kept = set(slots_in(program.result))
        for call in program.calls:
            name = names.get(id(getattr(call.what, "weight", None)), "")
            if name not in wiring.masks and not (name and isinstance(call.what, nn.Conv2d)):
                continue
            reading = [] if call.slot in kept else readers.get(call.slot, [])
            why = _inexpressible(call.what, reading)
            self.choices[name] = why or "not called yet"
            if isinstance(call.what, nn.Linear) and not why:
                self._linears[call.slot] = Wired(call.what, name)
            elif isinstance(call.what, nn.Conv2d) and not why:
                segment: Any = reading[0].what
                place = [arg.index for arg in reading[0].args].index(call.slot)
                self._convolutions[call.slot] = Sparse(Wired(call.what, name), segment, reading[0].slot, place)
        self._halo = max((_one(each.conv.padding) for each in self._convolutions.values()), default=0)
        self._readers = {slot: [call.slot for call in calls] for slot, calls in readers.items()}

    @property
    def possible(self) -> bool:
        """Whether any layer may go over its connections."""
        return bool(self._convolutions or self._linears)

    def call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], dense: Callable[..., Tensor]) -> Any:
        """What one call gives; `dense(segment, *inputs)` computes a segment outside of blocks."""
        if call.slot in self._convolutions:
            each = self._convolutions[call.slot]
            why = self._why_not_over(each, _form_of(args[0], each.segment.neuron))
            whole = not why and each.wired.density(self._wiring) == 1
            if whole and not self._wanted(each.slot, args[0], each.segment.neuron):
                why = "it is whole, and what reads it does not go over its connections"
            self.choices[each.wired.name] = why
            if not why:
                return self._convolution(each, args[0])
        if call.slot in self._linears:
            wired, x = self._linears[call.slot], _out(args[0])
            why = self.choices[wired.name] = self._why_dense(wired, min(wired.module.weight.shape), _filled(x))
            if not why:
                return self._linear(wired, x)
        if isinstance(call.what, Segment):
            if any(isinstance(x, Current) for x in args) or self._wanted(call.slot, args[0], call.what.neuron):
                return self._segment(call.what, args, dense)
            return dense(call.what, *map(_out, args))
        if isinstance(call.what, nn.Identity) and not hooked(call.what):
            return args[0]
        return original(call.what)(*all_out(args), **all_out(kwargs))

    def _why_not_over(self, each: Sparse, form: Form | None) -> str:
        """Empty if a convolution goes over its connections in an input of this form."""
        if form is None:
            return "its input is not [T*N, C, H, W]"
        return self._why_dense(each.wired, each.conv.weight[0].numel(), form.filled)

    def _why_dense(self, wired: Wired, weights: int, filled: float) -> str:
        """Empty if a layer goes over its connections where that share of the lanes is filled."""
        if hooked(wired.module):
            return "a hook looks at it"
        kind = "linear" if isinstance(wired.module, nn.Linear) else "convolution"
        arithmetic = "bf16" if torch.is_autocast_enabled("cpu") else "fp32"
        below = boundary(self.calibration, kind, arithmetic, weights, filled)
        density = wired.density(self._wiring)
        if density <= below and below:
            return ""
        if not below:
            return f"{arithmetic} products of its size are faster at any density"
        return f"density {density:.3g} is above {below:.3g}, where {arithmetic} products are faster"

    def _wanted(self, slot: int, x: Tensor | Current | Spikes, neuron: LIF) -> bool:
        """Whether a convolution over connections reads the slot: the spikes of a neuron whose input is `x`."""
        form = _form_of(x, neuron)
        form = None if form is None else replace(form, steps=neuron.steps)
        reading = [self._convolutions[at] for at in self._readers.get(slot, []) if at in self._convolutions]
        return any(not self._why_not_over(each, form) for each in reading)

    def _linear(self, wired: Wired, x: Tensor) -> Tensor:
        weight, bias = wired.module.weight, wired.module.bias
        outputs, inputs = weight.shape
        geometry = linear_geometry(inputs, outputs, x.numel() // inputs)
        pattern, learnt = wired.pattern(self._wiring, geometry), wired.learnt(self._wiring, geometry)
        return linear(x.to(weight.dtype), weight, bias, pattern, learnt=learnt)

    def _convolution(self, each: Sparse, x: Tensor | Current | Spikes) -> Current:
        conv, neuron = each.conv, each.segment.neuron
        if isinstance(x, Tensor):
            x = blocked.reals(x.to(conv.weight.dtype), 1 if neuron.static else neuron.steps)
        geometry = self._geometry(conv, x)
        pattern, learnt = each.wired.pattern(self._wiring, geometry), each.wired.learnt(self._wiring, geometry)
        norm = each.segment.norms[each.place]
        near = None if norm is None or norm.running_mean is None else norm.running_mean.to(conv.weight.dtype, copy=True)
        sums = norm is not None and (norm.training or norm.running_mean is None)
        return layer(x, conv.weight, conv.bias, pattern, learnt=learnt, shift=near, sums=sums)

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


def _inexpressible(layer: Any, reading: list[Call]) -> str:
    """Why kernels have no words for a layer that these calls read; empty if they have."""
    if type(layer) not in (nn.Conv2d, nn.Linear):
        return f"{type(layer).__name__} is neither Conv2d nor Linear"
    if layer.weight.dtype not in blocked.TYPES or layer.weight.device.type != "cpu":
        return f"weights in {layer.weight.dtype} on {layer.weight.device.type}"
    if not native.available():
        return "no kernels are built, or they are off"
    if isinstance(layer, nn.Linear):
        return ""
    if len(reading) != 1 or not isinstance(reading[0].what, Segment):
        return "not a neuron alone reads it"
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return f"padding {layer.padding!r} in mode {layer.padding_mode!r}"
    if any(len(set(pair)) > 1 for pair in (layer.stride, layer.padding, layer.dilation)) or layer.stride[0] > 2:
        return f"stride {layer.stride}, padding {layer.padding}, dilation {layer.dilation}"
    return ""


def _filled(x: Tensor) -> float:
    """The share of lanes that hold a sample of a linear layer's input."""
    rows = x.numel() // x.shape[-1] if x.numel() else 0
    blocks, wide = tiled(rows)
    return rows / (blocks * wide * LANES)


def _form_of(x: Tensor | Current | Spikes, neuron: LIF) -> Form | None:
    """Of what a layer reads, behind which `neuron` stands; None where it is not `[T*N, C, H, W]`."""
    if not isinstance(x, Tensor):
        return x.form
    steps = 1 if neuron.static else neuron.steps
    return blocked.form_of(x, steps) if x.dim() == 4 and len(x) % steps == 0 else None


def _one(pair: Any) -> int:
    return pair[0] if isinstance(pair, tuple) else pair
