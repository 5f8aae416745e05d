"""What is known of a rewiring event afterwards, and the table of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Event:
    """One rewiring event: what changed at optimiser step `step`, by layer.

    `exploration`: share of connections that ever existed (Liu et al. 2021). `mask_hash`: of all masks after the
    event. `seconds`: what the event cost.
    """

    step: int
    dropped: Mapping[str, int]
    grown: Mapping[str, int]
    connections: Mapping[str, int]
    density: float
    exploration: float
    mask_hash: str
    seconds: float


def table(masks: Mapping[str, Tensor], events: Sequence[Event]) -> str:
    """Layer by layer: connections, of how many, density, dropped and grown so far."""
    width = max(len(name) for name in masks)
    head = f"{'layer':<{width}} {'connections':>12} {'of':>12} {'density':>8} {'dropped':>9} {'grown':>9}"
    lines = [head, "-" * len(head)]
    total = [0, 0, 0, 0]
    for name, mask in masks.items():
        row = [int(mask.sum()), mask.numel()]
        row += [sum(getattr(e, key).get(name, 0) for e in events) for key in ("dropped", "grown")]
        total = [a + b for a, b in zip(total, row, strict=True)]
        lines.append(_line(name, row, width))
    return "\n".join([*lines, "-" * len(head), _line("total", total, width)])


def _line(name: str, row: Sequence[int], width: int) -> str:
    k, n, dropped, grown = row
    return f"{name:<{width}} {k:>12,} {n:>12,} {k / n:>8.4f} {dropped:>9,} {grown:>9,}"
