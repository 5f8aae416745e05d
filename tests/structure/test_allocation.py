"""Exact integer counts: every budget is met to the connection, by hand-worked examples and over random shapes."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import UsageError
from regraft.structure.allocation import (
    balanced,
    budget,
    counts,
    largest_remainders,
    round_half_up,
    shrink,
)

shape = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3)),
)
networks = st.lists(shape, min_size=1, max_size=6).map(lambda shapes: {f"l{i}": s for i, s in enumerate(shapes)})
densities = st.floats(0.01, 1.0)


def sizes_of(shapes):
    return {name: math.prod(s) for name, s in shapes.items()}


@pytest.mark.parametrize(("x", "rounded"), [(0.5, 1), (1.5, 2), (2.5, 3), (2.4999, 2), (0.0, 0), (7.0, 7)])
def test_a_half_is_rounded_up(x, rounded):
    assert round_half_up(x) == rounded


@given(networks, densities, st.sampled_from(["uniform", "er", "erk", "global"]), st.data())
@settings(max_examples=150, deadline=None)
def test_the_budget_is_met_to_the_connection_within_each_layers_bounds(shapes, density, kind, data):
    sizes = sizes_of(shapes)
    dense = data.draw(st.sets(st.sampled_from(sorted(shapes))))
    total = math.floor(density * sum(sizes.values()) + 0.5)
    floor = sum(sizes[n] if n in dense else 1 for n in shapes)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    weights = {name: torch.randn(s, generator=generator) for name, s in shapes.items()}
    if total < floor:
        with pytest.raises(UsageError, match="Raise the density"):
            counts(shapes, density, kind, dense=dense, weights=weights)
        return
    k = counts(shapes, density, kind, dense=dense, weights=weights)
    assert sum(k.values()) == total
    assert list(k) == list(shapes)
    for name, n in sizes.items():
        assert 1 <= k[name] <= n
        if name in dense:
            assert k[name] == n


@given(networks, densities, st.sampled_from(["uniform", "er", "erk"]))
@settings(max_examples=150, deadline=None)
def test_every_layer_is_within_one_of_its_exact_share_and_ties_go_to_the_first(shapes, density, kind):
    """The shares in exact rational arithmetic, layer for layer, where no layer is held up by its floor of 1."""
    sizes = sizes_of(shapes)
    total = budget(density, sum(sizes.values()))
    raw = {
        name: Fraction(1) if kind == "uniform" else Fraction(sum(a := s if kind == "erk" else s[:2]), math.prod(a))
        for name, s in shapes.items()
    }
    full: set[str] = set()
    while True:
        free = [n for n in shapes if n not in full]
        rest = total - sum(sizes[n] for n in full)
        scale = Fraction(rest) / sum(raw[n] * sizes[n] for n in free) if free else Fraction(0)
        over = [n for n in free if scale * raw[n] > 1]
        if not over:
            break
        full |= set(over)
    share = {n: Fraction(sizes[n]) if n in full else scale * raw[n] * sizes[n] for n in shapes}
    if total < len(shapes) or min(share.values()) < 1:
        return
    expected = {n: math.floor(share[n]) for n in shapes}
    by_remainder = sorted(shapes, key=lambda n: expected[n] - share[n])  # stable: the first of equals comes first
    for name in by_remainder[: total - sum(expected.values())]:
        expected[name] += 1
    assert counts(shapes, density, kind) == expected


def test_uniform_gives_ties_to_the_first_layers():
    shapes = {"a": (5, 1), "b": (5, 1), "c": (5, 1)}
    assert counts(shapes, 0.5, "uniform") == {"a": 3, "b": 3, "c": 2}  # 7.5 -> 8, 2.5 each


def test_rounding_errors_break_no_ties():
    # 60 % of 310 is 186: shares 33, 52.8, 72.6, 6, 21.6; two are to spare, for l1 and the first of the equal rests.
    shapes = {"l0": (11, 5), "l1": (11, 8), "l2": (11, 11), "l3": (10, 1), "l4": (6, 6)}
    assert counts(shapes, 0.6, "uniform") == {"l0": 33, "l1": 53, "l2": 73, "l3": 6, "l4": 21}
    # 75 % of 271 by er: the shares of (6, 11) and (7, 10) are both 17 * scale = 52.57, and one is to spare.
    shapes = {"l0": (9, 4), "l1": (11, 9), "l2": (6, 11), "l3": (7, 10)}
    assert counts(shapes, 0.75, "er") == {"l0": 36, "l1": 62, "l2": 53, "l3": 52}


def test_er_by_hand():
    # d ~ (10 + 10)/100 and (20 + 20)/400, so k ~ 20 and 40; 10 % of 500 is 50, hence 50/3 and 100/3.
    assert counts({"a": (10, 10), "b": (20, 20)}, 0.1, "er") == {"a": 17, "b": 33}


def test_er_looks_at_channels_and_erk_at_kernels_too():
    shapes = {"conv": (4, 4, 3, 3), "fc": (8, 12)}
    # er: conv 144 * 8/16 = 72, fc 96 * 20/96 = 20: 24 connections in the ratio 72 : 20 -> 18.78, 5.22
    assert counts(shapes, 0.1, "er") == {"conv": 19, "fc": 5}
    # erk: conv 144 * 14/144 = 14, fc 20: 24 in the ratio 14 : 20 -> 9.88, 14.12
    assert counts(shapes, 0.1, "erk") == {"conv": 10, "fc": 14}


def test_a_layer_that_would_exceed_one_becomes_dense_and_the_rest_rescales():
    # erk raw shares: 4, 20, 40 of 4, 100, 400. 50 % is 252: scale 252/64 would make `tiny` 3.9 times dense.
    # Without it 248 over 20 + 40: scale 4.13 -> 82.67 and 165.33, both possible.
    shapes = {"tiny": (2, 2), "small": (10, 10), "large": (20, 20)}
    assert counts(shapes, 0.5) == {"tiny": 4, "small": 83, "large": 165}


def test_rescaling_can_make_a_further_layer_dense():
    # 90 % of 504 is 454. First `tiny` and `small` exceed 1 (scale 7.1: 1.42 of 100); large gets the rest.
    assert counts({"tiny": (2, 2), "small": (10, 10), "large": (20, 20)}, 0.9) == {
        "tiny": 4,
        "small": 100,
        "large": 350,
    }


def test_dense_layers_are_paid_from_the_same_budget():
    assert counts({"a": (4, 4), "b": (8, 8), "c": (8, 8)}, 0.5, "uniform", dense=["a"]) == {"a": 16, "b": 28, "c": 28}


@pytest.mark.parametrize(("seed", "density"), [(0, 0.25), (1, 0.3), (2, 0.8)])
def test_global_counts_the_largest_weights_of_the_whole_network(seed, density):
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "a": torch.randn(6, 7, generator=generator),
        "b": 2 * torch.randn(5, 6, 3, 3, generator=generator),
        "c": torch.randn(9, 5, generator=generator),
    }
    ranked = sorted(((abs(float(w)), n) for n, t in weights.items() for w in t.flatten()), reverse=True)
    top = [n for _, n in ranked[: budget(density, len(ranked))]]
    assert min(top.count(n) for n in weights) >= 1  # the floor of 1 does not bind in these examples
    assert counts({n: w.shape for n, w in weights.items()}, density, "global", weights=weights) == {
        n: top.count(n) for n in weights
    }


def test_global_leaves_each_layer_one():
    weights = {"large": torch.full((4, 4), 9.0), "small": torch.full((4, 4), 0.1)}
    assert counts({n: w.shape for n, w in weights.items()}, 0.25, "global", weights=weights) == {"large": 7, "small": 1}


@pytest.mark.parametrize(
    ("density", "kind", "dense", "says"),
    [
        (0.01, "erk", (), "one connection for each of the 2 other layers"),
        (0.4, "erk", ("a",), r"dense layers \['a'\]"),
        (0.5, "egk", (), "did you mean 'erk'"),
        (0.0, "erk", (), "above 0"),
        (1.5, "erk", (), "at most 1"),
        (math.nan, "erk", (), "density is nan"),
        (0.5, "global", (), "give the weights"),
        (0.5, "erk", ("a", "b"), "Raise the density"),
    ],
)
def test_what_cannot_be_meant_is_refused(density, kind, dense, says):
    with pytest.raises(UsageError, match=says):
        counts({"a": (10, 10), "b": (5, 5)}, density, kind, dense=dense)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_largest_remainders_sum_exactly_and_are_the_nearest_possible(data):
    n = data.draw(st.integers(1, 5))
    lower = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    upper = [lo + data.draw(st.integers(0, 4)) for lo in lower]
    total = data.draw(st.integers(sum(lower), sum(upper)))
    ideal = data.draw(st.lists(st.integers(0, 24).map(lambda q: Fraction(q, 4)), min_size=n, max_size=n))
    got = largest_remainders(ideal, total, lower, upper)
    assert sum(got) == total
    assert all(lo <= k <= hi for k, lo, hi in zip(got, lower, upper, strict=True))
    distance = sum((k - x) ** 2 for k, x in zip(got, ideal, strict=True))
    for i in range(n):  # moving one connection from anywhere to anywhere else brings it no nearer
        for j in range(n):
            if i != j and got[i] > lower[i] and got[j] < upper[j]:
                moved = list(got)
                moved[i], moved[j] = moved[i] - 1, moved[j] + 1
                assert sum((k - x) ** 2 for k, x in zip(moved, ideal, strict=True)) >= distance - 1e-9


@given(networks, st.floats(0.3, 1.0), st.floats(0.05, 0.3), st.sampled_from(["uniform", "er", "erk"]))
@settings(max_examples=100, deadline=None)
def test_a_falling_budget_is_met_and_no_layer_rises(shapes, before, after, kind):
    sizes = sizes_of(shapes)
    if budget(after, sum(sizes.values())) < len(shapes):
        return
    current, aim = counts(shapes, before, "uniform"), counts(shapes, after, kind)
    total = budget(after, sum(sizes.values()))
    new = shrink(current, aim, total)
    assert sum(new.values()) == total
    for name in shapes:
        assert min(current[name], aim[name]) <= new[name] <= current[name]


def test_shrink_takes_in_proportion_to_the_excess():
    # 20 over aims of 10, 30, 20: excess 30, 10, 0 (c is below its aim and keeps); 20 are taken as 15 and 5.
    assert shrink({"a": 40, "b": 40, "c": 10}, {"a": 10, "b": 30, "c": 30}, 70) == {"a": 25, "b": 35, "c": 10}


def test_balanced_rows_differ_by_one_and_the_fuller_keep_the_extra():
    assert balanced(7, torch.zeros(4, dtype=torch.long)).tolist() == [2, 2, 2, 1]
    assert balanced(5, torch.tensor([1, 2, 2, 2])).tolist() == [1, 2, 1, 1]
    assert balanced(6, torch.tensor([1, 2, 1, 2])).tolist() == [1, 2, 1, 2]


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_balanced_rows_never_rise_while_the_total_falls(rows, first, second, third):
    totals = sorted((first, second, third), reverse=True)
    current = torch.zeros(rows, dtype=torch.long)
    for i, total in enumerate(totals):
        new = balanced(total, current)
        assert int(new.sum()) == total
        assert int(new.max() - new.min()) <= 1
        assert i == 0 or bool((new <= current).all())
        current = new
