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
from regraft.training.checkpoint import save_checkpoint
from regraft.training.recipe import Recipe, load_recipe
from regraft.training.run import RunFolder, environment, finished, frames, held, wiring_map


def begun(path, recipe=None):
    run = RunFolder(path)
    with held(path):
        run.begin(recipe or Recipe(), "fp32", {})
    return run


def test_begin_writes_what_is_known_before_training(tmp_path):
    run = begun(tmp_path / "a" / "b", Recipe(seed=4))
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "environment.json", "recipe.yaml"]
    assert load_recipe(run.path / "recipe.yaml") == Recipe(seed=4)


def test_the_environment_says_what_figures_depend_on(tmp_path):
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert {"regraft", "python", "numpy", "platform", "processor", "cores", "gpu", "bf16"} <= found.keys()
    json.dumps(found)


def test_records_are_appended_one_a_line(tmp_path):
    run = begun(tmp_path / "run")
    records = [{"kind": "birth", "text": "a\nb"}, {"kind": "epoch", "loss": float("nan")}]
    for record in records:
        run.log(record)
    lines = (run.path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["birth", "epoch"]


def test_a_run_without_a_checkpoint_is_begun_anew_and_folders_in_it_stay(tmp_path):
    """A teacher's finished run lies in its student's folder: whoever removes that loses an hour of training."""
    path = tmp_path / "run"
    begun(path, Recipe(seed=1)).log({"kind": "birth"})
    (path / "teacher").mkdir()
    (path / "teacher" / "result.json").write_text("{}")
    begun(path, Recipe(seed=2))
    assert load_recipe(path / "recipe.yaml").seed == 2
    assert not (path / "log.jsonl").exists()
    assert (path / "teacher" / "result.json").exists()


def test_an_unfinished_run_stays(tmp_path):
    path = tmp_path / "run"
    begun(path)
    save_checkpoint(path, 3, {}, {})
    with pytest.raises(RunError, match=r"holds an unfinished run: go on with --resume"):
        begun(path, Recipe(seed=1))
    assert load_recipe(path / "recipe.yaml") == Recipe()


def test_a_finished_run_stays(tmp_path):
    path = tmp_path / "run"
    begun(path)
    (path / "result.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds a finished run.*--out"):
        begun(path, Recipe(seed=1))
    assert load_recipe(path / "recipe.yaml") == Recipe()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="cannot write to"):
            begun(path)
    assert (tmp_path / "file").read_text() == ""


def test_a_process_that_does_not_write_leaves_no_trace(tmp_path):
    run = RunFolder(tmp_path / "run", writes=False)
    run.begin(Recipe(), "fp32", {})
    run.map(0, {"w": torch.ones(2, 2, dtype=torch.bool)})
    run.log({"kind": "birth"})
    run.write_maps()
    run.go_on(3, 10)
    assert run.log_bytes() == 0
    assert not list(tmp_path.iterdir())


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 20_000))
def test_the_wirings_kept_are_all_or_64_evenly_spread_and_the_last(every, steps):
    last = steps // every * every
    events = set(range(every, last + 1, every))
    kept = frames(every, last)
    assert kept <= events
    assert len(kept) == min(len(events), 64)
    if kept:
        assert last in kept
        gaps = np.diff([0, *sorted(kept)])
        assert gaps.max() - gaps.min() <= every


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
    first = next(iter(masks))
    born = maps.pop(f"birth/{first}")
    assert born.dtype == np.float32
    assert (born != 0).sum() == maps[f"00000000/{first}"].sum(), "weights of the first layer's connections"
    assert set(maps) == {f"{step:08d}/{name}" for step in (0, 2, 4, 6) for name in masks}
    for name, mask in masks.items():
        exact = mask.reshape(*mask.shape[:2], -1).sum(2).numpy()
        assert np.array_equal(maps[f"00000006/{name}"], exact)
    for record in trained.records("event"):
        for name, connections in record["connections"].items():
            assert maps[f"{record['step']:08d}/{name}"].sum() == connections


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def acquire(*_):  # as filelock does before 3.19; later it locks by the file's existence
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(RunError, match="knows no locks"), held(tmp_path / "run"):
        pass
