"""A sweep: what it plans, what it calls it, in what order it trains, and what happens when something goes wrong."""

from __future__ import annotations

import collections
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
from urllib.parse import unquote

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from regraft.errors import MissingExtraError, RunError, UsageError
from regraft.training.estimate import estimate, makespan, training_steps
from regraft.training.pool import Processes, Ray, train_all
from regraft.training.recipe import Recipe, override, to_mapping
from regraft.training.slurm import write_jobs
from regraft.training.source import parse_yaml
from regraft.training.sweep import (
    LONGEST,
    Planned,
    Sweep,
    label_of,
    left_to_train,
    plan,
    read_planned,
    text_of,
    value_of,
    write_plan,
)
from regraft.training.worker import train_planned

BASE = """
data: {name: standin, batch: 16}
model: {steps: 2, options: {widths: [[4], [4]], hidden: 8}}
topology: {density: 0.5, every: 2}
training: {epochs: 2, lr: 0.05}
"""
ARMS = """
arms:
  dense: {topology: {density: 1.0, rule: static}}
  sparse:
  reverse: {distill: {teacher: sparse, density: 0.2, weight: 0.3}}
"""

LONGER = {"training.epochs": [8], "data.batch": [4]}  # seconds, so that one can come between


@pytest.fixture
def source(tmp_path, monkeypatch):
    """`source(arms)`: a recipe file in the folder where the test stands."""
    monkeypatch.chdir(tmp_path)

    def write(arms: str = "", base: str = BASE):
        (tmp_path / "tiny.yaml").write_text(base + arms, encoding="utf-8")
        return "tiny.yaml"

    return write


# --- names ------------------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = scalars | st.lists(scalars, max_size=3)
words = st.dictionaries(st.text(min_size=1), values, max_size=4)
arms = st.just("") | st.text(min_size=1)


def read_back(label: str, arm: bool):
    """The inverse of `label_of`, from what its documentation says."""
    pieces = label.split(",")
    first = unquote(pieces.pop(0)) if arm else ""
    pairs = [piece.partition("=") for piece in pieces if piece]
    return {unquote(key): parse_yaml(unquote(value), "label") for key, _, value in pairs}, first


@given(words, arms)
def test_a_label_says_its_settings_in_characters_that_every_file_system_takes(parts, arm):
    label = label_of(parts, arm)
    assert len(label.encode()) <= LONGEST
    assert all(c.isascii() and (c.isalnum() or c in "=,+-_.~%") for c in label.replace("/", "" if "/" in arm else "/"))
    if len(label) < LONGEST:
        found, first = read_back(label, bool(arm))
        assert (json.dumps(found), first) == (json.dumps(parts), arm)


@given(words, words, arms, arms)
def test_other_settings_have_another_label(one, other, arm, another):
    same = (json.dumps(one), arm) == (json.dumps(other), another)
    assert (label_of(one, arm) == label_of(other, another)) == same


@given(values)
def test_a_value_reads_as_itself(value):
    assert json.dumps(parse_yaml(text_of(value), "text")) == json.dumps(value)


def test_long_labels_are_cut_and_still_differ():
    parts = [{"include": ["x" * 200, str(i)]} for i in range(50)]
    assert len({label_of(one) for one in parts}) == 50


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_is_the_product_of_all_lists(source):
    grid = {"topology.density": [0.2, 0.5], "topology.rule": ["set", "rigl"], "training.epochs": [3]}
    sweep = plan(source(), grid, seeds=[0, 7])
    assert [run.path for run in sweep.runs] == [
        f"density={density},rule={rule}/seed-{seed}"
        for density in (0.2, 0.5)
        for rule in ("set", "rigl")
        for seed in (0, 7)
    ]
    for run in sweep.runs:
        density, rule = (piece.partition("=")[2] for piece in run.label.split(","))
        assert (run.recipe.topology.density, run.recipe.topology.rule) == (float(density), rule)
        assert (run.recipe.seed, run.recipe.training.epochs, run.recipe.name) == (run.seed, 3, run.label)
        assert run.path.endswith(f"/seed-{run.seed}")
    assert sweep.axes == {"topology.density": (0.2, 0.5), "topology.rule": ("set", "rigl")}
    assert len({run.recipe.hash for run in sweep.runs}) == 8
    assert [run.seed for run in sweep.order] == [0] * 4 + [7] * 4, "one seed of everything first"


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5]), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(["set", "rigl", "mest"]), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=3, unique=True),
)
def test_as_many_runs_as_combinations_and_no_two_in_one_folder(densities, rules, seeds):
    sweep = plan("digits", {"topology.density": densities, "topology.rule": rules}, seeds, only=("sparse", "dense"))
    paths = [run.path for run in sweep.runs]
    assert len(set(paths)) == len(paths) == len(densities) * len(rules) * len(seeds) + len(seeds)
    assert {run.path for run in sweep.order} == set(paths)


def test_an_arm_keeps_what_it_sets_itself_and_is_trained_once(source):
    sweep = plan(source(ARMS), {"topology.density": [0.3, 0.5]}, seeds=[0, 1])
    dense = [run for run in sweep.runs if run.recipe.topology.density == 1]
    assert [run.path for run in dense] == ["dense/seed-0", "dense/seed-1"]
    assert [run.path for run in sweep.runs if run.label.startswith("sparse")] == [
        f"sparse,density={density}/seed-{seed}" for density in (0.3, 0.5) for seed in (0, 1)
    ]
    with pytest.raises(UsageError, match=r"sets topology\.density itself"):
        plan(source(ARMS), {"topology.density": [0.3, 0.5]}, only=("dense",))


def test_teachers_come_once_each_before_their_students(source):
    sweep = plan(source(ARMS), {"distill.temperature": [1, 4]}, seeds=[0, 1])
    teachers = [run for run in sweep.runs if run.recipe.topology.density == 0.2]
    assert [run.seed for run in teachers] == [0, 1]
    students = [run for run in sweep.runs if run.recipe.distill.teacher == "sparse"]
    assert len(students) == 4
    for order in (list(sweep.runs), sweep.order):
        for student in students:
            teacher = next(run for run in teachers if run.seed == student.seed)
            assert student.teacher == teacher.path
            assert order.index(teacher) < order.index(student)
    assert all(run.teacher is None for run in sweep.runs if run not in students)
    named = plan(source("arms:\n  teacher-of-a:\n  a: {distill: {teacher: sparse, density: 0.2}}\n"), {})
    assert len({run.path for run in named.runs}) == 3, "an arm may be called as its neighbour's teacher would be"


def test_names_are_short_unless_two_settings_share_their_last_word(source):
    both = plan(source(ARMS), {"topology.density": [0.4, 0.5], "distill.density": [0.1, 0.2]}, only=("sparse",))
    assert both.runs[0].label == "sparse,topology.density=0.4,distill.density=0.1"
    assert plan(source(), {"model.options.hidden": [8, 16]}).runs[1].label == "hidden=16"


@pytest.mark.parametrize(
    ("lists", "seeds", "message"),
    [
        ({"topology.densty": [0.1]}, [], "did you mean 'density'"),
        ({"topolgy.density": [0.1]}, [], "did you mean 'topology'"),
        ({"density": [0.1, 0.2]}, [], "give its dotted name"),
        ({"topology": [{"density": 0.1}]}, [], "give its dotted name"),
        ({"topology.density": []}, [], "topology.density has no value"),
        ({"topology.density": [0.1, 0.1]}, [], "a value twice: 0.1, 0.1"),
        ({"training.lr": [1, 1.0]}, [], "a value twice: 1, 1.0"),
        ({"topology.density": [0.1, 2]}, [], "topology.density is 2.0: give a number above 0, up to 1 (at topology"),
        ({"topology.density": ["dense"]}, [], "topology.density is 'dense': give float"),
        ({"topology.density": [{"a": 1}, 0.1]}, [], "topology.density is {'a': 1}: give float"),
        ({}, [1, 1], "seed has a value twice"),
        ({}, [0.5], "seed is 0.5: give int"),
        ({}, [-1], "seed is -1"),
        ({"distill.teacher": ["sparse"], "topology.density": [0.01, 0.5]}, [], "must be sparser than the student"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(source, lists, seeds, message):
    with pytest.raises(UsageError) as error:
        plan(source(), lists, seeds)
    assert message in str(error.value)


# --- what is there already --------------------------------------------------------------------------------------------


def finish(folder, run, of=None):
    """A result, as far as the question goes whether a run is finished."""
    (folder / run.path).mkdir(parents=True, exist_ok=True)
    (folder / run.path / "result.json").write_text(json.dumps({"recipe_hash": (of or run).recipe.hash}))


def test_finished_runs_are_left_out_by_the_hash_of_their_recipe(source, tmp_path):
    sweep = plan(source(), {"topology.density": [0.3, 0.5]}, seeds=[0, 1])
    assert left_to_train(sweep, tmp_path / "out") == sweep.order
    finish(tmp_path / "out", sweep.runs[2])
    assert left_to_train(sweep, tmp_path / "out") == [run for run in sweep.order if run is not sweep.runs[2]]
    finish(tmp_path / "out", sweep.runs[0], of=sweep.runs[3])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(RunError, match=r"density=0\.3/seed-0 holds a finished run of another recipe"):
        left_to_train(sweep, tmp_path / "out")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_what_was_begun_with_other_settings_is_refused(source, tmp_path):
    sweep = plan(source(), {}, seeds=[0])
    begun = tmp_path / "out" / sweep.runs[0].path
    begun.mkdir(parents=True)
    (begun / "recipe.yaml").write_text(json.dumps(to_mapping(override(sweep.runs[0].recipe, {"training.lr": 0.5}))))
    with pytest.raises(UsageError, match=r"was begun with training\.lr 0\.5, now it is 0\.05"):
        left_to_train(sweep, tmp_path / "out")


def test_what_cannot_be_meant_shows_before_anything_is_trained(source, tmp_path):
    with pytest.raises(UsageError, match=r"rule=rgil/seed-0: .*did you mean 'rigl'"):
        left_to_train(plan(source(), {"topology.rule": ["set", "rgil"]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_plan_file_gives_back_each_run_and_keeps_earlier_ones(source, tmp_path):
    sweep = plan(source(ARMS), {"topology.density": [0.3, 0.5]}, seeds=[0])
    write_plan(sweep, tmp_path, "regraft sweep tiny.yaml")
    for run in sweep.runs:
        assert read_planned(tmp_path, run.path) == (run, "regraft sweep tiny.yaml")
    more = plan(source(ARMS), {"topology.density": [0.4, 0.5]}, seeds=[0])
    write_plan(more, tmp_path, "the second")
    listed = [entry["path"] for entry in json.loads((tmp_path / "sweep.json").read_text())["runs"]]
    assert listed == list(dict.fromkeys([run.path for run in (*more.runs, *sweep.runs)]))
    earlier = next(run for run in sweep.runs if run.label == "sparse,density=0.3")
    assert read_planned(tmp_path, earlier.path) == (earlier, "regraft sweep tiny.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 1, "command": "", "runs": [{}]}', "is damaged"),
        ('{"format": 2, "command": "", "runs": []}', "has format 2; this version of regraft reads format 1"),
        ('{"format": 1, "command": "", "runs": []}', "has no run 'a/seed-0'"),
        ('{"format": 1, "command": "", "runs": [{"path": "a/seed-0"}]}', "is damaged"),
        ('{"format": 1, "command": "", "runs": [{"path": "a/seed-0", "recipe": {"x": 1}}]}', "is damaged"),
    ],
)
def test_a_damaged_plan_is_told(tmp_path, content, message):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(RunError, match=message):
        read_planned(tmp_path, "a/seed-0")


# --- several at once --------------------------------------------------------------------------------------------------


class Pretended:
    """A backend that trains nothing: it notes when each run began and ended; those in `fails` do not come to their end.

    `together` runs wait for each other; a run in `after` takes until another one has ended.
    """

    workers = 2

    def __init__(self, fails=(), together=0, after=None):
        self.fails, self.log, self.stopped = set(fails), [], 0
        self._after, self._ended = after or {}, collections.defaultdict(threading.Event)
        self._lock, self._barrier = threading.Lock(), threading.Barrier(together) if together else None

    def train(self, run, watch):
        with self._lock:
            self.log.append(("begin", run.path))
        if self._barrier is not None:
            self._barrier.wait(timeout=30)
        if run.path in self._after:
            assert self._ended[self._after[run.path]].wait(timeout=30)
        watch({"kind": "start", "epochs": 1})
        with self._lock:
            self.log.append(("end", run.path))
        self._ended[run.path].set()
        return "it failed" if run.path in self.fails else None

    def stop(self):
        self.stopped += 1


def planned(path, teacher=None):
    return Planned(path, Recipe(), 0, teacher)


def test_a_student_waits_for_its_teacher_and_others_do_not():
    runs = [planned("t"), planned("s", "t"), planned("a"), planned("b"), planned("done-teacher", "elsewhere")]
    backend, told = Pretended(after={"t": "b"}), []
    assert train_all(runs, backend, 2, lambda run, record: told.append((run.path, record["kind"]))) == {}
    assert backend.log.index(("end", "t")) < backend.log.index(("begin", "s"))
    assert sorted(path for what, path in backend.log if what == "end") == sorted(run.path for run in runs)
    assert [kind for path, kind in told if path == "s"] == ["start", "end"]
    for i in range(len(backend.log)):
        busy = [what for what, _ in backend.log[: i + 1]]
        assert busy.count("begin") - busy.count("end") <= 2


def test_as_many_runs_at_a_time_as_there_are_workers():
    backend = Pretended(together=3)  # each waits until three are there: with two workers this would never end
    assert train_all([planned(str(i)) for i in range(6)], backend, 3, lambda run, record: None) == {}


def test_what_fails_is_told_and_takes_only_its_students_with_it():
    runs = [planned("t"), planned("s", "t"), planned("a")]
    backend = Pretended(fails=["t"])
    assert train_all(runs, backend, 1, lambda run, record: None) == {
        "t": "it failed",
        "s": "its teacher, t, did not come to its end",
    }
    assert ("end", "a") in backend.log
    assert ("begin", "s") not in backend.log


def test_ctrl_c_stops_all_before_it_goes_on():
    class Interrupted(Pretended):
        ended = threading.Event()

        def train(self, run, watch):
            signal.raise_signal(signal.SIGINT) if run.path == "a" else None
            assert self.ended.wait(timeout=30)
            return "stopped"

        def stop(self):
            super().stop()
            self.ended.set()

    backend = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        train_all([planned("a"), planned("b"), planned("c")], backend, 2, lambda run, record: None)
    assert backend.stopped == 1


# --- a run in its own process -----------------------------------------------------------------------------------------


def test_a_planned_run_is_the_run_that_fit_makes(source, tmp_path, train):
    sweep = plan(source(), {"topology.density": [0.3, 0.5]}, seeds=[3])
    write_plan(sweep, tmp_path / "out", "regraft sweep tiny.yaml")
    run, seen = sweep.runs[0], []
    train_planned(tmp_path / "out", run.path, seen.append)
    alone = train(run.recipe)
    result = json.loads((tmp_path / "out" / run.path / "result.json").read_text())
    assert result["command"] == "regraft sweep tiny.yaml"
    assert {k: v for k, v in result.items() if k not in ("seconds", "command")} == {
        k: v for k, v in alone.result.items() if k not in ("seconds", "command")
    }
    train_planned(tmp_path / "out", run.path, seen.append)
    assert [record["kind"] for record in seen if record["kind"] in ("start", "skip")] == ["start", "skip"]


def test_a_student_does_not_train_without_its_teacher(source, tmp_path):
    sweep = plan(source(ARMS), {}, only=("reverse",))
    write_plan(sweep, tmp_path / "out", "")
    student = sweep.runs[1]
    with pytest.raises(RunError, match="is not finished: train that run first"):
        train_planned(tmp_path / "out", student.path)
    for run in sweep.runs:
        train_planned(tmp_path / "out", run.path)
    result = json.loads((tmp_path / "out" / student.path / "result.json").read_text())
    assert result["teacher"]["name"] == "teacher-of-reverse"


THEIRS = """
import os, signal
import numpy as np
from regraft.data.standin import standin

def data(split, seed, end="well"):
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("something on stdout that is no record")
    return standin(split)
"""
DYING = """
arms:
  killed: {data.options: {end: killed}}
  diverges: {training.lr: 1.0e+30}
"""


def test_processes_that_die_or_diverge_are_told(source, tmp_path):
    (tmp_path / "theirs_of_sweep.py").write_text(THEIRS)
    sweep = plan(source(DYING, BASE.replace("name: standin", "name: 'theirs_of_sweep:data'")), {})
    write_plan(sweep, tmp_path / "out", "")
    threads, told = torch.get_num_threads(), []
    failed = train_all(sweep.order, Processes(tmp_path / "out", 1), 2, lambda run, record: told.append(record["kind"]))
    assert failed.pop("killed/seed-0") == "its process was killed by SIGKILL (out of memory?)"
    assert "lower training.lr" in failed.pop("diverges/seed-0")
    assert failed == {}
    assert "start" in told
    assert torch.get_num_threads() == threads


def test_a_run_whose_parent_is_gone_saves_ends_and_goes_on_to_the_same_bits(source, tmp_path, train):
    sweep = plan(source(), LONGER)
    run = sweep.runs[0]
    write_plan(sweep, tmp_path / "out", "")
    command = [sys.executable, "-m", "regraft.training.worker", str(tmp_path / "out"), run.path, "--child"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        while json.loads(process.stdout.readline())["kind"] != "epoch":
            pass
        process.stdin.close()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        assert process.stderr.read() == ""
    folder = tmp_path / "out" / run.path
    assert list((folder / "checkpoints").glob("*.safetensors"))
    assert not (folder / "result.json").exists()
    seen = []
    train_planned(tmp_path / "out", run.path, seen.append)
    assert "resume" in [record["kind"] for record in seen]
    alone = train(run.recipe)
    ours, theirs = (load_file(path / "last.safetensors") for path in (folder, alone.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_ray_trains_the_same_where_it_is_installed(source, tmp_path, train):
    sweep = plan(source(), {"topology.density": [0.3, 0.5]})
    write_plan(sweep, tmp_path / "out", "")
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(MissingExtraError, match=r"pip install 'regraft\[ray\]'"):
            Ray(tmp_path / "out", 1)
        pytest.skip("ray is not installed")
    backend = Ray(tmp_path / "out", 1)
    assert train_all(sweep.order, backend, 2, lambda run, record: None) == {}
    result = json.loads((tmp_path / "out" / sweep.runs[0].path / "result.json").read_text())
    assert result["mask_hash"] == train(sweep.runs[0].recipe).result["mask_hash"]


# --- estimates --------------------------------------------------------------------------------------------------------


def test_an_estimate_counts_every_step_event_and_evaluation(source, tmp_path):
    recipe = plan(source(), {"training.epochs": [40]}).runs[0].recipe
    found = estimate(recipe, steps=10)
    steps, events = 40 * 3, 120 * 3 // 4 // 2  # 50 training samples in batches of 16; until 0.75 of them, every 2
    expected = steps * found.step + events * found.event + 40 * found.epoch_end + found.end
    assert found.total == pytest.approx(expected)
    assert all(math.isfinite(value) and value >= 0 for value in vars(found).values())
    assert found.step > 0
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.yaml"]
    half = estimate(override(recipe, {"training.stop": 20, "topology.rule": "static"}), steps=5)
    assert half.total == pytest.approx(60 * half.step + 20 * half.epoch_end + half.end)
    assert half.event == 0


def test_the_steps_that_are_timed_are_those_of_the_training(source, train):
    """Loss by loss; so an estimate measures what `fit` does, and the self-test checks it."""
    from regraft.training.build import assemble

    recipe = plan(source(), {"data.augment": [True]}).runs[0].recipe
    torch.set_num_threads(1)
    steps = list(training_steps(recipe, assemble(recipe)))
    epochs = train(recipe).records("epoch")
    assert [e["train"]["loss"] for e in epochs] == pytest.approx(
        [sum(step.loss for step in steps[3 * i : 3 * i + 3]) / 3 for i in range(2)], rel=1e-5
    )
    assert [i + 1 for i, step in enumerate(steps) if step.event] == [e["step"] for e in train(recipe).records("event")]


jobs = st.lists(st.tuples(st.floats(0.1, 100), st.none() | st.integers(0, 9)), min_size=1, max_size=12)


@given(jobs, st.integers(1, 5))
def test_the_makespan_lies_between_its_bounds(given_jobs, workers):
    runs, seconds = [], {}
    for i, (cost, teacher) in enumerate(given_jobs):
        taught = teacher is not None and teacher < i and runs[teacher].teacher is None
        runs.append(planned(str(i), str(teacher) if taught else None))
        seconds[str(i)] = cost
    chains = [seconds[run.path] + (seconds[run.teacher] if run.teacher else 0) for run in runs]
    found = makespan(runs, seconds, workers)
    assert found >= max(max(chains), sum(seconds.values()) / workers) - 1e-9
    assert found <= sum(seconds.values()) + 1e-9
    assert makespan(runs, seconds, 1) == pytest.approx(sum(seconds.values()))
    assert makespan(runs, {}, workers) == 0


# --- array jobs -------------------------------------------------------------------------------------------------------


def test_array_jobs_train_teachers_first_and_go_on_after_their_time(source, tmp_path):
    sweep = plan(source(ARMS), LONGER, only=("sparse", "reverse"))
    write_plan(sweep, tmp_path / "out", "")
    commands = write_jobs(sweep.runs, tmp_path / "out", name="tiny", workers=4, threads=1, gpu=False)
    assert commands[0] == f"first=$(sbatch --parsable {tmp_path / 'out' / 'teachers.slurm'})"
    assert commands[1].startswith('sbatch --dependency=afterany:"$first"')
    assert (tmp_path / "out" / "teachers.tasks").read_text() == "teacher-of-reverse/seed-0\n"
    assert (tmp_path / "out" / "sweep.tasks").read_text() == "sparse/seed-0\nreverse/seed-0\n"
    script = tmp_path / "out" / "sweep.slurm"
    text = script.read_text()
    for line in ("--array=0-1%4", "--cpus-per-task=1", "--requeue", "--signal=B:USR1@120", "--time="):
        assert f"\n#SBATCH {line}" in text
    for path in (script, tmp_path / "out" / "teachers.slurm"):
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0

    fake = tmp_path / "bin" / "scontrol"  # what Slurm would be asked to do
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\necho $@ >> {tmp_path / 'asked'}\n")
    fake.chmod(0o755)
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "0"}
    environment["PATH"] = f"{fake.parent}:{environment['PATH']}"
    folder = tmp_path / "out" / "sparse" / "seed-0"
    with subprocess.Popen(["bash", script], stdout=subprocess.PIPE, env=environment, text=True) as job:
        while "epoch 1," not in job.stdout.readline():
            pass
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=60) == 128 + signal.SIGTERM
    assert (tmp_path / "asked").read_text() == "requeue 77_0\n"
    assert list((folder / "checkpoints").glob("*.safetensors"))
    done = subprocess.run(["bash", script], capture_output=True, env=environment, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "result.json").exists()
    assert "resume" in (folder / "environment.json").read_text()
    assert (tmp_path / "asked").read_text() == "requeue 77_0\n", "what is done does not come back"
    environment["SLURM_ARRAY_TASK_ID"] = "2"
    beyond = subprocess.run(["bash", script], capture_output=True, env=environment, text=True, timeout=60, check=False)
    assert (beyond.returncode, beyond.stderr.startswith("no run for task 2")) == (2, True)


def test_without_teachers_there_is_one_array(source, tmp_path):
    sweep = plan(source(), {}, seeds=[0, 1])
    commands = write_jobs(sweep.runs, tmp_path, name="tiny", workers=2, threads=3, gpu=True)
    assert commands == [f"sbatch {tmp_path / 'sweep.slurm'}"]
    assert not (tmp_path / "teachers.slurm").exists()
    text = (tmp_path / "sweep.slurm").read_text()
    assert "\n#SBATCH --gpus=1\n" in text
    assert "export OMP_NUM_THREADS=3" in text


def test_the_order_of_a_sweep_has_every_run_once(source):
    sweep = plan(source(ARMS), {"topology.density": [0.3, 0.5]}, seeds=[5, 2])
    assert isinstance(sweep, Sweep)
    assert sorted(run.path for run in sweep.order) == sorted(run.path for run in sweep.runs)
    assert value_of(sweep.order[0].recipe, "topology.rule") == "static"
