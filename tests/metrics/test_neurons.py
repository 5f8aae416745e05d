"""Removable, constant and silent units against sets worked out by hand, and removal against the whole network."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regraft.errors import StructureError, UsageError
from regraft.metrics import inspect_neurons, remove_neurons
from regraft.models import dvsgesture, resnet_small, tiny_vgg
from regraft.neurons import IF, LIF

T = 3


def chain(*widths: int, bias: bool = True) -> nn.Sequential:
    """Linear - LIF - ... - Linear, weights 1, biases 0; the first neuron sees a static input T times."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs, bias=bias))
        nn.init.ones_(layers[-1].weight)
        if bias:
            nn.init.zeros_(layers[-1].bias)
        if index < len(widths) - 2:
            layers.append(LIF(steps=T, static=index == 0))
    return nn.Sequential(*layers)


def rows(report):
    return [(r.units, r.removable, r.constant, r.silent) for r in report.layers]


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_a_whole_network_has_nothing_to_remove():
    report = inspect_neurons(chain(2, 3, 4, 2), torch.ones(1, 2))
    assert rows(report) == [(3, 0, 0, 0), (4, 0, 0, 0)]
    assert report.opaque == ()


def test_no_outgoing_connection_and_what_led_there():
    model = chain(2, 3, 4, 2)
    model[4].weight.data[:, 0] = 0  # unit 0 of the second layer goes nowhere
    model[2].weight.data[1:, 2] = 0  # unit 2 of the first layer leads only there
    assert rows(inspect_neurons(model, torch.ones(1, 2))) == [(3, 1, 0, 0), (4, 1, 0, 0)]


def test_no_incoming_connection_silent_or_constant():
    model = chain(2, 3, 4, 2)
    model[0].weight.data[:2] = 0  # units 0 and 1 have no incoming connection
    model[0].bias.data[1] = 0.6  # 0.6, 0.9, 1.05: fires at the third step
    report = inspect_neurons(model, torch.ones(1, 2))
    assert rows(report) == [(3, 1, 1, 1), (4, 0, 0, 0)]


def test_firing_late_is_firing_and_one_step_fewer_is_silent():
    model = chain(1, 1, 1)
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(0.6)
    assert rows(inspect_neurons(model, torch.ones(1, 1))) == [(1, 0, 1, 0)]
    model[1].steps = 2
    assert rows(inspect_neurons(model, torch.ones(1, 1))) == [(1, 1, 0, 1)]


def test_fed_by_removed_units_only():
    model = chain(2, 3, 4, 2)
    model[0].weight.data[0] = 0  # removable
    model[2].weight.data[3] = torch.tensor([1.0, 0, 0])  # fed by that unit only
    assert rows(inspect_neurons(model, torch.ones(1, 2))) == [(3, 1, 0, 1), (4, 1, 0, 1)]
    model[0].bias.data[0] = 2.0  # now it fires: constant, and a connection from it is one
    assert rows(inspect_neurons(model, torch.ones(1, 2))) == [(3, 0, 1, 0), (4, 0, 0, 0)]


def test_a_constant_unit_that_nobody_reads_is_removable():
    model = chain(1, 2, 1)
    model[0].weight.data[0] = 0
    model[0].bias.data[0] = 2.0
    model[2].weight.data[:, 0] = 0
    assert rows(inspect_neurons(model, torch.ones(1, 1))) == [(2, 1, 0, 0)]


def test_silent_is_about_the_data_only():
    model = chain(2, 3, 2)
    model[0].weight.data[0] = torch.tensor([1.0, 0.0])
    x = torch.tensor([[0.0, 5.0]])
    assert rows(inspect_neurons(model, x)) == [(3, 0, 0, 1)]
    assert rows(inspect_neurons(model, [x, x.flip(1)])) == [(3, 0, 0, 0)]


def test_masks_decide_not_weights():
    model = chain(2, 3, 2)
    model[2].weight.data[:, 0] = 0
    masks = {name: torch.ones_like(p).bool() for name, p in model.named_parameters() if p.dim() > 1}
    assert inspect_neurons(model, torch.ones(1, 2)).removable == 1
    assert inspect_neurons(model, torch.ones(1, 2), masks=masks).removable == 0  # grown zeros


class Block(nn.Module):
    """x + branch(x), a neuron before and after: a unit without a connection into the branch still has the skip path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neuron1 = nn.Conv2d(1, 4, 3, padding=1), LIF(steps=T, static=True)
        self.conv1, self.neuron2 = nn.Conv2d(4, 5, 3, padding=1), LIF(steps=T)
        self.conv2, self.neuron3 = nn.Conv2d(5, 4, 3, padding=1), LIF(steps=T)
        self.readout = nn.Linear(4, 2)

    def forward(self, x):
        x = self.neuron1(self.stem(x))
        x = self.neuron3(self.conv2(self.neuron2(self.conv1(x))) + x)
        return self.readout(x.mean((2, 3)))


def test_skip_paths_count():
    torch.manual_seed(0)
    model = Block()
    x = torch.rand(2, 1, 5, 5)
    model.conv1.weight.data[:, 1] = 0  # unit 1 has the skip path only
    model.conv2.weight.data[:, 2] = 0  # unit 2 of the branch goes nowhere
    model.conv2.weight.data[3] = 0  # unit 3 behind the sum has the skip path only
    report = inspect_neurons(model, x)
    assert [r.removable for r in report.layers] == [0, 1, 0]
    model.readout.weight.data[:, 1] = 0
    assert [r.removable for r in inspect_neurons(model, x).layers] == [1, 1, 1]
    smaller = remove_neurons(model, x)
    assert smaller.conv1.out_channels == 4  # the block's own unit
    assert smaller.stem.out_channels == smaller.readout.in_features == 3  # the whole channel 1 of the stream


def test_a_tied_channel_goes_only_if_all_its_owners_go():
    torch.manual_seed(0)
    model = Block().double()
    x = torch.rand(2, 1, 5, 5).double()
    model.stem.weight.data[0] = 0  # silent without input, but the sum's channel 0 lives on the branch
    model.stem.bias.data[0] = 0
    assert [r.removable for r in inspect_neurons(model, x).layers] == [1, 0, 0]
    smaller = remove_neurons(model, x)
    assert smaller.stem.out_channels == 4
    torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=0)


# -- against plain sets ----------------------------------------------------------------------------------------------


def by_sets(weights, fires):
    """Removable units of a chain, from the definition alone: drop one at a time until none qualifies."""
    alive = [set(range(w.shape[0])) for w in weights[:-1]]
    again = True
    while again:
        again = False
        for layer, units in enumerate(alive):
            before = set(range(weights[0].shape[1])) if layer == 0 else alive[layer - 1]
            after = set(range(weights[-1].shape[0])) if layer == len(alive) - 1 else alive[layer + 1]
            for unit in sorted(units):
                incoming = any(weights[layer][unit][i] for i in before)
                outgoing = any(weights[layer + 1][o][unit] for o in after)
                if not outgoing or (not incoming and not fires[layer][unit]):
                    units.discard(unit)
                    again = True
    return [w.shape[0] - len(units) for w, units in zip(weights, alive, strict=False)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.15, 0.3, 0.5]))
def test_chains_equal_the_definition_and_removal_is_exact(seed, density):
    torch.manual_seed(seed)
    model = chain(4, 5, 6, 5, 3).double().eval()
    for layer in model[::2]:
        layer.weight.data = torch.rand_like(layer.weight) * (torch.rand_like(layer.weight) < density)
        layer.bias.data = torch.rand_like(layer.bias) - 0.3
    x, other = torch.rand(3, 4).double() * 2, torch.rand(20, 4).double() * 2 - 1
    fires = []
    for index in (1, 3, 5):
        fires.append(model[: index + 1](x).any(0).tolist())
    weights = [layer.weight.detach() != 0 for layer in model[::2]]
    report = inspect_neurons(model, x)
    assert [row.removable for row in report.layers] == by_sets([w.numpy() for w in weights], fires)
    smaller = remove_neurons(model, x)
    torch.testing.assert_close(smaller(other), model(other), rtol=0, atol=1e-13)
    assert sum(r.units for r in inspect_neurons(smaller, x).layers) >= sum(r.units - r.removable for r in report.layers)


# -- removal ---------------------------------------------------------------------------------------------------------


def sparse(model: nn.Module, density: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """Masks drawn at random, weights and normalisation such that some empty units fire and some do not."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, p in model.named_parameters():
        if p.dim() > 1:
            masks[name] = torch.rand(p.shape, generator=generator) < density
            p.data *= masks[name] / density**0.5
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.bias.data.normal_(0, 0.7, generator=generator)
    return masks


def spikes_of(model: nn.Module, x: torch.Tensor) -> list[int]:
    """Spikes of each channel that fires at all, of every neuron module, sorted: which channel is which may change."""
    counts = []
    handles = [
        m.register_forward_hook(lambda *a: counts.append(a[-1].movedim(1, 0).flatten(1).sum(1).tolist()))
        for m in model.modules()
        if isinstance(m, LIF)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize(
    ("make", "shape", "density"),
    [
        (lambda: tiny_vgg(), (3, 1, 8, 8), 0.02),
        (lambda: resnet_small(size=8, widths=(8, 12, 16), steps=2), (3, 3, 8, 8), 0.02),
        (lambda: dvsgesture(size=32, steps=2), (2, 1, 2, 32, 32), 0.002),
    ],
    ids=["tiny_vgg", "resnet_small", "dvsgesture"],
)
def test_own_networks_shrink_and_compute_the_same_to_the_spike(make, shape, density):
    torch.manual_seed(3)
    model = make().double().eval()
    masks = sparse(model, density)
    x, other = torch.rand(shape).double(), torch.rand(shape).double()
    report = inspect_neurons(model, x, masks=masks)
    assert report.opaque == ()
    assert report.removable > 0
    smaller = remove_neurons(model, x, masks=masks)
    assert type(smaller) is type(model)
    assert [n for n, _ in smaller.named_modules()] == [n for n, _ in model.named_modules()]
    assert list(smaller.state_dict()) == list(model.state_dict())
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(smaller(other), model(other), rtol=0, atol=1e-12)
    for few, many in zip(spikes_of(smaller, other), spikes_of(model, other), strict=True):
        for count in few:  # every channel that is left fires exactly as one of the whole network does
            many.remove(count)
    shapes = {n: b.shape for n, b in smaller.state_dict().items()}
    again = remove_neurons(smaller, x)
    assert {n: b.shape for n, b in again.state_dict().items()} == shapes


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, concatenation, a pre-activation normalisation, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n1 = nn.Conv2d(2, 4, 3, padding=1), LIF(steps=T, static=True)
        self.depth, self.n2 = nn.Conv2d(4, 8, 3, groups=4, padding=1), LIF(steps=T)
        self.up, self.n3 = nn.ConvTranspose2d(8, 6, 3, padding=1), LIF(steps=T)
        self.norm, self.point, self.n4 = nn.BatchNorm2d(14), nn.Conv2d(14, 6, 1), IF(steps=T)
        self.group, self.n5 = nn.Conv2d(6, 4, 3, groups=2), LIF(steps=T)
        self.readout = nn.Linear(4 * 16, 3)

    def forward(self, x):
        a = self.n2(self.depth(self.n1(self.stem(x))))
        b = self.n3(self.up(a))
        c = self.n4(self.point(self.norm(torch.cat([a, b], 1))))
        c = self.n5(self.group(c)).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return self.readout(c.flatten(1))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.3]))
def test_removal_is_exact_whatever_the_layers(seed, density):
    torch.manual_seed(seed)
    model = Mixed().double().eval()
    sparse(model, density, seed)
    x, other = torch.rand(2, 2, 6, 6).double(), torch.randn(3, 2, 6, 6).double()
    report = inspect_neurons(model, x)
    assert report.opaque == ()
    smaller = remove_neurons(model, x)
    torch.testing.assert_close(smaller(other), model(other), rtol=0, atol=1e-12)


def test_depthwise_channels_are_removed_whole():
    torch.manual_seed(0)
    model = Mixed().double()
    model.up.weight.data[2:4] = 0  # both maps of input channel 1 go nowhere upwards ...
    model.point.weight.data[:, 2:4] = 0  # ... nor forwards
    smaller = remove_neurons(model, torch.rand(1, 2, 6, 6).double())
    assert (smaller.depth.groups, smaller.depth.in_channels, smaller.depth.out_channels) == (3, 3, 6)
    assert (smaller.stem.out_channels, smaller.up.in_channels, smaller.norm.num_features) == (3, 6, 12)


def test_a_zero_that_normalisation_turns_into_something_stays():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), LIF(steps=1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1), LIF(steps=1),
        nn.Flatten(), nn.Linear(1, 1),
    ).double().eval()  # fmt: skip
    for name, p in model.named_parameters():
        if "2." not in name:
            nn.init.ones_(p)
    model[0].weight.data[0] = 0  # silent for ever, but the normalisation makes 3 of its 0
    model[2].bias.data[0] = 3.0
    x = torch.zeros(1, 1, 1, 1).double()
    assert inspect_neurons(model, x).layers[0].removable == 1
    smaller = remove_neurons(model, x)
    assert smaller[0].out_channels == 2
    torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=0)


def test_constant_units_stay_and_the_last_unit_of_a_layer_stays():
    model = chain(2, 2, 2).double()
    model[0].weight.data[:] = 0
    model[0].bias.data[0] = 2.0
    smaller = remove_neurons(model, torch.ones(1, 2).double())
    assert smaller[0].out_features == 1
    torch.testing.assert_close(smaller(torch.ones(1, 2).double()), model(torch.ones(1, 2).double()))
    model[0].bias.data[0] = 0.0  # now nothing is left
    assert inspect_neurons(model, torch.ones(1, 2).double()).removable == 2
    assert remove_neurons(model, torch.ones(1, 2).double())[0].out_features == 1


def test_the_original_is_not_touched_and_the_smaller_one_can_learn():
    model = chain(2, 3, 2)
    model[2].weight.data[:, 0] = 0
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    smaller = remove_neurons(model, torch.ones(1, 2))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert smaller.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in [*model.modules(), *smaller.modules()])
    smaller(torch.ones(1, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in smaller.parameters())


def test_neurons_with_a_value_for_each_channel_keep_their_width():
    model = chain(2, 3, 2)
    model[1].offset = nn.Parameter(torch.zeros(3))
    model[2].weight.data[:, 0] = 0
    assert inspect_neurons(model, torch.ones(1, 2)).removable == 1
    assert remove_neurons(model, torch.ones(1, 2))[0].out_features == 3


def test_a_layer_that_also_reads_the_input_keeps_its_width():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.neuron, self.last = nn.Linear(3, 3), LIF(), nn.Linear(3, 2)

        def forward(self, x):
            return self.last(self.neuron(self.shared(self.neuron(self.shared(x)))))

    model = Twice()
    model.shared.weight.data.fill_(1.0)[1] = 0
    model.shared.bias.data[1] = -1.0
    x = torch.ones(1, 3)
    assert inspect_neurons(model, x).removable == 1  # one module, one channel, wherever it is used
    smaller = remove_neurons(model, x)
    assert (smaller.shared.in_features, smaller.last.in_features) == (3, 3)
    torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=0)


def test_what_cannot_be_followed_counts_as_connected():
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.neuron, self.last = nn.Linear(2, 3), LIF(steps=T, static=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.last(self.neuron(self.first(x)).sort(1).values)

    model = Sorted()
    model.last.weight.data[:, 0] = 0
    report = inspect_neurons(model, torch.ones(1, 2))
    assert report.removable == 0
    assert report.opaque == ("sort",)
    assert "not followed: sort" in str(report)
    assert remove_neurons(model, torch.ones(1, 2)).first.out_features == 3


def test_a_loop_over_time_is_one_network():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.leaky, self.fc2 = nn.Linear(2, 4), Leaky(), nn.Linear(4, 3)

        def forward(self, x):
            state, out = torch.zeros(x.shape[0], self.fc1.out_features), []
            for _ in range(T):
                spikes, state = self.leaky(self.fc1(x), state)
                out.append(spikes)
            return self.fc2(torch.stack(out).flatten(0, 1)).unflatten(0, (T, -1)) + self.fc2(torch.cat(out)).mean(0)

    class Leaky(nn.Module):
        def forward(self, x, state):
            state = 0.5 * state + x
            return (state > 1).to(x.dtype), state

    torch.manual_seed(0)
    model, x = Loop(), torch.rand(5, 2)
    model.fc2.weight.data[:, 1] = 0
    model.fc1.weight.data[2] = 0
    model.fc1.bias.data[2] = 0
    report = inspect_neurons(model, x)
    assert [(r.units, r.removable) for r in report.layers] == [(4, 2)]
    assert report.opaque == ()
    smaller = remove_neurons(model, x)
    assert smaller.fc2.in_features == 2
    torch.testing.assert_close(smaller(x), model(x))


def test_silent_units_go_on_request_with_the_change_printed(capsys):
    model = chain(2, 3, 2)
    model[0].weight.data[0] = torch.tensor([1.0, 0.0])
    x = torch.tensor([[0.0, 5.0]])
    assert remove_neurons(model, x)[0].out_features == 3
    seen = []

    def evaluate(network):
        seen.append(network[0].out_features)
        return 0.5 if len(seen) == 1 else 0.25

    smaller = remove_neurons(model, [(x, torch.zeros(1))], also_silent=True, evaluate=evaluate)
    assert smaller[0].out_features == 2
    assert seen == [3, 2]
    assert "0.5000 -> 0.2500 (-0.2500)" in capsys.readouterr().out
    with pytest.raises(UsageError, match="evaluate="):
        remove_neurons(model, x, also_silent=True)


def test_what_leads_only_to_a_silent_unit_goes_with_it():
    model = chain(2, 2, 2, 2)
    model[2].weight.data[1] = torch.tensor([0.0, 0.1])  # too weak to fire
    model[2].weight.data[0] = torch.tensor([1.0, 0.0])
    x = torch.ones(1, 2)
    assert rows(inspect_neurons(model, x)) == [(2, 0, 0, 0), (2, 0, 0, 1)]
    smaller = remove_neurons(model, x, also_silent=True, evaluate=lambda network: 1.0)
    assert (smaller[0].out_features, smaller[2].out_features) == (1, 1)


def test_errors_say_what_is_wrong():
    with pytest.raises(StructureError, match="neurons="):
        inspect_neurons(nn.Linear(2, 2), torch.ones(1, 2))

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.neuron, self.last = nn.Conv2d(1, 3, 1), LIF(), nn.Linear(12, 2)

        def forward(self, x):
            return self.last(self.neuron(self.conv(x)).view(-1, 12))

    model = Fixed()
    model.last.weight.data[:, :4] = 0
    with pytest.raises(StructureError, match="relies on their number"):
        remove_neurons(model, torch.rand(1, 1, 2, 2))
