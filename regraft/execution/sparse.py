"""Layers over existing connections, and the neurons between them, as functions of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from regraft.execution import blocked
from regraft.execution.blocked import TYPES, Current, Deferred, Form, Spikes
from regraft.execution.fire import Fire
from regraft.execution.memory import empty
from regraft.execution.native import neuron_numbers
from regraft.execution.pattern import Geometry, Pattern
from regraft.kernels import sparse as kernels
from regraft.kernels.sparse import GROUPS, LANES, TASKS


def layer(
    x: Spikes | Current,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    *,
    learnt: Pattern | Literal["all"] | None = None,
    shift: Tensor | None = None,
    sums: bool = True,
) -> Current:
    """A convolution over the connections of a pattern.

    Args:
        weight: dense, with zeros where no connection is; its gradient has zeros there too.
        learnt: the connections, also absent ones, that get a gradient; those of `pattern` if not given.
        shift: about the mean of each channel, `[C']`; sums are taken around it.
        sums: whether they are needed.
    """
    deferred = Deferred()
    form = _behind(x.form, pattern.geometry)
    onto = x.carrier if isinstance(x, Spikes) else x.y
    context = (x, form, pattern, pattern if learnt is None else learnt, shift, sums, deferred)
    y, total = _Layer.apply(onto, weight, bias, context)  # pyright: ignore[reportGeneralTypeIssues]
    return Current(form, y, total if sums else None, shift, deferred)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, pattern: Pattern, *, learnt: Pattern | Literal["all"] | None = None
) -> Tensor:
    """A linear layer over the connections of a pattern (see `linear_geometry`).

    Its samples are the pixels of images one pixel high, 16 by 16 in a block; so `x` `[..., F]` goes in and out by
    transposition.
    """
    rows, inputs = x.reshape(-1, x.shape[-1]).shape
    blocks, wide = tiled(rows)
    padded = F.pad(x.reshape(rows, inputs), (0, 0, 0, blocks * wide * LANES - rows))
    form = Form(blocks, LANES, inputs, 1, wide)
    into = padded.view(blocks, wide, LANES, inputs).permute(0, 3, 1, 2).reshape(form.shape).contiguous()
    y = layer(Current(form, into), weight, bias, pattern, learnt=learnt, sums=False)
    out = y.y.view(blocks, -1, wide, LANES).permute(0, 2, 3, 1).reshape(blocks * wide * LANES, len(weight))
    return out[:rows].view(*x.shape[:-1], len(weight))


def tiled(rows: int) -> tuple[int, int]:
    """Blocks of so many samples, and pixels in each."""
    pixels = max(1, -(-rows // LANES))
    blocks = -(-pixels // LANES)
    return blocks, -(-pixels // blocks)


def linear_geometry(inputs: int, outputs: int, rows: int) -> Geometry:
    """Of a linear layer in a batch of `rows` samples."""
    return Geometry(inputs, 1, tiled(rows)[1], outputs, (1, 1), 1, 0, 1, 1, 0)


def moments(x: Current, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and inverse deviation of each channel, float64, from the sums of its layer."""
    assert x.sums is not None
    first, second = x.sums / x.form.rows
    var = (second - first.square()).clamp_min(0)
    mean = first if x.shift is None else first + x.shift
    return mean, var, (var + eps).rsqrt()


def _behind(form: Form, g: Geometry) -> Form:
    return replace(form, channels=g.out_channels, height=g.out_height, width=g.out_width)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, onto: Tensor, weight: Tensor, bias: Tensor | None, context: Any) -> tuple[Tensor, Tensor]:
        x, form, pattern, learnt, shift, sums, deferred = context
        value = weight.reshape(-1)[pattern.index]
        y = empty(form.shape, weight.dtype)
        total = torch.empty((2, form.channels) if sums else 0, dtype=torch.float64)
        partial = torch.empty(2 * GROUPS * form.channels if sums else 0, dtype=torch.float64)
        bits, reals = (x.bits, None) if isinstance(x, Spikes) else (None, x.y)
        kernels.layer_forward(
            TYPES[weight.dtype],
            _described(x.form, form, pattern, len(pattern)),
            _at(bits),
            _at(reals),
            pattern.rows,
            value.data_ptr(),
            _at(bias),
            _at(shift),
            y.data_ptr(),
            _at(total if sums else None),
            _at(partial if sums else None),
        )
        ctx.save_for_backward(bits, reals, y, value)
        ctx.context = (x.form, form, pattern, learnt, deferred, weight.shape, bias is not None)
        lower = torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32
        ctx.product = torch.get_autocast_dtype("cpu") if lower else weight.dtype
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(total)
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        before, form, pattern, learnt, deferred, shape, biased = ctx.context
        bits, reals, y, value = ctx.saved_tensors
        g = g.contiguous()
        by_row = pattern if learnt == "all" else learnt
        channels = (None,) * 4 if deferred.channels is None else tuple(_at(t) for t in deferred.channels)
        described = _described(before, form, pattern, len(by_row))
        onto = torch.empty(len(by_row), dtype=y.dtype)
        partial = torch.empty(GROUPS * len(by_row), dtype=y.dtype)
        gx = empty(before.shape, y.dtype) if ctx.needs_input_grad[0] else None
        kernels.layer_backward(
            TYPES[y.dtype],
            described,
            _at(bits),
            _at(reals),
            y.data_ptr(),
            g.data_ptr(),
            channels,
            by_row.rows,
            pattern.phases,
            value.data_ptr(),
            onto.data_ptr(),
            _at(gx),
            partial.data_ptr(),
        )
        of_bias = g.sum((0, 1, 3, 4)) if biased else None
        if of_bias is not None and deferred.channels is not None:
            _, scale, k0, _ = deferred.channels
            of_bias = scale * (of_bias - form.rows * k0)  # what is centred sums to 0
        of_weight = torch.zeros(shape, dtype=y.dtype)
        if learnt == "all" and reals is None:
            places = (bits.data_ptr(), y.data_ptr(), g.data_ptr(), channels, of_weight.data_ptr())
            kernels.dense_gradient(TYPES[y.dtype], described, _kernel(pattern.geometry), *places)
        elif learnt == "all":
            x, of_y = blocked.unblocked(before, reals), blocked.unblocked(form, deferred.settle(g, y))
            of_weight.copy_(_dense_gradient(x.to(ctx.product), of_y.to(ctx.product), pattern.geometry).view(shape))
        deferred.channels = None
        of_weight.view(-1)[by_row.index] = onto  # beside all, too: the connections' own change nothing
        return gx, of_weight, of_bias, None


def _dense_gradient(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """Of all weights, also those of absent connections, by the library's dense product."""
    per_group = geometry.in_channels // geometry.groups
    weight = torch.empty((geometry.out_channels, per_group, *geometry.kernel), dtype=x.dtype)
    stride, padding, dilation = ([each] * 2 for each in (geometry.stride, geometry.padding, geometry.dilation))
    wanted = (False, True, False)
    given = (stride, padding, dilation, False, [0, 0], geometry.groups, wanted)
    return torch.ops.aten.convolution_backward(g, x, weight, None, *given)[1]


def _kernel(g: Geometry) -> kernels.Kernel:
    return kernels.Kernel(*g.kernel, g.dilation, g.groups)


def _described(before: Form, form: Form, pattern: Pattern, connections: int) -> kernels.Layer:
    g = pattern.geometry
    images, per_run = form.run
    return kernels.Layer(
        blocks=form.blocks,
        per_step=per_run,
        lanes=images - LANES * (per_run - 1),
        in_channels=before.channels,
        in_height=before.height,
        in_width=before.width,
        halo=g.halo,
        out_channels=form.channels,
        out_height=form.height,
        out_width=form.width,
        stride=g.stride,
        padding=g.padding,
        connections=connections,
        margin=pattern.margin,
        threads=torch.get_num_threads(),
    )


def fire(
    how: Fire,
    decay: float | Tensor,
    terms: Sequence[Current | Spikes],
    norms: Sequence[tuple[Tensor | None, Tensor | None, Any]],
    pool: bool,
    halo: int,
) -> Spikes:
    """Spikes of a neuron over the sum of one or two terms: currents, normalised or not, and at most one of spikes.

    Args:
        norms: for each term gamma, beta and `(mean, inverse, batch)`, or None where it is not normalised.
        halo: empty pixels to leave around the spikes.
    """
    terms, norms = list(terms), list(norms)
    if isinstance(terms[0], Spikes):
        terms.reverse()
        norms.reverse()
    first = terms[0].form
    form = replace(first, steps=how.steps)
    form = blocked.pooled(form) if pool else form
    edges = [term.carrier if isinstance(term, Spikes) else term.y for term in terms]
    numbers = [number for gamma, beta, _ in norms for number in (gamma, beta)]
    context = (how, terms, [given for _, _, given in norms], pool, halo, form)
    carrier, bits = _Fire.apply(context, decay, len(terms), *edges, *numbers)  # pyright: ignore[reportGeneralTypeIssues]
    return Spikes(form, bits, halo, carrier)


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, context: Any, decay: float | Tensor, count: int, *rest: Tensor) -> tuple[Tensor, Tensor]:
        how, terms, given, pool, halo, form = context
        y = rest[0]
        wide = y.dtype
        saved: list[Tensor | None] = []
        described: list[kernels.Term] = []
        added = None
        for i, (term, norm) in enumerate(zip(terms, given, strict=True)):
            if isinstance(term, Spikes):
                added = term.bits
                continue
            mean = inverse = scale = shift = None
            if norm is not None:
                gamma, beta = rest[count + 2 * i], rest[count + 2 * i + 1]
                mean, inverse, _ = norm
                double = inverse if gamma is None else inverse * gamma.detach()
                offset = -mean * double if beta is None else beta.detach() - mean * double
                mean, inverse, scale, shift = (t.to(wide) for t in (mean, inverse, double, offset))
            described.append(kernels.Term(term.y.data_ptr(), _at(scale), _at(shift), _at(mean)))
            saved += [term.y, mean, inverse, scale, shift]
        bits = blocked.empty_sets(form, halo)
        ctx.decay = float(decay.detach()) if isinstance(decay, Tensor) else decay
        ctx.kind = 3 if added is not None else len(described)
        shape = _neuron(how, ctx.decay, terms[0].form, ctx.kind, pool, halo, learn=False)
        kernels.fire(TYPES[wide], shape, described, _at(added), bits.data_ptr())
        later = [None if isinstance(term, Spikes) else term.deferred for term in terms]
        ctx.context = (how, later, given, pool, halo, terms[0].form)
        ctx.affine = [(rest[count + 2 * i] is not None, rest[count + 2 * i + 1] is not None) for i in range(count)]
        ctx.save_for_backward(added, *saved)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(bits)
        return blocked.carrier(form, wide), bits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        how, deferred, given, pool, halo, form = ctx.context
        count = len(deferred)
        if grad is None:
            return (None,) * (3 + 3 * count)
        added, *saved = ctx.saved_tensors
        grad = grad.contiguous()
        tensors = [saved[5 * i : 5 * i + 5] for i in range(len(saved) // 5)]
        y = tensors[0][0]
        described = [kernels.Term(t[0].data_ptr(), _at(t[3]), _at(t[4]), _at(t[1])) for t in tensors]
        gx, learn = empty(y.shape, y.dtype), ctx.needs_input_grad[1]
        sums = torch.empty(3 * form.channels + 1, dtype=y.dtype)
        partial = torch.empty(TASKS * (3 * form.channels + 1), dtype=torch.float64)
        shape = _neuron(how, ctx.decay, form, ctx.kind, pool, halo, learn)
        places = (grad.data_ptr(), gx.data_ptr(), sums.data_ptr(), partial.data_ptr())
        kernels.unfire(TYPES[y.dtype], shape, described, _at(added), *places)
        total, of_decay = sums[:-1].view(3, -1), sums[-1]
        edges, numbers = [], []
        for i, (later, norm, (gamma, beta)) in enumerate(zip(deferred, given, ctx.affine, strict=True)):
            if later is not None and norm is not None:
                _, mean, inverse, scale, _ = tensors[i]
                numbers += [total[1 + i] * inverse if gamma else None, total[0].clone() if beta else None]
                rows = form.rows if norm[2] else float("inf")
                later.channels = (mean, scale, total[0] / rows, total[1 + i] * inverse.square() / rows)
            else:
                numbers += [None, None]
            edges.append(gx if ctx.needs_input_grad[3 + i] else None)
        return None, of_decay if learn else None, None, *edges, *numbers


def _neuron(how: Fire, decay: float, form: Form, kind: int, pool: bool, halo: int, learn: bool) -> kernels.Blocked:
    return kernels.Blocked(
        steps=how.steps,
        per_step=form.per_step,
        lanes=form.images - LANES * (form.per_step - 1),
        share=form.together.bit_length() - 1,
        channels=form.channels,
        height=form.height,
        width=form.width,
        halo=halo,
        repeat=how.repeat,
        pool=pool,
        terms=kind,
        **neuron_numbers(how, decay, learn),
    )


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
