"""A study: several arms, each trained once, with the teachers that they share."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from regraft.errors import RunError, UsageError
from regraft.report import find_runs
from regraft.training.study import load_study, train_study, with_teachers

BASE = """
data: {name: standin, batch: 16}
model: {steps: 2, options: {widths: [[4], [4]], hidden: 8}}
topology: {density: 0.5, every: 2}
training: {epochs: 2}
"""
ARMS = """
arms:
  dense: {topology: {density: 1.0, rule: static}}
  sparse:
  reverse: {distill: {teacher: sparse, density: 0.2, weight: 0.3}}
  both: {distill: {teacher: sparse, density: 0.2, weight: 0.6}}
"""


@pytest.fixture
def study(tmp_path):
    """A recipe file with these arms, read."""

    def read(arms: str = ARMS, changes=None, only=()):
        (tmp_path / "four.yaml").write_text(BASE + arms, encoding="utf-8")
        return load_study(tmp_path / "four.yaml", changes, only)

    return read


def test_arms_are_the_base_and_what_they_change(study):
    found = study(changes={"seed": 4, "topology.rule": "set"})
    assert found.name == "four"
    assert list(found.arms) == ["dense", "sparse", "reverse", "both"]
    assert {name: arm.name for name, arm in found.arms.items()} == {name: name for name in found.arms}
    assert {arm.seed for arm in found.arms.values()} == {4}
    assert [arm.topology.rule for arm in found.arms.values()] == ["static", "set", "set", "set"], "arms outrank flags"
    assert found.arms["reverse"].distill.weight == 0.3
    assert found.arms["reverse"].model == found.arms["dense"].model


def test_a_file_without_arms_is_a_study_of_one(study):
    found = study("")
    assert list(found.arms) == ["four"] == [found.name]


@pytest.mark.parametrize(
    ("arms", "only", "message"),
    [
        (ARMS, ("spars",), "did you mean 'sparse'"),
        ("", ("sparse",), "has no arms"),
        ("arms: {}\n", (), "should map names to settings"),
        ("arms: [a, b]\n", (), "should map names to settings"),
        ("arms: {a: 3}\n", (), "should map names to settings"),
        ("arms: {1: {}}\n", (), "should map names to settings"),
        ("arms: {a/b: {}}\n", (), "names a folder"),
        ("arms: {a: {topology.densty: 0.1}}\n", (), "arm a: no setting is called 'topology.densty'"),
        ("arms: {a: {distill: {teacher: sparse, density: 0.6}}}\n", (), "must be sparser"),
    ],
)
def test_arms_that_cannot_be_meant_are_refused(study, arms, only, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        study(arms, only=only)


def test_a_teacher_comes_once_before_its_first_student(study):
    assert list(with_teachers(study()).arms) == ["dense", "sparse", "teacher", "reverse", "both"]
    assert list(with_teachers(study(only=("dense", "sparse"))).arms) == ["dense", "sparse"]
    others = study(
        "arms:\n  a: {distill: {teacher: sparse, density: 0.2}}\n  b: {distill: {teacher: sparse, density: 0.3}}\n"
    )
    assert list(with_teachers(others).arms) == ["teacher", "a", "teacher-of-b", "b"]
    named = study("arms:\n  teacher: {}\n  a: {distill: {teacher: sparse, density: 0.2}}\n")
    assert list(with_teachers(named).arms) == ["teacher", "teacher-of-a", "a"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The four arms, trained."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "four.yaml").write_text(BASE + ARMS, encoding="utf-8")
    seen = []
    paths = train_study(
        load_study(folder / "four.yaml"), folder / "out", watch=seen.append, command="regraft train four"
    )
    return folder, paths, seen


def test_all_arms_are_trained_in_order_and_the_teacher_is_shared(done):
    folder, paths, seen = done
    assert [path.name for path in paths] == ["dense", "sparse", "teacher", "reverse", "both"]
    assert [record["run"] for record in seen if record["kind"] == "start"] == [path.name for path in paths]
    results = {path.name: json.loads((path / "result.json").read_text()) for path in paths}
    assert {result["command"] for result in results.values()} == {"regraft train four"}
    assert results["reverse"]["teacher"] == results["both"]["teacher"]
    assert results["reverse"]["teacher"]["accuracy"] == results["teacher"]["accuracy"]["last"]
    assert not (folder / "out" / "reverse" / "teacher").exists()
    assert [run.folder.name for run in find_runs(folder / "out")] == [path.name for path in paths]


def test_what_is_finished_is_left_as_it_is(done):
    folder, paths, _ = done
    before = {path: (path / "result.json").read_bytes() for path in paths}
    seen = []
    assert train_study(load_study(folder / "four.yaml"), folder / "out", watch=seen.append) == paths
    assert [record["kind"] for record in seen] == ["skip"] * 5
    assert {path: (path / "result.json").read_bytes() for path in paths} == before


def test_an_arm_that_is_gone_is_trained_again_and_alone(done, tmp_path):

    folder, _, _ = done
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    before = json.loads((out / "both" / "result.json").read_text())
    shutil.rmtree(out / "both")
    seen = []
    train_study(load_study(folder / "four.yaml"), out, watch=seen.append)
    assert [record["run"] for record in seen if record["kind"] == "start"] == ["both"]
    after = json.loads((out / "both" / "result.json").read_text())
    assert {k: v for k, v in after.items() if k not in ("seconds", "command", "teacher")} == {
        k: v for k, v in before.items() if k not in ("seconds", "command", "teacher")
    }


def test_training_some_arms_keeps_the_order_of_all(done):
    folder, paths, _ = done
    train_study(load_study(folder / "four.yaml", only=("sparse",)), folder / "out")
    assert [run.folder.name for run in find_runs(folder / "out")] == [path.name for path in paths]


def test_a_changed_arm_is_refused_and_nothing_is_touched(done):
    folder, _, _ = done
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*.*")}
    with pytest.raises(RunError, match=r"dense holds a finished run of another recipe \(.*--out"):
        train_study(load_study(folder / "four.yaml", {"seed": 1}), folder / "out")
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*.*")} == before


def test_the_last_arm_is_checked_before_the_first_is_trained(study, tmp_path):
    seen = []
    for bad, message in (
        ("topology: {every: 50}", "no event fits"),
        ("distill: {teacher: virtual, confidence: 0.01}", "1/K"),
        ("distill: {teacher: sparse, density: 0.001}", "one connection for each"),
        ("distill: {teacher: sparse, density: 0.2, epochs: 1}, topology: {every: 3}", "no event fits"),
    ):
        with pytest.raises(UsageError, match=message):
            train_study(study(f"arms:\n  good:\n  bad: {{{bad}}}\n"), tmp_path / "out", watch=seen.append)
    assert seen == []
    assert not (tmp_path / "out").exists()


def test_one_run_with_a_teacher_lies_in_one_folder(study, tmp_path):
    alone = study("distill: {teacher: sparse, density: 0.2}\n")
    paths = train_study(alone, tmp_path / "out")
    assert paths == [tmp_path / "out" / "teacher", tmp_path / "out"]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["teacher"]["name"] == "teacher"


def test_an_interrupted_run_with_a_teacher_comes_to_its_end_later(study, tmp_path):
    alone = study("distill: {teacher: sparse, density: 0.2}\n")

    def stop(record):
        if record["run"] == "four" and record["kind"] == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_study(alone, tmp_path / "out", watch=stop)
    assert not (tmp_path / "out" / "result.json").exists()
    with pytest.raises(RunError, match="--resume"):
        train_study(alone, tmp_path / "out")
    seen = []
    train_study(alone, tmp_path / "out", resume=True, watch=seen.append)
    assert [(r["run"], r["kind"]) for r in seen if r["kind"] in ("skip", "start", "resume")] == [
        ("teacher", "skip"),
        ("four", "start"),
        ("four", "resume"),
    ]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["teacher"]["density"] == pytest.approx(0.2, abs=0.01)


def test_an_arm_may_be_the_very_teacher_of_an_earlier_one(study, tmp_path):
    """Two arms of one recipe: the student is taught by the one that is trained before it."""
    seed = next(
        iter(with_teachers(study("arms:\n  a: {distill: {teacher: sparse, density: 0.2}}\n")).arms.values())
    ).seed
    twice = study(
        f"arms:\n  a: {{distill: {{teacher: sparse, density: 0.2}}}}\n  b: {{seed: {seed}, topology.density: 0.2}}\n"
    )
    paths = train_study(twice, tmp_path / "out")
    assert [path.name for path in paths] == ["teacher", "a", "b"]
    results = [json.loads((path / "result.json").read_text()) for path in paths]
    assert results[0]["mask_hash"] == results[2]["mask_hash"]


def test_a_folder_that_cannot_be_made_is_told(study, tmp_path):
    (tmp_path / "file").write_text("")
    for arms in (ARMS, ""):
        with pytest.raises(RunError, match="cannot write to"):
            train_study(study(arms), tmp_path / "file" / "out")
