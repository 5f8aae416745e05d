"""Activations in blocks of 16 images: spikes as sets, currents as numbers; and the ways in and out.

The edge of autograd's graph that belongs to spikes is a *carrier*: a tensor of the blocked shape that holds no memory.
Its gradient is a real tensor of that shape.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regraft.execution.memory import empty
from regraft.kernels import calls
from regraft.kernels import sparse as kernels
from regraft.kernels.sparse import LANES

TYPES: dict[torch.dtype, calls.Type] = {torch.float32: "f32", torch.float64: "f64"}


@dataclass(frozen=True)
class Form:
    """`steps * images` samples of `[channels, height, width]`, 16 in a block.

    Each step begins a block, and its last one may hold fewer; steps of 8, 4, 2 or 1 images share blocks.
    """

    steps: int
    images: int
    channels: int
    height: int
    width: int

    @property
    def together(self) -> int:
        """Steps in a block."""
        return LANES // self.images if self.images in (1, 2, 4, 8) else 1

    @property
    def per_step(self) -> int:
        return -(-self.images // LANES)

    @property
    def blocks(self) -> int:
        return -(-self.steps // self.together) * self.per_step

    @property
    def run(self) -> tuple[int, int]:
        """Samples that fill blocks one after the other: how many of them, and in how many blocks."""
        return (self.images, self.per_step) if self.together == 1 else (self.steps * self.images, self.blocks)

    @property
    def filled(self) -> float:
        """The share of lanes that hold a sample."""
        return self.steps * self.images / (LANES * self.blocks) if self.blocks else 0.0

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Of reals."""
        return self.blocks, self.height, self.channels, self.width, LANES

    @property
    def rows(self) -> int:
        """Values of a channel."""
        return self.steps * self.images * self.height * self.width

    def sets(self, halo: int) -> int:
        """16-bit sets of its spikes, and what tiles may read behind them."""
        line = self.channels * (self.width + 2 * halo)
        return self.blocks * (self.height + 2 * halo) * line + 8 * line + 64


@dataclass(frozen=True)
class Spikes:
    """`bits`: int16 `[blocks, H + 2 halo, C, W + 2 halo]`, flat; `carrier`: their place in the graph."""

    form: Form
    bits: Tensor
    halo: int
    carrier: Tensor


@dataclass
class Deferred:
    """How the gradient of a normalised current becomes that of the current: left to the layer that made it.

    `channels`: mean, scale, k0 and k1, once the backward pass has come through the normalisation.
    """

    channels: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def settle(self, g: Tensor, y: Tensor) -> Tensor:
        """The gradient of the current `y`, in blocks, from `g`, which came through the normalisation."""
        if self.channels is None:
            return g
        mean, scale, k0, k1 = (channel[:, None, None] for channel in self.channels)
        return (y - mean).mul_(-k1).add_(g).sub_(k0).mul_(scale)


@dataclass(frozen=True)
class Current:
    """What a sparse layer gives: `y` `[blocks, H, C, W, 16]`.

    `sums`: float64 `[2, C]`, of `y - shift` and of its square, where asked for. `deferred`: where `y` is read by one
    normalisation alone, that may leave the last step of its backward pass to the layer.
    """

    form: Form
    y: Tensor
    sums: Tensor | None = None
    shift: Tensor | None = None
    deferred: Deferred = field(default_factory=Deferred)


def carrier(form: Form, dtype: torch.dtype) -> Tensor:
    """A tensor of the blocked shape without memory."""
    return torch.empty(1, dtype=dtype).expand(form.shape)


def empty_sets(form: Form, halo: int) -> Tensor:
    """No spikes."""
    return torch.zeros(form.sets(halo), dtype=torch.int16)


def reals(x: Tensor, steps: int) -> Current:
    """A plain `[T*N, C, H, W]` in blocks."""
    form, deferred = form_of(x, steps), Deferred()
    return Current(form, _Block.apply(x, form, deferred), deferred=deferred)  # pyright: ignore[reportArgumentType]


def spikes(x: Tensor, steps: int, halo: int) -> Spikes:
    """Plain spikes `[T*N, C, H, W]` in blocks, as sets."""
    form = form_of(x, steps)
    carried, bits = _Gather.apply(x, form, halo)  # pyright: ignore[reportGeneralTypeIssues]
    return Spikes(form, bits, halo, carried)


def form_of(x: Tensor, steps: int) -> Form:
    """Of a plain `[T*N, C, H, W]` or `[T*N, F]`."""
    return Form(steps, len(x) // steps, *(x.shape[1:] if x.dim() == 4 else (x.shape[1], 1, 1)))


def plain(value: Current | Spikes) -> Tensor:
    """Out of blocks: `[T*N, C, H, W]`."""
    if isinstance(value, Spikes):
        return _Unblock.apply(value.carrier, value)  # pyright: ignore[reportReturnType]
    return _Unblock.apply(value.y, value)  # pyright: ignore[reportReturnType]


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, form: Form, deferred: Deferred) -> Tensor:
        ctx.form, ctx.deferred, ctx.like = form, deferred, (x.shape, x.stride())
        y = empty(form.shape, x.dtype)
        exchange("block_reals", form, x.view(form_shape(form)), y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shape, stride = ctx.like
        grad = ctx.deferred.settle(grad.contiguous(), *ctx.saved_tensors)
        ctx.deferred.channels = None
        x = torch.empty_strided(shape, stride, dtype=grad.dtype)
        exchange("unblock_reals", ctx.form, x.view(form_shape(ctx.form)), grad)
        return x, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, form: Form, halo: int) -> tuple[Tensor, Tensor]:
        ctx.form, ctx.like = form, (x.shape, x.stride())
        bits = empty_sets(form, halo)
        exchange("block_spikes", form, x.view(form_shape(form)), bits, halo)
        ctx.mark_non_differentiable(bits)
        return carrier(form, x.dtype), bits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shape, stride = ctx.like
        x = torch.empty_strided(shape, stride, dtype=grad.dtype)
        exchange("unblock_reals", ctx.form, x.view(form_shape(ctx.form)), grad.contiguous())
        return x, None, None


class _Unblock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, value: Current | Spikes) -> Tensor:
        ctx.form = value.form
        if isinstance(value, Spikes):
            return unblocked_spikes(value.form, value.bits, value.halo, y.dtype)
        return unblocked(value.form, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y = empty(ctx.form.shape, grad.dtype)
        exchange("block_reals", ctx.form, grad, y)
        return y, None


def unblocked(form: Form, y: Tensor) -> Tensor:
    """Reals as `[T*N, C, H, W]`."""
    x = torch.empty(form_shape(form), dtype=y.dtype)
    exchange("unblock_reals", form, x, y)
    return x


def unblocked_spikes(form: Form, bits: Tensor, halo: int, dtype: torch.dtype) -> Tensor:
    """Sets as `[T*N, C, H, W]` of 0 and 1."""
    x = torch.empty(form_shape(form), dtype=dtype)
    exchange("unblock_spikes", form, x, bits, halo)
    return x


def form_shape(form: Form) -> tuple[int, int, int, int]:
    """Of the plain array."""
    return form.steps * form.images, form.channels, form.height, form.width


def exchange(name: str, form: Form, x: Tensor, blocked: Tensor, halo: int = 0) -> None:
    """Between a plain `[T*N, C, H, W]` in any memory order and its blocks."""
    images, per_run = form.run
    shape = kernels.Exchange(
        blocks=form.blocks,
        per_step=per_run,
        images=images,
        channels=form.channels,
        height=form.height,
        width=form.width,
        halo=halo,
        strides=(ctypes.c_int64 * 4)(*x.stride()),
        threads=torch.get_num_threads(),
    )
    kernels.exchange(TYPES[x.dtype], shape, name, x.data_ptr(), blocked.data_ptr())


def pooled(form: Form) -> Form:
    """Behind a 2x2 pooling."""
    return replace(form, height=form.height // 2, width=form.width // 2)
