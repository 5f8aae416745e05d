"""What is kept of a trained network for the report, against small cases worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torch import nn

from regraft.data import plain_batches
from regraft.metrics import measure
from regraft.models import build
from regraft.neurons import LIF
from regraft.report.arrays import read_activity
from regraft.report.runs import read_run
from regraft.training.evaluate import evaluate
from regraft.training.recording import agreement, answers, calibration, raster, storage, write_activity


def logits_of(*confidences: float) -> torch.Tensor:
    """Two classes; class 0 is chosen with these probabilities."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1)


# --- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_by_hand():
    """Five bins: (0.6, 0.8] holds 0.7 (right) and 0.75 (wrong), (0.8, 1] holds 0.9 (right) and 0.85 (right)."""
    found = calibration(logits_of(0.7, 0.75, 0.9, 0.85), torch.tensor([0, 1, 0, 0]), bins=5)
    assert found is not None
    assert found["count"] == [0, 0, 0, 2, 2]
    assert found["confidence"] == [None, None, None, pytest.approx(0.725), pytest.approx(0.875)]
    assert found["accuracy"] == [None, None, None, 0.5, 1.0]
    assert found["ece"] == pytest.approx((2 * 0.225 + 2 * 0.125) / 4)


def test_a_bin_holds_its_upper_edge_and_certainty_has_one():
    found = calibration(torch.tensor([[0.0, 0.0], [800.0, 0.0]]), torch.tensor([0, 0]), bins=2)
    assert found is not None
    assert found["count"] == [1, 1]  # 0.5 lies in (0, 0.5], 1 in (0.5, 1]
    assert found["ece"] == pytest.approx(0.25)


def test_calibration_takes_the_mean_of_the_logits_over_time():
    steps = torch.stack([logits_of(0.7, 0.9) + 3, logits_of(0.7, 0.9) - 3])
    labels = torch.tensor([0, 1])
    over_time, once = calibration(steps, labels), calibration(logits_of(0.7, 0.9), labels)
    assert over_time is not None
    assert once is not None
    assert over_time["count"] == once["count"]
    assert over_time["ece"] == pytest.approx(once["ece"]) == pytest.approx((0.3 + 0.9) / 2)


def test_calibration_of_logits_that_are_not_finite_is_none():
    assert calibration(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0])) is None


@given(st.integers(1, 60), st.integers(2, 7), st.integers(1, 20), st.integers(0, 2**32))
def test_calibration_counts_everybody_once_and_stays_a_share(samples, classes, bins, seed):
    random = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(samples, classes, generator=random)
    labels = torch.randint(classes, (samples,), generator=random)
    found = calibration(logits, labels, bins)
    assert found is not None
    assert sum(found["count"]) == samples
    assert 0 <= found["ece"] <= 1
    right = sum(n * a for n, a in zip(found["count"], found["accuracy"], strict=True) if n)
    assert right == pytest.approx(int((logits.argmax(1) == labels).sum()))
    for m, (n, sure) in enumerate(zip(found["count"], found["confidence"], strict=True)):
        assert (sure is None) == (n == 0)
        assert sure is None or m / bins - 1e-9 <= sure <= (m + 1) / bins + 1e-9


# --- agreement and bytes ----------------------------------------------------------------------------------------------


def one_hot(*classes: int) -> torch.Tensor:
    return torch.eye(4)[list(classes)]


def test_agreement_by_hand():
    """Right answers 0 1 2 3 0: both, student alone, teacher alone, neither (differently), neither (the same)."""
    found = agreement(one_hot(0, 1, 0, 0, 2), one_hot(0, 0, 2, 1, 2), torch.tensor([0, 1, 2, 3, 0]))
    assert found == pytest.approx({"same": 0.4, "both": 0.2, "student": 0.2, "teacher": 0.2, "neither": 0.4})


def test_agreement_compares_means_over_time_whatever_the_steps():
    student = torch.stack([one_hot(0, 1) * 3, one_hot(2, 2)])
    assert agreement(student, one_hot(0, 2), torch.tensor([0, 1]))["same"] == 0.5


def test_bytes_by_hand():
    """A 3 x 70,000 layer (4-byte indices), a 2 x 3 one (2-byte indices) with a bias of 2."""
    model = nn.ModuleDict({"wide": nn.Linear(70_000, 3, bias=False), "small": nn.Linear(3, 2)})
    masks = {
        "wide.weight": torch.zeros(3, 70_000, dtype=torch.bool),
        "small.weight": torch.ones(2, 3, dtype=torch.bool),
    }
    masks["wide.weight"][0, :10] = True
    found = storage(model, masks)
    assert found["dense"] == 4 * (210_000 + 6 + 2)
    assert found["rows"] == 4 * 2 + (10 * 8 + 4 * 4) + (6 * 6 + 4 * 3)
    assert found["bits"] == 4 * 2 + (10 * 4 + 26_250) + (6 * 4 + 1)


# --- spikes -----------------------------------------------------------------------------------------------------------


def network(static: bool = True, steps: int = 3) -> nn.Module:
    torch.manual_seed(0)
    widths = {"widths": [[6], [6]], "hidden": 12}
    return build("tiny_vgg", classes=4, channels=1, size=8, steps=steps, neuron=LIF, static=static, **widths)


@pytest.mark.parametrize("static", [True, False])
def test_a_raster_holds_the_spikes_of_the_chosen_neurons(static):
    model = network(static)
    shape = (1, 1, 8, 8) if static else (3, 1, 1, 8, 8)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 3
    heard = {}
    name = next(name for name, module in model.named_modules() if isinstance(module, LIF))
    handle = model.get_submodule(name).register_forward_hook(lambda _m, _a, out: heard.update(spikes=out.detach()))
    model.eval()
    with torch.no_grad():
        model(x)
    handle.remove()
    found = raster(model, x, neurons=5)
    size = heard["spikes"].numel() // 3
    assert found[f"neurons/{name}"].tolist() == [k * size // 5 for k in range(5)]
    assert found[f"of/{name}"].tolist() == [size]
    expected = heard["spikes"].reshape(3, size).numpy()[:, found[f"neurons/{name}"]]
    np.testing.assert_array_equal(found[f"spikes/{name}"], expected)
    assert sum(value.sum() for key, value in found.items() if key.startswith("spikes/")) > 0


def test_a_raster_hears_neurons_that_are_called_step_by_step():
    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = IF()

        def forward(self, x):
            return torch.stack([self.lif(step) for step in x])

    class IF(nn.Module):  # known by its name, as another library's neuron
        steps = 4

        def forward(self, x):
            return (x > 0.5).float()

    x = torch.rand(4, 1, 6)
    found = raster(Looped(), x)
    np.testing.assert_array_equal(found["spikes/lif"], (x.reshape(4, 6) > 0.5).numpy())


def test_a_layer_without_spikes_has_no_raster_and_nothing_is_left_behind():
    model = build("tiny_vgg", neuron=nn.ReLU, widths=[[4], [4]], hidden=8).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert raster(model, torch.rand(1, 1, 8, 8)) == {}
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_report_reads_the_activity_as_it_was_written(trained, tmp_path):
    run = read_run(trained.folder)
    found = read_activity(run)
    assert found is not None
    x, y = next(plain_batches(trained.parts.data.test, 1))
    assert found.label == int(y[0])
    assert found.answer == int(trained.parts.model.eval()(x).mean(0)[0].argmax())
    assert [raster.layer for raster in found.rasters] == list(trained.result["rates"])
    write_activity(tmp_path / "again.safetensors", trained.parts.model, x, int(y[0]), found.answer)
    again, first = load_file(tmp_path / "again.safetensors"), load_file(trained.folder / "activity.safetensors")
    assert again.keys() == first.keys()
    assert all((again[key] == first[key]).all() for key in first)
    assert (trained.folder / "activity.safetensors").stat().st_size < 20_000


# --- one pass ---------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_evaluate(trained):
    model, test = trained.parts.model, trained.parts.data.test
    found, logits = answers(model, plain_batches(test, 10))
    plain = evaluate(model, plain_batches(test, 256))
    assert (found.accuracy, found.samples) == (plain.accuracy, plain.samples)
    with torch.no_grad():
        assert torch.allclose(logits, model.eval()(next(plain_batches(test, 256))[0]), atol=1e-5)


def test_the_dense_cost_is_what_measure_finds_with_every_connection(trained):
    model, test, found = trained.parts.model, trained.parts.data.test, trained.result["synops"]["dense"]
    every = {name: torch.ones_like(mask) for name, mask in trained.parts.topology.masks.items()}
    dense = measure(model, plain_batches(test, 256), topology=every)
    assert (found["acs"], found["macs"]) == (dense.acs / dense.samples, dense.macs / dense.samples)
    assert dense.whole == dense.operations
    per_step = {row.name: row.positions * every[f"{row.name}.weight"].numel() for row in dense.operations}
    assert found["step"] == pytest.approx(sum(per_step.values()))
    # The first layer reads an image: it is computed once for both steps.
    once = per_step["features.0"]
    assert found["steps"] == pytest.approx(2 * sum(per_step.values()) - once)


def test_the_result_holds_what_the_report_needs(trained):
    result = trained.result
    assert sum(result["calibration"]["student"]["count"]) == result["test_samples"]
    right = zip(result["calibration"]["student"]["count"], result["calibration"]["student"]["accuracy"], strict=True)
    assert sum(n * a for n, a in right if n) == pytest.approx(result["accuracy"]["last"] * result["test_samples"])
    assert result["agreement"] is None
    assert result["calibration"]["teacher"] is None
    dense, spent = result["synops"]["dense"], result["synops"]
    assert dense["acs"] + dense["macs"] > spent["acs"] + spent["macs"]
    assert dense["steps"] > dense["step"]
    assert [layer["name"] for layer in result["neurons"]["layers"]] == list(result["rates"])
    assert sum(layer["silent"] for layer in result["neurons"]["layers"]) == result["neurons"]["silent"]
    assert result["bytes"]["rows"] < result["bytes"]["dense"]
    assert json.loads((trained.folder / "result.json").read_text()) == result


@pytest.mark.parametrize("teacher", ["sparse", "previous", "average", "nested", "weakest-step"])
@pytest.mark.filterwarnings("ignore::regraft.errors.SilentLayerWarning")
def test_students_stand_beside_teachers_that_are_networks(train, tiny, teacher):
    result = train(tiny({"distill.teacher": teacher, "distill.weight": 0.5})).result
    shares = result["agreement"]
    assert shares["both"] + shares["student"] == pytest.approx(result["accuracy"]["last"])
    assert shares["both"] + shares["teacher"] == pytest.approx(result["teacher"]["accuracy"])
    assert sum(shares[key] for key in ("both", "student", "teacher", "neither")) == pytest.approx(1)
    assert sum(result["calibration"]["teacher"]["count"]) == result["test_samples"]


def test_a_teacher_that_is_no_network_gives_no_answers(train, tiny):
    result = train(tiny({"distill.teacher": "virtual"})).result
    assert result["agreement"] is None
    assert result["calibration"]["teacher"] is None
