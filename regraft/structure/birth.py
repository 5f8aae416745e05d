"""The first mask of a layer: exact counts, drawn at random or taken by magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.structure import allocation
from regraft.structure.rules import Scope, select


def first_mask(score: Tensor, count: int, scope: Scope, generator: torch.Generator) -> Tensor:
    """`count` connections of `[rows, columns]`, smallest score first, ties at random.

    Where there are enough connections, each row (output unit) gets one: a floor that holds at birth only. Under scope
    `row` the rows are balanced instead.
    """
    everything = torch.ones_like(score, dtype=torch.bool)
    rows, columns = score.shape
    if scope.name == "row":
        zeros = torch.zeros(rows, dtype=torch.long)
        return select(score, everything, row_counts(count, columns, zeros, strict=scope.strict), generator)
    floor = torch.full((rows,), int(count >= rows))
    mask = select(score, everything, floor, generator)
    rest = torch.tensor([count - int(floor.sum())])
    return mask | select(score.reshape(1, -1), ~mask.reshape(1, -1), rest, generator).reshape(score.shape)


def row_counts(count: int, columns: int, current: Tensor, *, strict: bool) -> Tensor:
    """How many connections each row holds: balanced, or (`strict`) all equal, which takes the nearest total.

    `current` `[rows]` int64, zeros at birth; no row rises above it later.
    """
    if not strict:
        return allocation.balanced(count, current)
    each = min(max(1, allocation.round_half_up(count / len(current))), columns)
    return torch.full_like(current, min(each, int(current[0]) or each))
