"""Whatever is wrong ends in one line (what, where, what to do), the right exit code, and nothing on disk."""

from __future__ import annotations

import json
import textwrap

import pytest

from regraft.training import load_recipe
from regraft.training.checkpoint import digest

WRONG_USE = [
    # the command line itself
    ("tran digits", "did you mean 'train'"),
    ("--hlep", "no verb is called"),
    ("train tiny.yaml --training.epoch 3", "--training.epochs"),
    ("train tiny.yaml --nonsense 3", "--nonsense"),
    ("train tiny.yaml another.yaml", "another.yaml"),
    ("train tiny.yaml --seed", "--seed"),
    ("train tiny.yaml --seed 1.5", "--seed is '1.5': give INT"),
    ("train tiny.yaml --training.lr fast", "--training.lr is 'fast': give FLOAT"),
    ("train tiny.yaml --data.augment maybe", "'True', 'False'"),
    ("train tiny.yaml --model.options.hidden", "needs a value"),
    ("train tiny.yaml --model.options.widths '[[4'", "not YAML"),
    ("list recipe", "recipes"),
    ("eval --which worst", "'last', 'best'"),
    ("report --out", "--out"),
    # recipes
    ("train digit", "did you mean 'digits'"),
    ("train missing.yaml", "no recipe file"),
    ("train .", "no recipe file"),
    (f"train {'x' * 300}", "File name too long"),
    ("train broken.yaml", "broken.yaml is not YAML (line 1)"),
    ("train twice.yaml", "'data' is there twice"),
    ("train misspelt.yaml", "did you mean 'epochs'"),
    ("train tiny.yaml --only sparse", "has no arms"),
    ("train digits --only sparce", "did you mean 'sparse'"),
    # values
    ("train tiny.yaml --training.lr nan", "training.lr is nan: give a number above 0"),
    ("train tiny.yaml --training.lr -0.1", "training.lr is -0.1: give a number above 0"),
    ("train tiny.yaml --training.epochs 0", "training.epochs is 0: give a number from 1"),
    ("train tiny.yaml --training.clip inf", "training.clip is inf"),
    ("train tiny.yaml --topology.density 1.5", "topology.density is 1.5: give a number above 0, up to 1"),
    ("train tiny.yaml --topology.density 0", "above 0"),
    ("train tiny.yaml --topology.allocation erkk", "'erk'"),
    ("train tiny.yaml --data.validation nan", "data.validation is nan: give a number from 0 up to 0.9"),
    ("train tiny.yaml --data.split-seed -1", "data.split_seed is -1"),
    ("train tiny.yaml --seed 99999999999999999999", "seed is"),
    (f"train tiny.yaml --seed {'9' * 400}", "seed is"),
    ("train tiny.yaml --model.neuron liv", "'lif'"),
    ("train tiny.yaml --model.neuron plif --model.decay 1", "model.decay is 1"),
    ("train tiny.yaml --name a/b", "names a folder"),
    ("train tiny.yaml --distill.teacher teachr", "no teacher is called 'teachr'"),
    ("train tiny.yaml --distill.teacher network", "distill.run"),
    ("train tiny.yaml --distill.teacher sparse --distill.density 0.5", "must be sparser than the student"),
]

NEEDS_TORCH = [
    ("train tiny.yaml --topology.density 0.001", 2, "less than one connection for each of the 4 other layers"),
    ("train tiny.yaml --topology.rule rgil", 2, "did you mean 'rigl'"),
    ("train tiny.yaml --topology.rule mine:no_rule", 2, "give a regraft.Rule"),
    ("train tiny.yaml --topology.every 1000", 2, "no event fits: every 1000 steps"),
    ("train tiny.yaml --topology.exclude nothing", 2, "exclude pattern 'nothing' fits none"),
    ("train tiny.yaml --model.name tiny_vg", 2, "did you mean 'tiny_vgg'"),
    ("train tiny.yaml --model.name nowhere:f", 2, "cannot import 'nowhere'"),
    ("train tiny.yaml --model.options.hiden 8", 2, "'hiden'; it takes classes"),
    ("train tiny.yaml --data.name digit", 2, "did you mean 'digits'"),
    ("train tiny.yaml --data.name math:pi", 2, "must be a function"),
    ("train tiny.yaml --data.name mine:labels_below_zero", 2, "there is -1"),
    ("train tiny.yaml --data.batch 100", 2, "data.batch is 100, but there are"),
    ("train tiny.yaml --distill.teacher virtual --distill.confidence 0.1", 2, "1/K"),
    ("train plain.yaml --model.name mine:nothing_prunable", 1, "has no prunable weight"),
    ("train plain.yaml --model.name mine:too_few_classes", 1, "K = 10 classes"),
    ("train plain.yaml --model.name mine:another_size", 1, "cannot take samples"),
    ("train tiny.yaml --distill.teacher network --distill.run nowhere", 1, "nowhere holds no finished run"),
    ("eval nowhere", 1, "nowhere is no run folder"),
    ("eval --batch 0", 2, "batch is 0"),
    ("report nowhere", 1, "there is no such folder"),
    ("report .", 1, "holds no runs"),
]


@pytest.fixture
def surroundings(here):
    (here / "broken.yaml").write_text("training: {epochs: 3")
    (here / "twice.yaml").write_text("data: {batch: 3}\ndata: {batch: 4}\n")
    (here / "misspelt.yaml").write_text("training: {epoch: 3}\n")
    (here / "plain.yaml").write_text("data: {name: standin, batch: 16}\ntopology: {every: 2, density: 0.5}\n")
    source = """
        import numpy as np
        from torch import nn

        def no_rule():
            return 3

        def nothing_prunable(**_):
            return nn.Flatten()

        def too_few_classes(*, classes, **_):
            return nn.Sequential(nn.Flatten(), nn.Linear(64, classes - 1))

        def another_size(*, classes, **_):
            return nn.Sequential(nn.Flatten(), nn.Linear(65, classes))

        def labels_below_zero(split, seed):
            return np.ones((64, 1, 8, 8)), np.arange(64) % 4 - 1
    """
    (here / "mine.py").write_text(textwrap.dedent(source))


@pytest.fixture(autouse=True)
def _forget_modules(monkeypatch):
    import sys

    yield
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(("line", "hint"), WRONG_USE)
def test_wrong_use_is_refused_at_once(regraft, surroundings, files, line, hint):
    before = files()
    said = regraft(line)
    assert said.code == 2
    assert hint in said.message
    assert files() == before


@pytest.mark.parametrize(("line", "code", "hint"), NEEDS_TORCH)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(regraft, surroundings, files, line, code, hint):
    before = files()
    said = regraft(line)
    assert said.code == code
    assert hint in said.message
    assert {path: data for path, data in files().items() if "__pycache__" not in path.parts} == before


@pytest.mark.parametrize(
    "line", ["tran digits", "train tiny.yaml --training.lr nan", "train tiny.yaml --training.epoch 3"]
)
def test_a_process_says_the_same_and_needs_no_torch_for_it(process, regraft, line):
    """Of the cases above, in a process of its own: exit code, streams, one line."""
    said = process(line)
    assert said.code == 2
    assert said.out == ""
    assert said.message == regraft(line).message


def test_a_failure_in_a_process_is_one_line_too(process, surroundings, files):
    before = files()
    said = process("train plain.yaml --model.name mine:nothing_prunable")
    assert said.code == 1
    assert "no prunable weight" in said.message
    assert {path: data for path, data in files().items() if "__pycache__" not in path.parts} == before


def test_a_place_that_cannot_be_written_is_told(regraft, here, files):
    before = files()
    said = regraft("train tiny.yaml --out tiny.yaml/run")
    assert (said.code, "cannot write to tiny.yaml/run" in said.message) == (1, True)
    (here / "arms.yaml").write_text((here / "tiny.yaml").read_text() + "arms: {a: {}, b: {seed: 1}}\n")
    said = regraft("train arms.yaml --out tiny.yaml/runs")
    assert (said.code, "cannot write to tiny.yaml/runs" in said.message) == (1, True)
    assert files().keys() - before.keys() == {(here / "arms.yaml").relative_to(here)}


# --- no earlier result is lost ----------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_in_one_line_and_keeps_what_was_there(regraft, here, files):
    assert regraft("train tiny.yaml --out runs/good").code == 0
    before = files()
    said = regraft("train tiny.yaml --training.lr 1e30 --training.epochs 3 --out runs/bad")
    assert said.code == 1
    assert "the loss is nan" in said.message
    assert "lower training.lr" in said.message
    assert not (here / "runs" / "bad" / "result.json").exists()
    assert {path: data for path, data in files().items() if path in before} == before


def test_another_recipe_never_takes_the_place_of_a_result(regraft, files):
    assert regraft("train tiny.yaml").code == 0
    before = files()
    said = regraft("train tiny.yaml --seed 1")
    assert said.code == 1
    assert "runs/tiny holds a finished run of another recipe" in said.message
    assert "--out" in said.message
    assert files() == before


def test_a_damaged_run_is_told_and_left(regraft, here, files):
    assert regraft("train tiny.yaml").code == 0
    run = here / "runs" / "tiny"
    whole = (run / "last.safetensors").read_bytes()
    (run / "last.safetensors").write_bytes(whole[:-1])
    before = files()
    said = regraft("eval runs/tiny")
    assert (said.code, "last.safetensors is damaged" in said.message) == (1, True)
    (run / "last.safetensors").write_bytes(whole)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text("training: {")
    said = regraft("eval runs/tiny")
    assert (said.code, "recipe.yaml is damaged" in said.message) == (1, True)
    (run / "recipe.yaml").write_text(recipe.replace("hidden: 8", "hidden: 9"))
    manifest = json.loads((run / "last.json").read_text())
    wrong = {**manifest, "recipe_hash": load_recipe(run / "recipe.yaml").hash}
    (run / "last.json").write_text(json.dumps({**wrong, "digest": digest(wrong)}))
    said = regraft("eval runs/tiny")  # torch says this in four lines
    assert (said.code, "the saved network does not fit its recipe" in said.message) == (1, True)
    assert "size mismatch for classifier.0.weight" in said.message
    (run / "recipe.yaml").write_text(recipe)
    (run / "result.json").write_text("{")
    for line in ("report runs/tiny", "train tiny.yaml"):
        said = regraft(line)
        assert (said.code, "result.json is damaged" in said.message) == (1, True)
    assert before.keys() == files().keys()


def test_a_report_that_cannot_be_written_is_told(regraft, here):
    assert regraft("train tiny.yaml").code == 0
    said = regraft("report runs/tiny --out tiny.yaml/page.html")
    assert (said.code, "cannot write the report to tiny.yaml/page.html" in said.message) == (1, True)
    assert json.loads((here / "runs" / "tiny" / "result.json").read_text())["name"] == "tiny"


def test_ctrl_c_is_no_traceback(regraft, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("regraft.training.fit.fit", interrupted)
    said = regraft("train tiny.yaml")
    assert said.code == 130
    assert "interrupted" in said.message
