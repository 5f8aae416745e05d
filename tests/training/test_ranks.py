"""Several processes under `torchrun`: one network, one wiring, one writer; a lost one loses nothing."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regraft.execution.engines import engine
from regraft.training.build import assemble
from regraft.training.ranks import Ranks
from regraft.training.run import RunFolder

RECIPE = """\
name: tiny
data: {{name: standin, batch: 16}}
model: {{name: "without_norm:{net}", steps: 2}}
topology: {{density: {density}, every: 2, rule: {rule}}}
training: {{epochs: {epochs}, lr: 0.05, precision: fp32}}
"""

MODEL = """\
import os, sys
from torch import nn
from regraft.neurons import LIF

def net(*, classes, **_):
    # Without normalisation, whose statistics each process takes on its own share, one process computes the same.
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), LIF(), nn.Linear(32, classes), Steps())

def convolutions(*, classes, **_):
    layers = [nn.Conv2d(1, 16, 3, padding=1), LIF(), nn.Conv2d(16, 16, 3, padding=1), LIF()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, classes), Steps())

class Steps(nn.Module):
    def forward(self, x):
        return x.unflatten(0, (1, -1))
"""

TRAIN = ["-m", "regraft", "train", "tiny.yaml", "--save-every", "0"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "without_norm.py").write_text(MODEL)
    return tmp_path


def recipe(rule: str = "set", epochs: int = 4, net: str = "net", density: float = 0.5) -> None:
    Path("tiny.yaml").write_text(RECIPE.format(rule=rule, epochs=epochs, net=net, density=density))


def torchrun(*arguments: str, world: int = 2) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return [*launch, *TRAIN, *arguments]


def done(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def events(folder: str) -> list[tuple[int, str]]:
    records = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    return [(record["step"], record["mask_hash"]) for record in records if "mask_hash" in record]


def same_tensors(first: str, second: str) -> bool:
    a, b = load_file(Path(first, "last.safetensors")), load_file(Path(second, "last.safetensors"))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("net", "density"), [("net", 0.5), ("convolutions", 0.1)])
def test_two_processes_wire_as_one_and_one_of_them_writes(here, net, density):
    """Convolutions with so few connections go over these alone."""
    recipe(net=net, density=density)
    two = done(torchrun("--out", "two"))
    assert two.returncode == 0, two.stderr
    if net == "convolutions" and engine("cpu") is not None:
        assert "1 of 3 layers over their connections" in two.stdout
    assert two.stdout.count("epoch 4/4") == 1, "one of them speaks"
    one = done([sys.executable, *TRAIN, "--out", "one"])
    assert one.returncode == 0, one.stderr
    assert len(events("two")) >= 5
    assert events("two") == events("one"), "random growth, and drops by the same weights"
    weights = [load_file(Path(folder, "last.safetensors")) for folder in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5)
    losses = [
        json.loads(Path(folder, "log.jsonl").read_text().splitlines()[-1])["valid"]["loss"] for folder in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_rank_that_dies_ends_the_run_and_resume_goes_on_to_the_same_bits(here):
    recipe("rigl", epochs=60)
    process = subprocess.Popen(
        torchrun("--out", "lost"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    while "epoch 2/" not in process.stdout.readline():
        assert process.poll() is None, process.stderr and process.stderr.read()
    victim = next(pid for pid in children(process.pid) if rank_of(pid) == 1)
    os.kill(victim, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert re.search(r"regraft: (another process of this run has ended|lost stopped by SIGTERM).*--resume", said), said
    assert "  File" not in "\n".join(line for line in said.splitlines() if line.startswith("regraft")), said

    alone = done([sys.executable, *TRAIN, "--out", "lost", "--resume"])
    assert alone.returncode == 2
    assert "begun by 2 processes, not 1" in alone.stderr
    again = done(torchrun("--out", "lost", "--resume"))
    assert again.returncode == 0, again.stderr
    assert done(torchrun("--out", "whole")).returncode == 0
    assert same_tensors("lost", "whole")
    assert events("lost") == events("whole")


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def rank_of(pid: int) -> int:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(word[5:]) for word in words if word.startswith(b"RANK=")), -1)


COLLECTIVES = """\
import sys, torch
from torch import nn
from regraft.errors import RunError
from regraft.training.build import assemble
from regraft.training.ranks import joined
from regraft.training.recipe import load_recipe
from regraft.training.state import Position, capture, restore

def refuse():
    raise RunError("only the first one knows")

with joined() as ranks:
    other = ranks.rank == 1
    assert ranks.any(other, False, not other) == (True, False, True)
    assert ranks.gather(ranks.rank) == [0, 1]
    assert ranks.first_does(lambda: ranks.rank) == 0
    try:
        ranks.first_does(refuse)
    except RunError as error:
        assert "only the first" in str(error)
    else:
        raise AssertionError("it was to be refused everywhere")

    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(ranks.rank)
    ranks.align(norm)
    assert norm.running_mean.tolist() == [0, 0, 0]

    torch.manual_seed(5)
    alone = torch.rand(1)
    torch.manual_seed(5)
    ranks.seed_apart(5)
    draws = ranks.gather(torch.rand(1))
    assert draws[0] == alone and draws[0] != draws[1]

    parts = assemble(load_recipe("tiny.yaml"))
    x, y = parts.data.train.x[:4].float(), parts.data.train.y[:4]
    parts.criterion(parts.model(x), y, inputs=x).backward()
    parts.optimizer.step()
    parts.schedule.step()
    torch.manual_seed(ranks.rank)
    own = Position(step=1, index=1), torch.full((1, 4), float(ranks.rank))
    saved = capture(parts, *own, ranks)
    expected = torch.rand(1)
    torch.manual_seed(9)
    _, sums = restore(parts, *saved, ranks)
    assert sums.tolist() == own[1].tolist(), "each has its own sums"
    assert torch.rand(1) == expected, "and its own random state"
"""


def test_what_all_ranks_do_together(here):
    recipe()
    Path("collectives.py").write_text(COLLECTIVES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = done([*launch, "collectives.py"])
    assert found.returncode == 0, found.stderr


class Alone(Ranks):
    """One rank of several, as it works on its own share."""

    def gather(self, value):
        return [value]


def test_each_rank_has_its_share_of_training_and_validation(tiny, tmp_path, monkeypatch):
    """The whole set on each of them would give the same figures, and cost as much as one process."""
    module = importlib.import_module("regraft.training.fit")
    monkeypatch.setattr(module, "EVALUATE", 4)
    parts = assemble(tiny())

    def training(ranks):
        return module._Training(tiny(), parts, RunFolder(tmp_path), ranks, 1.0, lambda record: None)

    whole, *shares = (training(ranks) for ranks in (Ranks(), Alone(0, 2), Alone(1, 2)))
    for (x, _), *pieces in zip(whole._batches(), *(share._batches() for share in shares), strict=True):
        assert torch.cat([piece for piece, _ in pieces]).equal(x)
    found = [share._validate() for share in shares]
    assert sum(one.samples for one in found) == len(parts.data.valid)
    assert module.combined(found).loss == pytest.approx(whole._validate().loss, rel=1e-5)


def test_wirings_that_differ_stop_the_run_clearly(here):
    recipe()
    Path("without_norm.py").write_text(MODEL.replace("nn.Linear(64, 32)", "odd()") + ODD)
    found = done(torchrun("--out", "odd"))
    assert found.returncode != 0
    assert "masks differ over ranks at step 0" in found.stderr
    assert "regraft/structure" not in found.stderr, "no traceback of ours; torchrun's own is not ours to stop"


ODD = """
def odd():
    import torch
    layer = nn.Linear(64, 32)
    if os.environ.get("RANK") == "1":  # another layer on one rank: masks cannot agree
        layer.weight.data = torch.ones(33, 64)[:32].contiguous().clone()
        layer.extra = nn.Linear(64, 2)
    return layer
"""


def test_a_batch_that_cannot_be_shared_is_refused(here):
    recipe()
    found = done(torchrun("--out", "three", "--data.batch", "15"))
    assert found.returncode != 0
    lines = [line for line in found.stderr.splitlines() if line.startswith("regraft:")]
    assert len(lines) == 1, found.stderr
    assert "data.batch" in lines[0]
    assert "processes" in lines[0]
    assert not Path("three", "log.jsonl").exists()
