"""The kernels of a segment (see `src/segment.h`): arrays are given by address, results are written in place."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

from regraft.kernels.calls import Address, Type, call, function, pointers

SURROGATES = ("triangle", "rectangle", "atan", "sigmoid")


class Segment(ctypes.Structure):
    """`regraft_segment` of `src/segment.h`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "rows", "channels", "inner", "height", "width")),
        *((name, ctypes.c_int32) for name in ("repeat", "terms", "surrogate", "hard", "detach", "learn", "threads")),
        *((name, ctypes.c_double) for name in ("decay", "gain", "threshold", "amount", "shape")),
    )


class Term(NamedTuple):
    """Addresses of one input and of its channels' scale, shift and mean (reals, or None: 1, 0 and 0)."""

    y: int
    scale: Address = None
    shift: Address = None
    mean: Address = None


def room(type: Type, channels: int) -> int:
    """Reals of working memory that every function here is handed as `room`."""
    return function(type, "room", ctypes.c_int64)(ctypes.c_int64(channels))


def partials(type: Type, channels: int) -> int:
    """Doubles of working memory that sums are handed as `partial`."""
    return function(type, "partials", ctypes.c_int64)(ctypes.c_int64(channels))


def fire(type: Type, segment: Segment, terms: Sequence[Term], spikes: int, room: int) -> None:
    """Spikes of all steps."""
    a, b = _two(terms)
    call(type, "fire", ctypes.byref(segment), *pointers(*a[:3], *b[:3], spikes, room))


def unfire(
    type: Type, segment: Segment, terms: Sequence[Term], grad: int, gx: int, sums: int, room: int, partial: int
) -> None:
    """From the gradient of the spikes to that of the sum of terms; sums `[1 + terms, C]`, then the decay's gradient."""
    a, b = _two(terms)
    call(type, "unfire", ctypes.byref(segment), *pointers(*a, *b, grad, gx, sums, room, partial))


def moments(
    type: Type,
    shape: tuple[int, int, int],
    threads: int,
    y: int,
    gamma: Address,
    beta: Address,
    eps: float,
    momentum: float,
    running: tuple[Address, Address],
    results: tuple[int, int, int, int],
    room: int,
    partial: int,
) -> None:
    """Mean, inverse deviation, scale and shift of y, whose shape is `(elements, channels, inner)`."""
    given = pointers(y, gamma, beta)
    rest = pointers(*running, *results, room, partial)
    numbers = (*map(ctypes.c_int64, shape), ctypes.c_int(threads))
    call(type, "moments", *numbers, *given, ctypes.c_double(eps), ctypes.c_double(momentum), *rest)


def renormalise(
    type: Type,
    shape: tuple[int, int, int],
    threads: int,
    y: int,
    g: int,
    to: int,
    channels: tuple[int, int, int, int],
    room: int,
) -> None:
    """From the gradient of a normalised y to that of y; `channels` are mean, scale, k0 and k1. `to` may be `g`."""
    numbers = (*map(ctypes.c_int64, shape), ctypes.c_int(threads))
    call(type, "renormalise", *numbers, *pointers(y, g, to, *channels, room))


def _two(terms: Sequence[Term]) -> tuple[tuple[Address, ...], tuple[Address, ...]]:
    return terms[0], terms[1] if len(terms) > 1 else (None, None, None, None)
