"""Normalisation, neuron and pooling as one function with its own backward pass.

What a segment keeps for the backward pass is its inputs, the convolutions' outputs, and a few numbers a channel; the
membrane is computed again. A plain graph keeps about ten tensors of that size a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from regraft.execution.engines import engine
from regraft.execution.fire import Fire, number
from regraft.execution.native import Normalised

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass(frozen=True)
class Norm:
    """Settings of a batch normalisation for one call."""

    eps: float
    momentum: float
    batch: bool  # by this batch's statistics, else by the running ones
    running: tuple[Tensor | None, Tensor | None]


def segment(
    how: Fire, decay: float | Tensor, inputs: Sequence[Tensor], norms: Sequence[BatchNorm | None], pool: bool
) -> Tensor:
    """Spikes `[T*N, C, ...]` of a neuron over the sum of one or two inputs `[T*N, C, ...]`, each normalised or not.

    Running statistics move as `nn.BatchNorm2d` moves them.
    """
    arguments: list[Any] = []
    for norm in norms:
        arguments += [None, None, None] if norm is None else [norm.weight, norm.bias, norm_step(norm)]
    return _Segment.apply(how, pool, decay, len(inputs), *inputs, *arguments)  # pyright: ignore[reportReturnType]


def norm_step(norm: BatchNorm) -> Norm:
    """What this call of a normalisation does, and the count of its calls."""
    batch = norm.training or norm.running_mean is None
    momentum = norm.momentum
    moves = norm.training and norm.track_running_stats and norm.running_mean is not None
    if moves and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / float(norm.num_batches_tracked) if momentum is None else momentum
    return Norm(
        norm.eps, momentum or 0.0, batch, (norm.running_mean, norm.running_var) if moves or not batch else _NONE
    )


_NONE = (None, None)


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: Fire, pool: bool, decay: float | Tensor, count: int, *rest: Any) -> Tensor:
        kernels = _engine(rest[0])
        ys = [kernels.laid_out(y) for y in rest[:count]]
        triples = [rest[count + 3 * i : count + 3 * i + 3] for i in range(count)]
        if count == 2 and kernels.channels_last(ys[0]) != kernels.channels_last(ys[1]):
            ys[1] = _in_layout(ys[1], ys[0])
        terms = [_normalised(y, *triple) for y, triple in zip(ys, triples, strict=True)]
        ctx.how, ctx.pool, ctx.batch = how, pool, [norm is not None and norm.batch for _, _, norm in triples]
        ctx.affine = [(gamma is not None, beta is not None) for gamma, beta, _ in triples]
        ctx.last = ys[0].dim() == 4 and kernels.channels_last(ys[0])
        # On a GPU a learnt decay stays a tensor: to read its value would be to wait for it.
        ctx.decay = decay.detach() if isinstance(decay, Tensor) and decay.is_cuda else number(decay)
        ctx.save_for_backward(*(tensor for term in terms for tensor in term))
        return kernels.fire(how, ctx.decay, terms, pool)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count, saved, needs = len(ctx.batch), ctx.saved_tensors, ctx.needs_input_grad
        terms = [Normalised(*saved[5 * i : 5 * i + 5]) for i in range(count)]
        form = torch.channels_last if ctx.last else torch.contiguous_format  # hooks on saved tensors may have lost it
        terms = [term._replace(y=term.y.contiguous(memory_format=form)) for term in terms]
        grad = grad.to(terms[0].y.dtype).contiguous(memory_format=form)
        gx, sums, of_decay = _engine(grad).unfire(ctx.how, ctx.decay, terms, grad, ctx.pool, learn=needs[2])
        onto_inputs, onto_norms = [], []
        for i, (term, affine, batch) in enumerate(zip(terms, ctx.affine, ctx.batch, strict=True)):
            onto_norms += _onto_norm(term, affine, sums[0], sums[1 + i])
            if not needs[4 + i]:
                onto_inputs.append(None)
            elif term.scale is None:
                onto_inputs.append(gx)
            else:
                last = i == count - 1 and not any(
                    given is gx for given in onto_inputs
                )  # it takes the gradient's memory
                onto_inputs.append(_onto_y(gx, term, batch, sums[0], sums[1 + i], into=last))
        return None, None, of_decay if needs[2] else None, None, *onto_inputs, *onto_norms


def _normalised(y: Tensor, gamma: Tensor | None, beta: Tensor | None, norm: Norm | None) -> Normalised:
    if norm is None:
        return Normalised(y)
    if norm.batch:
        return _engine(y).moments(y, gamma, beta, norm.eps, norm.momentum, norm.running)
    mean, var = norm.running
    assert mean is not None
    assert var is not None
    inverse = (var.double() + norm.eps).rsqrt()
    scale = inverse if gamma is None else inverse * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    wide = _engine(y).real(y)
    # A copy of the mean: it may move before the backward pass, by kernels that autograd does not see.
    return Normalised(y, mean.to(wide, copy=True), inverse.to(wide), scale.to(wide), shift.to(wide))


def _onto_norm(term: Normalised, affine: tuple[bool, bool], g: Tensor, gy: Tensor) -> list[Tensor | None]:
    """Gradients of gamma and beta, where there are such; the third place is the normalisation's settings."""
    gamma, beta = affine
    # Autograd may keep a gradient as it is given, to add to it later: two normalisations must not share one.
    return [gy * term.inverse if gamma and term.inverse is not None else None, g.clone() if beta else None, None]


def _onto_y(gx: Tensor, term: Normalised, batch: bool, g: Tensor, gy: Tensor, *, into: bool) -> Tensor:
    """From the gradient of the normalised input to that of the input."""
    assert term.inverse is not None
    if not batch:
        zero = torch.zeros_like(g)
        return _engine(gx).renormalise(gx, term, zero, zero, into=into)
    rows = gx.numel() // gx.shape[1]
    return _engine(gx).renormalise(gx, term, g / rows, gy * term.inverse.square() / rows, into=into)


def _in_layout(tensor: Tensor, y: Tensor) -> Tensor:
    """In the dtype and the memory order of `y`."""
    last = y.dim() == 4 and _engine(y).channels_last(y)
    form = torch.channels_last if last else torch.contiguous_format
    return tensor.to(y.dtype).contiguous(memory_format=form)


def _engine(y: Tensor) -> Any:
    found = engine(y.device.type)
    assert found is not None, "a segment is fused only where there is an engine"
    return found
