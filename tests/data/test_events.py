"""Events into frames: none is lost, each lands where and when it happened."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data.events import integrate
from regraft.errors import UsageError

H, W = 3, 4


@st.composite
def recordings(draw):
    """Some recordings as lists of events `(t, x, y, p)`, and a number of steps."""
    event = st.tuples(st.integers(0, 2**23 - 1), st.integers(0, W - 1), st.integers(0, H - 1), st.integers(0, 1))
    return draw(st.lists(st.lists(event, min_size=1, max_size=30), min_size=1, max_size=4)), draw(st.integers(1, 7))


def frames(parts, steps, by="time"):
    t, x, y, p = np.array([event for part in parts for event in part]).T
    lengths = np.array([len(part) for part in parts])
    return integrate(t, x, y, p, lengths, steps=steps, height=H, width=W, by=by)


@settings(deadline=None)
@given(recordings(), st.sampled_from(["time", "count"]))
def test_each_event_is_counted_once_at_its_pixel(given_, by):
    parts, steps = given_
    found = frames(parts, steps, by)
    assert (found.shape, found.dtype) == ((len(parts), steps, 2, H, W), np.uint8)
    for frame, part in zip(found, parts, strict=True):
        whole = np.zeros((2, H, W), int)
        for _, x, y, p in part:
            whole[p, y, x] += 1
        assert np.array_equal(frame.sum(axis=0), whole)


@settings(deadline=None)
@given(recordings())
def test_parts_of_time_are_equal_and_begin_with_the_first_event(given_):
    parts, steps = given_
    for frame, part in zip(frames(parts, steps), parts, strict=True):
        first, last = min(e[0] for e in part), max(e[0] for e in part)
        edges = [first + (last - first + 1) * k / steps for k in range(steps + 1)]
        for k in range(steps):
            assert int(frame[k].sum()) == sum(edges[k] <= event[0] < edges[k + 1] for event in part)


@settings(deadline=None)
@given(recordings())
def test_parts_by_count_hold_equally_many_events_in_order(given_):
    parts, steps = given_
    for frame, part in zip(frames(parts, steps, "count"), parts, strict=True):
        counts = frame.sum(axis=(1, 2, 3), dtype=int).tolist()
        assert max(counts) - min(counts) <= 1
        begin = 0
        for k, count in enumerate(counts):
            alone = np.zeros((2, H, W), int)
            for _, x, y, p in part[begin : begin + count]:
                alone[p, y, x] += 1
            assert np.array_equal(frame[k], alone)
            begin += count


@settings(deadline=None)
@given(recordings())
def test_a_recording_does_not_see_its_neighbours_nor_a_later_clock(given_):
    parts, steps = given_
    found = frames(parts, steps)
    for frame, part in zip(found, parts, strict=True):
        assert np.array_equal(frames([part], steps)[0], frame)
        late = [(t + 1000, x, y, p) for t, x, y, p in reversed(part)]
        assert np.array_equal(frames([late], steps)[0], frame), "neither the order nor the start of the clock matters"


def test_a_pixel_that_fires_more_than_255_times_is_full():
    found = frames([[(t, 1, 2, 1) for t in range(1000)]], 2)
    assert found[0, :, 1, 2, 1].tolist() == [255, 255]
    assert int(found.sum(dtype=int)) == 510


def test_an_unknown_way_is_refused():
    with pytest.raises(UsageError, match="by is 'tim': give 'time' or 'count'"):
        frames([[(0, 0, 0, 0)]], 1, "tim")
