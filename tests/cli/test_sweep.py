"""`regraft sweep` as a user meets it: lists of settings on the command line, to run folders, a table and exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest

from regraft.cli.sweep import split
from regraft.errors import TrainingError
from regraft.training.pool import Processes
from regraft.training.worker import train_planned


def test_settings_take_one_value_or_several_wherever_they_stand():
    line = "mine.yaml --workers 2 --topology.density 0.05 1e-1 --estimate --training.lr=-0.5 --data.split-seed 3 "
    line += "--model.options.widths '[[4], [4]]' --seed 0 7 --out there"
    flags, settings, seeds = split(shlex.split(line))
    assert flags == ["mine.yaml", "--workers", "2", "--estimate", "--out", "there"]
    assert settings == {
        "topology.density": [0.05, 0.1],
        "training.lr": [-0.5],
        "data.split_seed": [3],
        "model.options.widths": [[[4], [4]]],
    }
    assert seeds == [0, 7]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--topology.densty 0.1 0.2", "did you mean 'density'"),
        ("--topolgy.density 0.1", "did you mean 'topology'"),
        ("--topology.density", "--topology.density has no value"),
        ("--topology.density --workers 1", "--topology.density has no value"),
        ("--topology.density 0.1 0.1", "has a value twice"),
        ("--topology.density 0.1 0.10", "has a value twice"),
        ("--topology.density 0.1,0.2", "separate values by spaces, --topology.density 0.1 0.2"),
        ("--topology.density 0.1 none", "topology.density is 'none': give float"),
        ("--topology.density 0.1 2", "topology.density is 2.0: give a number above 0, up to 1"),
        ("--topology.density 0.1 [", "--topology.density is not YAML"),
        ("--topology.rule set rgil", "did you mean 'rigl'"),
        ("--topology.every 2 1000", "every=1000/seed-0: no event fits"),
        ("--seed", "--seed has no value"),
        ("--seed 1.5", "--seed is '1.5': give whole numbers"),
        ("--seed a", "--seed is 'a': give whole numbers"),
        ("--seed True", "--seed is 'True': give whole numbers"),
        ("--seed 0,1", "separate values by spaces, --seed 0 1"),
        ("--seed 1 1", "seed has a value twice"),
        ("--seed -1", "seed is -1"),
        ("--seeds 0 1", "--seeds"),
        ("--workers 0", "--workers is 0: give at least 1"),
        ("--threads 0", "--threads is 0: give at least 1"),
        ("--threads two", "--threads is 'two': give INT"),
        ("--backend dask", "'local', 'ray'"),
        ("--emit pbs", "--emit"),
        ("--only sparse", "has no arms"),
        ("--name other", "--name"),
    ],
)
def test_what_cannot_be_meant_ends_in_one_line_and_touches_nothing(regraft, files, line, message):
    before = files()
    said = regraft(f"sweep tiny.yaml {line}")
    assert said.code == 2, said.err
    assert message in said.message
    assert files() == before


def test_an_unknown_recipe_is_told(regraft):
    assert "did you mean 'digits'" in regraft("sweep digit --seed 0 1").message


def test_an_estimate_prints_hours_and_writes_nothing(regraft, files):
    before = files()
    said = regraft("sweep tiny.yaml --topology.density 0.3 0.5 --seed 0 1 --workers 2 --estimate")
    assert said.code == 0, said.err
    rows = [line.split() for line in said.out.splitlines() if line.startswith("density=")]
    assert [row[0] for row in rows] == ["density=0.3", "density=0.5"]
    for _, step, event, epoch_end, hours, left, _ in rows:
        assert 0 < float(step) < 10_000
        assert all(float(value) >= 0 for value in (event, epoch_end, hours))
        assert left == "2"
    assert re.search(r"0 of 4 runs are finished.* hours of work: \d+\.\d+ hours with --workers 2 --threads 1", said.out)
    assert files() == before


def test_a_sweep_is_trained_once_and_goes_on_where_it_was(regraft, here, files):
    command = "sweep tiny.yaml --topology.density 0.3 0.5 --workers 2"
    said = regraft(command)
    assert said.code == 0, said.err
    folder = here / "runs" / "tiny-sweep"
    results = {path.parent: path.read_bytes() for path in folder.glob("*/*/result.json")}
    assert {str(path.relative_to(folder)) for path in results} == {"density=0.3/seed-0", "density=0.5/seed-0"}
    for words in ("density=0.3/seed-0: done", "density=0.5/seed-0: done", "accuracy", "report.html"):
        assert words in said.out
    assert "density=0.5" in (folder / "report.html").read_text()
    assert {json.loads(result)["command"] for result in results.values()} == {f"regraft {command}"}
    assert {json.loads((path / "environment.json").read_text())["threads"] for path in results} == {1}
    plan = json.loads((folder / "sweep.json").read_text())
    assert [run["path"] for run in plan["runs"]] == ["density=0.3/seed-0", "density=0.5/seed-0"]

    before = files()
    again = regraft(command)
    assert again.code == 0
    assert "training," not in again.out
    assert "accuracy" in again.out
    changed = {path for path, content in files().items() if before.get(path) != content}
    assert {path.name for path in changed} <= {"report.html"}

    said = regraft(command + " --training.lr 0.01")
    assert said.code == 1
    assert "density=0.3/seed-0 holds a finished run of another recipe" in said.message
    assert {path for path, content in files().items() if before.get(path) != content} == changed

    said = regraft(f"{command} --training.lr 0.01 --out elsewhere --emit slurm")
    assert said.code == 0
    assert "sbatch elsewhere/sweep.slurm" in said.out
    assert (here / "elsewhere" / "sweep.tasks").read_text() == "density=0.3/seed-0\ndensity=0.5/seed-0\n"


def test_a_run_that_fails_is_listed_at_the_end_and_the_exit_code_is_1(regraft, here, monkeypatch):
    def train(self, run, watch):
        """As a process would, but in this one."""
        try:
            return train_planned(self._folder, run.path, watch)
        except TrainingError as error:
            return str(error)

    monkeypatch.setattr(Processes, "train", train)
    said = regraft("sweep tiny.yaml --training.lr 0.05 1e30 --workers 1")
    assert said.code == 1
    assert "Traceback" not in said.out + said.err
    assert (here / "runs" / "tiny-sweep" / "lr=0.05" / "seed-0" / "result.json").exists()
    end = said.out[said.out.index("1 of 2 runs did not come to their end:") :].splitlines()
    assert end[1].startswith("  lr=1e+30/seed-0: the loss is")
    assert end[2].endswith("regraft sweep tiny.yaml --training.lr 0.05 1e30 --workers 1")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_stops_all_workers_and_says_how_to_go_on(here, number):
    line = ["sweep", "tiny.yaml", "--training.epochs", "100", "--data.batch", "4", "--seed", "0", "1"]
    command = [sys.executable, "-m", "regraft.cli.main", *line, "--workers", "2"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here, start_new_session=True
    ) as process:
        begun = set()
        while len(begun) < 2:
            said = process.stdout.readline()
            begun |= {said.partition(":")[0]} if "epoch 1," in said else set()
        os.killpg(process.pid, number)  # as a terminal does: to the whole group
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1].endswith(f"Go on with: regraft {' '.join(line)} --workers 2")
    assert "Traceback" not in err
    for seed in (0, 1):
        folder = here / "runs" / "tiny-sweep" / "tiny" / f"seed-{seed}"
        assert list((folder / "checkpoints").glob("*.safetensors"))
        assert not (folder / "result.json").exists()


def test_ray_is_asked_for_where_it_is_missing(regraft, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = regraft("sweep tiny.yaml --backend ray")
    assert said.code == 1
    assert said.message.endswith("pip install 'regraft[ray]'")
