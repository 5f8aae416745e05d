"""Workers that take turns, and the rows made of their seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parent)]
import rounds
import tasks

KEYS = {
    "workload", "variant", "density", "batch", "threads", "median_s", "against", "ratio", "ratio_min", "ratio_max",
    "peak_mb", "clock", "cpu",
}  # fmt: skip


class Scripted:
    """In place of a worker: seconds that are known, and a note of every turn."""

    def __init__(self, name: str, seconds: list[float], turns: list[str]) -> None:
        self.name, self.seconds, self.turns = name, list(seconds), turns

    def round(self) -> float:
        self.turns.append(self.name)
        if not self.seconds:
            raise rounds.LeftOut("it ended")
        return self.seconds.pop(0)


def test_rounds_take_turns_and_alternate_their_direction():
    turns: list[str] = []
    workers = {name: Scripted(name, [1.0] * 3, turns) for name in "abc"}
    times, lost = rounds.interleave(workers, 3)
    assert "".join(turns) == "abc" + "cba" + "abc"
    assert times == {name: [1.0] * 3 for name in "abc"}
    assert lost == {}


def test_a_worker_that_ends_is_left_out_and_the_others_go_on():
    workers = {name: Scripted(name, [1.0] * (1 if name == "b" else 3), []) for name in "abc"}
    times, lost = rounds.interleave(workers, 3)
    assert set(times) == set(workers) == {"a", "c"}
    assert lost == {"b": "it ended"}


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    # The machine is slower in some rounds, so the ratio of the medians, 5, says nothing.
    found = rounds.compare({"ours": [1.0, 10.0, 2.0], "theirs": [2.0, 10.0, 10.0]}, "ours", "theirs")
    assert found == {"median_s": 2.0, "ratio": 2.0, "ratio_min": 1.0, "ratio_max": 5.0}


def test_rows_have_the_promised_keys_and_every_variant_has_one():
    times = {"ours": [1.0], "theirs": [2.0], "lonely": [4.0]}
    jobs = {name: rounds.Job(name, tasks.Faults, (), threads=2, clock="wall") for name in times}
    found = rounds.rows(
        times,
        lambda variant: [] if variant == "lonely" else ["theirs", None, "not measured", "ours", "theirs"],
        workload="cifar",
        batch=8,
        jobs=jobs,
        peaks=dict.fromkeys(times, 123.0),
        density=lambda variant: 0.1 if variant == "ours" else 1.0,
    )
    assert all(set(row) == KEYS for row in found)
    assert [(row["variant"], row["against"], row["ratio"], row["density"]) for row in found] == [
        ("ours", "theirs", 2.0, 0.1),
        ("theirs", "ours", 0.5, 1.0),
        ("lonely", "lonely", 1.0, 1.0),
    ]
    assert {(row["threads"], row["clock"], row["peak_mb"]) for row in found} == {(2, "wall", 123.0)}


def test_the_fastest_is_that_of_the_shortest_median():
    times = {"a": [1.0, 9.0, 9.0], "b": [5.0, 5.0, 5.0], "c": [0.1]}
    assert rounds.fastest(times, ["a", "b", "not measured"]) == "b"
    assert rounds.fastest(times, ["not measured"]) is None


def test_workers_have_their_own_allocator_threads_and_peak():
    """As it comes, memory that is freed goes back to the system and is faulted in again: 100 MB are 24,400 pages."""
    jobs = [
        rounds.Job("as it comes", tasks.Faults, ()),
        rounds.Job("kept", tasks.Faults, (), threads=2, clock="wall", keep_pages=True),
    ]
    workers, left_out, first = rounds.start(jobs)
    assert left_out == {}
    assert set(first) == {"as it comes", "kept"}
    assert rounds.losses(workers, 3) == ({"as it comes": [0, 1, 2], "kept": [0, 1, 2]}, {})
    assert workers["kept"].ask("threads") == 2
    assert workers["as it comes"].ask("threads") == 1
    if sys.platform.startswith("linux"):  # keep_pages() has no effect elsewhere
        assert workers["kept"].ask("minor") < 100
        # Huge pages, where the system gives them unasked, are 512 times as large.
        assert workers["as it comes"].ask("minor") >= 45
    times, lost = rounds.interleave(workers, 2)
    assert lost == {}
    assert all(second > 0 for seconds in times.values() for second in seconds)
    assert all(100 < worker.peak_mb() < 2000 for worker in workers.values())
    for worker in workers.values():
        worker.close()


def test_the_reasons_of_those_without_figures():
    jobs = [
        rounds.Job("absent", tasks.absent, ()),
        rounds.Job("endless", tasks.Endless, (), limit_s=1),
        rounds.Job("killed", tasks.Killed, ()),
    ]
    workers, left_out, _ = rounds.start(jobs)
    _, ended = rounds.losses(workers, 1)
    assert left_out == {"absent": "not installed (nothing_of_this_name)", "endless": "did not finish in 1 s"}
    assert ended == {"killed": "its process ended (exit code 3)"}
    assert workers == {}


def test_nothing_is_started_where_memory_is_short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rounds, "free_mb", lambda: 1000.0)
    workers, left_out, _ = rounds.start([rounds.Job("a", tasks.Faults, ())])
    assert workers == {}
    assert "1000 MB" in left_out["a"]
