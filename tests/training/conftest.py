"""Runs of a network of 388 connections on 64 stand-in samples: less than a second each, shared where they can be."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.training.build import Parts
from regraft.training.recipe import Recipe, override

TINY = {
    "name": "tiny",
    "data.name": "standin",
    "data.batch": 16,
    "model.steps": 2,
    "model.options": {"widths": [[4], [4]], "hidden": 8},
    "topology.density": 0.5,
    "topology.every": 2,
    "training.epochs": 3,
    "training.lr": 0.05,
    "training.precision": "fp32",
}


@dataclass
class Run:
    """A training that came to its end, with what was in memory then."""

    folder: Path
    recipe: Recipe
    result: dict[str, Any] = field(default_factory=dict)
    watched: list[dict[str, Any]] = field(default_factory=list)
    parts: Parts = field(default=None)  # type: ignore[assignment]

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.log if record["kind"] == kind]

    @property
    def weights(self) -> dict[str, Any]:
        return {name: p.detach().clone() for name, p in self.parts.model.named_parameters()}


@pytest.fixture(scope="session")
def tiny():
    """A recipe of seconds, with some settings changed."""

    def make(changes: dict[str, Any] | None = None) -> Recipe:
        return override(Recipe(), {**TINY, **(changes or {})})

    return make


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """`fit`, and a look at what it held when it measured the network."""

    def run(recipe: Recipe, folder: Path | None = None, **arguments: Any) -> Run:
        module = importlib.import_module("regraft.training.fit")
        torch.set_num_threads(1)  # a run of the session begins before any test sets it, and bits depend on it
        given = Run(folder or tmp_path_factory.mktemp("runs") / recipe.name, recipe)
        finish = module.finish

        def finish_and_keep(run_folder: Any, of: Recipe, parts: Parts, *rest: Any) -> dict[str, Any]:
            given.parts = parts
            return finish(run_folder, of, parts, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "finish", finish_and_keep)
            given.result = module.fit(recipe, given.folder, watch=given.watched.append, **arguments)
        return given

    return run


@pytest.fixture(scope="session")
def trained(train, tiny):
    """The default tiny run. Nobody writes into its folder."""
    return train(tiny())


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of that folder, to be damaged."""
    return Path(shutil.copytree(trained.folder, tmp_path / "copy"))


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """`theirs("name", source)`: a user's own module, importable during one test; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return name

    yield write
    for name in [p.stem for p in tmp_path.glob("*.py")]:
        sys.modules.pop(name, None)
