"""How many connections each layer is born with: exact integers that sum to the budget.

`counts` is the one entry; `largest_remainders` is the arithmetic under it, and under every later division of a budget.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from regraft.errors import UsageError, nearest

ALLOCATIONS = ("uniform", "er", "erk", "global")


def round_half_up(x: float) -> int:
    """floor(x + 1/2) in float64: the one rounding of this package (Python's own rounds 0.5 to 0 and 2.5 to 2)."""
    return math.floor(x + 0.5)


def budget(density: float, total: int) -> int:
    """round(density * total): the number of connections that a density means."""
    return round_half_up(density * total)


def largest_remainders(ideal: Sequence[Fraction], total: int, lower: Sequence[int], upper: Sequence[int]) -> list[int]:
    """Integers within `[lower, upper]` that sum to `total` and lie nearest to `ideal`; ties to the first.

    The caller guarantees `sum(lower) <= total <= sum(upper)`.
    """
    counts = [min(max(math.floor(x), lo), hi) for x, lo, hi in zip(ideal, lower, upper, strict=True)]
    missing = total - sum(counts)
    step = 1 if missing > 0 else -1
    while missing:
        open_ = [i for i, k in enumerate(counts) if lower[i] <= k + step <= upper[i]]
        i = max(open_, key=lambda i: (step * (ideal[i] - counts[i]), -i))
        counts[i] += step
        missing -= step
    return counts


def _raw_density(shape: Sequence[int], kind: str) -> Fraction:
    """The share that a layer asks for, up to a common factor (Mocanu et al. 2018; Evci et al. 2020, appendix).

    Exact: rounding would decide ties between layers instead of their order.
    """
    if kind == "uniform":
        return Fraction(1)
    axes = shape if kind == "erk" else shape[:2]
    return Fraction(sum(axes), math.prod(axes))


def _ideal(sizes: Sequence[int], raw: Sequence[Fraction], total: int) -> list[Fraction]:
    """Exact shares proportional to `raw * size`; a layer that would exceed its size becomes dense, the rest rescale."""
    full: set[int] = set()
    while True:
        rest = total - sum(sizes[i] for i in full)
        open_ = [i for i in range(len(sizes)) if i not in full]
        scale = rest / sum((raw[i] * sizes[i] for i in open_), Fraction(0)) if open_ else Fraction(0)
        over = {i for i in open_ if scale * raw[i] > 1}
        if not over:
            return [Fraction(sizes[i]) if i in full else scale * raw[i] * sizes[i] for i in range(len(sizes))]
        full |= over


def _by_magnitude(weights: Sequence[Tensor], total: int) -> list[int]:
    """Counts of the `total` largest weights of the whole network, with at least one a layer."""
    flat = [w.detach().abs().flatten().float().cpu() for w in weights]
    rest = [f.clone().index_fill_(0, f.argmax(), -1.0) for f in flat]  # the one that a layer keeps in any case
    owner = torch.cat([torch.full((len(f),), i) for i, f in enumerate(rest)])
    order = torch.cat(rest).argsort(descending=True, stable=True)[: total - len(flat)]
    return (1 + torch.bincount(owner[order], minlength=len(flat))).tolist()


def counts(
    shapes: Mapping[str, Sequence[int]],
    density: float,
    kind: str = "erk",
    *,
    dense: Collection[str] = (),
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, int]:
    """The number of connections of each layer: `1 <= k <= N` and the sum exactly `round(density * sum N)`.

    Args:
        shapes: layer name -> shape of its weight.
        density: share of connections over all of `shapes`, 0 < density <= 1.
        kind: `uniform`; `er`, `d ~ (n_in + n_out)/(n_in n_out)`; `erk`, the same with the kernel's axes
            (Evci et al. 2020); `global`, by magnitude of `weights`.
        dense: names that keep all their connections.

    Raises:
        UsageError: unknown kind, or a budget under one connection a layer or under the dense layers alone.
    """
    if kind not in ALLOCATIONS:
        raise UsageError(f"no allocation is called {kind!r}: {nearest(kind, ALLOCATIONS)}")
    if not 0 < density <= 1:
        raise UsageError(f"density is {density}: give a number above 0 and at most 1")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = budget(density, sum(sizes.values()))
    free = [name for name in shapes if name not in dense]
    rest = total - sum(sizes[name] for name in shapes if name in dense)
    if rest < len(free):
        raise UsageError(
            f"density {density:g} means {total:,} of {sum(sizes.values()):,} connections: "
            + (f"less than the dense layers {sorted(dense)} and " if dense else "less than ")
            + f"one connection for each of the {len(free)} other layers. Raise the density"
            + (" or name fewer dense layers" if dense else "")
        )
    if not free:
        return dict(sizes)
    free_sizes = [sizes[name] for name in free]
    if kind == "global":
        if weights is None:
            raise UsageError("allocation 'global' ranks weights by magnitude: give the weights")
        given = _by_magnitude([weights[name] for name in free], rest)
    else:
        ideal = _ideal(free_sizes, [_raw_density(shapes[name], kind) for name in free], rest)
        given = largest_remainders(ideal, rest, [1] * len(free), free_sizes)
    return sizes | dict(zip(free, given, strict=True))


def shrink(current: Mapping[str, int], aim: Mapping[str, int], total: int) -> dict[str, int]:
    """The next counts while the density falls: they sum to `total`, and no layer rises.

    `aim` is what the allocation would give at the new density. A layer below its aim keeps what it has; the
    removals are apportioned over the others by how far they lie above theirs.
    """
    names = list(current)
    removals = sum(current.values()) - total
    excess = [max(0, current[name] - aim[name]) for name in names]
    scale = Fraction(removals, max(1, sum(excess)))
    taken = largest_remainders([scale * e for e in excess], removals, [0] * len(names), excess)
    return {name: current[name] - n for name, n in zip(names, taken, strict=True)}


def balanced(total: int, current: Tensor) -> Tensor:
    """`total` divided over rows so that counts differ by at most 1; the fuller rows of `current` keep the extra one.

    `current` `[rows]` int64 (zeros at birth) -> `[rows]` int64. While the total falls no row rises.
    """
    base, extra = divmod(total, len(current))
    rows = torch.full_like(current, base)
    rows[current.argsort(descending=True, stable=True)[:extra]] += 1
    return rows
