"""Checks and sums of activations that are exact, and fast: in the order of memory, a piece that fits the caches at a
time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 2**19  # elements
EXACT = 2**24  # up to here float32 holds every whole number


def peak(x: Tensor, most: int) -> int | None:
    """The largest value, if every value is a whole number from 0 to `most`; None if one is not."""
    if x.dtype == torch.bool or not x.numel():
        return int(x.any())
    highest = 0
    for piece in _pieces(_laid_out(x)):
        low, high = torch.aminmax(piece)
        if not (low >= 0 and high <= most and (not piece.is_floating_point() or torch.equal(piece, piece.round()))):
            return None
        highest = max(highest, int(high))
    return highest


def summed(rows: Tensor, most: int) -> Tensor:
    """The sum over the first axis, int64, of whole numbers from 0 to `most`."""
    laid_out = _laid_out(rows)
    kind = torch.float32 if len(rows) * most <= EXACT else torch.float64
    total = torch.zeros(laid_out.shape[1:], dtype=kind, device=rows.device)
    for piece in _pieces(laid_out):
        total += piece.sum(0, dtype=kind)
    last = laid_out is not rows
    return (total.movedim(-1, 0) if last else total).to(torch.int64)


def _laid_out(x: Tensor) -> Tensor:
    """With the channels last in shape as well, where they are last in memory."""
    moved = x.movedim(1, -1) if x.dim() > 2 else x
    return moved if moved.is_contiguous() and not x.is_contiguous() else x


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """Along the first axis; all at once on a GPU, where each check would wait for it."""
    rows = len(x) if x.dim() else 1
    at_once = rows if x.device.type != "cpu" else max(1, PIECE * rows // max(1, x.numel()))
    yield from x.split(at_once) if x.dim() and rows else (x,)
