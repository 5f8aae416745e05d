"""Every variant of the step benchmarks computes the same network, and the rows say what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import rivals  # noqa: E402
import step_profile  # noqa: E402
import train_step  # noqa: E402

EAGER = [name for name, v in rivals.VARIANTS.items() if v.library != "floor" and not v.compiled]
# Of one layout, so of one rounding; sums over channels-last tensors are taken in another order.
CONTIGUOUS = ("spikingjelly", "snntorch", "snntorch-tuned", "norse", "norse-tuned", "loop-tuned")


def first_losses(workload: str, variant: str, batch: int = 2, steps: int = 2) -> list[float]:
    if rivals.VARIANTS[variant].rival and rivals.VARIANTS[variant].library != "loop":
        pytest.importorskip(rivals.VARIANTS[variant].library)
    return rivals.Training(workload, variant, batch).losses(steps)


@pytest.mark.peers
@pytest.mark.parametrize("variant", EAGER)
def test_every_variant_computes_the_same_loss_and_gradient(variant: str):
    """The second loss sees the first gradient. bfloat16 holds three digits, and spikes near the threshold flip."""
    first, second = first_losses("cifar", "loop")
    ours = first_losses("cifar", variant)
    assert second < 0.7 * first
    if rivals.VARIANTS[variant].bf16:
        assert ours[0] == pytest.approx(first, rel=0.1)
        assert ours[1] < 0.7 * ours[0]
    else:
        exact = variant in CONTIGUOUS
        assert ours[0] == pytest.approx(first, rel=1e-4 if exact else 0.03)
        assert ours[1] == pytest.approx(second, rel=1e-2 if exact else 0.03)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("workload", "library", "once"),
    [
        *(("cifar", library, once) for library in rivals.KITS for once in (False, True)),
        ("dvs", "loop", False),
        ("resnet19", "loop", True),
    ],
)
def test_networks_are_translated_exactly(workload: str, library: str, once: bool):
    """In double precision no spike is near enough to the threshold to flip."""
    if library != "loop":
        pytest.importorskip(library)
    given = rivals.WORKLOADS[workload]
    x, _ = given.data(1)
    theirs = rivals.Rival(given.reference(), rivals.KITS[library](once), once=once).double()
    logits = given.reference().double()(x.double())
    torch.testing.assert_close(theirs(x.double()), logits, rtol=1e-9, atol=1e-9)
    assert logits.shape == (given.steps, 1, given.classes)
    assert logits.std() > 0.1


def test_losses_start_from_the_first_weights_each_time():
    training = rivals.Training("cifar", "loop", batch=3, loss_batch=2)
    training.step()
    assert training.losses(2) == training.losses(2) == first_losses("cifar", "loop")


@pytest.mark.parametrize("workload", rivals.WORKLOADS)
def test_the_floor_has_the_layers_of_a_tuned_network(workload: str):
    kit = rivals.KITS["loop"](True)
    network = rivals.Rival(rivals.WORKLOADS[workload].reference(), kit, once=True)
    seen = [shape for _, shape in rivals.layer_inputs(network, rivals.WORKLOADS[workload].data(2)[0])]
    assert sorted(rivals.Floor(workload, 2, bf16=False).shapes) == sorted(seen)


def test_the_floor_computes_every_gradient_but_the_inputs(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[torch.Tensor]] = []
    monkeypatch.setattr(torch.autograd, "grad", lambda y, wanted, gradient: asked.append(wanted))
    floor = rivals.Floor("cifar", 1, bf16=False)
    floor.step()
    weights = [p for p in rivals.WORKLOADS["cifar"].reference().parameters() if p.dim() > 1]
    assert [wanted[0].shape for wanted in asked] == [weight.shape for weight in weights]
    assert [len([t for t in wanted if not isinstance(t, nn.Parameter)]) for wanted in asked] == [0] + [1] * 6


def test_references_are_of_the_same_precision():
    assert train_step.references("regraft-bf16", "loop-tuned") == [
        "spikingjelly", "spikingjelly-tuned", "spikingjelly-tuned-bf16", "loop-tuned", "floor-bf16",
        "regraft-bf16-one-thread",
    ]  # fmt: skip
    assert "floor" in train_step.references("spikingjelly", None)


def test_with_several_threads_ours_and_the_floor_also_run_on_one():
    planned = {job.name: job for job in train_step.jobs("cifar", ["spikingjelly", "regraft", "floor"], 4, 2, 2)}
    assert [(name, job.threads, job.clock) for name, job in planned.items()] == [
        ("spikingjelly", 2, "wall"),
        ("regraft", 2, "wall"),
        ("regraft-one-thread", 1, "wall"),
        ("floor", 2, "wall"),
        ("floor-one-thread", 1, "wall"),
    ]
    assert [job.keep_pages for job in planned.values()] == [False, True, True, True, True]


def test_the_script_writes_the_promised_rows(tmp_path: Path):
    path = tmp_path / "rows.json"
    chosen = ["--variants", "loop", "regraft-plain", "--workload", "cifar", "--batch", "1", "--rounds", "1"]
    command = [sys.executable, str(BENCHMARKS / "train_step.py"), *chosen, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(path.read_text(encoding="utf-8"))
    ours, theirs = (
        next(row for row in document["rows"] if row["variant"] == name) for name in ("regraft-plain", "loop")
    )
    assert document["left_out"] == []
    assert document["fastest_rival"] == {"cifar": "loop"}
    assert {
        "workload", "variant", "density", "batch", "threads", "median_s", "against", "ratio", "ratio_min", "ratio_max",
        "peak_mb", "clock", "cpu", "losses", "loss_batch", "first_step_s",
    } <= set(ours)  # fmt: skip
    assert (ours["against"], ours["batch"], ours["threads"], ours["clock"], ours["density"]) == ("loop", 1, 1, "cpu", 1)
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], rel=0.03)
    assert ours["ratio_min"] <= ours["ratio"] <= ours["ratio_max"]
    assert "regraft-plain" in done.stdout


def test_a_file_called_profile_does_not_stand_in_for_the_standard_librarys():
    """A script's folder comes first on the path, and torch's optimisers import cProfile, which imports `profile`."""
    code = (
        "import cProfile, profile; assert profile.__file__.startswith(sys.argv[1]), profile.__file__; profile.Profile"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, sys.argv[1]); {code}", str(BENCHMARKS)]
    subprocess.run(command, check=True)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "convolution"),
        ("AddmmBackward0", "convolution"),
        ("aten::native_batch_norm_backward", "neuron and normalisation"),
        ("NativeBatchNormBackward0", "neuron and normalisation"),
        ("_Segment", "neuron and normalisation"),
        ("autograd::engine::evaluate_function: _SegmentBackward", "neuron and normalisation"),
        ("MaxPool2DWithIndicesBackward0", "pooling"),
        ("Optimizer.step#SGD.step", "optimiser"),
        ("masks", "masks"),
        ("aten::to", "copies and casts"),
        ("aten::topk", None),
        ("aten::mul", None),
        ("LogSoftmaxBackward0", None),
    ],
)
def test_operations_belong_to_their_parts(name: str, part: str | None):
    assert step_profile.part_of(name, {"_Segment", "_SegmentBackward"}) == part


def test_a_watched_step_is_shared_out_whole():
    task = step_profile.Whole("cifar", "regraft-plain", 2)
    task.step()
    seen = task.watch()
    assert sum(seen["shares"].values()) == pytest.approx(1)
    assert set(seen["shares"]) == set(step_profile.PARTS)
    assert all(share > 0 for share in seen["shares"].values())
    assert max(seen["shares"], key=seen["shares"].get) == "convolution"
    assert seen["shares"]["neuron and normalisation"] > 0.05  # our own pass is seen
    assert seen["shares"]["rest"] < 0.15
    # Once in a hundred steps, and at batch 2 dear: many times what its share would be if it came at every step.
    assert seen["shares"]["rewiring event"] < seen["event_s"] / seen["watched_s"] / 50
    assert len(task.topology.events) == 1
