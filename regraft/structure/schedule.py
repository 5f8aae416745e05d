"""When the wiring changes, by how much, and at what density: pure arithmetic of the step."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regraft.errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """The fourth axis of a rule.

    Args:
        zeta: share of a scope's connections exchanged at the first event; 0 for none.
        decay: `cosine`, `zeta(t) = zeta/2 (1 + cos(pi t/until))` (Evci et al. 2020), or `constant`.
        start_density: None holds the density; otherwise it falls from this one to the final one along
            `d(t) = d1 + (d0 - d1)(1 - t/t1)^3` (Zhu & Gupta 2017), where t1 *is* the last event.
    """

    zeta: float = 0.3
    decay: Literal["cosine", "constant"] = "cosine"
    start_density: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.zeta <= 1:
            raise UsageError(f"zeta is {self.zeta}: give the share to exchange, from 0 to 1")
        if self.decay not in ("cosine", "constant"):
            raise UsageError(f"decay of zeta is {self.decay!r}: give 'cosine' or 'constant'")
        if self.start_density is not None and not 0 < self.start_density <= 1:
            raise UsageError(f"start_density is {self.start_density}: give a number above 0 and at most 1")

    @property
    def evolves(self) -> bool:
        """Whether there is anything to do at an event."""
        return self.zeta > 0 or self.start_density is not None

    def exchange(self, step: int, until: int) -> float:
        """zeta(t), the share to exchange at optimiser step `step`."""
        if self.decay == "constant":
            return self.zeta
        return self.zeta / 2 * (1 + math.cos(math.pi * step / until))

    def density(self, step: int, last_event: int, final: float) -> float:
        """d(t), the density that the network has after the event of `step`."""
        if self.start_density is None or step >= last_event:
            return final
        return final + (self.start_density - final) * (1 - step / last_event) ** 3


def changes(existing: Tensor, planned: Tensor, zeta: float, room: Tensor, droppable: Tensor) -> tuple[Tensor, Tensor]:
    """How many connections each scope drops and grows at an event (method: "Event").

        n_drop = max(k - k', min(round(zeta k), room, droppable))        n_grow = k' - (k - n_drop)

    All `[G]` int64: `existing` k now, `planned` k' after the event, `room` the candidates for growth,
    `droppable` the existing ones not grown at the last event (this grace yields when the budget demands it).
    """
    exchange = torch.floor(zeta * existing.double() + 0.5).long()
    n_drop = torch.maximum(existing - planned, torch.minimum(torch.minimum(exchange, room), droppable))
    return n_drop, planned - (existing - n_drop)


def timing(evolves: bool, steps: int | None, every: int, until: float | int) -> tuple[int, int]:
    """`every` and `until` as numbers of optimiser steps; `until` is 0 where nothing evolves.

    Raises `UsageError` for what is no number of steps, or leaves no room for an event.
    """
    if not (isinstance(every, numbers.Integral) and every >= 1):
        raise UsageError(
            f"every is {every}: give the optimiser steps from one event to the next, a whole number from 1"
        )
    if not evolves:
        return int(every), 0
    if not (isinstance(steps, numbers.Integral) and steps >= 1):
        raise UsageError(f"steps is {steps}: a rule that rewires needs the (whole) number of all optimiser steps")
    every, steps = int(every), int(steps)
    if isinstance(until, numbers.Real) and not isinstance(until, numbers.Integral):
        if not 0 < until <= 1:
            raise UsageError(
                f"until is {until}: give a share of the steps above 0 and at most 1, or a whole number of steps"
            )
        until = math.floor(until * steps)
    if not (isinstance(until, numbers.Integral) and 0 < until <= steps):
        raise UsageError(
            f"until is step {until!r} of {steps}: give a whole number, at most {steps}, or a share (float)"
        )
    if until < every:
        raise UsageError(f"no event fits: every {every} steps, but the last may be at step {until}. Lower `every`")
    return every, int(until)
