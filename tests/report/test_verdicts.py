"""Verdicts against numbers worked out by hand, by scipy's own paired test, and by simulation."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from regraft.errors import MissingExtraError, UsageError
from regraft.report import by_arm, compare, find_runs, summary

BASE = {0: 90.0, 1: 91.0, 2: 92.5}


def shifted(*differences: float) -> dict[int, float]:
    return {seed: BASE[seed] + difference for seed, difference in enumerate(differences)}


def test_differences_of_1_2_3_by_hand():
    (verdict,) = compare({"base": BASE, "arm": shifted(1, 2, 3)}, "base")
    assert (verdict.arm, verdict.baseline, verdict.n) == ("arm", "base", 3)
    assert verdict.mean == pytest.approx(2)
    assert verdict.sd == pytest.approx(1)
    margin = 4.302652730 / math.sqrt(3)  # t with 2 degrees of freedom, 97.5 %
    assert (verdict.low, verdict.high) == pytest.approx((2 - margin, 2 + margin), rel=1e-8)
    t = 2 * math.sqrt(3)
    assert verdict.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)  # exact for 2 degrees of freedom
    assert verdict.level == pytest.approx(0.95)
    assert verdict.word == "undecided"


@pytest.mark.parametrize(("sign", "word"), [(1, "held"), (-1, "contradicted")])
def test_a_clear_difference_is_held_or_contradicted(sign, word):
    (verdict,) = compare({"base": BASE, "arm": shifted(*(sign * d for d in (2.0, 2.1, 1.9)))}, "base")
    assert verdict.word == word
    assert verdict.low * verdict.high > 0


def test_pairing_is_by_seed_and_not_by_order():
    straight = compare({"base": BASE, "arm": shifted(1, 2, 3)}, "base")
    turned = compare({"base": BASE, "arm": dict(reversed(shifted(1, 2, 3).items()))}, "base")
    assert straight == turned


def with_p_value(p: float, seeds: int = 6) -> dict[int, float]:
    """An arm whose paired differences to a baseline of zeros give exactly this two-sided p value."""
    noise = np.linspace(-1, 1, seeds)
    mean = stats.t.ppf(1 - p / 2, seeds - 1) * noise.std(ddof=1) / math.sqrt(seeds)
    return dict(enumerate(noise + mean))


def test_the_textbook_example_of_holm():
    # p = 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02 (also R: p.adjust(method = "holm")).
    raw = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    values = {"base": dict.fromkeys(range(6), 0.0)} | {arm: with_p_value(p) for arm, p in raw.items()}
    verdicts = {verdict.arm: verdict for verdict in compare(values, "base")}
    assert {arm: round(v.p, 9) for arm, v in verdicts.items()} == {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    # b alone would pass at 5 %; after c it may not.
    assert {arm: v.word for arm, v in verdicts.items()} == {
        "a": "held",
        "b": "undecided",
        "c": "undecided",
        "d": "held",
    }
    levels = {arm: 1 - v.level for arm, v in verdicts.items()}
    assert levels == pytest.approx({"d": 0.05 / 4, "a": 0.05 / 3, "c": 0.05 / 2, "b": 0.05 / 2})


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 8), st.integers(0, 2**32 - 1))
def test_one_comparison_agrees_with_scipys_paired_test(n, seed):
    rng = np.random.default_rng(seed)
    base, arm = rng.normal(size=n), rng.normal(0.5, 1, size=n)
    (verdict,) = compare({"base": dict(enumerate(base)), "arm": dict(enumerate(arm))}, "base", confidence=0.9)
    reference = stats.ttest_rel(arm, base)
    interval = reference.confidence_interval(0.9)
    assert verdict.p == pytest.approx(reference.pvalue, rel=1e-7)
    assert (verdict.low, verdict.high) == pytest.approx((interval.low, interval.high), rel=1e-7, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_interval_word_and_adjusted_p_never_disagree(arms, seed):
    rng = np.random.default_rng(seed)
    values = {f"arm {k}": dict(enumerate(rng.normal(rng.choice([0, 1.5]), 0.5, size=5))) for k in range(arms + 1)}
    for verdict in compare(values, "arm 0"):
        assert (verdict.word != "undecided") == (verdict.p < 0.05)
        assert (verdict.low <= 0 <= verdict.high) == (verdict.word == "undecided")


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_smallest_detectable_difference_is_found_four_times_in_five(n):
    noise = dict(enumerate(np.random.default_rng(n).normal(size=n)))
    (verdict,) = compare({"base": dict.fromkeys(range(n), 0.0), "arm": noise}, "base")
    draws = np.random.default_rng(1).normal(verdict.detectable, verdict.sd, size=(200_000, n))
    found = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.005)


def test_no_spread_concludes_nothing():
    for difference in (0.0, 0.1):
        (verdict,) = compare({"base": BASE, "arm": shifted(*[difference] * 3)}, "base")
        assert verdict.word == "undecided"
        assert (verdict.low, verdict.high, verdict.p) == (-math.inf, math.inf, 1.0)


@pytest.mark.parametrize(
    ("values", "baseline", "says"),
    [
        ({"base": {0: 1.0, 1: 2.0}, "arm": {0: 1.0, 1: 2.0}}, "base", "3 or more seeds"),
        ({"base": BASE, "arm": {0: 1.0, 1: 2.0}}, "base", "same seeds"),
        ({"base": BASE, "arm": {0: 1.0, 1: 2.0, 7: 3.0}}, "base", "2, 7"),
        ({"base": BASE, "arm": BASE}, "bass", "did you mean 'base'"),
        ({"base": BASE, "arm": {0: 1.0, 1: 2.0, 2: math.nan}}, "base", "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(values, baseline, says):
    with pytest.raises(UsageError, match=says):
        compare(values, baseline)


def test_a_confidence_in_per_cent_is_refused():
    with pytest.raises(UsageError, match="between 0 and 1"):
        compare({"base": BASE, "arm": BASE}, "base", confidence=95)


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=r"regraft\[stats\]"):
        compare({"base": BASE, "arm": shifted(1, 2, 3)}, "base")


def test_summary_is_mean_and_sample_deviation():
    found = summary({"a": {0: 2.0, 1: 4.0, 2: 4.0, 3: 4.0, 4: 5.0, 5: 5.0, 6: 7.0, 7: 9.0}, "b": {3: 1.5}})
    assert (found["a"].mean, found["a"].n) == (5.0, 8)
    assert found["a"].sd == pytest.approx(math.sqrt(32 / 7))
    assert found["b"].mean == 1.5
    assert math.isnan(found["b"].sd)


def test_values_of_runs_come_by_arm_and_seed(write):
    write("a", folder="a0", accuracy__last=0.5)
    write("a", folder="a1", seed=1, accuracy__last=0.6, accuracy__selected=0.7)
    study = write("b", finished=False).parent
    assert by_arm(find_runs(study)) == {"a": {0: 0.5, 1: 0.6}}
    assert by_arm(find_runs(study), "selected")["a"][1] == 0.7
