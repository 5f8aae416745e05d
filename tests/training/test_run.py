"""The run folder: begun once, never over a finished one; maps of the wiring that add up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from regraft.errors import RunError
from regraft.training.recipe import Recipe, load_recipe
from regraft.training.run import RunFolder, environment, finished, wiring_map


def test_begin_writes_what_is_known_before_training(tmp_path):
    run = RunFolder.begin(tmp_path / "a" / "b", Recipe(seed=4))
    assert sorted(path.name for path in run.path.iterdir()) == ["environment.json", "recipe.yaml"]
    assert load_recipe(run.path / "recipe.yaml") == Recipe(seed=4)


def test_the_environment_says_what_figures_depend_on(tmp_path):
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert {"regraft", "python", "numpy", "platform", "processor", "cores", "gpu", "bf16"} <= found.keys()
    json.dumps(found)


def test_records_are_appended_one_a_line(tmp_path):
    run = RunFolder.begin(tmp_path / "run", Recipe())
    records = [{"kind": "birth", "text": "a\nb"}, {"kind": "epoch", "loss": float("nan")}]
    for record in records:
        run.log(record)
    lines = (run.path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["birth", "epoch"]


def test_an_unfinished_run_moves_aside_and_folders_in_it_stay(tmp_path):
    """A teacher's finished run lies in its student's folder: whoever moves that loses an hour of training."""
    path = tmp_path / "run"
    first = RunFolder.begin(path, Recipe(seed=1))
    first.log({"kind": "birth"})
    (path / "teacher").mkdir()
    (path / "teacher" / "result.json").write_text("{}")
    for number in (1, 2):
        RunFolder.begin(path, Recipe(seed=1 + number))
        aside = path.with_name(f"run.unfinished-{number}")
        assert load_recipe(aside / "recipe.yaml").seed == number
        assert (aside / "log.jsonl").exists() == (number == 1)
        assert not (path / "log.jsonl").exists()
        assert (path / "teacher" / "result.json").exists()
    assert load_recipe(path / "recipe.yaml").seed == 3


def test_a_finished_run_stays(tmp_path):
    path = tmp_path / "run"
    RunFolder.begin(path, Recipe())
    (path / "result.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds a finished run.*--out"):
        RunFolder.begin(path, Recipe(seed=1))
    assert load_recipe(path / "recipe.yaml") == Recipe()
    assert not path.with_name("run.unfinished-1").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="cannot write to"):
            RunFolder.begin(path, Recipe())
    assert (tmp_path / "file").read_text() == ""


def test_finished_knows_its_recipe(tmp_path):
    assert not finished(tmp_path / "nothing", Recipe())
    (tmp_path / "result.json").write_text(json.dumps({"recipe_hash": Recipe().hash}))
    assert finished(tmp_path, Recipe(name="another name"))
    with pytest.raises(RunError, match="finished run of another recipe"):
        finished(tmp_path, Recipe(seed=1))
    for damaged in ("", "[]", "{}", '{"recipe_hash'):
        (tmp_path / "result.json").write_text(damaged)
        with pytest.raises(RunError, match=r"result\.json is damaged"):
            finished(tmp_path, Recipe())


# --- maps of the wiring -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([(), (3,), (3, 3)]), st.integers(0, 9))
def test_a_map_has_every_connection_in_one_place(rows, columns, kernel, seed):
    mask = torch.rand(rows, columns, *kernel, generator=torch.Generator().manual_seed(seed)) < 0.3
    found = wiring_map(mask)
    assert found.shape == (min(rows, 64), min(columns, 64))
    assert found.sum() == int(mask.sum())
    assert found.min() >= 0


def test_a_small_map_is_exact():
    mask = torch.tensor([[[1, 0], [1, 1]], [[0, 0], [1, 0]]]).bool()  # [out, in, kernel]
    assert wiring_map(mask).tolist() == [[1, 2], [0, 1]]


def test_groups_are_neighbours_of_nearly_equal_size():
    identity = wiring_map(torch.eye(160).bool())
    assert np.array_equal(identity, np.diag(np.diag(identity)))
    assert set(np.diag(identity)) == {2, 3}


def test_the_maps_of_a_run_show_birth_and_every_event(trained):
    maps = load_file(trained.folder / "wiring.safetensors")
    masks = trained.parts.topology.masks
    assert set(maps) == {f"{step:08d}/{name}" for step in (0, 2, 4, 6) for name in masks}
    for name, mask in masks.items():
        exact = mask.reshape(*mask.shape[:2], -1).sum(2).numpy()
        assert np.array_equal(maps[f"00000006/{name}"], exact)
    for record in trained.records("event"):
        for name, connections in record["connections"].items():
            assert maps[f"{record['step']:08d}/{name}"].sum() == connections
