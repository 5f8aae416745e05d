"""Two real processes over gloo: equal masks on both, those of one process where arithmetic allows, a clear stop else.

They are started once and do all their runs; each test then reads what they found. float64, no batch statistics.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from regraft.errors import StructureError
from regraft.structure import PRESETS, Rule, Topology

STEPS, EVERY, BATCH = 16, 3, 8
RULES = {r.name: r for r in (PRESETS["set"], PRESETS["rigl"], PRESETS["granet"], PRESETS["snfs"], PRESETS["esl"])}
RULES["taylor"] = Rule("taylor", drop="taylor", grow="accumulated")


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def run(rule: Rule, rank: int, size: int, micro: int = 1) -> dict:
    """One training on this rank's share of each batch, in `micro` accumulated parts."""
    net = model()
    wrapped = DistributedDataParallel(net, gradient_as_bucket_view=micro > 1) if size > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    topology = Topology(net, 0.3, rule, steps=STEPS, every=EVERY, seed=4)
    topology.attach(optimizer)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH, 12, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (BATCH,), generator=generator)
        optimizer.zero_grad()
        mine = torch.arange(BATCH).reshape(size, micro, -1)[rank]
        for i, part in enumerate(mine):
            loss = nn.functional.cross_entropy(wrapped(x[part]), y[part]) / micro
            if size > 1 and i < micro - 1:
                with wrapped.no_sync():
                    loss.backward()
            else:
                loss.backward()
        topology.mask_gradients()
        nn.utils.clip_grad_norm_(net.parameters(), 100.0)
        optimizer.step()
    return {
        "masks": [e.mask_hash for e in topology.events],
        "grown": [sum(e.grown.values()) for e in topology.events],
        "weights": [float(p.detach().double().abs().sum()) for p in net.parameters()],
    }


def stops(seed: int, wrap: bool, rank: int) -> list:
    """The step and message with which a run stops whose ranks differ in seed or in gradients."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    topology = Topology(net, 0.3, "itop", steps=STEPS, every=EVERY, seed=seed)
    try:
        topology.attach(optimizer)
        for step in range(STEPS):
            x = torch.randn(4, 12, generator=torch.Generator().manual_seed(10 * step + rank), dtype=torch.float64)
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    except StructureError as error:
        return [topology.step, str(error)]
    return [topology.step, ""]


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {name: run(rule, rank, 2) for name, rule in RULES.items()}
    found["rigl, accumulated"] = run(RULES["rigl"], rank, 2, micro=2)
    found["other seeds"] = stops(rank, False, rank)
    dist.barrier()
    found["other gradients"] = stops(0, False, rank)
    dist.barrier()
    dist.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # a thread of gloo that lets go of its last tensor now would abort (see regraft/__main__.py)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", root)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", [*RULES, "rigl, accumulated"])
def test_masks_and_weights_are_equal_on_both_ranks(name, ranks):
    assert ranks[0][name] == ranks[1][name]
    assert len(ranks[0][name]["masks"]) == 4
    assert sum(ranks[0][name]["grown"]) > 0


@pytest.mark.parametrize("name", RULES)
def test_two_processes_make_the_masks_of_one(name, ranks):
    alone = run(RULES[name], 0, 1)
    assert ranks[0][name]["masks"] == alone["masks"]
    assert ranks[0][name]["weights"] == pytest.approx(alone["weights"], rel=1e-9)


def test_micro_batches_without_synchronisation_make_the_masks_of_one_process(ranks):
    assert ranks[0]["rigl, accumulated"]["masks"] == run(RULES["rigl"], 0, 1)["masks"]


def test_other_seeds_on_two_ranks_stop_at_attach(ranks):
    for rank in ranks:
        step, said = rank["other seeds"]
        assert step == 0
        assert "masks differ over ranks at step 0" in said
        assert "same seed on every rank" in said


def test_gradients_that_are_not_averaged_stop_at_the_first_event(ranks):
    for rank in ranks:
        step, said = rank["other gradients"]
        assert step == EVERY
        assert f"masks differ over ranks at step {EVERY}" in said
        assert "DistributedDataParallel" in said


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
