"""What other libraries count for the same sparse network, and the plain loop that decides."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from regraft.metrics import measure

_path = Path(__file__).parents[2] / "benchmarks" / "synops_vs_peers.py"
_spec = importlib.util.spec_from_file_location("synops_vs_peers", _path)
bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench)


def test_ours_is_the_plain_loop():
    model, x, masks = bench.network(0.1)
    truth = bench.by_loop(model, x, masks)
    assert truth > 0
    assert measure(model, [x], topology=masks).acs == truth
    assert measure(model, [x]).acs == truth  # no grown zero: w != 0 is the mask


@pytest.mark.peers
def test_spikingjelly_counts_absent_connections():
    pytest.importorskip("spikingjelly")
    model, x, masks = bench.network(0.1)
    theirs = bench.spikingjelly(model, x)
    assert theirs == bench.by_loop(model, x, {name: torch.ones_like(m) for name, m in masks.items()})
    assert theirs > 5 * measure(model, [x], topology=masks).acs


@pytest.mark.peers
def test_neurobench_agrees_where_no_connection_is_a_grown_zero():
    pytest.importorskip("neurobench")
    model, x, masks = bench.network(0.1)
    assert bench.neurobench(model, x) == measure(model, [x], topology=masks).acs
    grown = {name: torch.ones_like(m) for name, m in masks.items()}  # now there are many
    assert bench.neurobench(model, x) < measure(model, [x], topology=grown).acs


@pytest.mark.peers
def test_neurobench_sparsity_is_one_minus_our_density():
    pytest.importorskip("neurobench")
    model, x, masks = bench.network(0.1)
    got = measure(model, [x], topology=masks)
    assert bench.connection_sparsity(model) == pytest.approx(1 - got.densities.connections, abs=1e-3)


@pytest.mark.peers
def test_a_spikingjelly_network_is_measured():
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    torch.manual_seed(0)
    model = nn.Sequential(
        layer.Conv2d(1, 4, 3, bias=False), layer.BatchNorm2d(4), neuron.IFNode(v_threshold=0.1),
        layer.Flatten(), layer.Linear(64, 3, bias=False),
    )  # fmt: skip
    functional.set_step_mode(model, "m")
    model[4].weight.data[:, :16] = 0  # channel 0 goes nowhere

    def forward(net, x):
        functional.reset_net(net)
        return net(x)

    heard = []
    model[4].register_forward_pre_hook(lambda _, args: heard.append(args[0].detach()))
    x = (torch.rand(5, 2, 1, 6, 6) < 0.5).float()  # [T, N, C, H, W]
    got = measure(model, [(x, torch.zeros(2))], forward=forward, steps=5)
    spikes = heard[0]
    assert got.operations[1].acs == int(spikes[..., 16:].sum()) * 3
    assert got.operations[1].positions == 1
    assert got.operations[0].repeats == 1
    assert got.firing[0].units == 4
    assert got.firing[0].spikes == int(spikes.sum())
    assert got.neurons.removable == 1
    assert got.notes == ()


@pytest.mark.peers
def test_a_snntorch_loop_is_measured():
    snntorch = pytest.importorskip("snntorch")
    torch.manual_seed(0)
    model = nn.Module()
    model.fc1, model.lif, model.fc2 = nn.Linear(3, 6), snntorch.Leaky(beta=0.5, threshold=0.3), nn.Linear(6, 2)
    model.fc2.weight.data[:, 0] = 0

    def forward(net, x):
        memory, out = net.lif.init_leaky(), []
        for frame in x:
            spikes, memory = net.lif(net.fc1(frame), memory)
            out.append(net.fc2(spikes))
        return torch.stack(out)

    heard = []
    model.fc2.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach()))
    x = (torch.rand(4, 5, 3) < 0.5).float()
    got = measure(model, [(x, torch.zeros(5))], forward=forward)
    spikes = torch.stack(heard[:4])
    assert got.operations[0].acs == int(x.sum()) * 6
    assert got.operations[1].acs == int(spikes[..., 1:].sum()) * 2
    assert got.firing[0].spikes == int(spikes.sum())
    assert got.neurons.removable == 1
