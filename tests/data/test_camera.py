"""The event camera: what changes is counted in thresholds, nothing is lost between looks, noise is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regraft.data.camera import LOWEST, fire, noise, thresholds

levels = st.lists(st.floats(-4, 4), min_size=1, max_size=12)
threshold = st.floats(0.05, 1.5)


def watch(series, off, on):
    """Events of one pixel over a series of looks: (OFF, ON) of each."""
    reference = np.array([series[0]])
    counts = []
    for level in series:
        falls, rises, reference = fire(np.array([level]), reference, off, on)
        counts.append((int(falls[0]), int(rises[0])))
    return counts


@given(st.floats(-4, 4), st.integers(1, 10), threshold, threshold)
def test_a_static_scene_gives_no_event(level, looks, off, on):
    assert watch([level] * looks, off, on) == [(0, 0)] * looks


@given(st.floats(0.001, 4), threshold, threshold)
def test_a_change_gives_as_many_events_as_thresholds_fit_into_it(change, off, on):
    assume(min((change / t) % 1 for t in (off, on)) > 1e-6 and max((change / t) % 1 for t in (off, on)) < 1 - 1e-6)
    assert watch([0.0, change], off, on)[1] == (0, int(change / on))
    assert watch([0.0, -change], off, on)[1] == (int(change / off), 0)


@given(levels, threshold, threshold)
def test_polarities_change_places_with_the_sign(series, off, on):
    there = watch(series, off, on)
    assert watch([-level for level in series], on, off) == [pair[::-1] for pair in there]


@given(st.floats(0, 3), st.integers(1, 40), threshold)
def test_what_is_left_of_a_change_counts_later(change, looks, on):
    """Slowly or at once: a rise gives the same events, but for one at the very edge of a threshold."""
    slowly = sum(rises for _, rises in watch(list(np.linspace(0, change, looks + 1)), 9.0, on))
    assert abs(slowly - watch([0.0, change], 9.0, on)[1][1]) <= (abs(change / on - round(change / on)) < 1e-6)


@given(levels, threshold, threshold)
def test_the_reference_stays_within_one_threshold(series, off, on):
    """Adding up the events gives the intensity back, to less than a threshold: none is lost, none invented."""
    counts = watch(series, off, on)
    rebuilt = series[0] + sum(rises * on - falls * off for falls, rises in counts)
    assert -off < series[-1] - rebuilt < on or abs(series[-1] - rebuilt) == pytest.approx(max(on, off))


def test_thresholds_differ_and_are_above_zero():
    found = thresholds(np.random.default_rng(0), (2, 100, 100), 0.2, 0.03)
    assert found.mean() == pytest.approx(0.2, abs=0.001)
    assert found.std() == pytest.approx(0.03, abs=0.001)
    assert thresholds(np.random.default_rng(0), (100, 100), 0.0, 1.0).min() == LOWEST


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(8, 20))
def test_no_rate_no_noise(seed, steps, size):
    counts = noise(np.random.default_rng(seed), steps=steps, size=size, seconds=1.0, rate=0.0, hot=0, hot_rate=20.0)
    assert counts.shape == (steps, 2, size, size)
    assert not counts.any()


def test_shot_noise_has_its_rate_everywhere():
    counts = noise(np.random.default_rng(1), steps=4, size=64, seconds=20.0, rate=5.0, hot=0, hot_rate=0.0)
    total = 64 * 64 * 20 * 5
    assert counts.sum() == pytest.approx(total, rel=5 / total**0.5)
    for axes in ((1, 2, 3), (0, 2, 3)):  # over the steps, and over the polarities
        shares = counts.sum(axis=axes) / counts.sum()
        assert shares == pytest.approx(1 / len(shares), rel=0.02)
    assert counts.sum(axis=(0, 1)).std() == pytest.approx(10, rel=0.1)  # Poisson: the root of 100 a pixel


def test_hot_pixels_fire_in_one_polarity_at_their_rate():
    counts = noise(np.random.default_rng(2), steps=10, size=32, seconds=50.0, rate=0.0, hot=3, hot_rate=20.0)
    firing = counts.sum(axis=0)
    assert (firing > 0).sum() == 3
    assert firing[firing > 0] == pytest.approx(1000, rel=0.2)
    assert (counts.reshape(10, -1)[:, firing.reshape(-1) > 0] > 0).all()
