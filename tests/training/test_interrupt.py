"""A run may be stopped at any moment and in any way: what `resume` reaches is what the uninterrupted run reached."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from regraft.errors import Interrupted, RunError, SilentLayerWarning, UsageError
from regraft.training import stopping
from regraft.training.checkpoint import digest, newest_checkpoint
from regraft.training.files import write_json
from regraft.training.fit import fit
from regraft.training.recipe import Recipe, override, write_yaml
from regraft.training.run import RunFolder
from regraft.training.stopping import Stop

MOVING = {  # everything that has a state: momentum, dropout, a moving teacher, accumulated growth, warm-up
    "adamw, average teacher": {"training.optimizer": "adamw", "training.lr": 0.01, "distill.teacher": "average"},
    "dropout": {"model.name": "dvsgesture", "model.options": {"width": 4, "hidden": 8}, "data.name": "SMALL"},
    "previous teacher, accumulated growth": {"distill.teacher": "previous", "topology.grow": "accumulated"},
    "momentum growth, falling density": {"topology.rule": "gmp", "topology.start_density": 1.0},
    "taylor drop, warm-up": {"topology.drop": "taylor", "training.warmup": 0.3},
    "nested, plif": {"distill.teacher": "nested", "model.neuron": "plif"},
}


def small_images(split: str, seed: int = 0) -> Any:
    from regraft.data.standin import standin

    return standin(split, seed, shape=(1, 32, 32), samples=48)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def log(folder: Path) -> list[dict[str, Any]]:
    """The log without times, which no machine repeats."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


class StopAt:
    """A watcher that sends this process a signal when the log says so."""

    def __init__(self, record: int, number: int = signal.SIGTERM) -> None:
        self.left, self.number = record, number

    def __call__(self, record: dict[str, Any]) -> None:
        self.left -= record["kind"] != "paths"
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def assert_equal_runs(first: Path, second: Path) -> None:
    assert same(weights(first), weights(second))
    assert same(load_file(first / "best.safetensors"), load_file(second / "best.safetensors"))
    assert log(first) == log(second)
    maps = [load_file(folder / "wiring.safetensors") for folder in (first, second)]
    assert same(*maps)
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]


@pytest.mark.parametrize("name", MOVING)
def test_a_stopped_run_goes_on_to_the_same_bits(name, tiny, tmp_path, monkeypatch):
    changes = dict(MOVING[name])
    if changes.get("data.name") == "SMALL":
        monkeypatch.syspath_prepend(str(Path(__file__).parent))
        changes["data.name"] = f"{Path(__file__).stem}:small_images"
    recipe = tiny(changes) if "model.name" not in changes else dropout(tiny, changes)
    torch.manual_seed(99)
    fit(recipe, tmp_path / "whole")
    stops = 0
    for record in (2, 3, 2, 1, 3, 2):  # at events and in the middle of epochs
        try:
            fit(recipe, tmp_path / "stopped", resume=True, watch=StopAt(record))
        except Interrupted:
            stops += 1
            torch.manual_seed(stops)  # what another process would have
            continue
        break
    else:
        fit(recipe, tmp_path / "stopped", resume=True)
    assert stops >= 3
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def dropout(tiny: Any, changes: dict[str, Any]) -> Recipe:
    from dataclasses import replace

    base = tiny()
    return override(replace(base, model=replace(base.model, options={})), {**changes, "training.epochs": 2})


@pytest.mark.parametrize(
    "place",
    [
        "regraft.training.fit:evaluate",
        "regraft.training.load:topology_of",
        "regraft.metrics.measure:inspect_neurons",
        "regraft.training.result:write_activity",
    ],
)
def test_a_signal_at_the_end_of_an_epoch_is_no_failure_of_what_it_interrupts(place, tiny, tmp_path, monkeypatch):
    """There it comes at once, as an exception, through code that turns failures into messages or swallows them."""
    module, _, name = place.partition(":")
    home = importlib.import_module(module)
    real = getattr(home, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    recipe = tiny({"training.epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(home, name, interrupted)
        with pytest.raises(Interrupted, match="stopped by SIGINT at step 3 of 3, which is saved"):
            fit(recipe, tmp_path / "stopped")
    fit(recipe, tmp_path / "stopped", resume=True)
    fit(recipe, tmp_path / "whole")
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_one_request_may_come_twice_and_a_second_one_ends_at_once(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    with Stop() as stop:
        for number in (signal.SIGTERM, signal.SIGINT):  # as `timeout` does: to the process, and to its group
            signal.raise_signal(number)
        assert stop.asked == signal.SIGTERM
        now[0] += 1.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_run_keeps_nothing_for_a_resume_however_it_ended(tiny, tmp_path, monkeypatch):
    from regraft.training import result

    def stop_after(path: Path, value: Any) -> None:
        write_json(path, value)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(result, "write_json", stop_after)
    with pytest.raises(Interrupted):
        fit(tiny({"training.epochs": 1}), tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_sums_of_an_epoch_may_lie_on_two_devices():
    """After a resume those of before are on the CPU, those that follow where the network is."""
    from regraft.training.records import Sums

    sums = Sums()
    sums._values = [torch.zeros(4), torch.zeros(4, device="meta")]
    with pytest.raises(NotImplementedError, match="meta"):  # `cpu()` was asked of each: this device has no values
        _ = sums.rows


# --- real processes, real signals -------------------------------------------------------------------------------------


def test_kill_9_a_full_disk_and_a_read_only_folder_lose_nothing(tmp_path):
    """A few of the 200 kills of `results/interruptions.json`; a small disk where the machine lets it be mounted."""
    script = Path(__file__).parents[2] / "benchmarks" / "interruptions.py"
    command = [sys.executable, str(script), "--kills", "3", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    kills = found["kill_9"]
    assert kills["kills"] >= 3
    assert kills["unreadable"] == []
    assert kills["runs_equal_to_the_uninterrupted_one"] == kills["runs"]
    for lost in (found["full_disk"], found["read_only_folder"]):
        if isinstance(lost, dict):
            assert (lost["exit_code"], lost["exit_code_of_resume"]) == (1, 0)
            (line,) = [line for line in lost["said"] if "warning" not in line]
            assert re.match(r"regraft: cannot write DISK/run.*What was saved before is untouched", line), line
            assert lost["unreadable"] == []
            assert lost["checkpoint_at_step"] >= 9
            assert lost["equal_to_the_uninterrupted_one"]


COMMAND = [sys.executable, "-m", "regraft", "train", "tiny.yaml", "--out", "run"]


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_yaml(tiny({"training.epochs": 400}), tmp_path / "tiny.yaml")
    return tmp_path


def started(command: list[str]) -> subprocess.Popen[str]:
    """The command, from the moment on that it trains."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "epoch 1/" not in process.stdout.readline():
        assert process.poll() is None, process.stderr and process.stderr.read()
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_the_command_with_the_one_that_goes_on(here, number, code):
    process = started(COMMAND)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "warning" not in line]
    found = re.search(r"at step (\d+) of 1200, which is saved. Go on with: (regraft train .* --resume)$", line)
    assert found, line
    saved = newest_checkpoint(here / "run")
    assert saved is not None
    assert saved[1]["position"]["step"] == int(found[1])
    assert found[2].split()[1:] == [*COMMAND[3:], "--resume"]


def test_two_runs_into_one_folder(here):
    first = started(COMMAND)
    try:
        second = subprocess.run([*COMMAND, "--resume"], capture_output=True, text=True, timeout=60)
    finally:
        first.kill()
        first.communicate()
    assert second.returncode == 1
    assert re.fullmatch(r"regraft: another process is training into run: .*\n", second.stderr), second.stderr


def test_a_file_that_cannot_grow_ends_the_run_and_the_last_checkpoint_stays(here):
    """What a full disk does: a write that the system refuses (here: files of more than 40 kB)."""
    process = subprocess.run(
        ["bash", "-c", 'ulimit -f 40; trap "" XFSZ; exec "$@"', "limited", *COMMAND],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 1, process.stderr
    (line,) = process.stderr.splitlines()
    assert re.match(r"regraft: cannot write run/\S+: File too large", line), line
    assert newest_checkpoint(here / "run") is not None


# --- what must not be gone on with ------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tiny, tmp_path):
    """A run that was stopped in its second epoch, with two checkpoints."""
    with pytest.raises(Interrupted):
        fit(tiny(), tmp_path / "stopped", watch=StopAt(4), save_every=0)
    return tmp_path / "stopped"


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("*.safetensors"))


def test_an_unfinished_run_is_not_begun_anew_by_accident(stopped, tiny):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"holds an unfinished run: go on with --resume"):
        fit(tiny(), stopped)
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_a_changed_recipe_is_named_setting_by_setting(stopped, tiny):
    with pytest.raises(UsageError, match=r"begun with seed 0, now it is 3 \(and 1 more\)"):
        fit(tiny({"training.lr": 0.06, "seed": 3}), stopped, resume=True)


def test_where_the_data_lie_and_the_name_may_change(stopped, tiny):
    result = fit(tiny({"name": "moved", "data.folder": "elsewhere"}), stopped, resume=True)
    assert result["name"] == "moved"


def test_a_run_that_never_saved_begins_anew(stopped, tiny, tmp_path):
    shutil.rmtree(stopped / "checkpoints")
    fit(tiny(), stopped)
    fit(tiny(), tmp_path / "whole")
    assert_equal_runs(stopped, tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no data", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(stopped, tiny, tmp_path, damage):
    newest = checkpoints(stopped)[-1]
    data = newest.read_bytes()
    if damage == "truncated":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        newest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "manifest":
        newest.with_suffix(".json").write_text("{")
    else:
        newest.unlink()
    if damage == "no data":  # a crash came between the two files: nothing is damaged
        fit(tiny(), stopped, resume=True)
    else:
        with pytest.warns(UserWarning, match=r"is damaged.*Going on from the checkpoint before it, step"):
            fit(tiny(), stopped, resume=True)
    fit(tiny(), tmp_path / "whole")
    assert_equal_runs(stopped, tmp_path / "whole")


def test_without_a_whole_checkpoint_nothing_is_touched(stopped, tiny):
    for path in checkpoints(stopped):
        path.write_bytes(b"")
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"is damaged.*No other checkpoint is whole"):
        fit(tiny(), stopped, resume=True)
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_a_checkpoint_of_another_version_or_network_is_refused(stopped, tiny, tmp_path):
    other = tmp_path / "other"
    with pytest.raises(Interrupted):
        fit(tiny({"model.options": {"widths": [[6], [4]], "hidden": 8}}), other, watch=StopAt(4), save_every=0)
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(other / "checkpoints", stopped / "checkpoints")
    with pytest.raises(RunError, match="does not fit this recipe"):
        fit(tiny(), stopped, resume=True)
    for path in (stopped / "checkpoints").glob("*.json"):
        path.write_text(path.read_text().replace('"format": 1', '"format": 99', 1))
    with pytest.raises(RunError, match=r"has format 99; this version of regraft reads format 1"):
        fit(tiny(), stopped, resume=True)


def test_a_checkpoint_of_other_settings_is_refused_though_the_network_fits(stopped, tiny, tmp_path):
    with pytest.raises(Interrupted):
        fit(tiny({"training.lr": 0.06}), tmp_path / "other", watch=StopAt(4), save_every=0)
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", stopped / "checkpoints")
    with pytest.raises(RunError, match="does not fit this recipe: it is of another one"):
        fit(tiny(), stopped, resume=True)


def test_a_checkpoint_that_does_not_say_how_many_processes_saved_it(stopped, tiny):
    for path in (stopped / "checkpoints").glob("*.json"):
        manifest = json.loads(path.read_text())
        del manifest["world"]
        path.write_text(json.dumps({**manifest, "digest": digest(manifest)}))
    with pytest.raises(RunError, match="does not say how many processes"):
        fit(tiny(), stopped, resume=True)


def test_options_that_python_takes_for_equal_are_told(stopped, tiny):
    with pytest.raises(UsageError, match="begun with other options of model or data"):
        fit(tiny({"model.options": {"widths": [[4], [4]], "hidden": 8.0}}), stopped, resume=True)


def test_a_chosen_network_that_is_gone_is_told_before_training_goes_on(stopped, tiny):
    """`best` may not be beaten again: without it a run would fail at its very end."""
    at = newest_checkpoint(stopped)[1]["position"]  # type: ignore[index]
    assert at["best"] == -1, "the wiring is not final yet: nothing is chosen"
    shutil.rmtree(stopped)
    with pytest.raises(Interrupted):
        fit(tiny({"topology.until": 0.3}), stopped, watch=StopAt(4), save_every=0)
    (stopped / "best.safetensors").unlink()
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"cannot read .*best\.safetensors"):
        fit(tiny({"topology.until": 0.3}), stopped, resume=True)
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_a_kill_between_the_two_files_of_the_first_checkpoint(stopped, tiny, tmp_path):
    """The manifest goes first; alone it is no checkpoint, and nothing to go on with, but no reason to refuse either."""
    for path in checkpoints(stopped):
        path.unlink()
    fit(tiny(), stopped, resume=True)
    fit(tiny(), tmp_path / "whole")
    assert_equal_runs(stopped, tmp_path / "whole")


def test_checkpoints_that_lost_their_manifests_are_not_begun_over(stopped, tiny):
    for path in checkpoints(stopped):
        path.with_suffix(".json").unlink()
    with pytest.raises(RunError, match="holds an unfinished run"):
        fit(tiny(), stopped)
    with pytest.raises(RunError, match="No other checkpoint is whole"):
        fit(tiny(), stopped, resume=True)


def test_what_a_kill_left_half_written_is_removed(stopped, tiny):
    left = [stopped / ".last.safetensors.77", stopped / "checkpoints" / ".0000000009.json.77"]
    for path in left:
        path.write_bytes(b"half")
    with pytest.raises(Interrupted):
        fit(tiny(), stopped, resume=True, watch=StopAt(1))
    assert not any(path.exists() for path in left)


def test_seconds_of_training_go_on(stopped, tiny):
    for path in (stopped / "checkpoints").glob("*.json"):
        manifest = json.loads(path.read_text())
        manifest["position"]["seconds"] = 1000.0
        path.write_text(json.dumps({**manifest, "digest": digest(manifest)}))
    result = fit(tiny(), stopped, resume=True)
    assert 1000 < result["seconds"]["train"] < 1900


def test_a_silent_layer_is_warned_of_once_in_a_run(tiny, tmp_path):
    recipe = tiny({"model.threshold": 1e9})
    with pytest.warns(SilentLayerWarning), pytest.raises(Interrupted):
        fit(recipe, tmp_path / "run", watch=StopAt(4), save_every=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SilentLayerWarning)
        fit(recipe, tmp_path / "run", resume=True)


def test_wirings_of_after_the_checkpoint_are_forgotten(stopped):
    at = newest_checkpoint(stopped)[1]["position"]  # type: ignore[index]
    assert at["step"] >= 4
    run = RunFolder(stopped)
    run.go_on(3, 0)
    run.write_maps()
    steps = {key.partition("/")[0] for key in load_file(stopped / "wiring.safetensors")}
    assert steps == {"birth", "00000000", "00000002"}


def test_a_log_that_was_changed_is_told(stopped, tiny):
    log = stopped / "log.jsonl"
    log.write_text(log.read_text().replace("density", "dansity", 1))
    with pytest.raises(RunError, match=r"log\.jsonl is damaged"):
        fit(tiny(), stopped, resume=True)


@pytest.mark.parametrize("name", ["log.jsonl", "wiring.safetensors", "environment.json"])
def test_a_run_folder_that_lost_a_file_is_told(stopped, tiny, name):
    (stopped / name).write_bytes(b"")
    with pytest.raises(RunError, match=f"{name}.* is damaged"):
        fit(tiny(), stopped, resume=True)


def test_a_resume_is_noted(stopped, tiny):
    step = int(checkpoints(stopped)[-1].stem)
    fit(tiny(), stopped, resume=True)
    (noted,) = json.loads((stopped / "environment.json").read_text())["resumed"]
    assert (noted["step"], noted["torch"]) == (step, torch.__version__)
    assert not (stopped / "checkpoints").exists(), "a finished run needs none"


def test_the_number_of_threads_is_that_of_the_start(stopped, tiny, tmp_path):
    fit(tiny(), tmp_path / "whole")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.warns(UserWarning, match=f"going on with {threads} threads"):
            fit(tiny(), stopped, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert_equal_runs(stopped, tmp_path / "whole")
