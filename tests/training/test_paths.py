"""Which layers of a training go over their connections: by a table that stays with the run, and told as it changes."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
from typing import Any

import pytest

from regraft.cli.progress import Progress
from regraft.errors import Interrupted, RunError
from regraft.execution import Calibration, described, shipped
from regraft.execution.engines import engine
from regraft.training.build import assemble, calibration_of
from regraft.training.checkpoint import newest_checkpoint, read_tensors, write_tensors
from regraft.training.fit import fit
from regraft.training.study import load_study

build = importlib.import_module("regraft.training.build")
ALWAYS = Calibration("always", {"convolution fp32": ((1.0, 1.0),)})
NEVER = Calibration("never", {})

pytestmark = pytest.mark.skipif(engine("cpu") is None, reason="the kernels were not built: a C compiler is missing")


def told(recipe: Any, folder: Any, **settings: Any) -> list[dict[str, str]]:
    """The choices that a training spoke of."""
    said: list[dict[str, str]] = []
    fit(recipe, folder, watch=lambda r: said.append(r["choices"]) if r["kind"] == "paths" else None, **settings)
    return said


def test_who_asks_for_bf16_gets_dense_products_in_bf16(tiny):
    kept = {p: calibration_of(tiny({"training.precision": p})).boundaries.keys() for p in ("auto", "fp32", "bf16")}
    assert kept["auto"] == kept["fp32"] == shipped().boundaries.keys()
    assert kept["bf16"] == {key for key in kept["auto"] if not key.endswith("bf16")}


def test_a_resumed_run_goes_by_the_table_that_it_was_begun_with(tiny, tmp_path, monkeypatch):
    recipe, folder = tiny(), tmp_path / "run"
    monkeypatch.setattr(build, "shipped", lambda: ALWAYS)
    with pytest.raises(Interrupted):
        fit(recipe, folder, watch=lambda record: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(build, "shipped", lambda: NEVER)
    (choices,) = told(recipe, folder, resume=True)
    assert "" in choices.values()
    written = json.loads((folder / "environment.json").read_text())["calibration"]
    assert written == json.loads(json.dumps(described(ALWAYS)))
    (other,) = told(recipe, tmp_path / "other")
    assert "" not in other.values()


def test_a_checkpoint_without_a_table_is_refused(tiny, tmp_path):
    recipe, folder = tiny(), tmp_path / "run"
    with pytest.raises(Interrupted):
        fit(recipe, folder, watch=lambda record: os.kill(os.getpid(), signal.SIGTERM))
    found = newest_checkpoint(folder)
    assert found is not None
    for path in (folder / "checkpoints").glob("*.safetensors"):
        tensors, manifest = read_tensors(path)
        write_tensors(path, tensors, {key: value for key, value in manifest.items() if key != "calibration"})
    with pytest.raises(RunError, match="calibration"):
        fit(recipe, folder, resume=True)


def test_what_falls_below_the_boundary_is_told(tiny, tmp_path, monkeypatch):
    """GraNet begins with half of the connections and ends with a tenth: layers change over as it goes."""
    table = Calibration("a fifth", {"convolution fp32": ((1.0, 0.2),)})
    monkeypatch.setattr(build, "shipped", lambda: table)
    changes = {"topology.rule": "granet", "topology.density": 0.1, "topology.start_density": 0.5, "data.batch": 16}
    said = told(tiny({**changes, "topology.every": 1, "training.epochs": 3}), tmp_path / "run")
    over = [{name for name, why in choices.items() if not why} for choices in said]
    assert len(over) > 1
    assert all(a < b for a, b in itertools.pairwise(over))
    assert any("density 0." in why and "is above 0.2" in why for why in said[0].values())


def test_a_dense_network_has_nothing_to_tell(tiny, tmp_path):
    assert not told(tiny({"topology.density": 1.0, "topology.rule": "static"}), tmp_path / "run")


def test_one_line_says_it(capsys):
    with Progress(load_study("digits", only=("sparse",))) as progress:
        progress.watch({"run": "sparse", "kind": "paths", "step": 0, "choices": {"a": "", "b": "a hook looks at it"}})
        progress.watch({"run": "sparse", "kind": "paths", "step": 9, "choices": {"a": "", "b": ""}})
    assert capsys.readouterr().out.splitlines() == [
        "sparse: 1 of 2 layers over their connections, in fp32; dense: b (a hook looks at it)",
        "sparse: 2 of 2 layers over their connections, in fp32",
    ]


def test_parts_know_how_they_are_executed(tiny):
    parts = assemble(tiny())
    assert parts.execution.choices.keys() == parts.topology.masks.keys()
