"""Densities, energy, the T-fold figure, rates, and that measuring leaves no trace."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regraft.errors import RegraftError, ShapeError, StructureError, UsageError
from regraft.metrics import EnergyModel, count_connections, measure
from regraft.neurons import LIF, fold


def by_hand() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Conv 1 -> 2, 3x3 on 4x4 without padding (4 positions, computed once for 2 steps), then Linear 8 -> 3."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), LIF(steps=2, static=True), nn.Flatten(), nn.Linear(8, 3)
    )
    model[0].weight.data.fill_(1.0)
    model[4].weight.data.fill_(1.0)
    masks = {"0.weight": torch.zeros(2, 1, 3, 3).bool(), "4.weight": torch.zeros(3, 8).bool()}
    masks["0.weight"][0, 0, 0, :] = True  # 3 of 18: unit 0 sees three pixels, unit 1 nothing
    masks["4.weight"][:, 0] = True  # 6 of 24, two for each of the three outputs
    masks["4.weight"][:, 1] = True
    for name, mask in masks.items():
        model.get_parameter(name).data *= mask
    return model, masks


def test_densities_by_hand():
    model, masks = by_hand()
    got = measure(model, [torch.full((5, 1, 4, 4), 0.5)], topology=masks)
    assert [(c.name, c.existing, c.of) for c in got.connections] == [("0.weight", 3, 18), ("4.weight", 6, 24)]
    assert all(type(c.existing) is int for c in got.connections)
    assert got.densities.connections == 9 / 42
    assert got.parameters == (9 + 7, 42 + 7)  # BatchNorm 4, bias 3
    assert got.densities.parameters == 16 / 49
    assert [row.positions for row in got.operations] == [4, 1]
    assert got.densities.operations == (3 * 4 + 6) / (18 * 4 + 24)
    assert got.densities.synaptic is None


def test_operations_energy_and_the_t_fold_figure_by_hand():
    model, masks = by_hand()
    got = measure(model, [torch.full((5, 1, 4, 4), 0.5)], topology=masks)
    assert got.macs == 5 * 3 * 4  # 3 connections at 4 positions, once for both steps
    assert got.macs_if_repeated == 2 * got.macs
    assert [row.repeats for row in got.operations] == [2, 1]
    # 3 * 0.5 = 1.5 fires at both steps at all 4 places of unit 0; two of them have 3 connections each
    assert got.acs == got.acs_if_repeated == 5 * 2 * 2 * 3
    assert got.energy == pytest.approx(12 * 4.6 + 12 * 0.9)
    assert got.energy_if_repeated == pytest.approx(24 * 4.6 + 12 * 0.9)
    assert (got.energy_model.mac, got.energy_model.ac) == (4.6, 0.9)
    settable = measure(model, [torch.full((5, 1, 4, 4), 0.5)], topology=masks, energy=EnergyModel(1.5, 0.4, "fp16"))
    assert settable.energy == pytest.approx(12 * 1.5 + 12 * 0.4)
    text = str(settable)
    assert "1.5 pJ a MAC" in text
    assert "fp16" in text
    assert "memory traffic" in text


def test_a_layer_behind_the_first_neuron_is_not_repeated_even_if_steps_equal_the_batch():
    model, masks = by_hand()
    got = measure(model, [torch.full((2, 1, 4, 4), 0.5)], topology=masks)  # N = T = 2
    assert [row.repeats for row in got.operations] == [2, 1]


def test_relative_to_a_dense_run():
    model, masks = by_hand()
    sparse = measure(model, [torch.full((5, 1, 4, 4), 0.5)], topology=masks)
    dense = measure(model, [torch.full((10, 1, 4, 4), 0.5)], topology={k: torch.ones_like(m) for k, m in masks.items()})
    got = sparse.relative_to(dense).densities.synaptic
    assert got == ((sparse.acs + sparse.macs) / 5) / ((dense.acs + dense.macs) / 10)
    assert 0 < got < 1
    with pytest.raises(UsageError, match="no operations"):
        sparse.relative_to(measure(nn.Linear(2, 2), [torch.zeros(1, 2)]))


def test_rates_and_silent_units():
    model, masks = by_hand()
    got = measure(model, [torch.full((5, 1, 4, 4), 0.5)], topology=masks)
    (row,) = got.firing
    assert (row.name, row.units, row.silent, row.spikes, row.rate) == ("2", 2, 1, 5 * 2 * 4, 0.5)
    assert got.silent_layers == ()
    quiet = measure(model, [torch.full((5, 1, 4, 4), -0.5)], topology=masks)
    assert quiet.silent_layers == ("2",)
    assert quiet.firing[0].silent == 2
    assert got.neurons.removable == 1


def test_a_unit_that_fires_in_one_batch_only_is_not_silent():
    model = nn.Sequential(LIF(steps=1), nn.Linear(2, 1))
    got = measure(model, [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])])
    assert got.firing[0].silent == 1
    assert got.firing[0].rate == 1 / 4


def test_to_dict_is_json_and_the_table_names_everything():
    model, masks = by_hand()
    got = measure(model, [torch.rand(2, 1, 4, 4)], topology=masks)
    data = json.loads(json.dumps(got.to_dict()))
    assert data["existing"] == 9
    assert data["energy_model"]["mac"] == 4.6
    assert data["macs_if_repeated"] == 2 * data["macs"]
    for part in ("0.weight", "4.weight", "total", "rate", "4.6 pJ a MAC", "at each of 2 steps", "not counted"):
        assert part in str(got)


class Foreign(nn.Module):
    """One step of a network in the manner of snnTorch: the caller loops over time and hands the state around."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, 5)
        self.leaky = Leaky()
        self.fc2 = nn.Linear(5, 2)

    def forward(self, x, state):
        spikes, state = self.leaky(self.fc1(x), state)
        return self.fc2(spikes), state


class Leaky(nn.Module):
    def forward(self, x, state):
        state = 0.5 * state + x
        return (state > 0.5).float(), state


def loop(model, x):
    state, outputs = torch.zeros(x.shape[1], 5), []
    for frame in x:
        out, state = model(frame, state)
        outputs.append(out)
    return torch.stack(outputs)


def test_foreign_loop_is_summed_over_its_calls():
    torch.manual_seed(0)
    model, x = Foreign(), torch.randint(0, 2, (4, 6, 3)).float()  # [T, N, C]
    heard = []
    model.fc2.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    with torch.no_grad():
        loop(model, x)
    spikes = int(torch.stack(heard).sum())
    got = measure(model, [(x, torch.zeros(6))], forward=loop, steps=4)
    assert got.samples == 6
    assert [row.acs for row in got.operations] == [int(x.sum()) * 5, spikes * 2]
    assert [row.positions for row in got.operations] == [1, 1]
    assert [row.repeats for row in got.operations] == [1, 1]
    assert got.firing[0].spikes == spikes
    assert got.firing[0].units == 5
    assert got.neurons is not None
    assert got.neurons.layers[0].units == 5


def test_the_model_is_left_as_it_was():
    model, masks = by_hand()
    model.train()
    model[3].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    measure(model, [torch.rand(2, 1, 4, 4)], topology=masks)
    assert [m.training for m in model] == [True, True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_and_modes_restored_even_if_forward_raises():
    model, masks = by_hand()
    model.train()

    def broken(model, x):
        model(x)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        measure(model, [torch.rand(2, 1, 4, 4)], topology=masks, forward=broken)
    assert hooks(model) == 0
    assert model[1].training
    measure(model, [torch.rand(2, 1, 4, 4)], topology=masks)
    assert hooks(model) == 0


def test_no_graph_is_built():
    model, _ = by_hand()
    seen = []

    def spy(model, x):
        seen.append(model(x).requires_grad)

    measure(model, [torch.rand(2, 1, 4, 4)], forward=spy)
    assert seen
    assert not any(seen)


def test_limit_and_folded_events():
    model = nn.Sequential(nn.Linear(3, 4), LIF(steps=2), nn.Linear(4, 2))
    data = [(torch.ones(2, 5, 3), torch.zeros(5))] * 3
    got = measure(model, data, forward=lambda m, x: m(fold(x)), limit=2)
    assert got.samples == 10
    assert got.operations[0].acs == 10 * 2 * 3 * 4
    assert [row.repeats for row in got.operations] == [1, 1]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.hidden = nn.Conv2d(1, 1, 3)
        self.table = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        F.conv2d(x[:, None], self.hidden.weight)
        return self.attention(x, x, x)[0] @ self.table


def test_what_is_not_counted_is_said():
    notes = "\n".join(measure(Functional(), [torch.rand(2, 4, 4)]).notes)
    for part in ("attention.out_proj", "in_proj_weight", "hidden", "table"):
        assert part in notes


def test_graded_neurons_have_no_rate():
    class LIFNode(nn.Module):
        def forward(self, x):
            return x * 0.3

    got = measure(nn.Sequential(nn.Linear(2, 2), LIFNode()), [torch.rand(2, 2)])
    assert got.firing == ()
    assert any("no firing rate" in note for note in got.notes)


def test_neurons_by_users_name_or_class():
    class Odd(nn.Module):
        def forward(self, x):
            return (x > 0).float()

    model = nn.Sequential(nn.Linear(2, 2), Odd(), nn.Linear(2, 1))
    assert measure(model, [torch.rand(2, 2)]).firing == ()
    assert len(measure(model, [torch.rand(2, 2)], neurons=["Odd"]).firing) == 1
    assert len(measure(model, [torch.rand(2, 2)], neurons=[Odd]).firing) == 1


def test_masks_as_topology_mapping_or_none_and_shared_tensors():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), LIF(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    model[0].weight.data = torch.eye(3) + 1
    mask = torch.eye(3).bool()
    (row,) = count_connections(model, SimpleNamespace(masks={"0.weight": mask}))
    assert (row.existing, row.of) == (3, 9)
    (row,) = count_connections(model)
    assert (row.existing, row.of) == (9, 9)
    got = measure(model, [torch.ones(1, 3)], topology={"0.weight": mask})
    assert got.operations[0].acs == 3
    assert got.parameters == (3, 9)
    with torch.no_grad():
        spikes = int(model[:2](torch.ones(1, 3)).sum())
    assert got.operations[1].acs == spikes > 0


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: measure(nn.Linear(2, 2), []), UsageError, "no batch"),
        (lambda: measure(nn.Linear(2, 2), torch.ones(2, 2)), UsageError, "takes batches"),
        (lambda: measure(nn.Linear(2, 2), [torch.ones(1, 2)], limit=0), UsageError, "limit"),
        (lambda: measure(nn.Linear(2, 2), [torch.ones(1, 2)], steps=0), UsageError, "steps"),
        (lambda: count_connections(nn.Linear(2, 2), {"wieght": torch.ones(2, 2)}), StructureError, "'weight'"),
        (lambda: count_connections(nn.Linear(2, 2), {"weight": torch.ones(2, 3)}), ShapeError, "mask of weight"),
        (lambda: count_connections(nn.Linear(2, 2), 3), StructureError, "no masks"),
        (lambda: EnergyModel(mac=0.0), UsageError, "picojoules"),
    ],
)
def test_errors_say_what_is_wrong(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert isinstance(caught.value, RegraftError)


def test_a_network_may_be_called_like_a_neuron():
    def build(name: str) -> nn.Module:
        kind = type(name, (nn.Sequential,), {})
        torch.manual_seed(0)
        return kind(nn.Linear(6, 5), LIF(steps=2, static=True), nn.Linear(5, 3), LIF(steps=2))

    data = [(torch.randn(4, 6), torch.zeros(4))]
    plain, named = (measure(build(name), data).to_dict() for name in ("Net", "SNN"))
    assert plain == named
    assert [row["name"] for row in named["firing"]] == ["1", "3"]
