"""Every shipped recipe runs: two optimiser steps of each arm on stand-in data, teachers and report included."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from regraft.data import DATA, FACTS
from regraft.data.standin import standin
from regraft.report import find_runs
from regraft.training import load_study, train_study
from regraft.training.build import TEACHER_SEED
from regraft.training.recipe import SHIPPED
from regraft.training.study import with_teachers

RECIPES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


NARROW = {  # made for a GPU
    "cifar100_resnet19": {"model.options": {"stem": 8, "widths": [8, 16, 32], "hidden": 16}},
    "cifar100_vgg16": {"model.options": {"widths": [[8, 8], [8, 8], [16] * 3, [16] * 3, [32] * 3]}},
}


@pytest.fixture
def stand_ins(monkeypatch):
    """Every data set by its name, with 12 made-up samples of its shape: recipes keep all their other settings."""

    def made(name, real):
        events, shape, files = "steps" in inspect.signature(real).parameters, FACTS[name].shape, FACTS[name].archive

        def function(split, seed=0, *, steps=None, **options):
            x, y = standin(split, seed, shape=(steps, *shape) if events else shape, samples=12)
            return (x * 30 + 128).clip(0, 255).astype(np.uint8) if files else x, y

        return function

    for name, real in list(DATA.items()):
        monkeypatch.setitem(DATA, name, made(name, real))


@pytest.mark.parametrize("name", RECIPES)
def test_every_arm_trains_two_steps(name, tmp_path, stand_ins):
    tiny = {"data.batch": 4, "model.steps": 2, "training.epochs": 1, "topology.every": 1, **NARROW.get(name, {})}
    train_study(load_study(name, tiny), tmp_path / name)

    runs = find_runs(tmp_path / name)
    assert {run.folder.name for run in runs} >= set(load_study(name).arms)
    for run in runs:
        assert run.result is not None
        assert run.result["connections"]["existing"] == round(
            run.section("topology")["density"] * run.result["connections"]["of"]
        )
        assert 0 <= run.result["accuracy"]["last"] <= 1


RESULTS = sorted(path.parent for path in Path(__file__).parents[1].glob("results/*/*/seed-0"))
SWEPT = sorted({folder.parent.name for folder in RESULTS})


@pytest.mark.parametrize("name", SWEPT)
def test_committed_results_belong_to_the_shipped_recipe(name):
    folder = Path(__file__).parents[1] / "results" / name
    found = {json.loads(path.read_text())["recipe_hash"] for path in folder.glob("*/seed-*/result.json")}
    seeds = {int(path.name.removeprefix("seed-")) for path in folder.glob("*/seed-*")}
    studies = [with_teachers(load_study(name, {"seed": seed})) for seed in seeds if seed < TEACHER_SEED]
    shipped = {recipe.hash for study in studies for recipe in study.arms.values()}
    assert found <= shipped
    assert found == shipped or not (folder / "verdicts.md").exists(), "verdicts are over all arms and seeds"
