"""The kernels of sparse layers (see `src/sparse.h`): arrays are given by address, results are written in place."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

from regraft.kernels.calls import Address, Type, call, pointers

LANES = 16
TASKS = 64
GROUPS = 8


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Layer(ctypes.Structure):
    """`regraft_layer`."""

    _fields_ = (
        *_fields(ctypes.c_int64, "blocks per_step lanes in_channels in_height in_width halo"),
        *_fields(ctypes.c_int64, "out_channels out_height out_width stride padding connections margin"),
        *_fields(ctypes.c_int32, "threads"),
    )


class Kernel(ctypes.Structure):
    """`regraft_kernel`."""

    _fields_ = tuple(_fields(ctypes.c_int64, "height width dilation groups"))


class Blocked(ctypes.Structure):
    """`regraft_blocked`."""

    _fields_ = (
        *_fields(ctypes.c_int64, "steps per_step lanes channels height width halo"),
        *_fields(ctypes.c_int32, "share repeat pool terms surrogate hard detach learn threads"),
        *_fields(ctypes.c_double, "decay gain threshold amount shape"),
    )


class Exchange(ctypes.Structure):
    """`regraft_exchange`."""

    _fields_ = (
        *_fields(ctypes.c_int64, "blocks per_step images channels height width halo"),
        ("strides", ctypes.c_int64 * 4),
        *_fields(ctypes.c_int32, "threads"),
    )


class Rows(ctypes.Structure):
    """`regraft_rows`."""

    _fields_ = (("first", ctypes.c_void_p), ("at", ctypes.c_void_p))


class Phase(ctypes.Structure):
    """`regraft_phase`."""

    _fields_ = (*_fields(ctypes.c_int64, "row column bands"), *_fields(ctypes.c_void_p, "first at source"))


class Term(NamedTuple):
    """Addresses of an input of a neuron and of its channels' scale, shift and mean (or None: 1, 0 and 0)."""

    y: Address = None
    scale: Address = None
    shift: Address = None
    mean: Address = None


def layer_forward(
    type: Type,
    layer: Layer,
    bits: Address,
    x: Address,
    rows: Rows,
    value: int,
    bias: Address,
    shift: Address,
    y: int,
    sums: Address,
    partial: Address,
) -> None:
    """y of spikes, or of reals `x`; sums `[2, C]` of y - shift and its square, with `16 C` doubles as `partial`."""
    call(
        type,
        "layer_forward",
        ctypes.byref(layer),
        *pointers(bits, x),
        ctypes.byref(rows),
        *pointers(value, bias, shift, y, sums, partial),
    )


def layer_backward(
    type: Type,
    layer: Layer,
    bits: Address,
    x: Address,
    y: int,
    g: int,
    channels: Sequence[Address],
    rows: Rows,
    phases: Sequence[Phase],
    value: int,
    onto: int,
    onto_x: Address,
    partial: int,
) -> None:
    """Gradients of the connections and of the input; `channels` are mean, scale, k0 and k1, or None four times."""
    table = (Phase * len(phases))(*phases)
    call(
        type,
        "layer_backward",
        ctypes.byref(layer),
        *pointers(bits, x, y, g, *channels),
        ctypes.byref(rows),
        ctypes.byref(table),
        *pointers(value, onto, onto_x, partial),
    )


def dense_gradient(
    type: Type, layer: Layer, kernel: Kernel, bits: int, y: int, g: int, channels: Sequence[Address], onto: int
) -> None:
    """Gradients of all weights, existing or not, over spikes; `channels` as in `layer_backward`."""
    shapes = (ctypes.byref(layer), ctypes.byref(kernel))
    call(type, "dense_gradient", *shapes, *pointers(bits, y, g, *channels, onto))


def fire(type: Type, shape: Blocked, terms: Sequence[Term], added: Address, bits: int) -> None:
    """Spikes of all steps."""
    a, b = terms[0], terms[1] if len(terms) > 1 else Term()
    call(type, "blocked_fire", ctypes.byref(shape), *pointers(*a[:3], *b[:3], added, bits))


def unfire(
    type: Type, shape: Blocked, terms: Sequence[Term], added: Address, grad: int, gx: int, sums: int, partial: int
) -> None:
    """From the gradient of the spikes to that of the sum of terms; `sums` `[3, C]` and the decay's gradient."""
    a, b = terms[0], terms[1] if len(terms) > 1 else Term()
    call(type, "blocked_unfire", ctypes.byref(shape), *pointers(*a, *b, added, grad, gx, sums, partial))


def exchange(type: Type, shape: Exchange, name: str, plain: int, blocked: int) -> None:
    """`block_reals`, `unblock_reals`, `block_spikes` or `unblock_spikes`."""
    call(type, name, ctypes.byref(shape), *pointers(plain, blocked))
