"""The parts of a rule on vectors of eight that a person can check, and the one selection under all of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.errors import TrainingError, UsageError
from regraft.structure import DROP, GROW, PRESETS, Drop, Grow, Rule, Schedule, Scope, View, preset
from regraft.structure.exchange import exchange
from regraft.structure.rules import select

#                        0     1     2    3    4     5    6    7
WEIGHT = torch.tensor([[0.5, -0.1, 0.0, 0.2, 0.0, -0.4, 0.3, -0.6]])
EXISTS = torch.tensor([[True, True, True, True, False, True, True, True]])
SALIENCY = torch.tensor([[0.1, 0.9, 0.2, 0.0, 0.0, 0.3, 0.8, 0.7]])
GRADIENT = torch.tensor([[9.0, -1.0, 2.0, -3.0, -7.0, 4.0, 5.0, 6.0]])
EIGHT = View(weight=WEIGHT, exists=EXISTS, saliency=SALIENCY, gradient=GRADIENT)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chosen(mask: torch.Tensor) -> list[int]:
    return mask[0].nonzero().flatten().tolist()


def drop_order(name: str, view: View = EIGHT) -> list[int]:
    """Indices in the order in which they would go, among existing ones."""
    order, score = [], DROP[name].score(view)
    for n in range(1, int(view.exists.sum()) + 1):
        now = chosen(select(score, view.exists, torch.tensor([n]), generator()))
        order += [i for i in now if i not in order]
    return order


def test_magnitude_drops_the_smallest_absolute_weights():
    assert drop_order("magnitude") == [2, 1, 3, 6, 5, 0, 7]


def test_signed_drops_zeros_then_both_signs_in_proportion():
    # Positives 0.2, 0.3, 0.5 rank 1/6, 3/6, 5/6; negatives -0.1, -0.4, -0.6 the same: they go in pairs.
    order = drop_order("signed")
    assert order[0] == 2
    assert set(order[1:3]) == {3, 1}
    assert set(order[3:5]) == {6, 5}
    assert set(order[5:]) == {0, 7}


def test_signed_takes_from_each_sign_by_its_share_whatever_the_sizes_of_weights():
    # 300 small positives, 100 large negatives: magnitude would take positives only.
    weight = torch.cat([torch.rand(300, generator=generator()), -10 - torch.rand(100, generator=generator(1))])[None]
    view = View(weight, torch.ones_like(weight, dtype=torch.bool), torch.zeros_like(weight), torch.zeros_like(weight))
    gone = select(DROP["signed"].score(view), view.exists, torch.tensor([80]), generator())
    assert int((gone & (weight > 0)).sum()) == 60
    assert int((gone & (weight < 0)).sum()) == 20
    assert weight[gone & (weight > 0)].max() < weight[~gone & (weight > 0)].min()
    assert weight[gone & (weight < 0)].min() > weight[~gone & (weight < 0)].max()


def test_taylor_drops_the_smallest_saliency():
    assert drop_order("taylor") == [3, 0, 2, 5, 7, 6, 1]


def test_gradient_grows_the_largest_absolute_gradients_whatever_their_sign():
    for name in ("gradient", "accumulated", "momentum"):
        score = -GROW[name].score(EIGHT)
        assert chosen(select(score, torch.ones_like(EXISTS), torch.tensor([3]), generator())) == [0, 4, 7]


def test_random_growth_is_uniform_over_absent_connections():
    hits = torch.zeros(40)
    candidates = torch.arange(40)[None] % 2 == 0
    view = View(torch.randn(1, 40, generator=generator()), ~candidates, torch.zeros(1, 40), torch.zeros(1, 40))
    shared = generator(5)
    for _ in range(2000):
        hits += select(-GROW["random"].score(view), candidates, torch.tensor([5]), shared)[0]
    assert hits[1::2].sum() == 0
    expected = 2000 * 5 / 20
    chi2 = float(((hits[::2] - expected) ** 2 / (expected * (1 - 5 / 20))).sum()) * 19 / 20
    assert chi2 < 43.8  # the 99.9 % point of chi-squared with 19 degrees of freedom


# --- select ----------------------------------------------------------------------------------------------------------

values = st.sampled_from([-math.inf, -2.0, -0.5, -0.0, 0.0, 0.5, 1.0, math.inf])


@given(st.integers(1, 4), st.integers(1, 12), st.data())
@settings(max_examples=150, deadline=None)
def test_select_is_a_plain_sort_with_exact_counts(groups, size, data):
    score = torch.tensor([data.draw(st.lists(values, min_size=size, max_size=size)) for _ in range(groups)])
    candidates = torch.tensor([data.draw(st.lists(st.booleans(), min_size=size, max_size=size)) for _ in range(groups)])
    counts = torch.tensor([data.draw(st.integers(0, int(row.sum()))) for row in candidates])
    got = select(score, candidates, counts, generator(data.draw(st.integers(0, 5))))
    assert got.sum(dim=1).tolist() == counts.tolist()
    assert not bool((got & ~candidates).any())
    for row, may, n, picked in zip(score, candidates, counts, got, strict=True):
        assert sorted(row[picked].tolist()) == sorted(row[may].tolist())[: int(n)]


@pytest.mark.parametrize("groups", [1, 3])
def test_masses_of_ties_are_broken_at_random_not_by_index(groups):
    """200 equal zeros under 10 smaller and 10 larger scores; 30 are wanted: the 10, and any 20 of the 200."""
    score = torch.cat([torch.full((10,), 1.0), torch.zeros(200), torch.full((10,), -1.0)]).repeat(groups, 1)
    everything = torch.ones_like(score, dtype=torch.bool)
    hits, shared = torch.zeros(groups, 200), generator(3)
    for _ in range(400):
        got = select(score, everything, torch.full((groups,), 30), shared)
        assert got.sum(dim=1).tolist() == [30] * groups
        assert bool(got[:, 210:].all())
        assert not bool(got[:, :10].any())
        hits += got[:, 10:210]
    expected = 400 * 20 / 200
    chi2 = ((hits - expected) ** 2 / (expected * 0.9)).sum(dim=1) * 199 / 200
    assert float(chi2.max()) < 267.5  # 99.9 % of chi-squared with 199 degrees of freedom
    first, second = hits[:, :100].sum(dim=1), hits[:, 100:].sum(dim=1)
    assert float(((first - second).abs() / (first + second)).max()) < 0.05  # neither end is preferred


@pytest.mark.parametrize("groups", [1, 3])
def test_the_same_seed_makes_the_same_choice_and_another_seed_another(groups):
    score, everything = torch.zeros(groups, 100), torch.ones(groups, 100, dtype=torch.bool)
    picks = [select(score, everything, torch.full((groups,), 20), generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(picks[0], picks[1])
    assert not torch.equal(picks[0], picks[2])


@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_not_a_number_is_refused_where_it_could_be_chosen(groups):
    score = torch.zeros(groups, 8)
    score[:, 3] = math.nan
    everything = torch.ones(groups, 8, dtype=torch.bool)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        select(score, everything, torch.full((groups,), 2), generator())
    others = everything.clone()
    others[:, 3] = False
    got = select(score, others, torch.full((groups,), 7), generator())
    assert torch.equal(got, others)


def test_choosing_nothing_chooses_nothing():
    score = torch.full((1, 4), math.nan)
    assert not bool(select(score, torch.ones(1, 4, dtype=torch.bool), torch.tensor([0]), generator()).any())


# --- one exchange ----------------------------------------------------------------------------------------------------

NONE = torch.zeros(1, 8, dtype=torch.bool)


def test_an_exchange_by_hand():
    exists = torch.tensor([[True, True, True, True, False, False, False, False]])
    view = View(torch.tensor([[0.3, 0.1, 0.2, 0.4, 0, 0, 0, 0]]), exists, torch.zeros(1, 8), GRADIENT)
    rule = Rule("r", grow="gradient")
    after = exchange(rule, view, NONE, NONE, torch.tensor([4]), 0.5, generator())
    assert chosen(after) == [0, 3, 4, 7]  # 1 and 2 go; -7 and 6 are the largest absent gradients


def test_what_grew_last_time_is_spared_and_what_just_went_is_no_candidate():
    exists = torch.tensor([[True, True, True, True, False, False, False, False]])
    view = View(torch.tensor([[0.3, 0.1, 0.2, 0.4, 0, 0, 0, 0]]), exists, torch.zeros(1, 8), GRADIENT)
    young, gone = NONE.clone(), NONE.clone()
    young[0, 1], gone[0, 4] = True, True
    after = exchange(Rule("r", grow="gradient"), view, young, gone, torch.tensor([4]), 0.25, generator())
    assert chosen(after) == [0, 1, 3, 7]  # 1 is young, so 2 goes; 4 went before, so 7 comes
    after = exchange(Rule("r", grow="gradient", grace=False), view, young, gone, torch.tensor([4]), 0.25, generator())
    assert chosen(after) == [0, 2, 3, 7]


def test_grace_yields_when_the_budget_demands_it_and_only_as_far():
    exists = torch.tensor([[True, True, True, True, False, False, False, False]])
    view = View(torch.tensor([[0.3, 0.1, 0.2, 0.4, 0, 0, 0, 0]]), exists, torch.zeros(1, 8), GRADIENT)
    young = torch.tensor([[True, True, True, False, False, False, False, False]])
    after = exchange(Rule("r", grow="gradient"), view, young, NONE, torch.tensor([2]), 0.5, generator())
    assert chosen(after) == [0, 2]  # 3 is old: it goes first, though the largest; then the smallest young one


def test_reselection_lets_what_just_went_come_back():
    exists = torch.tensor([[True, True, True, True, False, False, False, False]])
    gradient = torch.tensor([[0.0, 9.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]])
    view = View(torch.tensor([[0.3, 0.1, 0.2, 0.4, 0, 0, 0, 0]]), exists, torch.zeros(1, 8), gradient)
    after = exchange(Rule("r", grow="gradient", reselect=True), view, NONE, NONE, torch.tensor([4]), 0.5, generator())
    assert chosen(after) == [0, 1, 3, 7]
    after = exchange(Rule("r", grow="gradient"), view, NONE, NONE, torch.tensor([4]), 0.5, generator())
    assert chosen(after) == [0, 3, 6, 7]


# --- rules and presets -----------------------------------------------------------------------------------------------


def test_a_preset_can_be_changed_in_its_fields_and_its_schedules():
    rule = preset("rigl", zeta=0.1, grow="random", decay="constant")
    assert (rule.schedule.zeta, rule.schedule.decay, rule.grows.name, rule.reselect) == (
        0.1,
        "constant",
        "random",
        True,
    )
    assert PRESETS["rigl"].schedule.zeta == 0.3
    assert preset(rule, zeta=0.2).schedule == Schedule(zeta=0.2, decay="constant")


def test_each_preset_names_its_source_and_itself():
    for name, rule in PRESETS.items():
        assert rule.name == name
        assert any(year in rule.source for year in ("2017", "2018", "2019", "2020", "2021", "2023", "2024"))
        assert rule.departures or name == "static"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: preset("rgil"), "did you mean 'rigl'"),
        (lambda: preset("rigl", zetta=0.1), "did you mean 'zeta'"),
        (lambda: Rule("x", drop="magnitud"), "no drop rule is called 'magnitud'"),
        (lambda: Rule("x", grow="gradients"), "did you mean 'gradient'"),
        (lambda: Rule("x", prune=Scope("network")), "give start_density"),
        (lambda: Rule("x", scope=Scope("row"), prune=Scope("network"), schedule=Schedule(start_density=1.0)), "uneven"),
        (lambda: Scope("layers"), "did you mean 'layer'"),  # pyright: ignore[reportArgumentType]
        (lambda: Scope("layer", strict=True), "use it with scope 'row'"),
        (lambda: Grow("g", lambda view: view.gradient, "gradients"), "did you mean 'gradient'"),  # pyright: ignore
        (lambda: Grow("g", lambda view: view.gradient, "gradient", sample=0.0), "give a number above 0"),
        (lambda: Grow("g", lambda view: view.gradient, "momentum", sample=1.0), "its own sample"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_a_rule_of_ones_own_takes_ten_lines():
    def crowded(view: View) -> torch.Tensor:
        """The fullest rows lose first."""
        return -view.exists.float()

    rule = Rule("mine", drop=Drop("crowded", crowded), grow=Grow("small", lambda view: -view.weight.abs()))
    assert rule.drops.score(EIGHT).shape == (1, 8)
    assert rule.schedule == Schedule()
