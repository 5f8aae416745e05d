"""The engine for processors: tensors in, the compiled kernels over their memory, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regraft.execution.fire import Fire
from regraft.kernels import calls
from regraft.kernels import segment as kernels

TYPES: dict[torch.dtype, calls.Type] = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float64: "f64"}


class Normalised(NamedTuple):
    """An input and, for each of its channels, what normalises it: `y * scale + shift`. None: it is taken as it is."""

    y: Tensor
    mean: Tensor | None = None
    inverse: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


def available() -> bool:
    """Whether the kernels were built."""
    return calls.available()


def real(y: Tensor) -> torch.dtype:
    """What is computed in, where `y` is stored."""
    return torch.float64 if y.dtype == torch.float64 else torch.float32


def laid_out(y: Tensor) -> Tensor:
    """`y` itself if each channel's elements, or each place's channels, lie together; else a copy, channels last."""
    if y.is_contiguous() or (y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)):
        return y
    return y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 else y.contiguous()


def channels_last(y: Tensor) -> bool:
    """Whether the channels of a `laid_out` tensor are innermost."""
    return y.dim() == 2 or (y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last))


def like(y: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty tensor in the layout of `y`."""
    last = y.dim() == 4 and channels_last(y)
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=form)


def moments(
    y: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    momentum: float,
    running: tuple[Tensor | None, Tensor | None],
) -> Normalised:
    """`y` `[B, C, ...]` with its statistics over all but the channels; moves the running ones, if given."""
    kind, channels = TYPES[y.dtype], y.shape[1]
    results = y.new_empty((4, channels), dtype=real(y)).unbind()
    mean, inverse, scale, shift = results
    room, partial = _working(y)
    kernels.moments(
        kind,
        _form(y),
        torch.get_num_threads(),
        y.data_ptr(),
        _at(gamma),
        _at(beta),
        eps,
        momentum,
        (_at(running[0]), _at(running[1])),
        (mean.data_ptr(), inverse.data_ptr(), scale.data_ptr(), shift.data_ptr()),
        room.data_ptr(),
        partial.data_ptr(),
    )
    return Normalised(y, mean, inverse, scale, shift)


def fire(how: Fire, decay: float, terms: Sequence[Normalised], pool: bool) -> Tensor:
    """Spikes `[T*N, C, ...]`, of half the size where pooled (channels last, even height and width)."""
    y = terms[0].y
    batch = len(y) * how.steps if how.repeat else len(y)
    size = [s // 2 for s in y.shape[2:]] if pool else list(y.shape[2:])
    spikes = like(y, (batch, y.shape[1], *size))
    room, _ = _working(y)
    segment = _segment(how, decay, terms, pool, learn=False)
    kernels.fire(TYPES[y.dtype], segment, _terms(terms), spikes.data_ptr(), room.data_ptr())
    return spikes


def unfire(
    how: Fire, decay: float, terms: Sequence[Normalised], grad: Tensor, pool: bool, learn: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the sum of terms, its sums `[1 + terms, C]` (by itself, and times each centred y), and the decay's.

    `grad`: of the spikes, in the layout of y.
    """
    y = terms[0].y
    gx, channels = torch.empty_like(y), y.shape[1]
    sums = y.new_empty((1 + len(terms)) * channels + 1, dtype=real(y))
    segment = _segment(how, decay, terms, pool, learn)
    room, partial = _working(y)
    places = (grad.data_ptr(), gx.data_ptr(), sums.data_ptr(), room.data_ptr(), partial.data_ptr())
    kernels.unfire(TYPES[y.dtype], segment, _terms(terms), *places)
    return gx, sums[:-1].view(-1, channels), sums[-1]


def renormalise(g: Tensor, term: Normalised, k0: Tensor, k1: Tensor, *, into: bool) -> Tensor:
    """From the gradient of the normalised y to that of y: `scale * (g - k0 - k1 * (y - mean))`; in place if `into`."""
    y, mean, _, scale, _ = term
    assert mean is not None
    assert scale is not None
    to = g if into else torch.empty_like(g)
    channels = (mean.data_ptr(), scale.data_ptr(), k0.data_ptr(), k1.data_ptr())
    room, _ = _working(y)
    places = (y.data_ptr(), g.data_ptr(), to.data_ptr())
    kernels.renormalise(TYPES[y.dtype], _form(y), torch.get_num_threads(), *places, channels, room.data_ptr())
    return to


def neuron_numbers(how: Fire, decay: float, learn: bool) -> dict[str, Any]:
    """A neuron as the kernels' descriptions spell it. `learn`: the decay's gradient is wanted."""
    return {
        "surrogate": kernels.SURROGATES.index(how.surrogate),
        "hard": how.amount is None,
        "detach": how.detach_reset,
        "learn": learn,
        "threads": torch.get_num_threads(),
        "decay": decay,
        "gain": 1 - decay if how.decay_input else 1.0,
        "threshold": how.threshold,
        "amount": how.amount or 0.0,
        "shape": how.shape,
    }


def _segment(how: Fire, decay: float, terms: Sequence[Normalised], pool: bool, learn: bool) -> kernels.Segment:
    y = terms[0].y
    elements, channels, inner = _form(y)
    of_step = elements if how.repeat else elements // how.steps
    height, width = y.shape[2:] if pool else (0, 0)
    return kernels.Segment(
        steps=how.steps,
        rows=of_step // max(1, channels),
        channels=channels,
        inner=inner,
        height=height,
        width=width,
        repeat=how.repeat,
        terms=len(terms),
        **neuron_numbers(how, decay, learn),
    )


def _terms(terms: Sequence[Normalised]) -> list[kernels.Term]:
    return [kernels.Term(term.y.data_ptr(), _at(term.scale), _at(term.shift), _at(term.mean)) for term in terms]


def _form(y: Tensor) -> tuple[int, int, int]:
    """Elements, channels, and how many elements of a channel lie together."""
    return y.numel(), y.shape[1], 1 if channels_last(y) else y[0, 0].numel()


def _working(y: Tensor) -> tuple[Tensor, Tensor]:
    """Working memory for a kernel over `y`; hold it until the kernel is back."""
    kind, channels = TYPES[y.dtype], y.shape[1]
    room = y.new_empty(kernels.room(kind, channels), dtype=real(y))
    return room, y.new_empty(kernels.partials(kind, channels), dtype=torch.float64)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
