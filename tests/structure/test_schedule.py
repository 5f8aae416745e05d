"""When, how much and at what density: closed forms at points that one can work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import UsageError
from regraft.structure import Schedule
from regraft.structure.schedule import changes


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.4), (250, 0.2 * (1 + math.sqrt(0.5))), (500, 0.2), (750, 0.2 * (1 - math.sqrt(0.5)))]
)
def test_zeta_follows_half_a_cosine(step, share):
    assert Schedule(zeta=0.4).exchange(step, 1000) == pytest.approx(share, rel=1e-12)


def test_zeta_ends_at_zero_and_constant_does_not_move():
    assert Schedule(zeta=0.4).exchange(1000, 1000) == pytest.approx(0, abs=1e-15)
    assert [Schedule(zeta=0.4, decay="constant").exchange(t, 1000) for t in (1, 500, 1000)] == [0.4] * 3


def test_density_falls_by_the_cube():
    schedule = Schedule(zeta=0, start_density=0.9)
    # d1 + (d0 - d1) (1 - t/t1)^3 with d0 = 0.9, d1 = 0.1: halfway an eighth of the way is left
    assert schedule.density(0, 800, 0.1) == pytest.approx(0.9)
    assert schedule.density(200, 800, 0.1) == pytest.approx(0.1 + 0.8 * 27 / 64)
    assert schedule.density(400, 800, 0.1) == pytest.approx(0.1 + 0.8 / 8)
    assert schedule.density(600, 800, 0.1) == pytest.approx(0.1 + 0.8 / 64)


@given(st.floats(0.001, 0.5), st.floats(0.5, 1.0), st.integers(1, 10_000))
def test_the_final_density_is_met_exactly_at_the_last_event(final, start, last):
    schedule = Schedule(start_density=start)
    assert schedule.density(last, last, final) == final
    assert schedule.density(last - 1, last, final) >= final


def test_a_constant_density_is_the_final_one_at_all_times():
    assert [Schedule().density(t, 100, 0.07) for t in (0, 50, 100)] == [0.07] * 3


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"zeta": -0.1}, "zeta is -0.1"),
        ({"zeta": 1.1}, "zeta is 1.1"),
        ({"zeta": math.nan}, "zeta is nan"),
        ({"decay": "cosin"}, "'cosine' or 'constant'"),
        ({"start_density": 0.0}, "start_density is 0.0"),
        ({"start_density": -1.0}, "start_density is -1.0"),
        ({"start_density": math.nan}, "start_density is nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings_, says):
    with pytest.raises(UsageError, match=says):
        Schedule(**settings_)


@pytest.mark.parametrize(
    ("k", "planned", "zeta", "room", "droppable", "dropped", "grown"),
    [
        (10, 10, 0.3, 90, 10, 3, 3),  # the plain exchange
        (10, 10, 0.25, 90, 10, 3, 3),  # 2.5 is rounded up
        (10, 10, 0.3, 2, 10, 2, 2),  # no more than there is room for
        (10, 10, 0.3, 90, 1, 1, 1),  # grace: only one is old enough
        (10, 4, 0.3, 90, 10, 6, 0),  # the budget asks for more than zeta
        (10, 9, 0.3, 90, 10, 3, 2),  # a falling density grows fewer
        (10, 4, 0.3, 90, 1, 6, 0),  # grace yields to the budget
        (90, 90, 0.5, 10, 90, 10, 10),  # nearly dense
        (100, 100, 0.5, 0, 100, 0, 0),  # dense
        (10, 10, 0.0, 90, 10, 0, 0),
    ],
)
def test_how_many_go_and_come_by_hand(k, planned, zeta, room, droppable, dropped, grown):
    n_drop, n_grow = changes(
        torch.tensor([k]), torch.tensor([planned]), zeta, torch.tensor([room]), torch.tensor([droppable])
    )
    assert (n_drop.tolist(), n_grow.tolist()) == ([dropped], [grown])


group = st.integers(0, 60).flatmap(
    lambda k: st.tuples(st.just(k), st.integers(0, k), st.integers(0, 60), st.integers(0, k))
)


@given(st.lists(group, min_size=1, max_size=5), st.integers(0, 8).map(lambda q: q / 8))
@settings(max_examples=100, deadline=None)
def test_many_groups_at_once_are_the_formula_group_by_group(groups, zeta):
    k, planned, room, droppable = (torch.tensor(column) for column in zip(*groups, strict=True))
    n_drop, n_grow = changes(k, planned, zeta, room, droppable)
    for i, (k_, planned_, room_, droppable_) in enumerate(groups):
        expected = max(k_ - planned_, min(math.floor(zeta * k_ + 0.5), room_, droppable_))
        assert int(n_drop[i]) == expected
        assert int(n_grow[i]) == planned_ - (k_ - expected)
        assert 0 <= int(n_drop[i]) <= k_
        assert 0 <= int(n_grow[i]) <= max(room_, 0)
