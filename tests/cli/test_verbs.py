"""train, eval, report, list: what they print and what they leave."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from regraft.training import load_recipe
from regraft.training.checkpoint import digest


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_whole_session_in_processes_of_their_own(process, here):
    said = process("train tiny.yaml --seed 2")
    assert said.code == 0, said.err
    assert "tiny: epoch 2/2" in said.out
    assert "194 of 388" in said.out
    run = here / "runs" / "tiny"
    assert result(run)["command"] == "regraft train tiny.yaml --seed 2"
    assert (run / "report.html").stat().st_size > 1000

    said = process("eval runs/tiny")
    assert said.code == 0, said.err
    accuracy = result(run)["accuracy"]
    assert f"accuracy {accuracy['last']:.4f} on 64 test samples (last)" in said.out


def test_eval_measures_from_the_files_alone(regraft, here):
    regraft("train tiny.yaml")
    run = here / "runs" / "tiny"
    accuracy = result(run)["accuracy"]
    before = {path: path.read_bytes() for path in run.iterdir()}
    for which, key in (("last", "last"), ("best", "selected")):
        said = regraft(f"eval runs/tiny --which {which} --batch 7")
        assert said.code == 0
        assert f"accuracy {accuracy[key]:.4f} on 64 test samples ({which})" in said.out
        assert "194" in said.out
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_eval_of_a_run_from_a_gpu_works_without_one(regraft, here, monkeypatch):
    import torch

    regraft("train tiny.yaml")
    run = here / "runs" / "tiny"
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["training"]["device"] = "cuda"
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    manifest = json.loads((run / "last.json").read_text())
    manifest["recipe_hash"] = load_recipe(run / "recipe.yaml").hash
    (run / "last.json").write_text(json.dumps({**manifest, "digest": digest(manifest)}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert regraft("eval runs/tiny").code == 0


def test_flags_change_the_recipe_wherever_they_stand(regraft, here):
    """`epochs` here is what `digits` has: it must not be taken for `not given`."""
    for number, line in enumerate(
        [
            "train tiny.yaml --training.epochs 30 --training.stop 1",
            "train --training.epochs 30 --training.stop 1 tiny.yaml",
        ]
    ):
        assert regraft(f"{line} --out out{number}").code == 0
        recipe = load_recipe(here / f"out{number}" / "recipe.yaml")
        assert (recipe.training.epochs, recipe.training.stop, recipe.data.name) == (30, 1, "standin")
        assert recipe.model.options == {"widths": [[4], [4]], "hidden": 8}


def test_flags_of_every_kind(regraft, here):
    line = (
        "train tiny.yaml --training.stop 1 --training.clip 0.5 --topology.dense classifier.2 features.0 "
        "--topology.until 0.5 --data.augment False --model.options.hidden 16 --model.options.widths=[[4],[6]] "
        "--name other --topology.allocation er --topology.zeta 0.2 --training.weight-decay 0"
    )
    said = regraft(line)
    assert said.code == 0, said.err
    recipe = load_recipe(here / "runs" / "other" / "recipe.yaml")
    assert recipe.training.clip == 0.5
    assert recipe.topology.dense == ("classifier.2", "features.0")
    assert recipe.data.augment is False
    assert recipe.model.options == {"widths": [[4], [6]], "hidden": 16}
    assert (recipe.topology.allocation, recipe.topology.zeta, recipe.training.weight_decay) == ("er", 0.2, 0)
    assert regraft("train runs/other/recipe.yaml --out again --training.clip None").code == 0
    assert load_recipe(here / "again" / "recipe.yaml").training.clip is None


def test_the_recipe_of_a_run_trains_the_same_again(regraft, here):
    regraft("train tiny.yaml")
    assert regraft("train runs/tiny/recipe.yaml --out again").code == 0
    first, again = result(here / "runs" / "tiny"), result(here / "again")
    for key in ("recipe_hash", "mask_hash", "accuracy", "rates"):
        assert again[key] == first[key]


def test_a_study_trains_its_arms_and_skips_what_is_finished(regraft, here):
    arms = "arms:\n  plain: {}\n  taught: {distill: {teacher: sparse, density: 0.2}}\n"
    (here / "two.yaml").write_text((here / "tiny.yaml").read_text() + arms)
    said = regraft("train two.yaml --only plain --out out")
    assert said.code == 0
    assert sorted(path.name for path in (here / "out").iterdir() if path.is_dir()) == ["plain"]
    said = regraft("train two.yaml --out out")
    assert said.code == 0
    assert "plain: finished already in out/plain, left as it is" in said.out
    assert sorted(path.name for path in (here / "out").iterdir() if path.is_dir()) == ["plain", "taught", "teacher"]
    for name in ("plain", "taught", "teacher"):
        assert f"out/{name}/" in said.out
    said = regraft("report out --out page.html")
    assert said.code == 0
    assert "taught" in said.out
    assert "taught" in (here / "page.html").read_text()


def test_somebodys_own_module_is_found_where_the_user_stands(process, here):
    (here / "beside.py").write_text(
        "from regraft.data.standin import standin\n"
        "def events(split, seed): return standin(split, seed, shape=(2, 1, 8, 8), classes=4)\n"
    )
    said = process("train tiny.yaml --data.name beside:events")
    assert said.code == 0, said.err


def test_a_network_without_spiking_neurons_goes_the_whole_way(regraft, here):
    """The ANN twin, and a model with no neurons that we know: T is unknown then, and all still has its figure."""
    (here / "flat.py").write_text(
        "from torch import nn\ndef flat(*, classes, **_): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    (here / "flat.yaml").write_text(
        "data: {name: standin, batch: 16}\nmodel: {name: 'flat:flat'}\ntopology: {every: 2}\ntraining: {epochs: 1}\n"
    )
    for line, name in (("train tiny.yaml --model.neuron relu", "tiny"), ("train flat.yaml", "flat")):
        said = regraft(line)
        assert said.code == 0, said.err
        assert result(here / "runs" / name)["synops"]["steps"] == 1
        assert regraft(f"eval runs/{name}").code == 0


def test_a_terminal_shows_a_table_that_lives(regraft, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    said = regraft("train tiny.yaml")
    assert said.code == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.out)
    rows = [line.split() for line in shown.replace("\r", "\n").splitlines() if line.startswith("tiny")]
    last = next(row for row in rows if "2/2" in row)
    assert "0.5000" in last
    assert last[-1] == "done"
    assert "tiny: epoch" not in shown, "no plain lines beside the table"


def test_warnings_are_one_line_each(regraft):
    said = regraft("train tiny.yaml --model.threshold 1000")
    assert said.code == 0
    assert all(line.startswith("regraft: warning: ") for line in said.err.splitlines())
    silent = [line for line in said.err.splitlines() if "never fired" in line]
    assert len(set(silent)) == len(silent) == 3, "one for each of three layers, once"
    assert all("lower model.threshold" in line for line in silent)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("recipes", ["digits", "digits_teachers"]),
        ("models", ["tiny_vgg", "resnet19", "dvsgesture"]),
        ("data", ["digits", "standin"]),
        ("rules", ["static", "set", "rigl", "gse", "snfs", "itop", "gmp", "granet", "ndsnn", "esl"]),
        ("teachers", ["none", "sparse", "virtual", "undertrained", "previous", "average", "weakest-step", "nested"]),
    ],
)
def test_list_names_everything_with_a_line_on_it(regraft, kind, names):
    said = regraft(f"list {kind}")
    assert said.code == 0
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in said.out.splitlines() if line.startswith("  ")}
    assert set(names) <= set(lines)
    assert all(text and len(text[0]) > 10 for text in lines.values())
    everything = regraft("list").out
    assert all(f"  {name} " in everything for name in names)
