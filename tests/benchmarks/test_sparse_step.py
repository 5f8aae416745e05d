"""Everybody computes the same masked network, and the rows of a sparse step say what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import sparse_step  # noqa: E402
from rounds import Job  # noqa: E402
from sparse_step import Masked, Plan  # noqa: E402

from regraft.execution import blocked  # noqa: E402


def masked(kind: Any, density: float = 0.1, allocation: str = "uniform", rule: str = "static") -> Masked:
    return Masked("cifar", kind, density, allocation, 1, rule)


@pytest.mark.parametrize("workload", sparse_step.WORKLOADS)
def test_hidden_convolutions_share_the_density_and_the_rest_stays_whole(workload: str):
    def wired(allocation: str) -> dict[str, Tensor]:
        return dict(sparse_step.wire(sparse_step.WORKLOADS[workload].reference(), 0.05, allocation).masks)

    model = sparse_step.WORKLOADS[workload].reference()
    convolutions = [name for name, p in model.named_parameters() if p.dim() == 4]
    uniform, erk = wired("uniform"), wired("erk")
    assert list(uniform) == list(erk) == convolutions[1:]
    assert all(abs(int(mask.sum()) - 0.05 * mask.numel()) <= 1 for mask in uniform.values())
    assert sum(int(m.sum()) for m in erk.values()) == sum(int(m.sum()) for m in uniform.values())
    if workload != "dvs":  # its layers are all alike
        assert max(float(m.float().mean()) for m in erk.values()) > 0.06


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_ours_lose_as_a_plain_masked_network_does(kind: Any):
    model = sparse_step.WORKLOADS["cifar"].reference()
    masks = sparse_step.wire(model, 0.1, "uniform").masks
    x, y = sparse_step.WORKLOADS["cifar"].data(1)
    optimizer = torch.optim.SGD(model.parameters(), sparse_step.LEARNING_RATE, sparse_step.MOMENTUM)
    expected = []
    for _ in range(2):
        loss = F.cross_entropy(model(x).mean(0), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, mask in masks.items():
            model.get_parameter(name).data.mul_(mask)
        expected.append(loss.item())
    found = masked(kind).losses_at(0.1, "uniform", 1)
    assert found[0] == pytest.approx(expected[0], rel=1e-3)
    assert found[1] == pytest.approx(expected[1], rel=0.03)
    assert expected[1] < 0.9 * expected[0]


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["spikingjelly", "spikingjelly-tuned"])
def test_spikingjelly_has_the_same_masked_weights_and_keeps_them(kind: Any):
    pytest.importorskip("spikingjelly")
    theirs, ours = masked(kind), masked("dense")
    first, second = theirs._step(), theirs._step()
    assert first == pytest.approx(ours._step(), rel=1e-3)
    assert second == pytest.approx(ours._step(), rel=0.03)
    kept = [(p.detach() != 0).sum().item() for p, _ in theirs._masks]
    assert len(kept) == 5
    assert sum(kept) == ours.topology.connections


def test_losses_are_of_the_masks_asked_for():
    task = masked("dense", 0.1)
    assert task.losses_at(0.1, "uniform", 1) == task.losses_at(0.1, "uniform", 1)
    assert task.losses_at(0.1, "uniform", 1) == masked("dense", 0.5).losses_at(0.1, "uniform", 1)
    assert task.losses_at(0.02, "uniform", 1)[0] != task.losses_at(0.1, "uniform", 1)[0]


def test_each_layer_says_its_density_and_its_path():
    at = {}
    for density, allocation in [(0.1, "uniform"), (0.5, "uniform"), (0.2, "erk")]:
        task = masked("sparse", density, allocation)
        task.step()
        at[density, allocation] = task.layers()
    paths = {key: [layer["path"] for layer in layers.values()] for key, layers in at.items()}
    assert paths[0.1, "uniform"] == ["dense", *["sparse"] * 5, "dense"]
    assert paths[0.5, "uniform"] == ["dense"] * 7
    assert set(paths[0.2, "erk"][1:-1]) == {"dense", "sparse"}  # the small layers keep more
    densities = [layer["density"] for layer in at[0.1, "uniform"].values()]
    assert densities == pytest.approx([1, *[0.1] * 5, 1], abs=1e-4)
    assert {layer["path"] for layer in masked("dense").layers().values()} == {"dense"}


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_a_convolution_over_connections_is_the_masked_dense_one(kernel: int, stride: int):
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, kernel, stride, padding=kernel // 2, bias=False)
    mask = torch.rand_like(conv.weight) < 0.2
    conv.weight.data.mul_(mask)
    x = (torch.rand(2 * 3, 16, 8, 8) < 0.2).float()
    ours = sparse_step._Sparse(conv, x, mask, 2)
    g = blocked.plain(blocked.Current(ours.current.form, ours.gradient))
    assert g.std() > 0.1
    of_weight, of_input = ours.backward()
    theirs = sparse_step._Dense(conv, x)
    theirs.forward()
    theirs.gradient = g
    expected, of_dense_input = theirs.backward()
    torch.testing.assert_close(ours.result(), theirs.result(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_weight, expected * mask, rtol=1e-4, atol=1e-3)
    plain = blocked.plain(blocked.Current(blocked.form_of(x, 2), of_input))
    torch.testing.assert_close(plain, of_dense_input, rtol=1e-4, atol=1e-4)


def test_only_hidden_convolutions_are_summed_and_both_sides_have_the_same():
    dense, sparse = (sparse_step.Convolutions("cifar", density, 1) for density in (None, 0.02))
    assert list(dense._made) == list(sparse._made)
    assert len(dense._made) == 5
    for task, kind in ((dense, sparse_step._Dense), (sparse, sparse_step._Sparse)):
        assert {type(each) for each in task._made.values()} == {kind}
        task.step()
        for name, seconds in task.layers().items():
            assert set(seconds) == {"forward_s", "backward_s", "of_weights_s"}, name
            assert all(second > 0 for second in seconds.values())


@pytest.mark.parametrize("rule", ["rigl", "gse", "set"])
def test_an_event_is_measured_with_the_step_behind_it(rule: str, monkeypatch: pytest.MonkeyPatch):
    task = masked("sparse", 0.02, rule=rule)
    asked, spent = [], iter([1.0, 3.0, 40.0, 6.0, 2.0, 2.0])

    def scripted(call: Any) -> float:
        due = task.topology.dense_gradient_due
        call()
        asked.append((due, len(task.topology.events)))
        return next(spent)

    monkeypatch.setattr(sparse_step, "_seconds", scripted)
    found = task.event()
    gradient = rule in ("rigl", "gse")
    assert asked == [(False, 0), (False, 0), (gradient, 1), (False, 1), (False, 1), (False, 1)]
    assert (found["plain_s"], found["event_step_s"], found["next_step_s"]) == (2, 38, 4)
    assert found["share"] == pytest.approx((38 + 4) / 200)
    assert 0.1 < found["exchanged"] < 0.5


def test_a_teacher_teaches_and_stays_as_it_is():
    alone = masked("sparse")
    task = Masked("cifar", "sparse", 0.1, "uniform", 1, teacher=0.02)
    taught = task._criterion.teacher
    assert taught is not None
    before = [p.clone() for p in taught.model.parameters()]  # pyright: ignore[reportAttributeAccessIssue]
    assert task._step() != alone._step()
    assert task._criterion.parts["distill"] > 0
    after = list(taught.model.parameters())  # pyright: ignore[reportAttributeAccessIssue]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    hidden = [p for p in after if p.dim() == 4][1:]
    assert float(sum((p != 0).sum() for p in hidden) / sum(p.numel() for p in hidden)) == pytest.approx(0.02, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("_Layer", "layers forward"),
        ("autograd::engine::evaluate_function: _LayerBackward", "layers backward"),
        ("_Fire", "neurons forward"),
        ("_SegmentBackward", "neurons backward"),
        ("_UnblockBackward", "in and out of blocks"),
        ("aten::mkldnn_convolution", "dense layers"),
        ("AddmmBackward0", "dense layers"),
        ("Optimizer.step#SGD.step", "optimiser"),
        ("wiring", "wiring"),
        ("aten::copy_", None),
    ],
)
def test_operations_belong_to_their_parts(name: str, part: str | None):
    assert sparse_step.part_around(name) == part


def test_a_watched_step_is_shared_out_whole():
    task = masked("sparse")
    task.step()
    shares = task.watch()
    assert list(shares) == list(sparse_step.PARTS)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())
    assert max(shares, key=lambda part: shares[part]) == "layers backward"
    assert shares["rest"] < 0.2


class Scripted:
    """In place of a worker: a step takes ten times the density of its masks, dense ones 10 s."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.seconds = 10 * job.arguments[2] if job.arguments[1:2] == ("sparse",) else 10.0

    def round(self) -> float:
        return self.seconds

    def peak_mb(self) -> float:
        return 100 * self.seconds

    def ask(self, method: str, *arguments: Any) -> Any:
        match method:
            case "losses_at":
                density, allocation, batch = arguments
                return [density, 0.0, density + batch + (allocation == "erk")]
            case "layers":
                return {"conv": {"density": 0.5, "path": "sparse"}}
            case "watch":
                return dict.fromkeys(sparse_step.PARTS, 1 / len(sparse_step.PARTS))
            case _:
                raise AssertionError(method)

    def close(self) -> None:
        pass


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    def start(jobs: Any) -> Any:
        workers = {job.name: Scripted(job) for job in jobs if job.name != "spikingjelly-tuned"}
        return workers, {"spikingjelly-tuned": "no memory"}, dict.fromkeys(workers, 1.0)

    monkeypatch.setattr(sparse_step, "start", start)


@pytest.mark.usefixtures("scripted")
def test_rows_of_steps():
    plan = Plan("cifar", 8, 4, (0.1, 0.02), ("uniform", "erk"), threads=2, rounds=3)
    found = sparse_step.measure_steps(plan, parts=True)
    assert [(row["workload"], row["reason"]) for row in found["left_out"]] == [("cifar", "no memory")]
    rows = {(row["variant"], row["against"]): row for row in found["rows"]}
    assert {name for name, _ in rows} == {
        "spikingjelly", "spikingjelly-pages", "regraft-dense", "regraft-dense-one-thread", "floor", "floor-one-thread",
        "regraft-10%", "regraft-10%-one-thread", "regraft-2%", "regraft-2%-one-thread", "regraft-erk-10%",
        "regraft-erk-2%",
    }  # fmt: skip
    ours = rows["regraft-2%", "spikingjelly"]
    assert (ours["density"], ours["allocation"], ours["ratio"], ours["clock"]) == (0.02, "uniform", 50, "wall")
    assert (ours["peak_mb"], ours["against_peak_mb"]) == (20, 1000)
    assert ours["losses"] == pytest.approx([0.02, 4.02])
    assert ours["same_masks"] == {"spikingjelly": ours["losses"], "regraft-dense": ours["losses"]}
    assert rows["regraft-erk-2%", "regraft-2%"]["losses"] == pytest.approx([0.02, 5.02])
    assert ("regraft-2%", "regraft-2%-one-thread") in rows
    assert rows["regraft-2%-one-thread", "spikingjelly"]["density"] == 0.02
    theirs = rows["spikingjelly", "regraft-dense"]
    assert (theirs["density"], theirs["losses"]) == (0.1, pytest.approx([0.1, 4.1]))
    assert rows["floor", "spikingjelly"]["density"] == 1
    assert rows["floor", "spikingjelly"]["losses"] is None
    assert set(found["densities"]) == {
        "regraft-dense",
        "regraft-10%",
        "regraft-2%",
        "regraft-erk-10%",
        "regraft-erk-2%",
    }
    assert [of["variant"] for of in found["parts"]] == list(found["densities"])
    (share,) = {part["s"] for of in found["parts"] if of["variant"] == "regraft-2%" for part in of["parts"].values()}
    assert share == pytest.approx(0.2 / 9)


@pytest.mark.usefixtures("scripted")
def test_what_a_teacher_adds_is_a_share_of_the_students_step(monkeypatch: pytest.MonkeyPatch):
    longer = {"": 1.0, "regraft-2%": 1.25, "regraft-dense": 2.0}
    alone = Scripted.round
    monkeypatch.setattr(Scripted, "round", lambda self: alone(self) * longer[self.job.name.partition("+")[2]])
    found = sparse_step.measure_teacher(Plan("cifar", 8, 4, (0.1,), ("uniform",), threads=1, rounds=3))["teacher"]
    assert {(row["variant"], row["against"]): row["adds"] for row in found} == {
        ("regraft-10%+regraft-2%", "regraft-10%"): pytest.approx(0.25),
        ("regraft-10%+regraft-dense", "regraft-10%"): pytest.approx(1),
        ("regraft-dense+regraft-2%", "regraft-dense"): pytest.approx(0.25),
        ("regraft-dense+regraft-dense", "regraft-dense"): pytest.approx(1),
    }


@pytest.mark.usefixtures("scripted")
def test_the_document_is_written_and_the_tables_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "rows.json"
    chosen = ["--workload", "cifar", "dvs", "--sections", "step", "parts", "teacher", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["sparse_step.py", *chosen])
    sparse_step.main()
    document = json.loads(path.read_text(encoding="utf-8"))
    assert {row["workload"] for row in document["rows"]} == set(document["densities"]) == {"cifar", "dvs"}
    assert sorted({row["density"] for row in document["rows"] if "%" in row["variant"]}) == [
        0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5,
    ]  # fmt: skip
    assert len(document["left_out"]) == 4  # in each section of each workload
    assert {row["batch"] for row in document["rows"] if row["workload"] == "dvs"} == {8}
    printed = capsys.readouterr().out
    for text in (
        "regraft-erk-1%",
        "x spikingjelly-pages",
        "50*",
        "layers backward",
        "adds",
        "left out: spikingjelly-t",
    ):
        assert text in printed


@pytest.mark.slow
def test_the_script_measures_every_section(tmp_path: Path):
    path = tmp_path / "rows.json"
    chosen = ["--workload", "resnet19", "--densities", "0.1", "--allocations", "uniform", "--batch", "1"]
    command = [sys.executable, str(BENCHMARKS / "sparse_step.py"), *chosen, "--rounds", "1", "--json", str(path)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert all(document[key] for key in ("rows", "densities", "parts", "rewiring", "convolutions", "layers", "teacher"))
    assert {row["rule"] for row in document["rewiring"]} == {"rigl", "gse", "set"}
    assert len(document["layers"]["resnet19 convolutions"]["onednn"]) == 19
