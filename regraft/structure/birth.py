"""The first mask of a layer: exact counts, drawn at random or taken by magnitude."""

from __future__ import annotations

from collections.abc import Mapping

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


class GivenWeights:
    """Weights as they were before birth changed them, kept until the first optimiser step.

    A state may then be loaded in any order: where the model's weights were loaded before its `Topology` was made, and
    nobody has touched them since, loading the wiring brings them back.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._version: dict[str, int] = {}

    def keep(self, name: str, weight: Tensor) -> None:
        """Before birth."""
        self._kept[name] = weight.detach().clone()

    def mark(self, name: str, weight: Tensor) -> None:
        """What is there now is of our own making (torch counts in-place changes of a tensor)."""
        if name in self._kept:
            self._version[name] = weight._version

    def untouched(self, name: str, weight: Tensor) -> bool:
        """Whether nobody else has changed the weight since `mark`."""
        return name in self._kept and self._version.get(name) == weight._version

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Bring back what nobody has touched, and forget."""
        for name, weight in weights.items():
            if self.untouched(name, weight):
                weight.copy_(self._kept[name])
        self.forget()

    def forget(self) -> None:
        """The first step was taken, or a state was loaded."""
        self._kept.clear()
        self._version.clear()
