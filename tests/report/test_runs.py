"""Reading run folders: what is there, in which order, and one clear message for every kind of damage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from regraft.errors import RunError
from regraft.report import find_runs, read_run
from regraft.report.runs import labels, read_wiring


def test_a_run_is_read_as_it_was_written(write):
    run = read_run(write("sparse"))
    assert (run.name, run.seed, run.finished) == ("sparse", 0, True)
    assert run.section("model")["name"] == "tiny_vgg"
    assert [record["epoch"] for record in run.epochs] == [1, 2, 3, 4, 5]
    assert [event["step"] for event in run.events] == [4, 8, 12]
    assert run.layers["fc.weight"] == {"connections": 30, "of": 400, "shape": [10, 40]}
    assert run.environment["torch"] == "2.13.0"


def test_wiring_is_read_by_layer_and_step(write):
    rng = np.random.default_rng(3)
    written = {
        f"{step:08d}/{layer}": rng.integers(0, 9, (4, 6)).astype(np.uint16) for step in (0, 100, 20) for layer in "ba"
    }
    maps = read_wiring(read_run(write("sparse", maps=written)))
    assert sorted(maps) == ["a", "b"]
    assert list(maps["a"]) == [0, 20, 100]
    np.testing.assert_array_equal(maps["b"][20], written["00000020/b"])


def test_arms_come_in_the_order_of_the_study_then_of_finishing(write):
    for moment, name in enumerate(("late", "second", "early", "first")):
        os.utime(write(name) / "result.json", (1000 - moment, 1000 - moment))
    study = write("running", finished=False).parent
    (study / "study.json").write_text(json.dumps({"arms": ["first", "second", "never trained"]}))
    assert [run.name for run in find_runs(study)] == ["first", "second", "early", "late", "running"]


def test_a_run_folder_is_a_study_of_one(write):
    assert [run.name for run in find_runs(write("sparse"))] == ["sparse"]


def test_the_runs_of_a_sweep_are_found_in_its_order(write):
    sweep = write("b", folder="b/seed-0").parents[1]
    for folder in ("a/seed-1", "a/seed-0"):
        write("a", folder=folder)
    paths = ["b/seed-0", "a/seed-0", "a/seed-1", "a/seed-2", "../outside"]
    (sweep / "sweep.json").write_text(json.dumps({"runs": [{"path": path} for path in paths]}))
    assert [run.folder.relative_to(sweep).as_posix() for run in find_runs(sweep)] == paths[:3]
    for damage in ("[]", '{"runs": 3}', '{"runs": [{}]}', "{"):
        (sweep / "sweep.json").write_text(damage)
        with pytest.raises(RunError, match=r"sweep\.json"):
            find_runs(sweep)


def test_labels_tell_seeds_and_folders_apart(write):
    study = write("a", folder="a0", seed=0).parent
    write("a", folder="a1", seed=1)
    write("b", folder="b0", seed=0)
    write("b", folder="again", seed=0)
    found = {run.folder.name: label for run, label in zip(find_runs(study), labels(find_runs(study)), strict=True)}
    assert found == {"a0": "a · seed 0", "a1": "a · seed 1", "b0": "b · seed 0 · b0", "again": "b · seed 0 · again"}


def test_an_unfinished_run_yields_what_is_there(write):
    path = write("half", finished=False)
    with (path / "log.jsonl").open("a") as log:
        log.write('{"kind": "epo')
    run = read_run(path)
    assert not run.finished
    assert run.result is None
    assert len(run.epochs) == 5


def test_an_unfinished_run_may_have_no_log_yet(write):
    path = write("young", finished=False)
    (path / "log.jsonl").unlink()
    run = read_run(path)
    assert (run.epochs, run.events, run.layers) == ((), (), {})


def test_what_a_resumed_run_logs_twice_counts_once(write):
    path = write("resumed")
    records = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    again = next(record for record in records if record.get("epoch") == 3)
    again["train"]["loss"] = 0.125
    with (path / "log.jsonl").open("a") as log:
        log.write(json.dumps(again) + "\n")
    run = read_run(path)
    assert [record["epoch"] for record in run.epochs] == [1, 2, 3, 4, 5]
    assert run.epochs[2]["train"]["loss"] == 0.125


def test_a_run_without_validation_split_is_read(write):
    path = write("whole")
    lines = (path / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        if record["kind"] == "epoch":
            record["valid"] = None
    (path / "log.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert read_run(path).epochs[0]["valid"] is None


def _edit(name: str, change):
    def spoil(path: Path) -> None:
        data = json.loads((path / name).read_text())
        change(data)
        (path / name).write_text(json.dumps(data))

    return spoil


def _edit_log(kind: str, change):
    def spoil(path: Path) -> None:
        records = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        change(next(record for record in records if record["kind"] == kind))
        (path / "log.jsonl").write_text("\n".join(map(json.dumps, records)))

    return spoil


def _text(name: str, text: str | bytes):
    return lambda path: (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())


LAUGHS = "a0: &a0 [1, 2]\n" + "".join(f"a{k}: &a{k} [{', '.join(9 * [f'*a{k - 1}'])}]\n" for k in range(1, 20))
CIRCLE = "name: &me\n  inner: *me\n"

DAMAGE = [
    ("recipe.yaml", _text("recipe.yaml", LAUGHS), "more than 10,000 values"),
    ("recipe.yaml", _text("recipe.yaml", CIRCLE), "more than 10,000 values"),
    ("recipe.yaml", _text("recipe.yaml", "name: !!timestamp x"), "not YAML"),
    ("recipe.yaml", _text("recipe.yaml", 500 * "[" + 500 * "]"), "not YAML"),
    ("result.json", _text("result.json", 100_000 * "["), "not JSON"),
    ("result.json", _edit("result.json", lambda r: r["accuracy"].update(last=1.5)), "accuracy.last"),
    ("result.json", _edit("result.json", lambda r: r["synops"].update(acs=-1)), "synops.acs"),
    ("result.json", _edit("result.json", lambda r: r.update(teacher=[])), "teacher.accuracy"),
    ("result.json", _edit("result.json", lambda r: r["calibration"]["student"].update(count=[1])), "calibration"),
    ("log.jsonl", _edit_log("event", lambda r: r.update(survival=2)), "survival"),
    ("log.jsonl", _edit_log("epoch", lambda r: r.update(epoch=float("nan"))), "epoch"),
    ("recipe.yaml", _text("recipe.yaml", "a: [1"), "not YAML"),
    ("recipe.yaml", _text("recipe.yaml", "- 1"), "mapping"),
    ("recipe.yaml", _text("recipe.yaml", b"\xff\xfe\x00"), "UTF-8"),
    ("environment.json", _text("environment.json", "{"), "not JSON"),
    ("result.json", _text("result.json", "{"), "not JSON"),
    ("result.json", _text("result.json", "[]"), "object"),
    ("result.json", _edit("result.json", lambda r: r.update(format=2)), "format 2"),
    ("result.json", _edit("result.json", lambda r: r.pop("format")), "format None"),
    ("result.json", _edit("result.json", lambda r: r["accuracy"].pop("last")), "accuracy.last"),
    ("result.json", _edit("result.json", lambda r: r["accuracy"].update(last="high")), "accuracy.last"),
    ("result.json", _edit("result.json", lambda r: r.update(synops=None)), "synops.acs"),
    ("result.json", _edit("result.json", lambda r: r.update(command=3)), "command"),
    ("log.jsonl", lambda path: (path / "log.jsonl").unlink(), "missing"),
    ("log.jsonl", _text("log.jsonl", '{"kind": "epo'), "line 1"),
    ("log.jsonl", _text("log.jsonl", "[]"), "line 1"),
    ("log.jsonl", _edit_log("epoch", lambda r: r["train"].pop("loss")), "train.loss"),
    ("log.jsonl", _edit_log("epoch", lambda r: r.update(valid={"loss": 1.0})), "valid.accuracy"),
    ("log.jsonl", _edit_log("event", lambda r: r.update(dropped=4)), "dropped"),
    ("log.jsonl", _edit_log("event", lambda r: r.pop("density")), "density"),
    ("log.jsonl", _edit_log("birth", lambda r: r["layers"]["fc.weight"].pop("of")), "fc.weight"),
]


def test_what_earlier_versions_did_not_write_may_be_missing(write):
    path = write("old")
    result = json.loads((path / "result.json").read_text())
    for key in ("neurons", "bytes", "agreement", "calibration", "teacher"):
        del result[key]
    del result["synops"]["dense"]
    (path / "result.json").write_text(json.dumps(result))
    assert read_run(path).finished


@pytest.mark.parametrize(("name", "spoil", "says"), DAMAGE)
def test_damage_gives_one_message_that_names_the_file(write, name, spoil, says):
    path = write("sparse")
    spoil(path)
    with pytest.raises(RunError) as caught:
        read_run(path)
    assert str(path / name) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("maps", "says"),
    [
        ({"nonsense": np.zeros((2, 2), np.int32)}, "nonsense"),
        ({"00000000/a": np.zeros(4, np.int32)}, "00000000/a"),
        ({"00000000/a": np.zeros((2, 2), np.float32)}, "integers"),
        ({"00000000/a": np.zeros((2, 2), np.int32), "00000003/a": np.zeros((2, 3), np.int32)}, "step 3"),
    ],
)
def test_wiring_that_cannot_be_meant_is_refused(write, maps, says):
    run = read_run(write("sparse", maps=maps))
    with pytest.raises(RunError, match=r"wiring\.safetensors.*" + says):
        read_wiring(run)


def test_damaged_and_missing_wiring(write):
    path = write("sparse")
    (path / "wiring.safetensors").write_bytes(b"not tensors")
    with pytest.raises(RunError, match=r"wiring\.safetensors is damaged"):
        read_wiring(read_run(path))
    (path / "wiring.safetensors").unlink()
    assert read_wiring(read_run(path)) == {}


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(RunError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        read_run(tmp_path)
    with pytest.raises(RunError, match="holds no runs"):
        find_runs(tmp_path)


def test_a_damaged_study_file_is_named(write):
    study = write("sparse").parent
    (study / "study.json").write_text('{"arms": 3}')
    with pytest.raises(RunError, match=r"study\.json"):
        find_runs(study)


def test_wiring_written_by_hand_keeps_the_order_of_layers(write):
    path = write("sparse")
    save_file(
        {f"00000000/{name}": np.ones((2, 2), np.int32) for name in ("fc.weight", "stem.weight")},
        path / "wiring.safetensors",
    )
    assert list(read_wiring(read_run(path))) == ["stem.weight", "fc.weight"]
