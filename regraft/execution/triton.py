"""The engine for CUDA: normalise, add, integrate, fire and pool over all T steps in one Triton kernel, and back.

Kernels see arrays `[S, M, C]`: S steps, M = N*H*W rows, C channels, innermost. A program owns a tile of rows and
channels and walks through time with the membrane in registers; nothing but spikes or gradients is written. The backward
pass charges again. Beyond `_CHUNK` steps the membranes of all steps no longer fit into registers: then a pass before it
leaves the membrane at the start of each chunk of steps, and each chunk is charged from there.

Sums over rows are partial sums of programs, added by a second kernel in a fixed order, without atomics: the same input
gives the same bits. The membrane is float32 whatever the storage, and is charged by the same fused multiply-adds in
both passes, so that the backward pass sees exactly the spikes that were fired.

Importing this needs Triton 3.3, which PyTorch's CUDA builds bring from 2.7 on.
"""

# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.execution.fire import Fire
from regraft.execution.native import Normalised, channels_last

triton: Any = importlib.import_module("triton")  # not on every machine, and kernels are in a language of their own:
tl: Any = importlib.import_module("triton.language")  # pyright need not look
if not hasattr(tl, "tuple"):
    raise ImportError("the kernels for CUDA need Triton 3.3, which comes with PyTorch 2.7")

__all__ = ["TYPES", "available", "channels_last", "fire", "laid_out", "moments", "real", "renormalise", "unfire"]

_CHUNK = 8  # steps whose membrane is held in registers at once; half as many where a thread holds a window of four
_REGISTERS = 80  # of a thread of the backward pass, for what it holds; with more the compiler begins to spill
_THREADS = 128  # of a program: four warps
_PROGRAMS = 2048  # at most so many add up one channel; an H200 runs about 1000 at once

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def available() -> bool:
    """Whether kernels can run: this file was imported."""
    return True


def real(y: Tensor) -> torch.dtype:
    """What is computed in, where `y` is stored."""
    return torch.float32


def laid_out(y: Tensor) -> Tensor:
    """`y` itself if each place's channels lie together; else a copy, channels last."""
    return y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 else y.contiguous()


def moments(
    y: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    momentum: float,
    running: tuple[Tensor | None, Tensor | None],
) -> Normalised:
    """`y` `[B, C, ...]` with its statistics over all but the channels; moves the running ones, if given.

    By Welford's and Chan's updates: the mean of squares less the squared mean loses the digits of a small variance.
    """
    numbers = _rows(y)
    rows, channels = numbers.shape
    tile = _Tile(channels, 16)
    tiles, programs = tile.shares(rows)
    means, squares = y.new_empty(2, programs, channels, dtype=torch.float32)
    results = y.new_empty(4, channels, dtype=torch.float32).unbind()
    few = _Tile(channels, 8, widest=16)
    with torch.cuda.device_of(y):
        _moments_of_share[(programs, tile.across)](means, squares, numbers, rows, channels, tiles, *tile.sides)
        _moments_of_all[(few.across,)](
            *(*results, *running, means, squares, gamma, beta, eps, momentum),
            *(rows, channels, tiles * tile.rows, programs, *few.sides),
        )
    return Normalised(y, *results)


def fire(how: Fire, decay: float | Tensor, terms: Sequence[Normalised], pool: bool) -> Tensor:
    """Spikes `[T*N, C, ...]` in the dtype of y, of half the size where pooled (even height and width).

    `decay`: a number, or a 0-dim float32 tensor on the device, which then need not be waited for.
    """
    y = terms[0].y
    batch = len(y) * how.steps if how.repeat else len(y)
    size = [s // 2 if pool else s for s in y.shape[2:]]
    spikes = y.new_empty(batch, *size, y.shape[1])
    _forward(spikes, how, decay, terms, pool, keep=False)
    return spikes.movedim(-1, 1)


def unfire(
    how: Fire, decay: float | Tensor, terms: Sequence[Normalised], grad: Tensor, pool: bool, learn: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradient of the sum of terms, its sums `[1 + terms, C]` (by itself, and times each centred y), and the decay's.

    Where a single step is repeated, the gradient is summed over T. `grad`: of the spikes. `learn`: the decay's too.
    """
    y = terms[0].y
    window, chunk = 4 if pool else 1, _chunk(how, pool)
    kept = None
    if how.steps > chunk:
        places = y.numel() // (1 if how.repeat else how.steps)
        kept = y.new_empty(triton.cdiv(how.steps, chunk) - 1, places, dtype=torch.float32)
        _forward(kept, how, decay, terms, pool, keep=True)
    gx, channels = y.new_empty(len(y), *y.shape[2:], y.shape[1]), y.shape[1]
    held = chunk * (4 + len(terms) * y.element_size()) // 4 + 2 + len(terms) + learn + 2 * (kept is not None)
    tile = _Tile(channels, _at_most(_REGISTERS // (window * held), 16 // y.element_size()))
    tiles, programs = tile.shares(_output_rows(how, y, pool))
    sums = y.new_empty(programs, 1 + len(terms), channels, dtype=torch.float32)
    total = y.new_empty(programs, tile.across, dtype=torch.float32) if learn else None
    means = [term.mean for term in terms] if len(terms) == 2 else [terms[0].mean, None]
    with torch.cuda.device_of(y):
        _walk_back[(programs, tile.across)](
            *(gx, sums, total, kept, _rows(grad), *means),
            *_inputs(how, decay, terms, pool),
            *(how.shape, tiles, how.surrogate, how.detach_reset, learn),
            *_flags(how, decay, terms, pool, tile),
            num_warps=_THREADS // 32,
        )
    return gx.movedim(-1, 1), sums.sum(0), None if total is None else total.sum()


def renormalise(g: Tensor, term: Normalised, k0: Tensor, k1: Tensor, *, into: bool) -> Tensor:
    """From the gradient of the normalised y to that of y: `scale * (g - k0 - k1 * (y - mean))`; in place if `into`."""
    numbers = _rows(g)
    out = numbers if into else torch.empty_like(numbers)
    rows, channels = numbers.shape
    tile = _Tile(channels, 16)
    grid = (triton.cdiv(rows, tile.rows), tile.across)
    with torch.cuda.device_of(g):
        _renormalise[grid](out, numbers, _rows(term.y), term.scale, term.mean, k0, k1, rows, channels, *tile.sides)
    return out.view(len(g), *g.shape[2:], channels).movedim(-1, 1)


# How the work is divided


class _Tile:
    """`rows` by `columns` numbers, about `each` for each thread; wide first, so that memory is read in long lines."""

    def __init__(self, channels: int, each: int, widest: int = 128) -> None:
        self.columns = min(triton.next_power_of_2(channels), widest)
        self.rows = max(1, _THREADS * each // self.columns)
        self.across = triton.cdiv(channels, self.columns)
        self.sides = self.rows, self.columns

    def shares(self, rows: int) -> tuple[int, int]:
        """(tiles a program, programs): how `rows` are shared out where each program adds up what it sees."""
        tiles = max(1, triton.cdiv(triton.cdiv(rows, self.rows), _PROGRAMS))
        return tiles, triton.cdiv(rows, self.rows * tiles)


def _at_most(*bounds: int) -> int:
    """The largest power of two within the bounds, at least 1."""
    return 1 << max(0, min(bounds).bit_length() - 1)


def _chunk(how: Fire, pool: bool) -> int:
    return min(how.steps, _CHUNK // 2 if pool else _CHUNK)


def _rows(x: Tensor) -> Tensor:
    """`[B, C, ...]` as `[R, C]`, the same memory if it is laid out."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _output_rows(how: Fire, y: Tensor, pool: bool) -> int:
    """Rows of one step of spikes."""
    return y.numel() // max(1, y.shape[1]) // (1 if how.repeat else how.steps) // (4 if pool else 1)


def _forward(
    out: Tensor, how: Fire, decay: float | Tensor, terms: Sequence[Normalised], pool: bool, *, keep: bool
) -> None:
    """Go forward in time, to spikes or to the membranes the backward pass begins its chunks with."""
    y = terms[0].y
    tile = _Tile(y.shape[1], 2 if pool else 16 // y.element_size())
    with torch.cuda.device_of(y):
        _walk[(triton.cdiv(_output_rows(how, y, pool), tile.rows), tile.across)](
            *(out, *_inputs(how, decay, terms, pool)),
            *(*_flags(how, decay, terms, pool, tile), keep),
            num_warps=_THREADS // 32,
        )


def _inputs(
    how: Fire, decay: float | Tensor, terms: Sequence[Normalised], pool: bool
) -> tuple[Tensor | float | None, ...]:
    """What all kernels over time are given."""
    flat = [each for term in terms for each in (_rows(term.y), term.scale, term.shift)]
    flat += [None] * (6 - len(flat))
    y, amount = terms[0].y, 0.0 if how.amount is None else how.amount
    return (*flat, decay, how.threshold, amount, _output_rows(how, y, pool), y.shape[1], y.shape[3] if pool else 2)


def _flags(how: Fire, decay: float | Tensor, terms: Sequence[Normalised], pool: bool, tile: _Tile) -> tuple[int, ...]:
    """What is compiled into them."""
    flags = how.repeat, len(terms) == 2, isinstance(decay, Tensor), how.decay_input, how.amount is None
    return (how.steps, _chunk(how, pool), *flags, 4 if pool else 1, *tile.sides)


# Pieces of kernels


@triton.jit
def _places(first, rows, channels, width, WINDOW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of a tile that begins at output row `first`: the index of its first number, the others' distance from there, and
    which of them exist. Where windows are pooled these are the places of each window's first number."""
    near = tl.arange(0, ROWS)
    row = first + near
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    if WINDOW == 4:  # two rows of windows begin two rows of the image apart
        here = 2 * first + width * (first // (width // 2))
        near = 2 * row + width * (row // (width // 2)) - here
    else:
        here = first
    return tl.cast(here, tl.int64) * channels, near[:, None] * channels + column[None, :], inside


@triton.jit
def _within(q: tl.constexpr, channels, width):
    """Distance of the window's number `q`, in row-major order, from its first."""
    return ((q // 2) * width + q % 2) * channels


@triton.jit
def _line(vector, channels, missing: tl.constexpr, COLUMNS: tl.constexpr):
    """One number a channel `[1, COLUMNS]`."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if vector is None:
        return tl.full([1, COLUMNS], missing, tl.float32)
    else:
        return tl.load(vector + column, mask=column < channels, other=0.0)[None, :]


@triton.jit
def _read(y, z, at, near, inside, TWO: tl.constexpr):
    """The numbers of both terms, as they are stored; without a second term the first twice."""
    first = tl.load(y + at + near, mask=inside, other=0.0)
    if TWO:
        return first, tl.load(z + at + near, mask=inside, other=0.0)
    else:
        return first, first


@triton.jit
def _current(y, z, scale, shift, z_scale, z_shift, gain, TWO: tl.constexpr, GAIN: tl.constexpr):
    """The input current of the terms `y` and `z`. Multiply-adds are written out, to round alike in every kernel."""
    x = tl.fma(y.to(tl.float32), scale, shift)
    if TWO:
        x = x + tl.fma(z.to(tl.float32), z_scale, z_shift)
    if GAIN:
        x = x * gain
    return x


@triton.jit
def _after(u, threshold, amount, HARD: tl.constexpr):
    """The membrane after the reset."""
    return tl.where(u >= threshold, 0.0 if HARD else u - amount, u)


@triton.jit
def _derivative(z, shape, SURROGATE: tl.constexpr):
    """As in `neurons/surrogate.py`."""
    if SURROGATE == "triangle":
        return tl.maximum(1 - tl.abs(z) / shape, 0.0) / shape
    elif SURROGATE == "rectangle":
        return tl.where(tl.abs(z) < shape / 2, 1 / shape, 0.0)
    elif SURROGATE == "atan":
        r = 1.5707963267948966 * shape * z
        return shape / 2 / (1 + r * r)
    else:
        tl.static_assert(SURROGATE == "sigmoid")
        p = tl.sigmoid(shape * z)
        return shape * p * (1 - p)


# Kernels


@triton.jit
def _walk(
    out, y, scale, shift, z, z_scale, z_shift, decay, threshold, amount, rows, channels, width,
    STEPS: tl.constexpr, CHUNK: tl.constexpr, REPEAT: tl.constexpr, TWO: tl.constexpr, LEARNT: tl.constexpr,
    GAIN: tl.constexpr, HARD: tl.constexpr, WINDOW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """Forward in time. `out` gets the spikes, or with `KEEP` the membrane that each chunk but the first begins with."""
    CHUNKS: tl.constexpr = (STEPS + CHUNK - 1) // CHUNK
    first = tl.program_id(0) * ROWS
    corner, near, inside = _places(first, rows, channels, width, WINDOW, ROWS, COLUMNS)
    to, beside, _ = _places(first, rows, channels, width, 1, ROWS, COLUMNS)
    step = tl.cast(rows, tl.int64) * channels  # of the output; of the input it is WINDOW times as long
    scale = _line(scale, channels, 1.0, COLUMNS)
    shift = _line(shift, channels, 0.0, COLUMNS)
    if TWO:
        z_scale = _line(z_scale, channels, 1.0, COLUMNS)
        z_shift = _line(z_shift, channels, 0.0, COLUMNS)
    if LEARNT:
        decay = tl.load(decay).to(tl.float32)
    gain = 1 - decay

    v = ()
    static = ()
    for q in tl.static_range(WINDOW):
        v += (tl.zeros([ROWS, COLUMNS], tl.float32),)
        if REPEAT:
            a, b = _read(y, z, corner + _within(q, channels, width), near, inside, TWO)
            static += (_current(a, b, scale, shift, z_scale, z_shift, gain, TWO, GAIN),)
    for chunk in range(CHUNKS - 1 if KEEP else CHUNKS):
        for i in tl.static_range(CHUNK):
            t = chunk * CHUNK + i
            exists = inside & (t < STEPS)
            fired = tl.zeros([ROWS, COLUMNS], tl.int1)
            after = ()
            for q in tl.static_range(WINDOW):
                if REPEAT:
                    x = static[q]
                else:
                    a, b = _read(y, z, corner + t * WINDOW * step + _within(q, channels, width), near, exists, TWO)
                    x = _current(a, b, scale, shift, z_scale, z_shift, gain, TWO, GAIN)
                u = tl.fma(decay, v[q], x)
                fired = fired | (u >= threshold)
                after += (_after(u, threshold, amount, HARD),)
            v = after
            if not KEEP:
                tl.store(out + (to + t * step) + beside, tl.where(fired, 1.0, 0.0), mask=exists)
        if KEEP:
            for q in tl.static_range(WINDOW):
                at = corner + chunk * WINDOW * step + _within(q, channels, width)
                tl.store(out + at + near, v[q], mask=inside)


@triton.jit
def _walk_back(
    gx, sums, total, kept, grad, mean, z_mean,
    y, scale, shift, z, z_scale, z_shift, decay, threshold, amount, rows, channels, width,
    shape, tiles, SURROGATE: tl.constexpr, DETACH: tl.constexpr, LEARN: tl.constexpr,
    STEPS: tl.constexpr, CHUNK: tl.constexpr, REPEAT: tl.constexpr, TWO: tl.constexpr, LEARNT: tl.constexpr,
    GAIN: tl.constexpr, HARD: tl.constexpr, WINDOW: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Backward in time: charge a chunk of steps again, go back through it, then the chunk before it."""
    CHUNKS: tl.constexpr = (STEPS + CHUNK - 1) // CHUNK
    step = tl.cast(rows, tl.int64) * channels
    scale = _line(scale, channels, 1.0, COLUMNS)
    shift = _line(shift, channels, 0.0, COLUMNS)
    mean = _line(mean, channels, 0.0, COLUMNS)
    if TWO:
        z_scale = _line(z_scale, channels, 1.0, COLUMNS)
        z_shift = _line(z_shift, channels, 0.0, COLUMNS)
        z_mean = _line(z_mean, channels, 0.0, COLUMNS)
    if LEARNT:
        decay = tl.load(decay).to(tl.float32)
    gain = 1 - decay
    zero = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_g, sum_y, sum_z, onto_decay = zero, zero, zero, zero

    for tile in range(tiles):
        first = (tl.program_id(0) * tiles + tile) * ROWS
        corner, near, inside = _places(first, rows, channels, width, WINDOW, ROWS, COLUMNS)
        to, beside, _ = _places(first, rows, channels, width, 1, ROWS, COLUMNS)
        carried = ()  # dL/dv of each number of the window
        for _ in tl.static_range(WINDOW):
            carried += (zero,)
        all_steps = carried
        static = ()
        static_z = ()
        if REPEAT:
            for q in tl.static_range(WINDOW):
                a, b = _read(y, z, corner + _within(q, channels, width), near, inside, TWO)
                static += (a,)
                static_z += (b,)

        for back in range(CHUNKS):
            chunk = CHUNKS - 1 - back
            v = ()
            for q in tl.static_range(WINDOW):
                if CHUNKS == 1:
                    v += (zero,)
                else:
                    at = corner + (chunk - 1) * WINDOW * step + _within(q, channels, width)
                    v += (tl.load(kept + at + near, mask=inside & (chunk > 0), other=0.0),)
            before = v
            us = ()  # charged membranes and inputs: number q of the window at step i is at i * WINDOW + q
            ys = ()
            zs = ()
            for i in tl.static_range(CHUNK):
                t = chunk * CHUNK + i
                after = ()
                for q in tl.static_range(WINDOW):
                    if REPEAT:
                        a, b = static[q], static_z[q]
                    else:
                        at = corner + t * WINDOW * step + _within(q, channels, width)
                        a, b = _read(y, z, at, near, inside & (t < STEPS), TWO)
                    x = _current(a, b, scale, shift, z_scale, z_shift, gain, TWO, GAIN)
                    u = tl.fma(decay, v[q], x)
                    after += (_after(u, threshold, amount, HARD),)
                    us += (u,)
                    ys += (a,)
                    zs += (b,)
                v = after
            for i in tl.static_range(CHUNK - 1, -1, -1):
                t = chunk * CHUNK + i
                exists = inside & (t < STEPS)  # beyond the end all gradients are 0, so nothing else need be masked
                above = tl.load(grad + (to + t * step) + beside, mask=exists, other=0.0).to(tl.float32)
                silent = tl.full([ROWS, COLUMNS], True, tl.int1)
                if WINDOW == 4:
                    for q in tl.static_range(4):
                        silent = silent & (us[i * 4 + q] < threshold)
                taken = silent & False
                carry = ()
                summed = ()
                for q in tl.static_range(WINDOW):
                    u = us[i * WINDOW + q]
                    fired = u >= threshold
                    onto_spike = above
                    if WINDOW == 4:  # to the first that fired, or to the first of all
                        mine = (fired & ~taken) | silent if q == 0 else fired & ~taken
                        taken = taken | fired
                        onto_spike = tl.where(mine, above, 0.0)
                    if not DETACH:  # the reset sees the spike too
                        onto_spike = onto_spike - (u if HARD else amount) * carried[q]
                    g = onto_spike * _derivative(u - threshold, shape, SURROGATE)
                    g += tl.where(fired, 0.0, carried[q]) if HARD else carried[q]
                    carry += (decay * g,)
                    a, b = ys[i * WINDOW + q], zs[i * WINDOW + q]
                    if LEARN:
                        if i > 0:
                            onto_decay += g * _after(us[(i - 1) * WINDOW + q], threshold, amount, HARD)
                        else:
                            onto_decay += g * before[q]
                        if GAIN:
                            onto_decay -= g * _current(a, b, scale, shift, z_scale, z_shift, gain, TWO, False)
                    if GAIN:
                        g = gain * g
                    if REPEAT:
                        summed += (all_steps[q] + g,)
                    else:
                        at = corner + t * WINDOW * step + _within(q, channels, width)
                        tl.store(gx + at + near, g, mask=exists)
                        sum_g += g
                        sum_y += g * (tl.cast(a, tl.float32) - mean)
                        if TWO:
                            sum_z += g * (tl.cast(b, tl.float32) - z_mean)
                carried = carry
                if REPEAT:
                    all_steps = summed
        if REPEAT:
            for q in tl.static_range(WINDOW):
                g = all_steps[q]
                at = corner + _within(q, channels, width)
                tl.store(gx + at + near, g, mask=inside)
                sum_g += g
                sum_y += g * (tl.cast(static[q], tl.float32) - mean)
                if TWO:
                    sum_z += g * (tl.cast(static_z[q], tl.float32) - z_mean)

    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mine = sums + tl.program_id(0) * (3 if TWO else 2) * channels + column
    tl.store(mine, tl.sum(sum_g, 0), mask=column < channels)
    tl.store(mine + channels, tl.sum(sum_y, 0), mask=column < channels)
    if TWO:
        tl.store(mine + 2 * channels, tl.sum(sum_z, 0), mask=column < channels)
    if LEARN:
        share = tl.sum(tl.sum(onto_decay, 1), 0)
        tl.store(total + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), share)


@triton.jit
def _moments_of_share(
    means, squares, y, rows, channels, tiles, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Mean and sum of squared deviations of the rows of one program."""
    zero = tl.zeros([ROWS, COLUMNS], tl.float32)
    mean, square, count = zero, zero, zero
    for tile in range(tiles):  # Welford: each place of the tile sees its own sequence
        first = (tl.program_id(0) * tiles + tile) * ROWS
        corner, near, inside = _places(first, rows, channels, 2, 1, ROWS, COLUMNS)
        number = tl.load(y + corner + near, mask=inside, other=0.0).to(tl.float32)
        off = tl.where(inside, number - mean, 0.0)
        mean += off / (tile + 1)
        square += tl.where(inside, off * (number - mean), 0.0)
        count += tl.where(inside, 1.0, 0.0)
    count_of_all = tl.maximum(tl.sum(count, 0), 1.0)
    together = tl.sum(mean * count, 0) / count_of_all  # Chan: places put together
    off = mean - together[None, :]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = tl.program_id(0) * channels + column
    tl.store(means + at, together, mask=column < channels)
    tl.store(squares + at, tl.sum(square + count * off * off, 0), mask=column < channels)


@triton.jit
def _moments_of_all(
    mean, inverse, scale, shift, running_mean, running_var, means, squares, gamma, beta, eps, momentum,
    rows, channels, share, shares, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The programs' shares put together (Chan): the mean, then what lies around it; and what follows from them."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    exists = column < channels
    zero = tl.zeros([ROWS, COLUMNS], tl.float32)
    total = zero
    for start in range(0, shares, ROWS):
        place = start + tl.arange(0, ROWS)[:, None]
        at, inside = place * channels + column[None, :], (place < shares) & exists[None, :]
        weight = tl.minimum(rows - place * share, share) / rows
        total += weight * tl.load(means + at, mask=inside, other=0.0)
    centre = tl.sum(total, 0)
    total = zero
    for start in range(0, shares, ROWS):
        place = start + tl.arange(0, ROWS)[:, None]
        at, inside = place * channels + column[None, :], (place < shares) & exists[None, :]
        weight = tl.minimum(rows - place * share, share) / rows
        off = tl.load(means + at, mask=inside, other=0.0) - centre[None, :]
        total += tl.load(squares + at, mask=inside, other=0.0) / rows + tl.where(inside, weight * off * off, 0.0)
    var = tl.sum(total, 0)

    of_one = 1 / tl.sqrt_rn(var + eps)
    factor = of_one if gamma is None else of_one * tl.load(gamma + column, mask=exists, other=0.0).to(tl.float32)
    offset = -centre * factor
    if beta is not None:
        offset += tl.load(beta + column, mask=exists, other=0.0).to(tl.float32)
    tl.store(mean + column, centre, mask=exists)
    tl.store(inverse + column, of_one, mask=exists)
    tl.store(scale + column, factor, mask=exists)
    tl.store(shift + column, offset, mask=exists)
    if running_mean is not None:  # as nn.BatchNorm2d moves them: the variance without bias
        before = tl.load(running_mean + column, mask=exists, other=0.0)
        tl.store(running_mean + column, before + momentum * (centre - before), mask=exists)
    if running_var is not None:
        before = tl.load(running_var + column, mask=exists, other=0.0)
        whole = var * (rows / tl.maximum(rows - 1.0, 1.0))
        tl.store(running_var + column, before + momentum * (whole - before), mask=exists)


@triton.jit
def _renormalise(
    out, gx, y, scale, mean, k0, k1, rows, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    corner, near, inside = _places(tl.program_id(0) * ROWS, rows, channels, 2, 1, ROWS, COLUMNS)
    g = tl.load(gx + corner + near, mask=inside, other=0.0).to(tl.float32)
    off = tl.load(y + corner + near, mask=inside, other=0.0).to(tl.float32) - _line(mean, channels, 0.0, COLUMNS)
    g = g - _line(k0, channels, 0.0, COLUMNS) - _line(k1, channels, 0.0, COLUMNS) * off
    g = _line(scale, channels, 0.0, COLUMNS) * g
    tl.store(out + corner + near, g, mask=inside)
